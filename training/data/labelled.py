"""Texts with a class each: passages of the bundled text, tables, or a data set of `datasets`.

Without validation data the same share of each class is split off. A training text that also stands in validation is
removed, whatever its class.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import DataArguments
from triune.training.data.bundled import pydocs
from triune.training.data.files import SPLIT_SEED, in_order
from triune.training.data.images import stratified_folds
from triune.training.data.tables import Entry, Source, entries, text_of
from triune.training.data.text import Document, fingerprint, normalised, passages
from triune.training.data.text_sources import BUNDLED, check_named, source_name, sources
from triune.training.sampling import permutation


class Labelled(NamedTuple):
    texts: list[str]
    labels: torch.Tensor  # int64, (texts,)

    def take(self, chosen: Sequence[int] | torch.Tensor) -> "Labelled":
        """Those of some places, in the order of the texts."""
        places = sorted(torch.as_tensor(chosen).tolist())
        return Labelled([self.texts[place] for place in places], self.labels[places])


@dataclass(frozen=True)
class LabelledText:
    """Texts with a class each, to train on and held out."""

    train_texts: tuple[str, ...]
    train_labels: torch.Tensor
    validation_texts: tuple[str, ...]
    validation_labels: torch.Tensor
    names: tuple[str, ...]  # of the classes
    source: str
    fingerprint: str
    removed: int  # training texts that stood in validation as well

    def describe(self) -> str:
        """One line for the console."""
        shares = self.train_labels.bincount(minlength=len(self.names)) / max(1, len(self.train_labels))
        listed = ", ".join(f"{name} {share:.1%}" for name, share in zip(self.names, shares))
        classes = f" ({listed})" if len(self.names) <= 5 else ""
        return (
            f"{self.source}: {len(self.train_texts):,} texts in {len(self.names)} classes{classes}; "
            f"held out {len(self.validation_texts):,}; removed from train {self.removed:,} that stand in both; "
            f"sha256 {self.fingerprint[:12]}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Reading labels


def label_of(entry: Entry, column: str, classes: Sequence[str] | None) -> str:
    """The class of a row, in a word: that of a ClassLabel by its name, a whole number as it is written."""
    value = entry.values[column]
    if value is None or value == "" or (classes and value < 0):
        raise ValueError(f"label_column={column!r}: {entry.name} has no label")
    if classes:
        return classes[value]
    if isinstance(value, float) and value.is_integer():  # pandas' way with whole numbers where some are missing
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"label_column={column!r}: the label of {entry.name} is {value!r:.60}; a class is a word or a whole number"
        )
    return str(value)


def read_labelled(source: Source, data: DataArguments) -> tuple[list[str], list[str]]:
    """Texts, those that are blank left out, and the name of the class of each."""
    columns = {"text_column": data.text_column, "label_column": data.label_column}
    classes, texts, labels = source.classes(data.label_column), [], []
    for entry in entries(source, columns):
        text = text_of(entry, data.text_column)
        if text.strip():
            texts.append(text)
            labels.append(label_of(entry, data.label_column, classes))
    if not texts:
        raise ValueError(f"{source.flag} has no text in its column {data.text_column!r}")
    return texts, labels


def numbered_labels(labels: Sequence[str], names: Sequence[str], flag: str) -> torch.Tensor:
    ids = {name: index for index, name in enumerate(names)}
    unknown = sorted(set(labels) - set(ids))
    if unknown:
        raise ValueError(
            f"{flag} has the class {unknown[0]!r}, which the training text has not{nearest(unknown[0], names)}"
        )
    return torch.tensor([ids[label] for label in labels], dtype=torch.long)


# ---------------------------------------------------------------------------------------------------------------------
# Two sides


def split_labelled(everything: Labelled, percentage: float) -> tuple[Labelled, Labelled]:
    """A share held out, the same of each class; a class of one text is trained on."""
    dealt = stratified_folds(everything.labels, len(everything.texts), SPLIT_SEED)  # the place of each, by class
    held_out = dealt.double() * percentage % 100 < percentage
    held_out &= torch.isin(everything.labels, everything.labels[~held_out])
    if not held_out.any():
        raise ValueError(f"{len(everything.texts)} texts are too few to hold some out: give --validation_file")
    return everything.take((~held_out).nonzero().flatten()), everything.take(held_out.nonzero().flatten())


def some_of(side: Labelled, limit: int | None) -> Labelled:
    """No more than so many, drawn from all: files are often sorted by class."""
    count = len(side.texts)
    return side if limit is None else side.take(permutation(count, SPLIT_SEED, 0)[:limit])


def labelled_text(
    train: Labelled, validation: Labelled, names: Sequence[str], source: str, remove: bool = True
) -> LabelledText:
    """Two sides that are already split: a training text that also stands in validation is removed."""
    held_out = {normalised(text) for text in validation.texts} if remove else set()
    kept = train.take([place for place, text in enumerate(train.texts) if normalised(text) not in held_out])
    if not kept.texts:
        raise ValueError(f"{source}: every training text stands in validation as well, and none is left to train on")
    sides = [
        [Document(names[label], text) for text, label in zip(side.texts, side.labels)] for side in (kept, validation)
    ]
    return LabelledText(
        train_texts=tuple(kept.texts),
        train_labels=kept.labels,
        validation_texts=tuple(validation.texts),
        validation_labels=validation.labels,
        names=tuple(names),
        source=source,
        fingerprint=fingerprint([Document(name, "") for name in names], *sides),
        removed=len(train.texts) - len(kept.texts),
    )


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def pydocs_passages(documents: Sequence[Document]) -> Labelled:
    """Passages of 40 to 400 characters, as many of the reference as of the library; one that several documents have is
    taken once."""
    kinds: list[dict[str, str]] = []
    for kind in ("topic ", "module "):
        own = (document for document in documents if document.name.startswith(kind))
        parts = (textwrap.dedent(part).strip() for document in own for part in passages(document.text))
        kinds.append({normalised(part): part for part in parts if 40 <= len(part) <= 400})
    both = set(kinds[0]) & set(kinds[1])
    texts = [[text for same, text in kind.items() if same not in both] for kind in kinds]
    count = min(map(len, texts))
    chosen = [sorted(permutation(len(texts[kind]), SPLIT_SEED, kind)[:count]) for kind in range(2)]
    return Labelled(
        [texts[kind][place] for kind in range(2) for place in chosen[kind]],
        torch.arange(2).repeat_interleave(count),
    )


def labelled_sides(data: DataArguments) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    source, validation_source = sources(data)
    texts, labels = read_labelled(source, data)
    names = tuple(source.classes(data.label_column) or in_order(labels))
    if len(names) < 2:
        raise ValueError(
            f"label_column={data.label_column!r} of {source.flag} has only the class {names[0]!r}: it takes at least 2"
        )
    train = Labelled(texts, numbered_labels(labels, names, source.flag))
    if validation_source is None:
        return *split_labelled(train, data.validation_split_percentage), names
    texts, labels = read_labelled(validation_source, data)
    return train, Labelled(texts, numbered_labels(labels, names, validation_source.flag)), names


def load_labelled_text(data: DataArguments) -> LabelledText:
    """The texts with labels that a run names."""
    check_named(data)
    if data.streaming:
        raise ValueError("streaming=True: texts with labels are read at once, so that each class is on both sides")
    if data.dataset_name == BUNDLED:
        text, names = pydocs(), ("reference", "library")
        train, validation = pydocs_passages(text.train), pydocs_passages(text.validation)
        source, remove = f"passages of {text.source}", True
    else:
        train, validation, names = labelled_sides(data)
        source, remove = source_name(data), data.remove_shared_passages
    train, validation = some_of(train, data.max_train_samples), some_of(validation, data.max_eval_samples)
    return labelled_text(train, validation, names, source, remove)
