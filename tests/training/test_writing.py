"""Checkpoints behind the training: copies, order, failures."""

import threading
import time

import psutil
import pytest
import torch

from triune.training.writing import Writer


def test_a_copy_is_written():
    """What happens to a tensor afterwards does not reach the file, and training does not wait for it."""
    writer, gate, tensor, written = Writer(copies=True), threading.Event(), torch.ones(3), []
    files = {"weights": tensor}

    def work():
        gate.wait(10)
        written.append(files["weights"].clone())

    writer.write([files], work)
    tensor.zero_()
    assert not written
    gate.set()
    writer.wait()
    assert torch.equal(written[0], torch.ones(3)) and files["weights"] is not tensor


def test_what_comes_from_a_device_is_not_copied_again():
    tensor = torch.ones(3)
    files = {"weights": tensor}
    writer = Writer(copies=False)
    writer.write([files], lambda: None)
    writer.wait()
    assert files["weights"] is tensor


def test_one_after_the_other():
    writer, order = Writer(copies=True), []
    for number in range(5):
        writer.write([], lambda number=number: order.append(number))
    writer.wait()
    assert order == [0, 1, 2, 3, 4]


def test_failures_are_kept_until_they_are_asked():
    """What comes after one is written all the same."""

    def fail():
        raise OSError(28, "No space left on device")

    writer, written = Writer(copies=True), []
    for work in (fail, lambda: written.append(1), fail, lambda: written.append(2)):
        writer.write([], work)
    writer.wait()
    assert [str(error) for error in writer.failures()] == ["[Errno 28] No space left on device"] * 2
    assert written == [1, 2] and not writer.failures()


def test_nothing_is_left_behind_that_still_writes():
    """However a run ends: the next one may begin in the same folder."""
    written = []
    with pytest.raises(KeyboardInterrupt), Writer(copies=True) as writer:
        writer.write([], lambda: time.sleep(0.2))
        writer.write([], lambda: written.append("the last one"))
        raise KeyboardInterrupt
    assert written == ["the last one"]


def test_without_room_it_is_written_at_once(monkeypatch):
    class Nothing:
        available = 0

    monkeypatch.setattr(psutil, "virtual_memory", Nothing)
    tensor = torch.ones(3)
    files, written = {"weights": tensor}, []
    writer = Writer(copies=True)
    writer.write([files], lambda: written.append(time.sleep(0.1)))
    assert len(written) == 1 and files["weights"] is tensor
