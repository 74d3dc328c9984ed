"""Schedules against transformers' own, step by step, and their ends, order and errors."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import get_scheduler

from triune.training.schedules import SCHEDULES, factor


TOTAL, WARMUP, LR = 100, 13, 0.003
# Our options and the ones by which transformers' scheduler means the same.
SAME = [
    ("constant", {}, {}),
    ("constant_with_warmup", {}, {}),
    ("linear", {}, {}),
    ("cosine", {}, {}),
    ("cosine_with_min_lr", {}, {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.3}, {"min_lr": 0.3 * LR}),
    ("polynomial", {}, {"lr_end": 0.0}),
    ("polynomial", {"power": 2.0, "min_lr_rate": 0.1}, {"power": 2.0, "lr_end": 0.1 * LR}),
    ("inverse_sqrt", {}, {}),
    ("inverse_sqrt", {"timescale": 50}, {"timescale": 50}),
    ("warmup_stable_decay", {}, {"num_decay_steps": 20}),
    ("warmup_stable_decay", {"decay_fraction": 0.5}, {"num_decay_steps": 50}),
    (
        "warmup_stable_decay",
        {"decay_fraction": 0.31, "decay_type": "1-sqrt", "min_lr_ratio": 0.05},
        {"num_decay_steps": 31, "decay_type": "1-sqrt", "min_lr_ratio": 0.05},
    ),
    (
        "warmup_stable_decay",
        {"decay_type": "linear", "min_lr_ratio": 0.1},
        {"num_decay_steps": 20, "decay_type": "linear", "min_lr_ratio": 0.1},
    ),
]
FLOORS = {"cosine_with_min_lr": 0.1, "constant": 1.0, "constant_with_warmup": 1.0}
RISING = sorted(set(SCHEDULES) - {"constant"})


def curve(name, warmup=WARMUP, **options):
    return [factor(name, step, TOTAL, warmup, **options) for step in range(TOTAL + 1)]


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("name, options, theirs", SAME)
def test_equals_transformers(name, options, theirs, warmup):
    """Every step of a run against the learning rate of `get_scheduler`, to 1e-12."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = get_scheduler(name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=theirs)
    for step in range(TOTAL + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert math.isclose(LR * factor(name, step, TOTAL, warmup, **options), expected, rel_tol=0, abs_tol=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_rises_then_falls(name):
    """Never down before the end of the warm-up, never up after it, and within 0 and 1."""
    values = curve(name)
    assert all(one <= other for one, other in pairwise(values[: WARMUP + 1]))
    assert all(one >= other for one, other in pairwise(values[WARMUP:]))
    assert 0.0 <= min(values) and max(values) == 1.0


@pytest.mark.parametrize("name", RISING)
def test_ends_are_exact(name):
    """0 at the first step, 1 after the warm-up, the floor at the last step, and no surprise after it."""
    values = curve(name)
    assert values[0] == 0.0 and values[WARMUP] == 1.0 and curve(name, warmup=0)[0] == 1.0
    if name != "inverse_sqrt":  # it has no end
        assert values[-1] == FLOORS.get(name, 0.0) == factor(name, 3 * TOTAL, TOTAL, WARMUP)


def test_stable_part_is_level():
    """Warm-up, then exactly 1 until the last 30 % of the steps, with a floor at both ends."""
    values = curve("warmup_stable_decay", decay_fraction=0.3, min_lr_ratio=0.2)
    assert values[0] == values[-1] == 0.2
    assert set(values[WARMUP:71]) == {1.0} and values[71] < 1.0


def test_depends_on_nothing_but_its_arguments():
    """Any order of steps gives the same numbers; a warm-up of all steps and a run of one step have a curve."""
    steps = list(range(TOTAL + 1))
    backwards = [factor("cosine", step, TOTAL, WARMUP) for step in reversed(steps)]
    assert backwards[::-1] == curve("cosine")
    assert [factor("linear", step, 4, 4) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    for name in SCHEDULES:
        assert factor(name, 0, 1) == 1.0


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("cosin", 0, 10), {}, r"lr_scheduler_type='cosin' is not allowed: .*constant, .*did you mean 'cosine'\?"),
        (("cosine_with_min_lr", 0, 10), {"min_lr": 0.1}, "has no option 'min_lr'; did you mean 'min_lr_rate'"),
        (("linear", 0, 10), {"power": 2}, "lr_scheduler_type='linear' has no option 'power'; it has none"),
        (("polynomial", 0, 10), {"min_lr_rate": 1.5}, "min_lr_rate=1.5 is not allowed: it must be from 0 to 1"),
        (("inverse_sqrt", 0, 10), {"timescale": 0}, "timescale=0 is not allowed: it must be from 1 to inf"),
        (("linear", 0, 0), {}, "max_steps=0 is not allowed"),
        (("linear", 0, 10, 11), {}, "warmup_steps=11 is not allowed: it must be from 0 to max_steps=10"),
        (("linear", 0, 10, -1), {}, "warmup_steps=-1 is not allowed"),
        (("linear", -1, 10), {}, "step=-1 is not allowed"),
        (("warmup_stable_decay", 0, 10, 9), {}, "warmup_steps=9 and decay_fraction=0.2 of 10 steps overlap"),
        (("warmup_stable_decay", 0, 10), {"decay_type": "sqrt"}, "decay_type='sqrt' .*linear, cosine, 1-sqrt.*1-sqrt"),
    ],
)
def test_errors(arguments, options, message):
    """What is wrong, its value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        factor(*arguments, **options)
