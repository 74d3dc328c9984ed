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


@pytest.mark.parametrize("call", ["check", "wait", "write"])
def test_a_failure_is_raised(call):
    def fail():
        raise OSError(28, "No space left on device")

    writer = Writer(copies=True)
    writer.write([], fail)
    writer.ahead[0].exception()  # is done
    with pytest.raises(OSError, match="No space left"):
        getattr(writer, call)(*([[], lambda: None] if call == "write" else []))
    writer.write([], lambda: None)  # and the next one is written
    writer.wait()


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
    writer.write([files], lambda: written.append(threading.current_thread()))
    assert written == [threading.main_thread()] and files["weights"] is tensor
