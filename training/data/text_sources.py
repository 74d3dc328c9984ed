"""Any text as one type: bundled, local files, or a data set of `datasets`. Read at once (`load_text`), as it comes
(`stream_text`), or with a class for each text (`load_labelled_text`).

A document is a text file or a row of a table (CSV, JSON, JSON lines, Parquet). Without validation data a share is
split off by whole documents. Where there are fewer than FEWEST, as with one file, they are cut into sections first, at
blank lines: held out is then a page here and a page there, not single lines between lines of the training text.

What is held out does not follow from the seed of the run: several runs are measured on the same text. Local files are
read in place: nothing is copied into the cache of `datasets`, and nothing is asked of the network.
"""

import gzip
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import DataArguments
from triune.training.data.bundled import pydocs
from triune.training.data.images import stratified_folds
from triune.training.data.text import (
    BLANK_LINES,
    Document,
    TextData,
    characters,
    fingerprint,
    normalised,
    passages,
    remover,
    split_documents,
    text_data,
)
from triune.training.sampling import permutation


BUNDLED = "pydocs"
BUNDLED_IMAGES = ("digits", "letters")
VALIDATION_SPLITS = ("validation", "valid", "dev", "val", "test")  # the first that a data set has
SPLIT_SEED = 0
FEWEST = 20  # documents, for a share of them to be split off as they are
SECTION, SHORTEST = 4000, 200  # characters of a section; of little text they are shorter
STREAMED_VALIDATION = 100  # documents held out of a stream, unless max_eval_samples says how many
KNOWN_FROM_START = 10  # documents of a stream that its fingerprint covers
BLOCK = 2**20  # characters of a file that are read together
ROWS = 1000  # rows of a table that are read together


# ---------------------------------------------------------------------------------------------------------------------
# Sections


CUTS = (BLANK_LINES, re.compile(r"\n"), re.compile(r"\s"))


def place_to_cut(text: str, first: int, last: int) -> int:
    """Behind the first blank line between two places; without one behind the first line, or word; or the last."""
    found = (pattern.search(text, first, last) for pattern in CUTS)
    return next((match.end() for match in found if match), last)


def sections(text: str, size: int) -> list[str]:
    """The text in contiguous parts of `size` to twice as many characters, of which only the last may be shorter."""
    start, parts = 0, []
    while len(text) - start > 2 * size:
        end = place_to_cut(text, start + size, start + 2 * size)
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def read_sections(file: IO[str], size: int) -> Iterator[str]:
    """The same sections of a file that may be larger than the memory."""
    rest = ""
    while block := file.read(BLOCK):
        *whole, rest = sections(rest + block, size)
        yield from whole
    yield rest


def cut_up(documents: Sequence[Document], fraction: float) -> list[Document]:
    """Documents as sections, short enough that several make up the share that is held out."""
    size = min(SECTION, max(SHORTEST, int(fraction * characters(documents) / 4)))
    return [
        Document(f"{document.name} {number}", part)
        for document in documents
        for number, part in enumerate(sections(document.text, size))
        if part.strip()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Reading files


class Kind(NamedTuple):
    """How `datasets` reads a kind of table: what it takes to see the columns, and then to read only some."""

    reader: str
    look: dict[str, Any]
    narrow: Callable[[list[str]], dict[str, Any]]


def as_they_stand(columns: list[str]) -> dict[str, Any]:
    """Cells are text: pandas would make numbers of 007 and nothing of NA, and stumble over a column with both."""
    return {"usecols": columns, "converters": dict.fromkeys(columns, str), "na_filter": False}


CSV = Kind("from_csv", {"nrows": 1}, as_they_stand)
TSV = Kind("from_csv", {"nrows": 1, "sep": "\t"}, lambda columns: {**as_they_stand(columns), "sep": "\t"})
JSON = Kind("from_json", {}, lambda columns: {})
PARQUET = Kind("from_parquet", {}, lambda columns: {"columns": columns})
TABLES = {".csv": CSV, ".tsv": TSV, ".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".parquet": PARQUET}


class Batch(NamedTuple):
    """Some rows of a file or split; a file that is one document is one row without a number."""

    name: str
    first: int | None
    rows: Any  # a table of pyarrow


class Entry(NamedTuple):
    position: int  # in all that is read
    name: str
    values: dict[str, Any]  # by column


def table_kind(path: Path) -> Kind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return TABLES.get(next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), ""))


def open_text(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")


def not_utf8(path: Path) -> str:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}"
    return f"{path} is not UTF-8"


def attempt(path: Path, function: Callable, *arguments, **options) -> Any:
    """What the function returns; if it cannot read the file, one error that names it. None where there are no rows."""
    try:
        return function(*arguments, **options)
    except StopIteration:
        return None
    except Exception as error:  # of pandas, pyarrow, gzip, ...
        encoding = "utf" in str(error).lower() and table_kind(path) is not PARQUET  # each says it in its own way
        raise ValueError(not_utf8(path) if encoding else f"{path} cannot be read: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def quietly(function: Callable, *arguments, **options) -> Any:
    """Without what `datasets` logs of an error before it raises it."""
    from datasets import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        return function(*arguments, **options)
    finally:
        logging.set_verbosity(before)


def check_columns(there: Sequence[str], columns: dict[str, str], place: str) -> None:
    for flag, column in columns.items():
        if column not in there:
            raise ValueError(
                f"{flag}={column!r} is not a column of {place}, which has {', '.join(map(repr, there))}"
                f"{nearest(column, there)}"
            )


def table_rows(path: Path, columns: dict[str, str]) -> Iterator[Any]:
    """Some columns of a table, in tables of pyarrow."""
    from datasets import IterableDataset

    kind, wanted, fetch = table_kind(path), list(dict.fromkeys(columns.values())), partial(attempt, path, quietly)
    if not path.stat().st_size:
        return
    with TemporaryDirectory() as cache:  # for locks; rows are not copied
        reader = partial(getattr(IterableDataset, kind.reader), escape(str(path.resolve())), cache_dir=cache)
        table = fetch(reader, **kind.look)
        there = table and (table.column_names or list(fetch(next, iter(table), {})))
        if not there:
            return
        check_columns(there, columns, str(path))
        table = fetch(reader, **kind.narrow(wanted))
        batches = table.select_columns(wanted).with_format("arrow").iter(batch_size=ROWS)
        while (rows := fetch(next, batches, None)) is not None:
            fetch(rows.validate, full=True)  # pyarrow reads JSON that is not UTF-8, and stumbles later
            yield rows


def file_batches(path: Path, name: str, columns: dict[str, str], section: int | None) -> Iterator[Batch]:
    """A table as its rows; a text file as one document, or as sections."""
    import pyarrow

    if table_kind(path):
        first = 0
        for rows in table_rows(path, columns):
            yield Batch(name, first, rows)
            first += len(rows)
        return
    if "label_column" in columns:
        raise ValueError(f"{path} has no columns: texts with labels come from CSV, JSON, JSON lines or Parquet")
    with attempt(path, open_text, path) as file:
        parts = iter([attempt(path, file.read)]) if section is None else read_sections(file, section)
        number = None if section is None else 0
        while part := attempt(path, next, parts):
            yield Batch(name, number, pyarrow.table({columns["text_column"]: [part]}))
            number = None if number is None else number + 1


@dataclass(frozen=True)
class Files:
    """Local files, in the order of their names."""

    flag: str  # what the user wrote
    paths: tuple[Path, ...]
    section: int | None = None  # text files are cut into sections of so many characters

    def names(self) -> list[str]:
        """Without the folder that holds them all: what is split off does not depend on where it stands."""
        root = os.path.commonpath([path.resolve().parent for path in self.paths])
        return [path.resolve().relative_to(root).as_posix() for path in self.paths]

    def batches(self, columns: dict[str, str]) -> Iterator[Batch]:
        for path, name in zip(self.paths, self.names()):
            yield from file_batches(path, name, columns, self.section)

    def classes(self, column: str) -> None:
        return None

    def identity(self) -> str:
        return repr([(name, path.stat().st_size) for path, name in zip(self.paths, self.names())])


@dataclass(frozen=True)
class Split:
    """One split of a data set of `datasets`."""

    flag: str
    name: str
    data: Any  # a Dataset or an IterableDataset

    def batches(self, columns: dict[str, str]) -> Iterator[Batch]:
        there = self.data.column_names or list(next(iter(self.data), {}))
        check_columns(there, columns, f"{self.flag}, split {self.name!r}")
        first, wanted = 0, list(dict.fromkeys(columns.values()))
        for rows in self.data.select_columns(wanted).with_format("arrow").iter(batch_size=ROWS):
            yield Batch(self.name, first, rows)
            first += len(rows)

    def classes(self, column: str) -> Sequence[str] | None:
        return getattr((self.data.features or {}).get(column), "names", None)

    def identity(self) -> str:
        return repr((self.flag, self.name, self.data.info.config_name, str(self.data.info.version)))


Source = Files | Split


def entries(source: Source, columns: dict[str, str], start: int = 0) -> Iterator[Entry]:
    """The rows from one on; those before it are read in blocks and not looked at."""
    position = 0
    for batch in source.batches(columns):
        skipped = min(max(0, start - position), len(batch.rows))
        for offset, values in enumerate(batch.rows.slice(skipped).to_pylist(), skipped):
            name = batch.name if batch.first is None else f"{batch.name} {batch.first + offset}"
            yield Entry(position + offset, name, values)
        position += len(batch.rows)


def text_of(entry: Entry, column: str) -> str:
    value = "" if entry.values[column] is None else entry.values[column]
    if not isinstance(value, str):
        raise ValueError(f"text_column={column!r} does not hold text: in {entry.name} it is {value!r:.60}")
    return value


def numbered(source: Source, column: str, start: int = 0) -> Iterator[tuple[int, Document]]:
    """The documents of a source that are not blank, from a position on, each with its own."""
    for entry in entries(source, {"text_column": column}, start):
        text = text_of(entry, column)
        if text.strip():
            yield entry.position, Document(entry.name, text)


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
                f"{flag}={getattr(data, flag)!r} does not go with dataset_name={BUNDLED!r}, which is always split and "
                "cleaned alike"
            )


def find_files(flag: str, value: str) -> list[Path]:
    """The files that a flag names: one, several with commas, or globs."""
    patterns = [value] if Path(value).exists() else [part.strip() for part in value.split(",") if part.strip()]
    found = [path for pattern in patterns for path in matching(flag, pattern)]
    return sorted(set(found))


def matching(flag: str, pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise ValueError(f"{flag}={pattern!r} is a folder: {str(path / '*.txt')!r} takes the text files in it")
    if has_magic(pattern):
        found = [Path(name) for name in glob(str(path), recursive=True) if Path(name).is_file()]
        if not found:
            raise ValueError(f"{flag}={pattern!r} matches no file")
        return found
    if not path.parent.is_dir():
        raise ValueError(f"{flag}={pattern!r}: there is no folder {str(path.parent)!r}")
    near = nearest(path.name, [other.name for other in path.parent.iterdir() if other.is_file()])
    raise ValueError(f"{flag}={pattern!r}: there is no such file{near}")


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
        parts = {"validation": text.validation, "headline": text.headline, "clean": unchanged}
        return StreamedText(
            source=text.source, fingerprint=text.fingerprint, read=partial(listed, text.train), **parts
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
    whole_file = validation_source is not None and data.validation_file is not None
    count = data.max_eval_samples or (None if whole_file else STREAMED_VALIDATION)
    found = list(islice(numbered(held_out_from, data.text_column), count))
    if not found:
        read_documents(held_out_from, data.text_column)  # says what is wrong
    offset = found[-1][0] + 1 if validation_source is None else 0
    return tuple(document for _, document in found), offset


# ---------------------------------------------------------------------------------------------------------------------
# With labels


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


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Whole numbers by size, then words by the alphabet."""
    numbers = {name: int(name) for name in names if re.fullmatch(r"-?\d+", name)}
    return tuple(sorted(set(names), key=lambda name: (name not in numbers, numbers.get(name, 0), name)))


def numbered_labels(labels: Sequence[str], names: Sequence[str], flag: str) -> torch.Tensor:
    ids = {name: index for index, name in enumerate(names)}
    unknown = sorted(set(labels) - set(ids))
    if unknown:
        raise ValueError(
            f"{flag} has the class {unknown[0]!r}, which the training text has not{nearest(unknown[0], names)}"
        )
    return torch.tensor([ids[label] for label in labels], dtype=torch.long)


def split_labelled(everything: Labelled, percentage: float) -> tuple[Labelled, Labelled]:
    """A share held out, the same of each class; a class of one text is trained on."""
    folds = min(max(2, round(100 / percentage)), len(everything.texts))
    held_out = stratified_folds(everything.labels, folds, SPLIT_SEED) == 0
    held_out &= torch.isin(everything.labels, everything.labels[~held_out])
    if not held_out.any():
        raise ValueError(f"{len(everything.texts)} texts are too few to hold some out: give --validation_file")
    return everything.take((~held_out).nonzero().flatten()), everything.take(held_out.nonzero().flatten())


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
