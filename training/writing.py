"""Checkpoints written beside the training: a step waits for a copy in memory, not for the disk."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import psutil
import torch


ROOM = 2  # times the copy must fit into what memory is left
AHEAD = 2  # things that may wait to be written, each with its copy


class Writer:
    """One thing after the other, in the order in which they came.

    What fails is kept for `failures`. Where memory has no room for a copy, it is written at once. Used with `with`,
    nothing is left behind that still writes, however the block ends.
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
        unfinished = [one for one in self.ahead if not one.done()]
        wait(unfinished[: len(unfinished) - AHEAD + 1])
        files = list(files)
        size = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
        roomy = not self.copies or psutil.virtual_memory().available > ROOM * size
        for tensors in files if self.copies and roomy else ():
            tensors.update({name: tensor.clone() for name, tensor in tensors.items()})
        self.ahead.append(self.pool.submit(work))
        if not roomy:
            self.wait()

    def wait(self) -> None:
        """Until all is written, or has failed."""
        wait(self.ahead)

    def failures(self) -> list[BaseException]:
        """What has failed since it was asked last."""
        failed = []
        while self.ahead and self.ahead[0].done():
            error = self.ahead.popleft().exception()
            failed += [error] if error else []
        return failed
