"""The page of a model on the Hub: what `hub_cards/template.md` says of the facts of a run.

    text = render(read(Path("runs/bert")), "user/bert", revision="v1", former=text)

Notable: it is made again whenever the run changes; what people wrote on it stays (`kept`). Numbers come from the files
of the run, sentences from the template, and every string that a user may have chosen passes `markdown` on its way.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from triune.configuration import TriuneMAEConfig, TriuneSeq2SeqConfig
from triune.training.answering.go_on import DRAWN
from triune.training.console import number, percent, quantity, shown
from triune.training.hub import kept
from triune.training.hub.architecture import architecture, sides
from triune.training.hub.content import CARD, GOLDEN
from triune.training.hub.facts import BUNDLED, Facts, Spread, of
from triune.training.hub.markdown import (
    Markdown,
    address,
    as_yaml,
    code,
    environment,
    fence,
    inline,
    one_line,
    picture,
    table,
)
from triune.training.hub.metadata import HUB, MAIN, is_hub_name
from triune.training.hub.metadata import metadata as head_of
from triune.training.report import replace


TEMPLATES = Path(__file__).resolve().parents[2] / "hub_cards"
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)

# Figures in which no piece of the data can be seen; of any other it is taken for granted.
WITHOUT_DATA = frozenset(
    f"figures/{name}.png"
    for name in (
        *("loss", "accuracy", "perplexity", "bits_per_character", "top5_accuracy", "macro_f1", "confusion_matrix"),
        *("learning_rate_and_throughput", "positions"),
    )
)
CURVES = "loss.png"  # belongs to the training; other pictures to what was reached

DOES = {
    "TriuneModel": "Turns {inputs} into vectors",
    "TriuneForMaskedLM": "Fills in hidden words of a text, which it reads from both sides, as BERT does",
    "TriuneForPreTraining": "Fills in hidden words and says whether one text follows another, as BERT was trained",
    "TriuneForCausalLM": "Continues a text, which it reads from left to right, as GPT does",
    "TriuneForImageClassification": "Names what an image shows, one of {classes} classes, as ViT does",
    "TriuneForSequenceClassification": "Sorts texts into {classes} classes",
    "TriuneForTokenClassification": "Sorts the tokens of a text into {classes} classes",
    "TriuneSeq2SeqModel": "Turns a text into vectors, each of which has also seen the text that it is made from",
    "TriuneForConditionalGeneration": "Writes a text from another one, which it reads from both sides, as T5 does",
    "TriuneForMaskedImageModeling": "Draws what is hidden of an image from the rest of it, as MAE does",
    "TriuneCLIPModel": "Says how well texts fit an image, in words that it is given when it is asked, as CLIP does",
}
GAPS = "span_corruption"  # a task whose model writes another thing than its head says
FILLS_GAPS = "Writes what was cut out of a text, which it reads from both sides, as T5 was trained"
MEANINGS = {
    "loss": "the mean of −ln p(right answer), in nats",
    "perplexity": "exp(loss)",
    "bits_per_character": "−log₂ p of a text, divided by its characters",
    "accuracy": "the share of answers that are right",
    "top5_accuracy": "the share with the right answer among the five likeliest",
    "macro_f1": "the mean of the classes' F1",
    "mlm_loss": "that of hidden tokens",
    "mlm_accuracy": "the share of hidden tokens that are found",
    "word_loss": "that of the hidden words alone",
    "word_accuracy": "the share of hidden words that are found, by their tokens",
    "nsp_loss": "that of the verdicts on pairs of texts: does the second follow the first?",
    "nsp_accuracy": "the share of verdicts that are right",
    "psnr": "how far the mean squared error of the hidden patches lies below full brightness, in decibels",
    "retrieval_at_1": "the share of images whose own caption fits best, and of captions whose own image does, among "
    "those of up to 100 held-out pairs",
    "image_to_text_at_1": "of images alone",
    "text_to_image_at_1": "of captions alone",
    "zero_shot_accuracy": "the share of images that are named right among all classes, by prompts alone",
    "exact_match": "the share of texts that are written as they should be, to the letter",
    "bleu": "of 100, how far words and their runs of up to four are those of the right text",
    "chrf": "of 100, how far letters and their runs of up to six are those of the right text",
}
LOSSES = {  # where it is another one
    "TriuneForPreTraining": "the sum of the two below, each the mean of −ln p(right answer), in nats",
    "TriuneForMaskedImageModeling": "the mean squared error of the hidden patches, on the scale of the drawing",
}
PRECISIONS = {
    "no": "float32",
    "bf16": "bfloat16 products, float32 weights",
    "fp16": "float16 products, float32 weights",
}
FAMILY = "Triune: one transformer backbone that is BERT, GPT and ViT, chosen by configuration"
SMALL = 50_000_000  # parameters, below which a model is rather studied than used
RECOGNISABLE = 24  # pixels of an image's side, from which on it is worth showing as it is
LIKELY = 0.001  # the score of a further answer that is worth telling
MOST_CLASSES = 30  # that are listed


def shows_data(path: str) -> bool:
    """Whether a file of a model's repository lets a piece of the data be seen."""
    return path.startswith("samples/") or (path.startswith("figures/") and path not in WITHOUT_DATA)


# Of a page that is there: what people wrote on it, and the revision that it tells its readers to load.
hand_written, revision = kept.hand_written, kept.revision


# ---------------------------------------------------------------------------------------------------------------------
# What it is


def duration(seconds: float) -> str:
    """For a sentence: 79 seconds, 4.3 minutes."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "about a second"


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def does(facts: Facts) -> str:
    if facts.task == GAPS:
        return FILLS_GAPS
    inputs = "texts" if facts.reads_text else "images"
    return DOES[facts.head].format(inputs=inputs, classes=len(facts.classes))


# ---------------------------------------------------------------------------------------------------------------------
# What it answers


def likely(answers: list[dict[str, Any]], name: str = "label") -> Markdown:
    """`yes` 91.2%, `no` 8.8%"""
    shown = [one for place, one in enumerate(answers[:3]) if place == 0 or one["score"] >= LIKELY]
    return Markdown(", ".join(f"{code(one[name].strip())} {percent(one['score'])}" for one in shown))


def label(example: dict[str, Any]) -> Markdown:
    return code(example.get("label", ""))


def sample(facts: Facts, path: str) -> Markdown:
    """An image; where it is too small to be recognised, a link to it."""
    shown_as = "!" if min(sides(facts.images)) >= RECOGNISABLE else ""
    return Markdown(f"{shown_as}[{inline(path)}]({address(path)})")


# Columns, and what stands in them.
ANSWERED = {
    "TriuneForMaskedLM": (
        ("text", "the model's words", "was hidden"),
        lambda facts, one: (
            one["text"],
            Markdown("; ".join(likely(mask, "token_str") for mask in one["masks"])),
            label(one),
        ),
    ),
    "TriuneForCausalLM": (
        ("beginning", "the model goes on"),
        lambda facts, one: (one["text"], one["continuation"]),
    ),
    "TriuneForImageClassification": (
        ("image", "shows", "the model says"),
        lambda facts, one: (sample(facts, one["image"]), label(one), likely(one["top"])),
    ),
    "TriuneForSequenceClassification": (
        ("text", "belongs to", "the model says"),
        lambda facts, one: (one["text"], label(one), likely(one["top"])),
    ),
    "TriuneForPreTraining": (
        ("two texts", "the model's words", "of the second text it says", "the truth"),
        lambda facts, one: (
            one["text"].replace("\t", " | "),
            Markdown("; ".join(likely(mask, "token_str") for mask in one["masks"])),
            likely([one["verdict"]]) if "verdict" in one else "",
            label(one),
        ),
    ),
    "TriuneForConditionalGeneration": (
        ("text", "the model writes", "was to be written"),
        lambda facts, one: (one["text"], one.get("written", ""), one.get("label", "")),
    ),
    "TriuneForMaskedImageModeling": (
        ("image", "what was hidden of it is drawn with a PSNR of"),
        lambda facts, one: (sample(facts, one["image"]), f"{one['psnr']:.1f} dB"),
    ),
    "TriuneCLIPModel": (
        ("image", "shows", "the model says"),
        lambda facts, one: (sample(facts, one["image"]), label(one), likely(one["top"])),
    ),
}


def answered(facts: Facts) -> Markdown | None:
    """Inputs and answers as a table; None where none are recorded."""
    if not facts.examples:
        return None
    columns, cells = ANSWERED[facts.head]
    return table(columns, [cells(facts, one) for one in facts.examples])


# ---------------------------------------------------------------------------------------------------------------------
# How good it is


def measured(facts: Facts) -> Markdown | None:
    """Each metric beside what it was before training, over seeds, and for those who know less. Columns without a
    number are left out."""
    if not facts.metrics:
        return None
    seeds = f"mean ± sd of {over(facts)}"
    columns = ("on held-out data", "this model", "before training", seeds, "to compare with")
    rows = [metric_row(facts, name) for name in facts.summary["metrics"]]
    used = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return table([columns[place] for place in used], [[row[place] for place in used] for row in rows])


def over(facts: Facts) -> str:
    """3 seeds"""
    if facts.seeds is None:
        return ""
    return f"{facts.seeds.count} seeds" + (f" of {facts.seeds.parts} folds" if facts.seeds.parts > 1 else "")


def plus_minus(text: Callable[[float], str], spread: Spread) -> str:
    """A mean and its deviation, to the same digit."""
    mean = text(spread.mean)
    if mean.endswith("%"):
        return f"{mean} ± {text(spread.deviation)}"
    return f"{mean} ± {spread.deviation:.{len(mean.partition('.')[2])}f}"


def metric_row(facts: Facts, name: str) -> list[Any]:
    label, text, lower = shown(name)
    value = text(facts.metrics[name]) if name in facts.metrics else "not finite"
    first = facts.summary.get("first", {}).get(name)
    spread = facts.seeds.metrics.get(name) if facts.seeds else None
    return [
        f"{label} {'↓' if lower else '↑'}",
        Markdown(f"**{value}**") if name == facts.headline else value,
        "" if first is None else text(first),
        "" if spread is None else plus_minus(text, spread),
        ", ".join(f"{other} {text(reached)}" for other, reached in baselines(facts, name).items()),
    ]


def baselines(facts: Facts, name: str) -> dict[str, float]:
    found = facts.summary.get("baselines", {}).get(name, {})
    return {other: value for other, value in found.items() if value is not None}


def meanings(facts: Facts) -> str:
    known = MEANINGS | ({"loss": LOSSES[facts.head]} if facts.head in LOSSES else {})
    found = "; ".join(f"{shown(name).label}: {known[name]}" for name in facts.metrics if name in known)
    return f"{found[0].upper()}{found[1:]}." if found else ""


def not_beaten(facts: Facts) -> list[str]:
    """The baselines that reach as much, with what they reach."""
    if facts.headline is None:
        return []
    own, (_, text, lower) = facts.metrics[facts.headline], shown(facts.headline)
    sign = -1 if lower else 1
    return [
        f"{name} ({text(value)})"
        for name, value in baselines(facts, facts.headline).items()
        if text(value) == text(own) or sign * value > sign * own
    ]


def one_after_another(words: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---------------------------------------------------------------------------------------------------------------------
# How it was trained


def trained(facts: Facts) -> Markdown | None:
    """The run, in rows; None where no run is known."""
    found = facts.summary
    rows = {
        "data, SHA-256": code(found.get("data", {}).get("fingerprint", "")),
        "steps": steps(found),
        "seen": seen(found),
        "time": duration(found["seconds"]) if found.get("seconds") else "",
        "hardware": ", ".join(filter(None, (found.get("hardware", ""), threads(found)))),
        "precision": PRECISIONS.get(found.get("precision"), found.get("precision", "")),
        "compute": compute(found),
        "left out": left_out(found),
        "versions": ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items()),
    }
    lines = [(name, says) for name, says in rows.items() if says]
    return table(("finished", found.get("finished", "")), lines) if lines else None


def steps(found: dict[str, Any]) -> str:
    if "step" not in found:
        return ""
    best = found.get("weights_of_step", found["step"])
    which = f"; the weights are those of step {best:,}, which was best" if best != found["step"] else ""
    return f"{found['step']:,}" + (f" ({found['reason']})" if found.get("reason") else "") + which


def seen(found: dict[str, Any]) -> str:
    if not found.get("units"):
        return ""
    unit = found.get("unit", "samples")
    rate = f", {number(found['units'] / found['seconds'])} a second" if found.get("seconds") else ""
    return f"{number(found['units'])} {unit}{rate}"


def threads(found: dict[str, Any]) -> str:
    """Of one process."""
    count = found.get("threads", 0) if found.get("world", 1) == 1 else 0
    return plural(count, "thread") if count else ""


def compute(found: dict[str, Any]) -> str:
    energy = "energy was not measured"
    return f"{quantity(found['flops'], 'FLOP')} forward and backward; {energy}" if found.get("flops") else ""


def left_out(found: dict[str, Any]) -> str:
    kinds = {
        "replaced": "samples that could not be read, each replaced by another",
        "skipped": "steps whose gradient was not finite",
    }
    return "; ".join(f"{found[name]:,} {says}" for name, says in kinds.items() if found.get(name))


def settings(facts: Facts) -> Markdown | None:
    """What differs from the defaults: a recipe."""
    return fence(as_yaml(facts.settings), "yaml") if facts.settings else None


# ---------------------------------------------------------------------------------------------------------------------
# Snippets, as ruff formats them

LINE, INDENT = 119, "    "


def quoted(text: str) -> str:
    """A literal: double quotes, unless single ones have less to escape."""
    mark = "'" if text.count('"') > text.count("'") else '"'
    letters = "".join(repr(letter)[1:-1] for letter in text)
    return mark + letters.replace(mark, f"\\{mark}") + mark


def assigned(name: str, value: str) -> Markdown:
    """A line; where it is too long and the value by itself is not, the value has a line of its own."""
    alone = f"{INDENT}{value}"
    broken = len(f"{name} = {value}") > LINE >= len(alone)
    return Markdown(f"{name} = (\n{alone}\n)" if broken else f"{name} = {value}")


def listed(name: str, texts: list[str]) -> Markdown:
    """A list of strings: a line, or one for each of them."""
    line = f"{name} = [{', '.join(map(quoted, texts))}]"
    broken = "".join(f"{INDENT}{quoted(text)},\n" for text in texts)
    return Markdown(line if len(line) <= LINE else f"{name} = [\n{broken}]")


BETTER = '  # better: a commit id from "Files and versions": it pins weights and code'
NEW_TOKENS = 40  # that a snippet asks for
ONCE, GAP = "Once upon a time", "Once upon a <extra_id_0> there was a king."  # where no input may be shown
LABELS = ["a text that fits", "a text that does not"]


def names(facts: Facts, name: str, revision: str | None, example: dict[str, Any] | None) -> dict[str, Any]:
    """How snippets name the model and what they give to it."""
    hub, text, image = is_hub_name(name), (example or {}).get("text"), (example or {}).get("image", "")
    pinned = f"revision = {quoted(revision or MAIN)}{'' if revision else BETTER}"
    lines = [assigned("name", quoted(name)), *([pinned] if hub else [])]
    found = f"hf_hub_download(name, {quoted(image)}, revision=revision)" if hub else f"name + {quoted(f'/{image}')}"
    return {
        "hub": hub,
        "where": Markdown("\n".join(lines)),
        "at": Markdown("name, revision=revision" if hub else "name"),
        "text": assigned("text", quoted(text or (GAP if facts.task == GAPS else ONCE))),
        "pair": listed("texts", text.split("\t")) if text and text.count("\t") == 1 else None,
        "labels": listed("labels", [one["label"] for one in (example or {}).get("top", [])] or LABELS),
        "classes_needed": Markdown(", ".join(sorted((facts.auto_class, facts.processor)))),
        "fetched": bool(hub and image),
        "file": Markdown(found if image else quoted("a picture of yours.png")),
    }


def new_tokens(facts: Facts) -> int:
    """That a snippet asks for: behind a beginning as long, or of a target of its own."""
    if isinstance(facts.config, TriuneSeq2SeqConfig):
        return min(NEW_TOKENS, facts.config.decoder.max_position_embeddings - 1)
    return min(NEW_TOKENS, (facts.texts.max_position_embeddings or 0) // 2) if facts.reads_text else 0


# ---------------------------------------------------------------------------------------------------------------------
# The page


def pictures(facts: Facts, examples: bool) -> dict[str, list[Markdown]]:
    """With their captions, by the place where they stand: the first is the main one."""
    recorded = facts.summary.get("pictures", {})
    shown = {name: says for name, says in recorded.items() if examples or not shows_data(f"figures/{name}")}
    found: dict[str, list[Markdown]] = {"main": [], "reached": [], "training": []}
    for name, says in shown.items():
        place = "training" if name == CURVES else "reached"
        found[place if found["main"] else "main"].append(
            Markdown(f"{picture(f'figures/{name}', says)}\n\n*{inline(says)}*")
        )
    return found


def title(facts: Facts, name: str) -> str:
    return name.split("/")[1] if is_hub_name(name) else facts.title


def citation(facts: Facts, name: str) -> Markdown:
    """BibTeX; of names, what means nothing to it."""
    plain = re.compile(r"[^\w .,:+/-]", re.ASCII)
    title_words, year = plain.sub("", title(facts, name)), plain.sub("", facts.summary.get("finished", "")[:4])
    version = plain.sub("", facts.summary.get("versions", {}).get("triune", ""))
    owner = name.split("/")[0] if is_hub_name(name) else ""
    model = {"title": title_words, "author": owner, "year": year, "url": f"{HUB}/{name}" if owner else ""}
    family = {"title": FAMILY, "version": version, "year": year}
    key = re.sub(r"\W+", "-", title_words, flags=re.ASCII).strip("-").lower() or "model"
    return fence(f"{entry('misc', key, model)}\n\n{entry('software', 'triune', family)}", "bibtex")


def entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", ",\n".join(lines), "}"])


def context(facts: Facts, name: str, revision: str | None, examples: bool) -> dict[str, Any]:
    """What the template speaks of."""
    from triune.training.hub.golden import snippet

    accuracy = facts.metrics.get("accuracy")
    return {
        **names(facts, name, revision, facts.examples[0] if facts.examples and examples else None),
        "facts": facts,
        "title": title(facts, name),
        "does": does(facts),
        "size": f"{number(facts.parameters)} parameters" if facts.parameters else "",
        "small": facts.parameters is not None and facts.parameters < SMALL,
        "duration": duration(facts.summary["seconds"]) if facts.summary.get("seconds") else "",
        "architecture": architecture(facts),
        "bundled": BUNDLED.get(facts.settings.get("dataset_name", "")),
        "classes": Markdown(", ".join(map(code, facts.classes[:MOST_CLASSES]))),
        "more_classes": max(0, len(facts.classes) - MOST_CLASSES),
        "answered": answered(facts) if examples else None,
        "example": bool(facts.examples) and examples,
        "described": list(facts.summary.get("data", {}).get("description", [])),
        "temperature": str(DRAWN["temperature"]),
        "new_tokens": new_tokens(facts),
        "pictures": pictures(facts, examples),
        "measured": measured(facts),
        "meanings": meanings(facts),
        "headline": shown(facts.headline).label if facts.headline else "",
        "not_beaten": one_after_another(not_beaten(facts)),
        "wrong": None if accuracy is None else round(1000 * (1 - accuracy)),
        "command": fence(one_line(facts.summary["command"]), "bash") if facts.summary.get("command") else None,
        "trained": trained(facts),
        "settings": settings(facts),
        "image": " x ".join(map(str, sides(facts.images))) if facts.reads_images else None,
        "grey": facts.reads_images and facts.images.embedding["num_channels"] == 1,
        "gaps": facts.task == GAPS,
        "hidden": f"{facts.config.mask_ratio:.0%}" if isinstance(facts.config, TriuneMAEConfig) else "",
        "golden": GOLDEN,
        "verify": fence(snippet(name, (revision or MAIN) if is_hub_name(name) else None, facts.auto_class), "python"),
        "citation": citation(facts, name),
    }


def metadata(
    facts: Facts,
    name: str,
    former: str | None = None,
    examples: bool = True,
    license: str | None = None,
    language: str | None = None,
) -> ModelCardData:
    """What the Hub reads, as it stands above the page."""
    return head_of(facts, name, kept.split(former)[0] if former else None, examples, license, language)


def render(
    facts: Facts,
    name: str,
    revision: str | None = None,
    former: str | None = None,
    examples: bool = True,
    license: str | None = None,
    language: str | None = None,
) -> str:
    """The page of a model. `name`: user/model, or its folder. `revision`: what its snippets load; None: the newest,
    with a word on why that is not best. `former`: the page that this one replaces. Without `examples` it shows nothing
    that was held out, only what was measured on it."""
    if revision is not None and not REVISION.fullmatch(revision):
        raise ValueError(f"revision={revision!r} is not allowed: it must be the name of a tag, or a commit")
    pinned = revision if is_hub_name(name) else None
    head = metadata(facts, name, former, examples, license, language)
    own = kept.taken_over(former)
    page = context(facts, name, pinned, examples) | {"license": head.license}
    page["yours"] = {part: kept.part(part, own.get(part, "\n")) for part in kept.PARTS}
    body = template().render(page)
    return f"---\n{as_yaml(head.to_dict())}\n---\n{kept.first_comment(body, pinned)}{body}"


@cache
def template() -> jinja2.Template:
    return environment(TEMPLATES).get_template("template.md")


def local_name(folder: Path) -> str:
    """How a page names the folder that it lies in: by the way there, if that begins here."""
    inside = folder.resolve().is_relative_to(Path.cwd().resolve())
    return f"./{folder.resolve().relative_to(Path.cwd().resolve()) if inside else folder.name}"


def write(run: Path, summary: dict[str, Any]) -> Path:
    """The page of a run that is just complete, into its model folder; what was written on it stays."""
    target = Path(run) / "model" / CARD
    former = target.read_text(encoding="utf-8") if target.is_file() else None
    replace(target, render(of(Path(run), summary), local_name(target.parent), former=former))
    return target
