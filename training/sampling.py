"""Which samples a step sees, and the randomness that belongs to each: pure functions of seed, epoch and index.

Nothing here has state. The order of the data, the masks and the augmentations are the same for any number of workers
and processes, before and after a resume; where a run stands in its data is one number, the step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
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
    # numpy takes [1, 2] and [1, 2, 0] for the same
    words = np.random.SeedSequence([seed, len(place), *place]).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, keys: Sequence[Key], count: int) -> torch.Tensor:
    """So many numbers in [0, 1) for each of some samples, (samples, count): of a sample always the same, whatever is
    beside it. All at once, which a generator for each sample is not: https://prng.di.unimi.it/splitmix64.c, begun
    where seed, epoch and index lead to.
    """
    state = mixed(np.full(1, seed, dtype=np.uint64) + GOLDEN)
    for part in np.array(keys, dtype=np.uint64).reshape(-1, 2).T:
        state = mixed((state ^ part) + GOLDEN)
    numbers = mixed(state[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return torch.from_numpy((numbers >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def mixed(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


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
        return self.samples / self.per_step if self.samples else math.inf  # a stream does not say


def step_keys(plan: Plan, seed: int, step: int, order: Callable = permutation) -> list[Key]:
    """The samples of a step, across epochs: the same set however they are dealt out afterwards."""
    first = step * plan.per_step
    epochs = range(first // plan.samples, (first + plan.per_step - 1) // plan.samples + 1)
    orders = {epoch: order(plan.samples, seed, epoch) for epoch in epochs}
    places = (divmod(place, plan.samples) for place in range(first, first + plan.per_step))
    return [Key(epoch, int(orders[epoch][offset])) for epoch, offset in places]


def my_places(plan: Plan, rank: int) -> list[range]:
    """Which samples of a step each micro-batch of a process gets."""
    stride = plan.world * plan.accumulation
    return [range(rank + micro * plan.world, plan.per_step, stride) for micro in range(plan.accumulation)]


class MicroBatches(torch.utils.data.Sampler):
    """The keys of every micro-batch of one process, from a step on: what a DataLoader takes as its batch sampler."""

    def __init__(
        self, plan: Plan, seed: int, first_step: int, last_step: int, rank: int = 0, order: Callable = permutation
    ):
        if plan.samples < 1:
            raise ValueError("the training set is empty")
        self.plan, self.seed, self.rank = plan, seed, rank
        self.first_step, self.last_step = first_step, last_step
        self.order = lru_cache(maxsize=2)(order)  # a step asks for an epoch's again, and for two where they meet

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.last_step):
            keys = step_keys(self.plan, self.seed, step, self.order)
            for micro in my_places(self.plan, self.rank):
                yield [keys[place] for place in micro]


class EvaluationBatches(torch.utils.data.Sampler):
    """Every sample of an evaluation once, dealt to processes. All get the same number of batches, as sharded models
    need it: what is missing in the last is filled with places beyond the end, which `loading` makes count nothing."""

    def __init__(self, samples: int, per_device: int, world: int = 1, rank: int = 0):
        self.samples, self.per_device, self.world, self.rank = samples, per_device, world, rank

    def __len__(self) -> int:
        return -(-self.samples // (self.per_device * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        own = -(-self.samples // self.world)  # alike for all
        for first in range(0, own, self.per_device):
            yield [place * self.world + self.rank for place in range(first, min(first + self.per_device, own))]
