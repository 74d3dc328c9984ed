"""What the recipes reach, over seeds: every figure that the README or a card quotes comes from a file written here.

    make results                            # all of it: more than an hour on two idle cores; goes on where it stopped
    python benchmarks/recipes.py nsp probe  # some of it, and what they need
    python benchmarks/recipes.py --seeds 0  # one seed of each
    python benchmarks/recipes.py --list     # what is there, and what is missing

A result is an ordinary run, `scripts/train.py recipes/<name>.yaml --seed ...`, or one that goes on from the model of
another; its last evaluation is kept, with the baselines measured on the same data. Runs are added one by one to
`benchmarks/results/recipes.json`; one that is there with the same settings is not run again, one that was interrupted
goes on. `ahead` says by how many spreads the mean is better than the baseline that it has to beat.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from triune.training.arguments import parse
from triune.training.console import METRICS, percent
from triune.training.environment import versions
from triune.training.folder import SUMMARY
from triune.training.report import read, replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
RUNS = ROOT / "runs" / "results"
SEEDS = (0, 1, 2)
FOLDS = tuple({"fold": fold} for fold in range(5))
Run = dict[str, Any]


class Result(NamedTuple):
    """What is measured of a recipe, and what it has to be better than."""

    recipe: str
    metric: str
    says: str
    baseline: str  # one of the run's own, as a pattern; or another result
    flags: tuple[tuple[str, Any], ...] = ()  # over the recipe
    after: str | None = None  # the result whose model it goes on from,
    takes: str = "model_name_or_path"  # with all of it, or with its tokenizer alone
    parts: tuple[dict[str, int], ...] = ({},)  # what is varied beside the seed
    further: tuple[tuple[str, str], ...] = ()  # more metrics, and what they are


VIT_WITH_CLS = (
    "{hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, norm: layernorm, pooling: cls, "
    "embedding: {patch_size: 2, cls_token: true}}"
)
MEASURED = {
    "bert": Result(
        "bert",
        "accuracy",
        "masked accuracy at 15 %, vocabulary of 512",
        "most frequent token",
        further=(("loss", "loss in nats"),),
    ),
    "gpt": Result("gpt", "bits_per_character", "bits per character", "unigram entropy"),
    "llama": Result("llama", "bits_per_character", "the same, with Llama's parts", "unigram entropy"),
    "modern": Result("modern", "bits_per_character", "the same, with what came after Llama", "unigram entropy"),
    "vit": Result("vit", "accuracy", "accuracy on `digits`, mean of five folds", "k-NN", parts=FOLDS),
    "vit-cls": Result(
        "vit",
        "accuracy",
        "the same for one fold, with a CLS token in place of the mean",
        "majority class",
        flags=(("config", VIT_WITH_CLS),),
        parts=FOLDS[:1],
    ),
    "letters": Result("letters", "accuracy", "accuracy on `letters`, in fonts never seen", "k-NN"),
    "nsp": Result(
        "nsp",
        "nsp_accuracy",
        "whether a text follows another, on topics never seen",
        "coin",
        further=(("mlm_loss", "masked tokens, loss in nats"),),
    ),
    "scratch": Result(
        "classifier",
        "accuracy",
        "100 passages classified, from scratch",
        "majority class",
        after="nsp",
        takes="tokenizer_name",
    ),
    "tuned": Result("finetuning/classifier", "accuracy", "the same, fine-tuned from `nsp`", "scratch", after="nsp"),
    "tuned-decay": Result(
        "finetuning/classifier",
        "accuracy",
        "the same, lower layers slower",
        "scratch",
        flags=(("layer_decay", 0.5),),
        after="nsp",
    ),
    "tuned-head": Result(
        "finetuning/classifier",
        "accuracy",
        "the same, with the encoder frozen",
        "majority class",
        flags=(("freeze", r"^model\."), ("learning_rate", 0.01)),
        after="nsp",
    ),
    "copy": Result("copy", "exact_match", "strings copied exactly, of lengths seen", "most frequent target"),
    "reverse": Result("reverse", "exact_match", "strings reversed exactly", "source as it is"),
    "names": Result("names", "chrf", "chrF of a function's name, from its docstring", "rarest word"),
    "t5": Result("t5", "word_loss", "words of hidden spans, loss in nats", "unigram entropy"),
    "mae": Result("mae", "psnr", "hidden patches of photographs", "mean of the visible"),
    "mae-digits": Result("mae-digits", "psnr", "hidden patches of `digits`", "mean of the visible", parts=FOLDS[:1]),
    "probe": Result(
        "finetuning/probe",
        "accuracy",
        "`digits` by a linear map on what `mae-digits` sees",
        "logistic regression",
        after="mae-digits",
        parts=FOLDS[:1],
    ),
    "clip": Result(
        "clip",
        "retrieval_at_1",
        "the caption of an image among 100, things never seen together",
        "which things, not how they stand",
        further=(("zero_shot_accuracy", "zero-shot accuracy over classes"),),
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Running


def name_of(name: str, seed: int, part: dict[str, int]) -> str:
    return "-".join([name, f"seed{seed}", *(f"{key}{value}" for key, value in part.items())])


def words(name: str, seed: int, part: dict[str, int]) -> list[str]:
    """The command line of a run, behind `scripts/train.py`."""
    result = MEASURED[name]
    flags = {**dict(result.flags), "seed": seed, **part, "output_dir": RUNS / name_of(name, seed, part)}
    if result.after:
        flags[result.takes] = RUNS / name_of(result.after, seed, part) / "model"
    given = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [f"recipes/{result.recipe}.yaml", *given]


def settings(name: str, seed: int, part: dict[str, int]) -> str:
    """What a run was told, and the run before it, as a digest: another one is another run."""
    told = parse(words(name, seed, part)).differing()
    after = MEASURED[name].after
    told["after"] = settings(after, seed, part) if after else None
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def train(name: str, seed: int, part: dict[str, int]) -> Run:
    """One run: its last evaluation, its time, and what it was compared with."""
    result, folder = MEASURED[name], RUNS / name_of(name, seed, part)
    if result.after and not (RUNS / name_of(result.after, seed, part) / SUMMARY).is_file():
        train(result.after, seed, part)
    note = folder.with_suffix(".settings")  # of the run that lies there, complete or not
    if not note.is_file() or note.read_text() != settings(name, seed, part):
        shutil.rmtree(folder, ignore_errors=True)
        RUNS.mkdir(parents=True, exist_ok=True)
        note.write_text(settings(name, seed, part))
    fresh = not folder.exists()
    start = time.perf_counter()
    command = [sys.executable, "scripts/train.py", *words(name, seed, part)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    last = [record for record in read(folder) if record["kind"] == "eval" and record["full"]][-1]
    metrics = {key: value for key, value in last.items() if key not in ("kind", "full", "step", "seconds")}
    return {
        **{"seed": seed, **part, "settings": settings(name, seed, part), **metrics},
        "wall_seconds": seconds if fresh else None,  # of a run in one piece
        "training_seconds": last["seconds"],
        "baselines": json.loads((folder / "environment.json").read_text())["baselines"],
    }


def key(run: Run) -> tuple[int, int]:
    return run["seed"], run.get("fold", 0)


def kept(results: dict, name: str) -> dict[tuple[int, int], Run]:
    """The runs that are there already and would come out the same."""
    found = results.get(name, {}).get("runs", [])
    varied = MEASURED[name].parts[0]
    return {
        key(run): run
        for run in found
        if run["settings"] == settings(name, run["seed"], {part: run[part] for part in varied})
    }


def measure(name: str, seeds: list[int]) -> None:
    """The runs of a result that are missing, each written down as it ends."""
    for seed in seeds:
        for part in MEASURED[name].parts:
            results = load()
            runs = kept(results, name)
            if (seed, part.get("fold", 0)) in runs:
                continue
            run = train(name, seed, part)
            print(name, {field: value for field, value in run.items() if field != "baselines"}, flush=True)
            runs = sorted([*runs.values(), run], key=key)
            results[name] = {"summary": summary(runs), "runs": runs, "versions": versions(), "cores": os.cpu_count()}
            RESULTS.parent.mkdir(exist_ok=True)
            replace(RESULTS, json.dumps(results, indent=1) + "\n")


def load() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


# ---------------------------------------------------------------------------------------------------------------------
# Over the seeds


def over_seeds(pairs: list[tuple[int, float]]) -> dict[str, float | None]:
    """Mean over all runs, and the spread (standard deviation) over seeds of the mean of a seed's parts."""
    seeds = sorted({seed for seed, _ in pairs})
    means = [statistics.fmean(value for own, value in pairs if own == seed) for seed in seeds]
    spread = statistics.stdev(means) if len(means) > 1 else None
    return {
        "mean": statistics.fmean(value for _, value in pairs),
        **{"spread": spread, "lowest": min(means), "highest": max(means)},
    }


def summary(runs: list[Run]) -> dict[str, dict[str, float | None]]:
    numbers = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {
        name: over_seeds([(run["seed"], run[name]) for run in runs if run.get(name) is not None]) for name in numbers
    }


def baselines(results: dict, name: str, metric: str) -> dict[str, float]:
    """The mean of each over the runs; k-NN is given for the best k."""
    found: dict[str, list[float]] = {}
    for run in results[name]["runs"]:
        for other, value in run["baselines"].get(metric, {}).items():
            found.setdefault(re.sub(r"^\d+-NN", "k-NN", other), []).append(value)
    own = {other: statistics.fmean(values) for other, values in found.items()}
    against = MEASURED[name].baseline
    return {**own, against: results[against]["summary"][metric]["mean"]} if against in MEASURED else own


def ahead(results: dict, name: str) -> float:
    """By how many spreads the mean is better than the baseline."""
    result = MEASURED[name]
    found = results[name]["summary"][result.metric]
    better = found["mean"] - baselines(results, name, result.metric)[result.baseline]
    return (-better if METRICS[result.metric].lower_is_better else better) / max(found["spread"], 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# As the README shows it


def shown(metric: str, value: float) -> str:
    if METRICS[metric].text is percent:
        return f"{value:.2%}"
    return {"psnr": f"{value:.2f} dB", "chrf": f"{value:.1f}"}.get(metric, f"{value:.3f}")


def row(results: dict, name: str, metric: str, says: str) -> str:
    found = results[name]["summary"][metric]
    mean, spread, low, high = (shown(metric, found[part]) for part in ("mean", "spread", "lowest", "highest"))
    others = ", ".join(f"{other} {shown(metric, value)}" for other, value in baselines(results, name, metric).items())
    time = f"{results[name]['summary']['wall_seconds']['mean']:.0f} s"
    return f"| `{name}` | {says} | **{mean}** ± {spread} | {low}, {high} | {others} | {time} |"


def table(results: dict) -> str:
    """Markdown: a line for each result that is there, and for each of its metrics."""
    lines = [
        "| result | measured on held-out data | mean ± spread | lowest, highest seed | baselines | a run |",
        "|---|---|---|---|---|---|",
    ]
    there = {name: result for name, result in MEASURED.items() if name in results}
    rows = [(name, result.metric, result.says) for name, result in there.items()]
    rows += [(name, metric, says) for name, result in there.items() for metric, says in result.further]
    return "\n".join([*lines, *(row(results, *one) for one in rows)])


def state(results: dict) -> Iterator[str]:
    """What is there, and what is missing."""
    for name, result in MEASURED.items():
        count, wanted = len(kept(results, name)), len(SEEDS) * len(result.parts)
        spreads = min(ahead(results, name), 1000) if count == wanted else None  # two runs may be equal to the digit
        margin = "" if spreads is None else f"  {spreads:.1f} spreads ahead of {result.baseline}"
        yield f"{name:12} {count:2} of {wanted:2}{margin}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="*", help=f"of {', '.join(MEASURED)}; default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--list", action="store_true", help="what is there, and what is missing")
    parser.add_argument("--table", action="store_true", help="what is there, as the README shows it")
    asked = parser.parse_args()
    unknown = [name for name in asked.results if name not in MEASURED]
    if unknown:
        parser.error(f"there is no result {unknown[0]!r}; there are {', '.join(MEASURED)}")
    os.chdir(ROOT)
    if asked.table:
        return print(table(load()))
    for name in [] if asked.list else asked.results or MEASURED:
        measure(name, asked.seeds)
    return print("\n".join(state(load())))


if __name__ == "__main__":
    main()
