"""Which samples a step sees, and the randomness that belongs to each: pure functions of seed, epoch and index.

Nothing here has state. The order of the data, the masks and the augmentations are the same for any number of workers
and processes, before and after a resume; where a run stands in its data is one number, the step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch


class Key(NamedTuple):
    """One sample of one epoch: what a dataset is asked for."""

    epoch: int
    index: int


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def generator(seed: int, *place: int) -> torch.Generator:
    """Random numbers that belong to one place: (epoch, index) for a sample, (step, micro-batch, rank) for dropout."""
    words = np.random.SeedSequence([seed, *place]).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


class Plan(NamedTuple):
    """How the samples of a step are dealt out."""

    samples: int  # in the training set
    per_device: int
    accumulation: int = 1
    world: int = 1

    @property
    def per_step(self) -> int:
        return self.per_device * self.accumulation * self.world

    @property
    def steps_per_epoch(self) -> float:
        return self.samples / self.per_step


def step_keys(plan: Plan, seed: int, step: int) -> list[Key]:
    """The samples of a step, across epochs: the same set however they are dealt out afterwards."""
    first = step * plan.per_step
    epochs = range(first // plan.samples, (first + plan.per_step - 1) // plan.samples + 1)
    order = {epoch: permutation(plan.samples, seed, epoch) for epoch in epochs}
    places = (divmod(place, plan.samples) for place in range(first, first + plan.per_step))
    return [Key(epoch, int(order[epoch][offset])) for epoch, offset in places]


class MicroBatches(torch.utils.data.Sampler):
    """The keys of every micro-batch of one process, from a step on: what a DataLoader takes as its batch sampler."""

    def __init__(self, plan: Plan, seed: int, first_step: int, last_step: int, rank: int = 0):
        if plan.samples < 1:
            raise ValueError("the training set is empty")
        self.plan, self.seed, self.rank = plan, seed, rank
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.last_step):
            keys = step_keys(self.plan, self.seed, step)
            mine = keys[self.rank :: self.plan.world]
            for micro in range(self.plan.accumulation):
                yield mine[micro :: self.plan.accumulation]
