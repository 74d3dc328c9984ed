"""Batches for the loop: a loader for the steps of a run, and one for an evaluation. Neither has state to save."""

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from triune.training.collators import IGNORED
from triune.training.sampling import EvaluationBatches, MicroBatches, Plan
from triune.training.tasks.task import Batch, Task


GRACE = 10  # seconds in which a worker may still be asked, after a signal to all processes of a job


def start_worker(_: int) -> None:
    """A worker computes with one thread, and leaves a signal to the process that it works for, which needs the rest of
    its step. It does not ignore SIGTERM for ever: Python ends its children by it, and would wait."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def loader(dataset: Dataset, collate, workers: int = 0, timeout: float = 0, **how) -> DataLoader:
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=workers,
        timeout=timeout if workers else 0,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        **how,
    )


def training_steps(
    task: Task,
    plan: Plan,
    seed: int,
    first_step: int,
    last_step: int,
    rank: int,
    workers: int = 0,
    timeout: float = 0,
) -> Iterator[list[Batch]]:
    """The micro-batches of each step, from a step on. `timeout`: seconds that a worker may take for one."""
    if isinstance(task.train, IterableDataset):
        source = {"dataset": task.train.dealt(plan, first_step, last_step, rank), "batch_size": None}
    else:
        sampler = MicroBatches(plan, seed, first_step, last_step, rank, task.order(plan))
        source = {"dataset": task.train, "batch_sampler": sampler}
    batches = iter(loader(**source, collate=task.collate, workers=workers, timeout=timeout))
    for _ in range(first_step, last_step):
        yield [next(batches) for _ in range(plan.accumulation)]


class Filled(Dataset):
    """A data set that has samples beyond its end: they repeat the first ones and count nothing."""

    def __init__(self, dataset: Dataset, task: Task):
        self.dataset, self.task = dataset, task

    def __getitem__(self, index: int):
        return self.dataset[index % len(self.dataset)], index < len(self.dataset)

    def collate(self, pairs: list) -> Batch:
        batch = self.task.collate([sample for sample, _ in pairs])
        batch["labels"][~torch.tensor([counts for _, counts in pairs])] = IGNORED
        return batch


def evaluation_batches(task: Task, dataset: Dataset, per_device: int, world: int, rank: int) -> DataLoader:
    if not len(dataset):
        raise ValueError("the validation set is empty")
    filled = Filled(dataset, task)
    sampler = EvaluationBatches(len(dataset), per_device, world, rank)
    return loader(filled, collate=filled.collate, batch_sampler=sampler)
