"""A long text in sections: contiguous parts, cut where the text itself has a break."""

import re
from collections.abc import Iterator, Sequence
from typing import IO

from triune.training.data.text import BLANK_LINES, Document, characters


SECTION, SHORTEST = 4000, 200  # characters of a section; of little text they are shorter
BLOCK = 2**20  # characters of a file that are read together
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
