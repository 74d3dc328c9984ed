"""Checkpoints written beside the training: a step waits for a copy in memory, not for the disk."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import torch


ROOM = 2  # times the copy must fit into what memory is left
AHEAD = 2  # things that may wait to be written, each with its copy


class Writer:
    """One thing after the other, in the order in which they came.

    What fails is raised by the next call, and at the latest by `wait`. Where memory has no room for a copy, it is
    written at once. Used with `with`, nothing is left behind that still writes, however the block ends.
    """

    def __init__(self, copies: bool):
        self.copies = copies  # whether tensors are those that training changes, and not fetched from a device
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.ahead: deque[Future] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error) -> None:
        self.pool.shutdown()

    def write(self, files: Iterable[dict[str, torch.Tensor]], work: Callable[[], None]) -> None:
        """`work` writes `files`, whose tensors are replaced by copies."""
        self.check()
        while len(self.ahead) >= AHEAD:
            self.ahead.popleft().result()
        files = list(files)
        size = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
        if self.copies and psutil.virtual_memory().available < ROOM * size:
            self.wait()
            work()
            return
        for tensors in files if self.copies else ():
            tensors.update({name: tensor.clone() for name, tensor in tensors.items()})
        self.ahead.append(self.pool.submit(work))

    def check(self) -> None:
        """Raise what has failed."""
        while self.ahead and self.ahead[0].done():
            self.ahead.popleft().result()

    def wait(self) -> None:
        """Until all is written."""
        while self.ahead:
            self.ahead.popleft().result()
