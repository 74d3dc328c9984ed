"""Rows of text files, tables and splits, read one after another: from any position on, and a batch at a time.

A row is a row of a table (CSV, JSON, JSON lines, Parquet), a text file, or a section of one. Local files are read in
place: nothing is copied into the cache of `datasets`, and nothing is asked of the network.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from triune.training.data.files import attempt, check_columns, open_text, quietly, suffix_of
from triune.training.data.sections import read_sections
from triune.training.data.text import Document


ROWS = 1000  # that are read together


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of tables


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
BESIDE_TEXT = {"label_column": "labels", "target_column": "targets"}  # what a table has and a text file has not
TABLES = {".csv": CSV, ".tsv": TSV, ".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".parquet": PARQUET}


# ---------------------------------------------------------------------------------------------------------------------
# Rows of one file, in batches


class Batch(NamedTuple):
    """Some rows of a file or split; a file that is one document is one row without a number."""

    name: str
    first: int | None
    rows: Any  # a table of pyarrow


def table_kind(path: Path) -> Kind | None:
    return TABLES.get(suffix_of(path))


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


def text_parts(path: Path, section: int | None) -> Iterator[str]:
    """A text file as a whole, or in sections; nothing of an empty one."""
    with attempt(path, open_text, path) as file:
        parts = iter([attempt(path, file.read)]) if section is None else read_sections(file, section)
        while part := attempt(path, next, parts):
            yield part


def counted(name: str, tables: Iterable[Any]) -> Iterator[Batch]:
    """Tables as batches, with the number of their first row."""
    first = 0
    for rows in tables:
        yield Batch(name, first, rows)
        first += len(rows)


def file_batches(path: Path, name: str, columns: dict[str, str], section: int | None) -> Iterator[Batch]:
    """A table as its rows; a text file as one document, or as sections."""
    import pyarrow

    if table_kind(path):
        yield from counted(name, table_rows(path, columns))
        return
    for flag, what in BESIDE_TEXT.items():
        if flag in columns:
            raise ValueError(f"{path} has no columns: texts with {what} come from CSV, JSON, JSON lines or Parquet")
    for number, part in enumerate(text_parts(path, section)):
        rows = pyarrow.table({columns["text_column"]: [part]})
        yield Batch(name, None if section is None else number, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Sources: several files, or a split of a data set


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
        wanted = list(dict.fromkeys(columns.values()))
        yield from counted(self.name, self.data.select_columns(wanted).with_format("arrow").iter(batch_size=ROWS))

    def classes(self, column: str) -> Sequence[str] | None:
        return getattr((self.data.features or {}).get(column), "names", None)

    def identity(self) -> str:
        return repr((self.flag, self.name, self.data.info.config_name, str(self.data.info.version)))


Source = Files | Split


# ---------------------------------------------------------------------------------------------------------------------
# Entries, one after another


class Entry(NamedTuple):
    position: int  # in all that is read
    name: str
    values: dict[str, Any]  # by column


def entries(source: Source, columns: dict[str, str], start: int = 0) -> Iterator[Entry]:
    """The rows from one on; those before it are read in blocks and not looked at."""
    position = 0
    for batch in source.batches(columns):
        skipped = min(max(0, start - position), len(batch.rows))
        for offset, values in enumerate(batch.rows.slice(skipped).to_pylist(), skipped):
            name = batch.name if batch.first is None else f"{batch.name} {batch.first + offset}"
            yield Entry(position + offset, name, values)
        position += len(batch.rows)


def text_of(entry: Entry, column: str, flag: str = "text_column") -> str:
    value = entry.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{flag}={column!r} does not hold text: in {entry.name} it is {value!r:.60}")
    return value


def numbered(source: Source, column: str, start: int = 0) -> Iterator[tuple[int, Document]]:
    """The documents of a source that are not blank, from a position on, each with its own."""
    for entry in entries(source, {"text_column": column}, start):
        text = text_of(entry, column)
        if text.strip():
            yield entry.position, Document(entry.name, text)
