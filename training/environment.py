"""What a run runs on: versions, threads, and the kernels for products in float32, each with its reason."""

import math
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch


CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def processor() -> str:
    """The name of this machine's processor, and its cores."""
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = os.cpu_count()
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def seconds(work, times: int) -> float:
    """The fastest of some times."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


# ---------------------------------------------------------------------------------------------------------------------
# Precision


PRECISIONS = ("auto", "no", "bf16", "fp16")


def choose_precision(choice: str | None, gpu: bool, recorded: str | None = None) -> str | None:
    """What `auto` comes to: bfloat16 where products are faster in it. There are processors on which they are a hundred
    times slower, so one is timed. A resumed run takes what it had."""
    if choice is not None and choice not in PRECISIONS:
        raise ValueError(f"mixed_precision={choice!r} is not allowed: it must be one of {', '.join(PRECISIONS)}")
    if choice != "auto":
        return choice
    if recorded is not None:
        return recorded
    if gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    matrix = torch.rand(384, 384)
    half = matrix.bfloat16()
    return "bf16" if seconds(lambda: half @ half, 5) < seconds(lambda: matrix @ matrix, 5) else "no"


# ---------------------------------------------------------------------------------------------------------------------
# Threads


def choose_threads(recorded: int | None = None) -> str:
    """Set the number of threads, and say why. Where other work keeps cores busy, all of them together can be slower
    than one. A resumed run takes what it had: sums in another order differ in their last bit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if recorded is not None and recorded <= cores:
        torch.set_num_threads(recorded)
        return f"{recorded} of {cores} cores, as before"
    if "OMP_NUM_THREADS" in os.environ:
        return f"{torch.get_num_threads()} of {cores} cores, by OMP_NUM_THREADS"
    own = torch.get_num_threads()
    if own == 1:
        return f"1 of {cores} cores"
    matrix = torch.rand(768, 768)
    together = seconds(lambda: matrix @ matrix, 20)
    torch.set_num_threads(1)
    alone = seconds(lambda: matrix @ matrix, 20)
    if together > alone:
        return f"1 of {cores} cores: the others are busy, {own} threads measured {together / alone:.1f} times slower"
    torch.set_num_threads(own)
    return f"{own} of {cores} cores, measured {alone / together:.1f} times as fast as one"


# ---------------------------------------------------------------------------------------------------------------------
# Products in float32


EXACT = 5e-6  # of float32 products, against float64; bfloat16 is at 4e-3
ONEDNN = "oneDNN's"
GAIN = 1.05  # what makes the change worth it


def choose_kernels(choice: str, device: torch.device, recorded: str | None, work: Callable[[], None]) -> str:
    """On a processor, let oneDNN do the products of float32 if it is as exact as float32 and makes `work` faster, and
    say so. On some processors it makes products twice as fast, on some it makes attention slower.

    Its switch is named for a lower precision, which other processors (Intel's with AMX) then really take: so a product
    is compared first. A resumed run takes what it had.
    """
    if choice not in ("auto", "no"):
        raise ValueError(f"fast_fp32={choice!r} is not allowed: it must be auto or no")
    if choice == "no" or device.type != "cpu":
        return "torch's"
    if recorded is not None:
        return recorded
    plain = seconds(work, 2)
    set_kernels(ONEDNN)
    error = product_error()
    fast = seconds(work, 2) if error < EXACT else math.inf
    set_kernels("torch's")
    if plain > GAIN * fast:
        return f"{ONEDNN}, measured {plain / fast:.1f} times as fast and exact to {error:.0e}"
    return "torch's" if fast == math.inf else f"torch's, measured {fast / plain:.1f} times as fast as oneDNN's"


def set_kernels(chosen: str) -> None:
    """Processes that work together must all have the same: one chooses."""
    if torch.get_float32_matmul_precision() != ("medium" if chosen.startswith(ONEDNN) else "highest"):
        torch.set_float32_matmul_precision("medium" if chosen.startswith(ONEDNN) else "highest")


def product_error() -> float:
    """Of a product in float32 as it is computed now, against float64."""
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(512, 768, generator=random), torch.randn(768, 768, generator=random)
    exact = left.double() @ right.double()
    return float(((left @ right) - exact).norm() / exact.norm())
