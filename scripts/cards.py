"""The pages of the released models, and the page of the collection, in `hub_cards/`:

    python scripts/cards.py bert=runs/demo-bert gpt=runs/demo-gpt    # take these runs over, then write all pages
    python scripts/cards.py                                          # write all pages again from what is committed

Of a run, `hub_cards/<name>/` keeps what its page is made from and what the page shows: summary.json, run.yaml,
config.json, pictures. What the recipe reaches over seeds comes from `benchmarks/results/recipes.json`. What was
written on a page by hand stays.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from triune.training.console import number, shown
from triune.training.hub import card, facts, metadata
from triune.training.hub.markdown import Markdown, environment, inline, picture, table
from triune.training.report import replace as write


ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "hub_cards"
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
OWNER = "USER"
# The three first, then those that are made of two stacks; the others behind them.
ORDER = (
    *("TriuneForMaskedLM", "TriuneForCausalLM", "TriuneForImageClassification", "TriuneForPreTraining"),
    *("TriuneForConditionalGeneration", "TriuneForMaskedImageModeling", "TriuneCLIPModel"),
)


# ---------------------------------------------------------------------------------------------------------------------
# Taking a run over


def take_over(name: str, run: Path, cards: Path = CARDS) -> None:
    """What the page of a run is made from, and what it shows."""
    found = facts.read(run)
    if not found.summary:
        raise ValueError(f"{str(run)!r} has no {facts.SUMMARY}: it is no run that is complete")
    model, folder = facts.places(run)[0], cards / name
    shows = [f"figures/{file}" for file in found.summary.get("pictures", {})]
    shows += [example["image"] for example in found.examples if "image" in example]
    for old in ("figures", "samples"):
        shutil.rmtree(folder / old, ignore_errors=True)
    for path in shows:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / path, folder / path)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model / facts.CONFIG, folder / facts.CONFIG)
    write(folder / facts.SUMMARY, json.dumps(found.summary, indent=1) + "\n")
    write(folder / facts.RUN, yaml.safe_dump(found.settings, sort_keys=False, allow_unicode=True))


def asked(argv: list[str]) -> Iterator[tuple[str, Path]]:
    """name=run, ..."""
    for word in argv:
        name, _, run = word.partition("=")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or not run:
            raise ValueError(
                f"{word!r} is not name=run, as in bert=runs/demo-bert; names are small letters and digits"
            )
        yield name, Path(run)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def read(folder: Path) -> facts.Facts:
    """What a folder says of a model, and what its recipe reaches over seeds."""
    found = facts.read(folder)
    runs = json.loads(RESULTS.read_text(encoding="utf-8")).get(found.summary.get("recipe"), {}).get("runs", [])
    if len({run["seed"] for run in runs}) < 2:
        return found
    measured = [(run["seed"], {name: run[name] for name in found.metrics if name in run}) for run in runs]
    return replace(found, seeds=facts.over_seeds(measured))


def released(cards: Path = CARDS) -> dict[str, facts.Facts]:
    """Every model with a page, by its name."""
    folders = sorted(file.parent for file in cards.glob(f"*/{facts.SUMMARY}"))
    models = {folder.name: read(folder) for folder in folders}
    place = {head: place for place, head in enumerate(ORDER)}
    return dict(sorted(models.items(), key=lambda item: place.get(item[1].head, len(ORDER))))


def page(name: str, model: facts.Facts, cards: Path = CARDS) -> str:
    file = cards / name / card.CARD
    former = file.read_text(encoding="utf-8") if file.is_file() else None
    return card.render(model, f"{OWNER}/triune-{name}", former=former)


COLUMNS = ("model", "task", "parameters", "data", "on held-out data", "beside", "trained in")


def row(name: str, model: facts.Facts) -> list[Any]:
    label, text, lower = shown(model.headline)
    reached = f"{label} {text(model.metrics[model.headline])}"
    if model.seeds and model.headline in model.seeds.metrics:
        reached += f"; {card.over(model)}: {card.plus_minus(text, model.seeds.metrics[model.headline])}"
    others = card.baselines(model, model.headline)
    best = (min if lower else max)(others, key=others.get, default=None)
    return [
        Markdown(f"[triune-{name}]({name}/README.md)"),
        model.pipeline_tag or metadata.TASKS[model.task_type].lower(),
        number(model.parameters),
        model.data,
        reached,
        f"{best} {text(others[best])}" if best else "",
        card.duration(model.summary.get("seconds", 0)),
    ]


def gallery(models: dict[str, facts.Facts]) -> str:
    """The page of the collection."""
    sections = []
    for name, model in models.items():
        main, says = next(iter(model.summary.get("pictures", {}).items()), (None, ""))
        sections.append(
            {
                "link": Markdown(f"[triune-{name}]({name}/README.md)"),
                "does": card.does(model),
                "picture": picture(f"{name}/figures/{main}", says) if main else Markdown(""),
                "says": inline(says),
            }
        )
    return (
        environment(CARDS)
        .get_template("gallery.md")
        .render(
            owner=Markdown(OWNER),
            models=table(COLUMNS, [row(name, model) for name, model in models.items()]),
            shown=sections,
            example=Markdown(next(iter(models), "bert")),
        )
    )


def pages(cards: Path = CARDS) -> dict[Path, str]:
    """Every page with its place."""
    models = released(cards)
    found = {cards / name / card.CARD: page(name, model, cards) for name, model in models.items()}
    return {**found, cards / card.CARD: gallery(models)}


def main(argv: list[str]) -> int:
    try:
        for name, run in list(asked(argv)):
            take_over(name, run)
        for file, text in pages().items():
            write(file, text)
            print(file.relative_to(ROOT))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
