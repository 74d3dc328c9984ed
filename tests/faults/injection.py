"""Faults that happen at a named place, and are known to have happened."""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any


class Fault:
    """Something that goes wrong when `owner.name` is called for one of the times in `when` (counted from 1; None:
    every time). Leaving the block without that it happened is a failure of the test."""

    def __init__(self, owner: Any, name: str, action: Callable, when: range | None = None):
        self.owner, self.name, self.action, self.when = owner, name, action, when
        self.calls = self.fired = 0

    def __enter__(self) -> "Fault":
        self.sound = getattr(self.owner, self.name)

        def faulty(*given, **named):
            self.calls += 1
            if self.when is None or self.calls in self.when:
                self.fired += 1
                return self.action(self.sound, *given, **named)
            return self.sound(*given, **named)

        setattr(self.owner, self.name, faulty)
        return self

    def __exit__(self, kind, error, trace) -> None:
        setattr(self.owner, self.name, self.sound)
        if error is None or not isinstance(error, AssertionError):
            assert self.fired, f"the fault in {self.name} did not happen"


def raising(error: BaseException) -> Callable:
    def action(sound, *given, **named):
        raise error

    return action


def half_written(error: BaseException) -> Callable:
    """Of `save_file(tensors, path)`: half of the file is on the disk when the error comes."""

    def action(sound, tensors, path, *given, **named):
        sound(tensors, path, *given, **named)
        os.truncate(path, os.path.getsize(path) // 2)
        raise error

    return action


# ---------------------------------------------------------------------------------------------------------------------
# Death at each of the things that a piece of work asks of the system

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "shutil.copyfile")


@contextmanager
def every_request(at: Callable[[str], None]):
    """`at` hears what is asked of the system: what Python audits, every fsync, every write of a file of tensors in its
    middle and at its end. Only for a process that ends with this."""
    import safetensors.torch

    from triune.training import state

    fsync, save_file = os.fsync, safetensors.torch.save_file

    def heard_fsync(handle):
        at("fsync")
        return fsync(handle)

    def heard_save(tensors, path, *given, **named):
        save_file(tensors, path, *given, **named)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        at("half of the tensors")
        path.write_bytes(whole)
        at("all of the tensors")

    os.fsync, state.save_file = heard_fsync, heard_save
    sys.addaudithook(lambda event, given: at(event) if event in EVENTS else None)
    yield


def dies_at(number: int, work: Callable[[], None]) -> bool:
    """Whether `work`, done in a process of its own that is killed at its n-th request, had so many."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    count = 0

    def at(_):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), 9)

    try:
        with every_request(at):
            work()
    finally:
        os._exit(0)
