"""Texts of different lengths: kept without padding; and those of like length in a step, in a random order still.

The order is a pure function like everything that draws: https://arxiv.org/abs/1706.03762 grouped sentences by length,
and transformers' Trainer does it in blocks, as is done here, so that a text has other neighbours in every epoch.
"""

from collections.abc import Sequence

import numpy as np
import torch


BLOCK = 50  # steps whose samples are sorted together, at most
BLOCKS = 4  # of which an epoch has so many, at least, so that not the same texts meet in every one


class Ragged:
    """Token ids of texts end to end, and where each begins."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
        ids = [np.zeros(0, np.int32), *(np.asarray(ids, dtype=np.int32) for ids in rows)]
        self.tokens = torch.from_numpy(np.concatenate(ids))
        self.starts = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> torch.Tensor:
        start = self.starts[place]
        return self.tokens[start : start + self.lengths[place]].long()


def length_grouped(lengths: Sequence[int], per_step: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: the samples of a step are of like length, the steps are in random order.

    Epochs follow each other without a gap, so a step may begin in one and end in the next: groups lie where the steps
    do, and what falls to a step shared by two epochs is drawn from all lengths.
    """
    if per_step < 1:
        raise ValueError(f"per_step={per_step} must be at least 1")
    lengths = np.asarray(lengths)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    begun = min(-epoch * len(lengths) % per_step, len(lengths))  # samples that complete a step of the epoch before
    steps = (len(lengths) - begun) // per_step
    first, middle, last = np.split(order, [begun, begun + steps * per_step])
    blocks = max(1, min(BLOCKS, steps), -(-steps // BLOCK))
    parts = (part.ravel() for part in np.array_split(middle.reshape(steps, per_step), blocks))
    alike = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    return np.concatenate([first, random.permutation(alike.reshape(steps, per_step)).ravel(), last])
