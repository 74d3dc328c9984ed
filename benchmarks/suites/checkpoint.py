"""How long training stands still for a checkpoint, beside accelerate's `save_state`: weights and AdamW's moments."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from suites.measuring import against, markdown, shown, take_turns
from triune.configuration import preset
from triune.modeling import TriuneForCausalLM
from triune.training.environment import keep_memory
from triune.training.state import checkpoints, load_checkpoint, save_checkpoint
from triune.training.writing import Writer


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
JOBS = {"30M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 8192}}
AFTER = 6  # steps that follow, beside which ours is written


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    keep_memory()
    model = TriuneForCausalLM(preset("gpt2", **(SMALL if asked.quick else JOBS[name])))
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
    ids = torch.randint(0, 100, (4, 128))
    writer = Writer(copies=True)

    def step() -> None:
        model(ids, labels=ids, loss_only=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def arm(save):
        """(seconds until the next step may begin, seconds until some steps later)"""

        def run() -> tuple[float, float]:
            step()
            begun = time.perf_counter()
            save()
            stalled = time.perf_counter() - begun
            for _ in range(AFTER):
                step()
            whole = time.perf_counter() - begun
            writer.wait()
            return stalled, whole

        return run

    with tempfile.TemporaryDirectory(dir=".") as folder:
        number = iter(range(1, 10**6))
        place = Path(folder)
        arms = {
            "default": arm(lambda: accelerator.save_state(str(place / "accelerate"))),
            "ours": arm(lambda: save_checkpoint(place, next(number), model, optimizer, {}, writer=writer)),
            "nothing": arm(lambda: None),
        }
        for one in arms.values():
            one()
        found = take_turns(arms, asked.rounds)
        load_checkpoint(checkpoints(place)[-1], model, optimizer)  # what was written is whole
    stalls, wholes = ({whose: [pair[part] for pair in one] for whose, one in found.items()} for part in (0, 1))
    lost = {
        whose: statistics.median(with_it - without for with_it, without in zip(wholes[whose], wholes["nothing"]))
        for whose in ("default", "ours")
    }
    yield {
        "job": name,
        "parameters": sum(one.numel() for one in model.parameters()),
        "stall": {whose: statistics.median(stalls[whose]) for whose in ("default", "ours")},
        "against_default": against(stalls["default"], stalls["ours"]),
        "lost": lost,
    }


def key(row: dict[str, Any]) -> tuple:
    return row["job"]


def table(rows: list[dict[str, Any]]) -> str:
    titles = ["parameters", "stall against `save_state`", "seconds of stall: theirs, ours"]
    titles.append(f"seconds lost after {AFTER} more steps: theirs, ours")

    def cells(row):
        stalls, lost = (
            ", ".join(f"{row[part][whose]:.2f}" for whose in ("default", "ours")) for part in ("stall", "lost")
        )
        return [row["job"], shown(row["against_default"]), stalls, lost]

    return markdown(titles, map(cells, rows))
