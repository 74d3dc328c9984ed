"""The interface of a task: what is asked of a model. One file for each; the loop knows none of them.

A task chooses its data, its head, its batches, its metrics and what is shown of it. To add one, write a class in a
file of its own and its line in the table `TASKS` of `training/tasks/__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedConfig, PreTrainedModel

from triune.training.arguments import Arguments
from triune.training.collators import IGNORED
from triune.training.metrics import Records, Written
from triune.training.sampling import Key, Plan, permutation


Batch = dict[str, torch.Tensor]


class Example(NamedTuple):
    """Something held out that the finished model is asked, to be shown to people."""

    input: str | torch.Tensor  # a text, or the pixels of an image, uint8
    label: str | None = None  # the right answer, where there is one


class Task(ABC):
    """Made from the arguments of a run: it loads the data, and the tokenizer or image processor that belongs to it."""

    name: ClassVar[str]
    head: ClassVar[type[PreTrainedModel]]
    unit: ClassVar[str]  # what throughput is counted in: tokens or images
    best_metric: ClassVar[str] = "loss"  # what the best checkpoint is chosen by
    greater_is_better: ClassVar[bool] = False
    headline: ClassVar[str] = "accuracy"  # the metric that is quoted
    lean: ClassVar[dict[str, bool]] = {}  # by which its head computes no more than the loss
    # What a model card shows of `figures`, with captions; the first is its main picture.
    pictures: ClassVar[dict[str, str]] = {"loss.png": "Loss in training and on held-out data"}

    train: Dataset  # len(), and [Key(epoch, index)] -> sample: the same sample for the same key, always
    processor: Any  # a tokenizer or an image processor: saved with the model
    fingerprint: str  # of the data

    def __init__(self, arguments: Arguments):
        self.arguments = arguments

    # -- data

    @abstractmethod
    def describe(self) -> list[str]:
        """The data, in a line or a few for the console."""

    @abstractmethod
    def evaluation(self, full: bool) -> Dataset:
        """len(), and [index] -> sample. `full` before and after training, otherwise what is quick."""

    @abstractmethod
    def collate(self, samples: list) -> Batch:
        """Samples to a batch of tensors that `head` takes, `labels` among them; and `replaced`, if any were."""

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """What the data decides of the model's configuration: vocab_size, num_labels, ..."""

    def prepare(self, config: PreTrainedConfig) -> None:  # noqa: B027 - most need nothing
        """Called once with the finished configuration of the model, before anything is read from `train`."""

    def order(self, plan: Plan) -> Callable[[int, int, int], np.ndarray]:
        """(samples, seed, epoch) -> the order of an epoch."""
        if self.arguments.data.group_by_length:
            raise ValueError(f"group_by_length: the samples of {self.name} are of one length")
        return permutation

    def faults(self) -> Iterator[str]:
        """Every sample that cannot be read, or made into a batch, and why. A stream is not gone through."""
        held_out = self.evaluation(full=True)
        sides = {"validation": (len(held_out), held_out.__getitem__)}
        if not isinstance(self.train, IterableDataset):
            sides["train"] = (len(self.train), lambda index: self.train[Key(0, index)])
        for side, (count, sample) in sides.items():
            for index in range(count):
                try:
                    self.collate([sample(index)])
                except Exception as error:  # whatever the data leads it to
                    yield f"{side} sample {index}: {type(error).__name__}: {str(error).strip()}"

    # -- learning

    def count(self, batch: Batch) -> int:
        """The labels of a batch that its loss is the mean of."""
        return int((batch["labels"] != IGNORED).sum())

    def units(self, batch: Batch) -> int:
        """The tokens or images of a batch."""
        return batch["input_ids"].numel()

    def pairs(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, classes) and (n): each answer beside its label; those that do not count have the label IGNORED."""
        return logits.flatten(0, -2), labels.flatten()

    def loss(self, model, batch: Batch, count: torch.Tensor | float) -> torch.Tensor:
        """The sum over the labels of this batch, divided by `count`."""
        smoothing = self.arguments.training.label_smoothing_factor
        if not smoothing:
            return model(**batch, num_items_in_batch=count, **self.lean).loss
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, labels = self.pairs(model(**inputs).logits, batch["labels"])
        total = F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
        return total / count

    # -- measuring

    def asked(self) -> Dataset | None:
        """The held-out samples that a full evaluation has the model write an answer to, if it writes."""
        return None

    def written(self, model, batch: Batch) -> list[Written]:
        """An answer to each sample of a batch of these; not to one whose labels are all IGNORED, which fills it up.
        Every process calls this as often as the others, with a batch of as many samples."""
        raise NotImplementedError

    @abstractmethod
    def measure(self, records: Records) -> dict[str, float]:
        """Metrics of an evaluation, by name."""

    @abstractmethod
    def baselines(self) -> dict[str, dict[str, float]]:
        """What a metric has to be compared with: {"accuracy": {"3-NN": 0.98, ...}, ...}."""

    # -- showing

    @abstractmethod
    def preview(self, model) -> list[str]:
        """Lines that show what the model does with the same examples every time."""

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        """PNG files that belong to the task, written at the end; those of every run are the loop's."""
        return []

    def examples(self) -> list[Example]:
        """The same every time."""
        return []
