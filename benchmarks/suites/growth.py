"""How the time of a step grows with the length of a row, with width and with depth, beside its operations."""

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from suites.measuring import markdown, take_turns, timed
from triune.configuration import preset
from triune.modeling import TriuneForCausalLM
from triune.training.environment import keep_memory


BASE = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 2048, "length": 256}
JOBS = {
    "length": [64, 128, 256, 512, 1024, 2048],
    "hidden_size": [128, 256, 512, 1024],
    "num_hidden_layers": [2, 4, 8, 16],
}


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    keep_memory()
    values = JOBS[name][: 2 if asked.quick else None]
    arms, operations = {}, []
    for value in values:
        sizes = {**BASE, name: value}
        length = sizes.pop("length")
        heads = max(2, sizes["hidden_size"] // 64)
        config = preset("gpt2", **sizes, num_attention_heads=heads, max_position_embeddings=length)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        model, ids = TriuneForCausalLM(config).to(asked.device), torch.randint(0, 2048, (4, length)).to(asked.device)

        def step(model=model, ids=ids) -> None:
            model(ids, labels=ids, loss_only=True).loss.backward()
            model.zero_grad()

        step()
        with FlopCounterMode(display=False) as counter:
            step()
        scores = (
            12 * config.num_hidden_layers * config.hidden_size * length**2 * len(ids)
        )  # a kernel it cannot see into
        operations.append(counter.get_total_flops() + scores)
        arms[value] = timed(step)
    seconds = [statistics.median(one) for one in take_turns(arms, asked.rounds).values()]
    slopes = {"measured": slope(values, seconds), "operations": slope(values, operations)}
    yield {"job": name, "values": values, "seconds": seconds, "operations": operations, "exponents": slopes}


def slope(values: list[int], costs: list[float]) -> float:
    """The exponent of growth, of the last doubling alone: what large sizes come to."""
    return math.log(costs[-1] / costs[-2]) / math.log(values[-1] / values[-2])


def key(row: dict[str, Any]) -> tuple:
    return row["job"]


NAMES = {"length": "tokens in a row", "hidden_size": "width", "num_hidden_layers": "layers"}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and operations, each in parts of the smallest: where they run side by side, the machine does as many
    operations a second as before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(JOBS), figsize=(9, 3.2), constrained_layout=True)
    measured = {row["job"]: row for row in rows}
    for panel, (job, name) in zip(panels, NAMES.items()):
        row = measured[job]
        for what, label, style in (("operations", "operations", "--"), ("seconds", "time", "o-")):
            costs = [cost / row[what][0] for cost in row[what]]
            panel.loglog(
                row["values"], costs, style, label=label, color="0.5" if style == "--" else "C0", markersize=4
            )
        panel.set_xticks(row["values"], [str(value) for value in row["values"]])
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel(name)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("times the smallest")
    panels[0].legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        ends = f"{row['values'][0]} to {row['values'][-1]}"
        seconds = ", ".join(f"{one:.2g}" for one in row["seconds"])
        return [row["job"], ends, seconds, *(f"{row['exponents'][what]:.2f}" for what in ("measured", "operations"))]

    return markdown(["with", "from, to", "seconds", "exponent at the end: time", "operations"], map(cells, rows))
