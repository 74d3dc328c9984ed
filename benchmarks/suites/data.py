"""Samples a second that reach a training step, from data that is prepared: text beside `datasets` with transformers'
collators, images beside their image processor. One process, no workers."""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, ViTConfig, ViTImageProcessorPil

from suites.measuring import against, markdown, shown, take_turns, timed
from triune.configuration import preset
from triune.training.arguments import parse
from triune.training.loading import training_steps
from triune.training.sampling import Plan
from triune.training.tasks import TASKS


BATCH = 32
STEPS = {"masked text": 30, "text": 30, "images": 4}


def our_batches(task, steps: int) -> Iterator:
    plan = Plan(samples=len(task.train), per_device=BATCH)
    return training_steps(task, plan, seed=0, first_step=0, last_step=steps, rank=0, workers=0)


def used(batches: Iterator, steps: int) -> None:
    for batch in itertools.islice(batches, steps):
        assert batch


def text_arms(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Rows of 128 tokens of the bundled text, masked or not."""
    kind = "masked_lm" if name == "masked text" else "causal_lm"
    task = TASKS[kind](parse(["--task", kind, "--dataset_name", "pydocs", "--fast_fp32", "no"]))
    ids = task.train.stream.ids
    table = Dataset.from_dict({"input_ids": ids[: len(ids) // 128 * 128].view(-1, 128).tolist()})
    collate = DataCollatorForLanguageModeling(task.processor, mlm=kind == "masked_lm")

    def theirs() -> None:
        used(iter(DataLoader(table, batch_size=BATCH, shuffle=True, collate_fn=collate)), steps)

    return {"default": theirs, "ours": lambda: used(our_batches(task, steps), steps)}


def image_arms(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """JPEG files of 320 x 240 to 224 x 224."""
    draw = np.random.default_rng(0)
    for number in range(BATCH * 4):
        small = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        file = folder / f"class-{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(file, quality=90)
    flags = ["--train_dir", str(folder), "--validation_split_percentage", "5", "--preset", "vit-b16"]
    task = TASKS["image_classification"](parse(["--task", "image_classification", *flags]))
    task.prepare(preset("vit-b16", num_labels=2))
    processor, files = ViTImageProcessorPil(size=ViTConfig().image_size), sorted(folder.rglob("*.jpg"))

    def collate(some: list[Path]) -> dict[str, torch.Tensor]:
        return processor([Image.open(one).convert("RGB") for one in some], return_tensors="pt")

    def theirs() -> None:
        endless = itertools.cycle(DataLoader(files, batch_size=BATCH, shuffle=True, collate_fn=collate))
        used(endless, steps)

    return {"default": theirs, "ours": lambda: used(our_batches(task, steps), steps)}


JOBS = {"masked text": text_arms, "text": text_arms, "images": image_arms}


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    steps = 2 if asked.quick else STEPS[name]
    with tempfile.TemporaryDirectory() as folder:
        arms = JOBS[name](name, steps, Path(folder))
        for arm in arms.values():
            arm()
        seconds = take_turns({whose: timed(arm) for whose, arm in arms.items()}, asked.rounds)
    yield {
        "job": name,
        "samples_per_second": {whose: steps * BATCH / statistics.median(one) for whose, one in seconds.items()},
        "against_default": against(seconds["default"], seconds["ours"]),
    }


def key(row: dict[str, Any]) -> tuple:
    return row["job"]


def table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        speeds = ", ".join(f"{row['samples_per_second'][whose]:,.0f}" for whose in ("default", "ours"))
        return [row["job"], shown(row["against_default"]), speeds]

    return markdown(["samples", "against theirs", "samples a second: theirs, ours"], map(cells, rows))
