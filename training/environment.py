"""What a run runs on: versions, threads, memory, and the kernels that compute, each with its reason."""

import ctypes
import math
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from triune.modeling.single_rows import seconds


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
    if recorded is not None and 1 <= recorded <= cores:
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
# Memory

LARGEST = 2**31 - 1  # bytes, of what can be asked for


def keep_memory() -> None:
    """Let the process keep what a step has freed for the next one. By itself the C library (glibc) gives large pieces
    back to the system, which clears them anew, page by page, in every step: up to a third of it on a processor."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        library.mallopt(mmap_threshold, LARGEST)
        library.mallopt(trim_threshold, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels: products in float32, and attention


EXACT = 5e-6  # of float32 products, against float64; bfloat16 is at 4e-3
TORCH, ONEDNN = "torch's", "oneDNN's"
GAIN = 1.05  # what makes a change worth it
TURNS = 3  # of each that are timed: its first takes longer, and any may be disturbed


class Kernels(NamedTuple):
    """Who computes. On some processors oneDNN's products of float32 are twice as fast; torch's fused attention saves
    memory, and takes longer for short rows."""

    products: str = TORCH
    attention: str | None = None  # as transformers' `attn_implementation`; None: what the model has

    def words(self) -> str:
        return self.products + (f" and {self.attention} attention" if self.attention else "")


def candidates(float32: bool, attentions: tuple[str, ...]) -> list[Kernels]:
    """Those that can be had here and are exact: the switch to oneDNN's products is named for a lower precision, which
    other processors (Intel's with AMX) then really take."""
    products = [TORCH]
    if float32:
        set_kernels(ONEDNN)
        products += [ONEDNN] if product_error() < EXACT else []
        set_kernels(TORCH)
    return [Kernels(one, other) for one in products for other in attentions or (None,)]


def choose_kernels(
    those: list[Kernels], work: Callable[[], Any], use: Callable[[Kernels], None]
) -> tuple[Kernels, str]:
    """The first for which `work` takes hardly longer than for the fastest, and why."""
    if len(those) == 1:
        return those[0], those[0].words()
    times = dict.fromkeys(those, math.inf)
    for _ in range(TURNS):
        for one in those:
            use(one)
            times[one] = min(times[one], seconds(work, 1))
    best = next(one for one in those if times[one] < GAIN * min(times.values()))
    others = (f"{times[one] / times[best]:.2f} times as long with {one.words()}" for one in times if one != best)
    return best, f"{best.words()} (a step takes {', '.join(others)})"


def set_kernels(chosen: str) -> None:
    """By the name of the products, or words that begin with it. Processes that work together must all have the same:
    one chooses."""
    precision = "medium" if chosen.startswith(ONEDNN) else "highest"
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)


def product_error() -> float:
    """Of a product in float32 as it is computed now, against float64."""
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(512, 768, generator=random), torch.randn(768, 768, generator=random)
    exact = left.double() @ right.double()
    return float(((left @ right) - exact).norm() / exact.norm())
