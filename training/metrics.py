"""What an evaluation measures: a record for each label that counts, and the numbers that follow from all of them.

    records = concatenate([record(logits, labels) for ...])  # of every batch and every process, in any order
    language_metrics(records, characters=1024)  # {"loss": ..., "perplexity": ..., "bits_per_character": ..., ...}

Notable: nothing is an average of averages. A process keeps the loss, the rank, the prediction and the label of each
answer, 28 bytes, and the texts that a model wrote beside those it should have written; the metrics are computed once,
from all of them, so that uneven batches and processes change nothing.
Sums are rounded once (`math.fsum`), so that order changes nothing either, not even the last bit.

The metrics themselves are modules for the `evaluate` library, in `metric_modules`. They need no network and write no
file. `evaluate` takes a third of a second to import, which is why they are imported where they are used.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from triune.training.collators import IGNORED


# ---------------------------------------------------------------------------------------------------------------------
# Records


class Written(NamedTuple):
    """What a model wrote, and what it should have written."""

    said: str
    right: str


class Records(NamedTuple):
    """One entry for each label that counts; and one for each text that was written, where any were."""

    loss: np.ndarray  # float32 (n), in nats
    rank: np.ndarray  # int64 (n); 0: the right answer had the highest logit, 4: four others were higher
    prediction: np.ndarray  # int64 (n)
    label: np.ndarray  # int64 (n)
    written: tuple[Written, ...] = ()

    def take(self, where: np.ndarray) -> "Records":
        """Those of some labels."""
        return Records(*(column[where] for column in self.columns))

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self[:4]


AT_ONCE = 2**20  # logits that are looked at together: copies of all, in float32, could need more than the model did


@torch.no_grad()
def record(logits: torch.Tensor, labels: torch.Tensor, ignored: int = IGNORED) -> Records:
    """The records of logits (n, classes) and labels (n), without those of the label `ignored`.

    Of equal logits that of the smaller class id is the higher one, as it is for argmax: rank 0 means that the
    prediction is right. A logit that is not a number is higher than all others, and as the right answer the last.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not fit: "
            "they must be (n, classes) and (n)"
        )
    classes = logits.shape[1]
    counted = (labels != ignored).nonzero().squeeze(1)
    kept = labels[counted].long()
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < classes:
        wrong = kept[(kept < 0) | (kept >= classes)][0]
        raise ValueError(f"the label {int(wrong)} is not allowed: it must be from 0 to {classes - 1}, or {ignored}")
    rows = max(1, AT_ONCE // max(1, classes))
    pieces = zip(counted.split(rows), kept.split(rows))
    parts = [record_some(logits.index_select(0, where), right) for where, right in pieces]
    return Records(*(torch.cat(column).cpu().numpy() for column in zip(*parts)))


def record_some(logits: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The columns of a record, for labels that all count."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    right = logits.gather(1, labels[:, None])
    beaten = (logits < right) | ((logits == right) & (classes > labels[:, None]))
    yield F.cross_entropy(logits.float(), labels, reduction="none")
    yield len(classes) - 1 - beaten.sum(1, dtype=torch.int32).long()  # 10 times faster than a sum in int64
    yield logits.argmax(1)
    yield labels


def concatenate(parts: list[Records]) -> Records:
    """The records of several batches or processes as one."""
    columns = zip(nothing().columns, *(part.columns for part in parts))
    return Records(*map(np.concatenate, columns), tuple(one for part in parts for one in part.written))


def nothing() -> Records:
    return Records(np.zeros(0, np.float32), *(np.zeros(0, np.int64) for _ in range(3)))


def some(records: Records) -> Records:
    if not len(records.label):
        raise ValueError("there is nothing to measure: the validation data has no label that counts")
    return records


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def language_metrics(records: Records, characters: float | None = None) -> dict[str, float]:
    """Of a masked or causal language model; `characters` are those of the text, where every one is scored once."""
    from triune.training.metric_modules.cross_entropy import CrossEntropy
    from triune.training.metric_modules.top_k_accuracy import TopKAccuracy

    loss = CrossEntropy().compute(losses=some(records).loss, characters=characters)
    return {**loss, **TopKAccuracy().compute(ranks=records.rank)}


def classification_metrics(records: Records, num_classes: int) -> dict[str, float]:
    """Of a classifier; five of five classes or fewer are always right, so top-5 needs more."""
    from triune.training.metric_modules.cross_entropy import CrossEntropy
    from triune.training.metric_modules.macro_f1 import MacroF1
    from triune.training.metric_modules.top_k_accuracy import TopKAccuracy

    loss = CrossEntropy().compute(losses=some(records).loss)["loss"]
    accuracy = TopKAccuracy().compute(ranks=records.rank, top_k=(1, 5) if num_classes > 5 else (1,))
    return {"loss": loss, **accuracy, **MacroF1().compute(predictions=records.prediction, references=records.label)}


def text_metrics(predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
    """Of texts that were generated, each with one right answer or several; both from 0 to 100."""
    from triune.training.metric_modules.bleu import Bleu
    from triune.training.metric_modules.chrf import ChrF

    texts = {"predictions": predictions, "references": references}
    return {"bleu": Bleu().compute(**texts)["bleu"], **ChrF().compute(**texts)}


def confusion(records: Records, num_classes: int) -> np.ndarray:
    """int64 (num_classes, num_classes): how often each class (row) was predicted to be each class (column)."""
    from triune.training.metric_modules.confusion_matrix import ConfusionMatrix

    columns = {"predictions": records.prediction, "references": records.label}
    return ConfusionMatrix().compute(**columns, num_classes=num_classes)["confusion_matrix"]


# ---------------------------------------------------------------------------------------------------------------------
# Collapse

FAR_ABOVE = 1.5  # times the first loss
COLLAPSED_SHARE = 0.95
FEWEST = 20  # of fewer, a share above 0.95 is all of them, which chance does too


def top_share(classes: np.ndarray) -> tuple[int, float]:
    """The most frequent class, the smallest of several, and its share."""
    counts = np.bincount(classes)
    return int(counts.argmax()), int(counts.max()) / len(classes)


def top_prediction_share(records: Records) -> tuple[int, float]:
    """What is predicted most often, and how often: near 1 where a model has stopped to look at its input."""
    return top_share(some(records).prediction)


def diverged(first: float | None, now: float) -> str | None:
    """A warning, where a held-out loss is far above that of the untrained model."""
    if first is None or now <= FAR_ABOVE * first:  # also where it is no number
        return None
    return f"the loss was {first:.4g} before training and is {now:.4g}: lower learning_rate, or raise warmup_steps"


def collapsed(records: Records) -> str | None:
    """A warning, where nearly all predictions are one class and the labels are not.

    Labels are as one-sided as that if one class is above the same share, or if the other predictions are at least half
    as many as the other labels: 96 % where 94 % are right is what a good model does.
    """
    prediction, share = top_prediction_share(records)
    _, label_share = top_share(records.label)
    one_sided = label_share > COLLAPSED_SHARE or 1 - share >= 0.5 * (1 - label_share)
    if len(records.label) < FEWEST or share <= COLLAPSED_SHARE or one_sided:
        return None
    right = np.count_nonzero(records.label == prediction) / len(records.label)
    return (
        f"predictions have collapsed: {share:.1%} of {len(records.label):,} are class {prediction}, "
        f"which is right for {right:.1%}. Common in the first steps; later, try a lower learning_rate"
    )
