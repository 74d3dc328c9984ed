"""Local files and data sets of `datasets`: what texts and images have in common before they are texts or images.

Which files a flag names, which columns a table must have, in which order classes come, and errors of other libraries
in one line. What is held out does not follow from the seed of a run: several runs are measured on the same data.
"""

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any

from triune.configuration.configuration_triune import nearest


VALIDATION_SPLITS = ("validation", "valid", "dev", "val", "test")  # the first that a data set has
SPLIT_SEED = 0


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def find_files(flag: str, value: str) -> list[Path]:
    """The files that a flag names: one, several with commas, or globs."""
    whole = Path(value).expanduser().exists()
    patterns = [value] if whole else [part.strip() for part in value.split(",") if part.strip()]
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


# ---------------------------------------------------------------------------------------------------------------------
# Reading them


def suffix_of(path: Path) -> str:
    """The one that says what a file holds, compressed or not."""
    return next((suffix for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "").lower()


def opened(path: Path, mode: str, **options) -> IO:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, mode, **options)


def open_text(path: Path) -> IO[str]:
    return opened(path, "rt", encoding="utf-8-sig")


def not_utf8(path: Path) -> str | None:
    """Where the text of a file is broken, if it is. By lines: no character goes over the end of one, and a file may
    be larger than the memory."""
    before = 0
    with suppress(OSError), opened(path, "rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"is not UTF-8: byte {before + error.start} is 0x{line[error.start]:02x}"
            before += len(line)
    return None


def attempt(path: Path, function: Callable, *arguments, **options) -> Any:
    """What the function returns; if it cannot read the file, one error that names it. None where there are no rows."""
    try:
        return function(*arguments, **options)
    except StopIteration:
        return None
    except Exception as error:  # of pandas, pyarrow, gzip, ...
        # each says it in its own way, and some name the file, in whose name it may stand too
        encoding = "utf" in str(error).lower() and suffix_of(path) != ".parquet"
        broken = not_utf8(path) if encoding else None
        raise ValueError(f"{path} {broken or f'cannot be read: {one_line(error)}'}") from error


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


# ---------------------------------------------------------------------------------------------------------------------
# Columns and classes


def check_columns(there: Sequence[str], columns: dict[str, str], place: str) -> None:
    for flag, column in columns.items():
        if column not in there:
            raise ValueError(
                f"{flag}={column!r} is not a column of {place}, which has {', '.join(map(repr, there))}"
                f"{nearest(column, there)}"
            )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each once: whole numbers by size, then words by the alphabet."""
    names = set(names)
    numbers = {name: int(name) for name in names if re.fullmatch(r"-?\d+", name)}
    return tuple(sorted(names, key=lambda name: (name not in numbers, numbers.get(name, 0), name)))
