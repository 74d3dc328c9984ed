"""What each lever of a training step gives: how much longer a step of ours takes without it, all others at work."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from suites import steps
from suites.measuring import against, markdown, shown, take_turns
from suites.steps import OURS, PRECISIONS, Arm
from triune.training.environment import ONEDNN, TORCH


JOBS = ("mlm", "clm")
key = steps.key


@contextmanager
def all_logits(arm: Arm) -> Iterator[None]:
    options, arm.options = arm.options, {}
    yield
    arm.options = options


@contextmanager
def memory_given_back(arm: Arm) -> Iterator[None]:
    steps.give_memory_back()
    yield


@contextmanager
def other_attention(arm: Arm) -> Iterator[None]:
    """The one that was not chosen."""
    arm.use(arm.chosen._replace(attention={"sdpa": "eager", "eager": "sdpa"}[arm.chosen.attention]))
    yield
    arm.use(arm.chosen)


@contextmanager
def other_products(arm: Arm) -> Iterator[None]:
    arm.use(arm.chosen._replace(products={TORCH: ONEDNN, ONEDNN: TORCH}[arm.chosen.products]))
    yield
    arm.use(arm.chosen)


@contextmanager
def formula_for_gelu(arm: Arm) -> Iterator[None]:
    """GPT-2's, in the steps that transformers takes."""
    layers = arm.model.model.layers
    one_kernel = layers[0].mlp.act_fn
    for layer in layers:
        layer.mlp.act_fn = ACT2FN["gelu_new"]
    yield
    for layer in layers:
        layer.mlp.act_fn = one_kernel


@contextmanager
def plain_adamw(arm: Arm) -> Iterator[None]:
    arm.optimizer.param_groups[0]["fused"] = None
    yield
    arm.optimizer.param_groups[0]["fused"] = True


LEVERS = {
    "`loss_only=True`": all_logits,
    "`keep_memory`": memory_given_back,
    "attention by time": other_attention,
    "products by time": other_products,
    "one kernel for GELU": formula_for_gelu,
    "fused AdamW": plain_adamw,
}


def those_of(name: str, precision: str) -> dict[str, Callable]:
    """A lever that moves nothing here is left out: half precision has few products of float32, and only GPT-2 has the
    long formula."""
    unmoved = {"products by time"} if precision == "bf16" else set()
    unmoved |= {"one kernel for GELU"} if name != "clm" else set()
    return {lever: without for lever, without in LEVERS.items() if lever not in unmoved}


def turn_without(arm: Arm, without: Callable) -> Callable[[], float]:
    def turn() -> float:
        arm.enter()
        with without(arm):
            arm.step()
            return (arm.step() + arm.step()) / 2

    return turn


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    precisions = asked.precision
    for asked.precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            arm = steps.make_arms(name, asked, Path(folder), (OURS,))[OURS]
        turns = {lever: turn_without(arm, without) for lever, without in those_of(name, asked.precision).items()}
        seconds = take_turns({"all": arm.turn} | turns, asked.rounds)
        gains = {lever: against(seconds[lever], seconds["all"]) for lever in turns}
        yield {"job": name, "precision": asked.precision, "kernels": arm.words, "gains": gains}
    asked.precision = precisions


def table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        gains = (shown(row["gains"][lever]) if lever in row["gains"] else "" for lever in LEVERS)
        return [f"{row['job']}, {PRECISIONS[row['precision']]}", *gains]

    return markdown(["without it a step takes, times", *LEVERS], map(cells, rows))
