"""What the suites share: turns, ratios with an interval, and what the machine can do."""

import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def interval(ratios: list[float], times: int = 2000) -> list[float]:
    """Of the median, 95 %, by drawing the pairs again."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(times))
    return [medians[int(0.025 * times)], medians[int(0.975 * times)]]


def against(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """How many times as long theirs takes, pair by pair."""
    ratios = [one / own for one, own in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "interval": interval(ratios)}


def take_turns(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each; first one way round, then the other. What an arm returns is what it took."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for place in range(rounds):
        for name in arms if place % 2 == 0 else reversed(arms):
            seconds[name].append(arms[name]())
    return seconds


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - start

    return run


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------------------
# The page


def shown(ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"**{ratio['median']:.2f}** ({low:.2f} to {high:.2f})"


def ranged(numbers: list[float]) -> str:
    return shown({"median": statistics.median(numbers), "interval": (min(numbers), max(numbers))})


def markdown(titles: list[str], rows: Iterable[list[str]]) -> str:
    head, *lines = ("| " + " | ".join(cells) + " |" for cells in [titles, *rows])
    return "\n".join([head, "|" + "---|" * len(titles), *lines])


# ---------------------------------------------------------------------------------------------------------------------
# Limits: what the machine reached in the minute of the measurement


def matmul_peak(precision: str, device: str) -> float:
    """Operations a second of a large product, the best of some; float32 by the faster of torch's and oneDNN's."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(*shape, device=device).to(dtype) for shape in ((1024, 768), (768, 3072)))
    before, best = torch.get_float32_matmul_precision(), float("inf")
    for switch in ("highest", "medium") if precision == "no" and device == "cpu" else (before,):
        torch.set_float32_matmul_precision(switch)
        best = min([best, *(timed(lambda: left @ right)() for _ in range(20))])
    torch.set_float32_matmul_precision(before)
    return 2 * 1024 * 768 * 3072 / best


def read_bandwidth(device: str, megabytes: int = 256) -> float:
    """Bytes a second of a sum over memory that no cache holds, the best of some."""
    numbers = torch.ones(megabytes * 2**20 // 4, device=device)
    return numbers.nbytes / min(timed(numbers.sum)() for _ in range(8))
