"""What a run leaves behind: a model folder that is ready for the Hub, figures, and a summary of what was reached.

    runs/bert/model/         weights, configuration, code, tokenizer or image processor, golden outputs, licence, card
    runs/bert/adapter/       after LoRA: what was trained, for PEFT; the model folder holds it merged
    runs/bert/figures/       every figure; those that the card shows are copied
    runs/bert/summary.json   what the card says, and what it was made from: it can be made again without the weights

Written in this order. The weights come first, and nothing that fails later takes them away; the summary comes last, so
a run that has one is complete, and one without goes through its end again.
"""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from triune.training import adapters, figures, report, state
from triune.training.console import before_after, clock, number, version
from triune.training.durable import replace_folder
from triune.training.folder import SUMMARY
from triune.training.hub import card, content, golden
from triune.training.loop import Loop
from triune.training.prediction import Saved, answers
from triune.training.tasks.task import Example


MAX_SHARD = "5GB"  # of weights in one file
ADAPTER = "adapter"  # beside the model folder
FIGURES, SAMPLES = "figures", "samples"  # folders of the model folder
EXAMPLE_TOKENS = 48  # that a beginning is continued by


def leave(loop: Loop, result: dict[str, Any]) -> None:
    """All of it, by the main process; and the end box."""
    if adapters.adapted(loop.bare):
        leave_adapter(loop, loop.folder / ADAPTER)
    model = write_model(loop, loop.folder / "model")
    if not loop.accelerator.is_main_process:
        return
    # the saved model, on one processor: whole, wherever and in how many parts it was trained
    saved = Saved(loop.task.name, loop.task.head.from_pretrained(model).eval(), loop.task.processor)
    drawn = write_figures(loop, saved, loop.folder / FIGURES)
    try:
        complete(loop, saved, result, model)
    except (ValueError, OSError) as error:  # the model is there, whatever becomes of its card
        loop.console.warning(f"the model folder is not complete: {error}")
    show_end(loop, result, model, drawn)


def leave_adapter(loop: Loop, folder: Path) -> None:
    """Saved, then merged: what follows sees an ordinary model."""
    base = loop.arguments.model.model_name_or_path
    adapters.save_adapter(loop.bare, folder, base, main=loop.accelerator.is_main_process)
    adapters.merge(loop.bare)


def write_model(loop: Loop, folder: Path) -> Path:
    """Weights, configuration, code, and the tokenizer or image processor. A card that was written on stays."""
    tensors = state.model_tensors(loop.bare, keep=loop.accelerator.is_main_process)

    def write(partial: Path) -> None:
        loop.bare.save_pretrained(partial, state_dict=tensors, max_shard_size=MAX_SHARD)
        loop.task.processor.save_pretrained(partial)
        if (folder / content.CARD).is_file():
            shutil.copyfile(folder / content.CARD, partial / content.CARD)

    if loop.accelerator.is_main_process:
        replace_folder(folder, write)
    loop.accelerator.wait_for_everyone()
    return folder


def write_figures(loop: Loop, saved: Saved, folder: Path) -> list[Path]:
    """The curves of every run, and what the task draws of its own."""
    if not figures.available():
        loop.console.note(figures.MISSING)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    records = report.read(loop.folder)
    drawn = figures.curves(records, loop.baselines, folder)
    rates = folder / "learning_rate_and_throughput.png"
    drawn.append(figures.learning_rate_and_throughput(records, rates, loop.task.unit))
    return [*drawn, *loop.task.figures(saved.model, loop.last_records, folder)]


# ---------------------------------------------------------------------------------------------------------------------
# What makes a model folder a page of the Hub


def complete(loop: Loop, saved: Saved, result: dict[str, Any], model: Path) -> None:
    golden.write(model)
    content.write_licence(model)
    recipe = yaml.safe_dump(loop.arguments.differing(), sort_keys=False, allow_unicode=True)
    (model / content.RECIPE).write_text(recipe, encoding="utf-8")
    found = summary(loop, result)
    found["pictures"] = copy_pictures(loop, model)
    found["examples"] = ask(saved, loop.task.examples(), model)
    card.write(loop.folder, found)
    report.replace(loop.folder / SUMMARY, json.dumps(found, indent=1) + "\n")


def copy_pictures(loop: Loop, model: Path) -> dict[str, str]:
    """The figures that the card shows, with their captions."""
    (model / FIGURES).mkdir(exist_ok=True)
    pictures = {name: says for name, says in loop.task.pictures.items() if (loop.folder / FIGURES / name).is_file()}
    for name in pictures:
        shutil.copyfile(loop.folder / FIGURES / name, model / FIGURES / name)
    return pictures


def ask(saved: Saved, examples: list[Example], model: Path) -> list[dict[str, Any]]:
    """What the model answers to each example, with the truth. Images are saved beside the model."""
    if not examples:
        return []
    inputs = [write_sample(model, place, example.input) for place, example in enumerate(examples)]
    found = []
    for example, answer in zip(examples, answers(saved, inputs, options_of(saved.task, examples))):
        if "image" in answer:
            answer["image"] = Path(answer["image"]).relative_to(model).as_posix()
        found.append({**answer, "label": example.label} if example.label is not None else answer)
    return found


def options_of(task: str, examples: list[Example]) -> dict[str, Any]:
    """Of a beginning some words more; of images the captions of all of them, to choose from."""
    known = {
        "causal_lm": {"max_new_tokens": EXAMPLE_TOKENS},
        "contrastive": {"labels": [example.label for example in examples], "template": ["{}"]},
    }
    return known.get(task, {})


def write_sample(model: Path, place: int, example: str | torch.Tensor) -> str:
    """A text as it is; of pixels the path of a PNG."""
    if isinstance(example, str):
        return example
    path = model / SAMPLES / f"{place}.png"
    path.parent.mkdir(exist_ok=True)
    pixels = example.squeeze(0) if example.shape[0] == 1 else example.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)


def summary(loop: Loop, result: dict[str, Any]) -> dict[str, Any]:
    progress, task, page = loop.progress, loop.task, loop.page
    done = progress.step / max(1, loop.settings.max_steps)
    return {
        "task": task.name,
        "recipe": loop.arguments.recipe and Path(loop.arguments.recipe).stem,
        "command": loop.arguments.command(page["world"]),
        "finished": date.today().isoformat(),
        "metrics": {name: report.plain(value) for name, value in result["metrics"].items()},
        "first": progress.first,
        "baselines": loop.baselines,
        "headline": task.headline,
        "step": progress.step,
        "weights_of_step": result["weights_of_step"],
        "reason": result["reason"],
        "seconds": progress.seconds,
        "units": progress.units,
        "unit": task.unit,
        "replaced": progress.replaced,
        "skipped": progress.skipped,
        "parameters": sum(parameter.numel() for parameter in loop.bare.parameters()),
        "flops": page["flops"] and round(page["flops"] * done),
        "hardware": hardware(page),
        "data": {"name": source(loop), "fingerprint": task.fingerprint, "description": described(loop)},
        "versions": {"triune": version(), **page["versions"]},
        **{name: page[name] for name in ("precision", "threads", "world")},
    }


def hardware(page: dict[str, Any]) -> str:
    return page["hardware"] if page["world"] == 1 else f"{page['world']} x {page['hardware']} ({page['launch']})"


def described(loop: Loop) -> list[str]:
    return [loop.arguments.without_folders(line) for line in loop.task.describe()]


def source(loop: Loop) -> str:
    """Where the data came from, without a path through someone's home."""
    shown = loop.arguments.differing()
    return next((str(shown[name]) for name in ("dataset_name", "train_file", "train_dir") if shown.get(name)), "")


# ---------------------------------------------------------------------------------------------------------------------


def show_end(loop: Loop, result: dict[str, Any], model: Path, drawn: list[Path]) -> None:
    progress, task = loop.progress, loop.task
    rows = before_after(progress.first, result["metrics"], loop.baselines)
    rows["weights"] = f"of step {result['weights_of_step']:,} of {progress.step:,} ({result['reason']})"
    rate = number(progress.units / max(progress.seconds, 1e-9))
    rows["time"] = f"{clock(progress.seconds)} of training, {rate} {task.unit} a second"
    if progress.replaced:
        rows["replaced"] = f"{progress.replaced:,} samples that could not be read; --verify_data lists them"
    if progress.skipped:
        rows["skipped"] = f"{progress.skipped:,} steps without a finite gradient"
    rows["model"] = f"{model}/" + (", with its card: README.md" if (model / content.CARD).is_file() else "")
    if loop.arguments.model.lora_rank is not None:
        rows["adapter"] = f"{loop.folder / ADAPTER}/, for PEFT; the model has it merged"
    rows["figures"] = f"{loop.folder / FIGURES}/ ({len(drawn)})"
    rows["numbers"] = f"{loop.folder / 'metrics.jsonl'}, metrics.csv"
    loop.console.end(rows, next_command=f"python scripts/predict.py {model}")
