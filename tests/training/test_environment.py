"""What a run chooses by time, and what it sets for the process."""

import platform
import subprocess
import sys

import pytest
import torch

from triune.training import environment
from triune.training.environment import ONEDNN, TORCH, Kernels, candidates, choose_kernels, set_kernels


FASTER = {
    "what is there, if nothing gains much": ((1.0, 0.98, 1.3, 0.97), Kernels(TORCH, "sdpa")),
    "the first of those that are nearly as fast": ((1.3, 0.98, 0.97, 0.95), Kernels(TORCH, "eager")),
    "attention step by step": ((1.0, 0.7, 1.3, 0.9), Kernels(TORCH, "eager")),
    "two that gain only together": ((1.0, 1.0, 1.3, 0.6), Kernels(ONEDNN, "eager")),
}


@pytest.mark.parametrize("case", FASTER)
def test_the_fastest_is_chosen(case, monkeypatch):
    """Of all four together; the words tell what the others take."""
    times, wanted = FASTER[case]
    those = [Kernels(products, attention) for products in (TORCH, ONEDNN) for attention in ("sdpa", "eager")]
    used = []
    monkeypatch.setattr(environment, "seconds", lambda *given: times[those.index(used[-1])])
    chosen, words = choose_kernels(those, lambda: None, used.append)
    assert chosen == wanted and used == 3 * those  # by turns
    assert words.startswith(f"{wanted.products} and {wanted.attention} attention (a step takes ")
    for one, took in zip(those, times):
        assert one == wanted or f"{took / times[those.index(wanted)]:.2f} times as long with {one.words()}" in words


def test_one_alone_is_not_timed():
    def fail():
        raise AssertionError("nothing is to be chosen")

    assert choose_kernels([Kernels()], fail, fail) == (Kernels(), TORCH)


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_not_exact_is_no_candidate(exact, monkeypatch, as_found):
    """The switch is set while it is measured, and not afterwards."""
    seen = []

    def error():
        seen.append(torch.get_float32_matmul_precision())
        return 1e-7 if exact else 1e-3

    monkeypatch.setattr(environment, "product_error", error)
    those = candidates(True, ("sdpa", "eager"))
    assert seen == ["medium"] and torch.get_float32_matmul_precision() == "highest"
    assert [one.products for one in those] == [TORCH, TORCH] + [ONEDNN, ONEDNN] * exact
    assert candidates(False, ()) == [Kernels()]


def test_words_of_a_recorded_run_set_the_same(as_found):
    for words, precision in ((f"{ONEDNN} and eager attention (a step takes ...)", "medium"), (TORCH, "highest")):
        set_kernels(words)
        assert torch.get_float32_matmul_precision() == precision


HEAP = """
import ctypes
import torch
from triune.training.environment import keep_memory

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # of mallinfo2, malloc.h

class Book(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]

def book():
    count = getattr(ctypes.CDLL(None), "mallinfo2", Book)  # another library than glibc has no such book
    count.restype = Book
    return count()

def step():
    before, tensors = book().hblkhd, [torch.empty(size << 20, dtype=torch.uint8) for size in (120, 8)]
    apart = book().hblkhd - before
    tensors.clear()
    print(apart >> 20, book().fordblks >> 20)

step()
keep_memory()
step()
"""


def test_memory_is_kept():
    """In MB: what large tensors take apart from the heap, and what the heap has to give once they are gone. Where the
    library has no such switch, nothing is asked of it."""
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    wanted = [128, 0, 0, 128] if platform.libc_ver()[0] == "glibc" else [0] * 4
    assert [int(size) for size in done.stdout.split()] == pytest.approx(wanted, abs=24)
