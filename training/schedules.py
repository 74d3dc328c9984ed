"""The learning rate as a function of the step: no object, no state, nothing to save or to step in the wrong place.

`factor(name, step, total, warmup, **options)` is what the highest learning rate is multiplied by at a step, counted
from 0. Names, options and numbers are those of transformers' `get_scheduler`, with three differences: a floor is a
share of the highest rate and never a rate, the decay of `warmup_stable_decay` is a share of all steps, and after the
last step the factor stays where it is.
"""

import math
from collections.abc import Callable
from typing import Any

from triune.configuration.configuration_triune import nearest


# ---------------------------------------------------------------------------------------------------------------------
# The way up and the way down


def rise(step: float, warmup: int) -> float:
    """From 0 to 1 in a straight line, and 1 from then on."""
    return min(1.0, step / warmup) if warmup else 1.0


def progress(step: float, start: float, end: float) -> float:
    """How much of the way from one step to another lies behind, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def half_wave(share: float) -> float:
    """From 1 to 0 on half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def above(floor: float, height: float) -> float:
    """Heights from 0 to 1 become heights from the floor to 1, both ends exactly."""
    return floor * (1.0 - height) + height


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": half_wave,
    "1-sqrt": lambda share: 1.0 - math.sqrt(share),
}

# ---------------------------------------------------------------------------------------------------------------------
# The schedules: (step, total, warmup, options of its own) -> factor


def constant(step: float, total: int, warmup: int) -> float:
    return 1.0


def constant_with_warmup(step: float, total: int, warmup: int) -> float:
    return rise(step, warmup)


def linear(step: float, total: int, warmup: int) -> float:
    return rise(step, warmup) * (1.0 - progress(step, warmup, total))


def cosine(step: float, total: int, warmup: int) -> float:
    return rise(step, warmup) * half_wave(progress(step, warmup, total))


def cosine_with_min_lr(step: float, total: int, warmup: int, *, min_lr_rate: float = 0.1) -> float:
    return rise(step, warmup) * above(min_lr_rate, half_wave(progress(step, warmup, total)))


def polynomial(step: float, total: int, warmup: int, *, power: float = 1.0, min_lr_rate: float = 0.0) -> float:
    return rise(step, warmup) * above(min_lr_rate, (1.0 - progress(step, warmup, total)) ** power)


def inverse_sqrt(step: float, total: int, warmup: int, *, timescale: int | None = None) -> float:
    timescale = timescale or warmup or 10_000
    return rise(step, warmup) / math.sqrt(1.0 + max(0, step - warmup) / timescale)


def warmup_stable_decay(
    step: float,
    total: int,
    warmup: int,
    *,
    decay_fraction: float = 0.2,
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
) -> float:
    """Up, level, and down over the last `decay_fraction` of all steps; the way up starts at the floor, too."""
    start = total - round(decay_fraction * total)
    if start < warmup:
        raise ValueError(
            f"warmup_steps={warmup} and decay_fraction={decay_fraction:g} of {total} steps overlap: "
            f"the decay starts at step {start}"
        )
    if decay_type not in DECAYS:
        raise ValueError(
            f"decay_type={decay_type!r} is not allowed: it must be one of {', '.join(DECAYS)}"
            f"{nearest(decay_type, DECAYS)}"
        )
    return above(min_lr_ratio, rise(step, warmup) * DECAYS[decay_type](progress(step, start, total)))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_min_lr": cosine_with_min_lr,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
}

# What an option may be: lowest, highest
RANGES = {
    "min_lr_rate": (0.0, 1.0),
    "min_lr_ratio": (0.0, 1.0),
    "decay_fraction": (0.0, 1.0),
    "power": (0.0, math.inf),
    "timescale": (1, math.inf),
}


def factor(name: str, step: float, total: int, warmup: int = 0, **options: Any) -> float:
    """The factor of the learning rate at a step, of `total` steps with `warmup` among them."""
    check(name, total, warmup, options)
    if step < 0:
        raise ValueError(f"step={step} is not allowed: steps count from 0")
    return SCHEDULES[name](step, total, warmup, **options)


def check(name: str, total: int, warmup: int, options: dict[str, Any]) -> None:
    """Refuse what is not a schedule."""
    if name not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={name!r} is not allowed: it must be one of {', '.join(SCHEDULES)}"
            f"{nearest(name, SCHEDULES)}"
        )
    known = SCHEDULES[name].__kwdefaults__ or {}
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"lr_scheduler_type={name!r} has no option {option!r}{nearest(option, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        low, high = RANGES.get(option, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            raise ValueError(f"{option}={value!r} is not allowed: it must be from {low:g} to {high:g}")
    if total < 1:
        raise ValueError(f"max_steps={total} is not allowed: a schedule needs at least one step")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup_steps={warmup} is not allowed: it must be from 0 to max_steps={total}")
