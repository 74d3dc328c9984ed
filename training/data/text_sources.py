"""Any text as one type: bundled, local files, or a data set of `datasets`. Read at once (`load_text`), or as it comes
(`stream_text`).

A document is a text file or a row of a table (CSV, JSON, JSON lines, Parquet). Without validation data a share is
split off by whole documents. Where there are fewer than FEWEST, as with one file, they are cut into sections first, at
blank lines: held out is then a page here and a page there, not single lines between lines of the training text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import DataArguments
from triune.training.data.bundled import pydocs
from triune.training.data.files import SPLIT_SEED, VALIDATION_SPLITS, find_files, one_line, quietly
from triune.training.data.sections import SECTION, cut_up
from triune.training.data.tables import Files, Source, Split, entries, numbered
from triune.training.data.text import (
    Document,
    TextData,
    characters,
    fingerprint,
    remover,
    split_documents,
    text_data,
)


BUNDLED = "pydocs"
BUNDLED_IMAGES = ("digits", "letters")
FEWEST = 20  # documents, for a share of them to be split off as they are
STREAMED_VALIDATION = 100  # documents held out of a stream, unless max_eval_samples says how many
KNOWN_FROM_START = 10  # documents of a stream that its fingerprint covers


# ---------------------------------------------------------------------------------------------------------------------
# What a run names


WAYS = (
    "--train_file (text, CSV, JSON, JSON lines or Parquet), --dataset_name pydocs (bundled, needs no network) or "
    "--dataset_name with a name or folder for `datasets`"
)


def check_named(data: DataArguments) -> None:
    """That exactly one source is named, and that what goes with it makes sense."""
    if data.dataset_name is not None and data.train_file is not None:
        raise ValueError(
            f"dataset_name={data.dataset_name!r} and train_file={data.train_file!r} both name the text: give one"
        )
    if data.dataset_name is None and data.train_file is None:
        images = f"; train_dir={data.train_dir!r} holds images" if data.train_dir else ""
        raise ValueError(f"no text to train on is named: give {WAYS}{images}")
    if data.dataset_name in BUNDLED_IMAGES:
        raise ValueError(f"dataset_name={data.dataset_name!r} is a set of images, not of text: give {WAYS}")
    for flag in ("max_train_samples", "max_eval_samples"):
        limit = getattr(data, flag)
        if limit is not None and limit < 1:
            raise ValueError(f"{flag}={limit} must be at least 1")
    if not 0 < data.validation_split_percentage < 100:
        raise ValueError(
            f"validation_split_percentage={data.validation_split_percentage} must lie between 0 and 100, exclusive"
        )
    if data.dataset_name == BUNDLED:
        check_bundled(data)


def check_bundled(data: DataArguments) -> None:
    """That nothing is asked of the bundled text that it does not do: it comes split and cleaned, always alike."""
    fixed = {"validation_file": None, "dataset_config_name": None, "remove_shared_passages": True}
    for flag, only in fixed.items():
        if getattr(data, flag) != only:
            raise ValueError(
                f"{flag}={getattr(data, flag)!r} does not go with dataset_name={data.dataset_name!r}, which is always "
                "split and cleaned alike"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Where it comes from


def load_splits(data: DataArguments) -> dict[str, Any]:
    """The splits of a data set. One from a local folder is read in place, without a copy in the cache."""
    from datasets import load_dataset

    name, local = data.dataset_name, Path(data.dataset_name).is_dir()
    if Path(name).is_file():
        raise ValueError(f"dataset_name={name!r} is a file: give it as --train_file")
    with TemporaryDirectory() if local else nullcontext() as cache:
        try:
            return quietly(
                load_dataset, name, data.dataset_config_name, streaming=data.streaming or local, cache_dir=cache
            )
        except Exception as error:  # of the network, the Hub, pyarrow, ...
            config = f", dataset_config_name={data.dataset_config_name!r}" if data.dataset_config_name else ""
            raise ValueError(
                f"dataset_name={name!r}{config} cannot be loaded: {one_line(error)}"
                f"{nearest(name, (BUNDLED, *BUNDLED_IMAGES))}"
            ) from error


def named_splits(data: DataArguments) -> tuple[Split, Split | None]:
    flag, splits = f"dataset_name={data.dataset_name!r}", load_splits(data)
    train = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    if train not in splits:
        raise ValueError(f"{flag} has no split 'train': there are {', '.join(map(repr, splits))}")
    held_out = next((name for name in VALIDATION_SPLITS if name in splits and name != train), None)
    validation = None if held_out is None else Split(flag, held_out, splits[held_out])
    return Split(flag, train, splits[train]), validation


def named_files(data: DataArguments, section: int | None) -> Files:
    """Those to train on: a glob may match the validation files too."""
    held_out = find_files("validation_file", data.validation_file) if data.validation_file else []
    kept_apart = {path.resolve() for path in held_out}
    flag = f"train_file={data.train_file!r}"
    paths = [path for path in find_files("train_file", data.train_file) if path.resolve() not in kept_apart]
    if not paths:
        raise ValueError(f"{flag} names no file that validation_file={data.validation_file!r} does not name as well")
    return Files(flag, tuple(paths), section)


def sources(data: DataArguments, section: int | None = None) -> tuple[Source, Source | None]:
    """To train on, and to validate on if there is any such."""
    train, validation = (named_files(data, section), None) if data.train_file else named_splits(data)
    if data.validation_file is not None:
        flag = f"validation_file={data.validation_file!r}"
        validation = Files(flag, tuple(find_files("validation_file", data.validation_file)))
    return train, validation


def source_name(data: DataArguments) -> str:
    return " ".join(part for part in (data.train_file or data.dataset_name, data.dataset_config_name) if part)


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def read_documents(source: Source, column: str) -> list[Document]:
    read = [document for _, document in numbered(source, column)]
    if not read:
        blank = next(entries(source, {"text_column": column}), None) is not None
        raise ValueError(f"{source.flag} {'holds only blank documents' if blank else 'is empty'}")
    return read


def split_off(documents: list[Document], percentage: float, flag: str) -> tuple[list[Document], list[Document]]:
    fraction = percentage / 100
    parts = documents if len(documents) >= FEWEST else cut_up(documents, fraction)
    if len(parts) < 2:
        raise ValueError(
            f"{flag} is too short to split off a share: {characters(documents)} characters; give --validation_file"
        )
    return split_documents(parts, fraction, SPLIT_SEED)


def load_text(data: DataArguments) -> TextData:
    """The text that a run names."""
    check_named(data)
    if data.dataset_name == BUNDLED:
        return first_documents(pydocs(), data)
    train_source, validation_source = sources(data)
    train = read_documents(train_source, data.text_column)
    if validation_source is None:
        train, validation = split_off(train, data.validation_split_percentage, train_source.flag)
    else:
        validation = read_documents(validation_source, data.text_column)
    train, validation = train[: data.max_train_samples], validation[: data.max_eval_samples]
    text = text_data(train, validation, source_name(data), remove=data.remove_shared_passages)
    if not text.train:
        raise ValueError(
            f"{train_source.flag}: all of it shares passages with the validation text, nothing is left to train on; "
            "--remove_shared_passages false keeps them"
        )
    return text


def first_documents(text: TextData, data: DataArguments) -> TextData:
    """The same text with no more documents than asked for."""
    if data.max_train_samples is None and data.max_eval_samples is None:
        return text
    validation = text.validation[: data.max_eval_samples]
    headline = [document for document in validation if document in text.headline]
    return text_data(text.train[: data.max_train_samples], validation, text.source, headline or None)


# ---------------------------------------------------------------------------------------------------------------------
# As it comes


@dataclass(frozen=True)
class StreamedText:
    """Held-out documents, and training documents that are read when they are asked for, in the order they stand in."""

    validation: tuple[Document, ...]
    headline: tuple[Document, ...]
    source: str
    fingerprint: str  # of what is known before the stream is read: its name and size, its first documents, validation
    read: Callable[[int], Iterator[tuple[int, Document]]]  # from a position on
    clean: Callable[[Document], Document]
    limit: int | None = None  # positions

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Document]]:
        """One pass, each document with its position: `numbered(n)` goes on where a pass stood before document n. Of
        what stands before it nothing is looked at. Documents that are blank or stand in validation are left out, so
        positions have gaps."""
        for position, document in self.read(start):
            if self.limit is not None and position >= self.limit:
                return
            cleaned = self.clean(document)
            if cleaned.text:
                yield position, cleaned

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One pass, from a position on."""
        return (document for _, document in self.numbered(start))

    def describe(self) -> str:
        """One line for the console."""
        return (
            f"{self.source}, read as it comes; held out {characters(self.validation):,} characters in "
            f"{len(self.validation)} documents; sha256 of what is known before {self.fingerprint[:12]}"
        )


def unchanged(document: Document) -> Document:
    return document


def listed(documents: Sequence[Document], start: int) -> Iterator[tuple[int, Document]]:
    return ((position, documents[position]) for position in range(start, len(documents)))


def behind(source: Source, column: str, offset: int, start: int) -> Iterator[tuple[int, Document]]:
    """The documents of a source behind the first ones, counted from there."""
    return ((position - offset, document) for position, document in numbered(source, column, offset + start))


def stream_text(data: DataArguments) -> StreamedText:
    """The text that a run names, not read yet. Text files come in sections. Held out are the first documents of the
    validation file or split; without one the first of the stream."""
    check_named(data)
    if data.dataset_name == BUNDLED:
        text = first_documents(pydocs(), data)
        return StreamedText(
            validation=text.validation,
            headline=text.headline,
            source=text.source,
            fingerprint=text.fingerprint,
            read=partial(listed, text.train),
            clean=unchanged,
        )
    source, validation_source = sources(data, SECTION)
    validation, offset = first_held_out(source, validation_source, data)
    read = partial(behind, source, data.text_column, offset)
    first = [document for _, document in islice(read(0), KNOWN_FROM_START)]
    if not first:
        raise ValueError(
            f"{source.flag} ends after the {len(validation)} documents that are held out: give --validation_file or "
            "fewer --max_eval_samples"
        )
    return StreamedText(
        validation=validation,
        headline=validation,
        source=source_name(data),
        fingerprint=fingerprint([Document(source_name(data), source.identity())], first, validation),
        read=read,
        clean=remover(validation) if data.remove_shared_passages else unchanged,
        limit=data.max_train_samples,
    )


def first_held_out(
    source: Source, validation_source: Source | None, data: DataArguments
) -> tuple[tuple[Document, ...], int]:
    """The held-out documents, and at which position of the training source training begins."""
    held_out_from = source if validation_source is None else validation_source
    most = STREAMED_VALIDATION if data.validation_file is None else None
    count = data.max_eval_samples or most
    found = list(islice(numbered(held_out_from, data.text_column), count))
    if not found:
        read_documents(held_out_from, data.text_column)  # says what is wrong
    offset = found[-1][0] + 1 if validation_source is None else 0
    return tuple(document for _, document in found), offset
