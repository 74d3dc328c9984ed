"""Text that is trained on and text that is held out: split by whole documents, without a passage on both sides.

A document is what is split: a file, a topic, a module. A passage is a paragraph. A run is a number of words in a row,
whatever stands between them. Whole documents alone do not make a clean split where documents quote each other: what
is held out and quoted elsewhere would be measured as memory. So the training text loses every passage that stands in
the held-out text or shares a run of `RUN` words with it, and what then remains in common is measured and printed.

The same thought at scale: https://arxiv.org/abs/2005.14165, appendix C, with runs of 13 words. On `pydocs` eight take
2 % of the training text and leave no longer run in common; 13 take hardly less, and leave some.
"""

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np


RUN = 8
WORD = re.compile(r"\w+")
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
BASE = 0x9E3779B97F4A7C15  # any large odd number


@dataclass(frozen=True)
class Document:
    name: str
    text: str


class Overlap(NamedTuple):
    """What stands on both sides."""

    share: float  # of the held-out words: those inside a run of at least RUN words that also stands in train
    longest: int  # words of the longest run in common

    def __str__(self) -> str:
        return f"{self.share:.2%} of the words in runs of {RUN} or more, longest run {self.longest}"


def characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def passages(text: str) -> list[str]:
    """Paragraphs as they stand, indentation included."""
    return [passage for passage in BLANK_LINES.split(text) if passage.strip()]


def normalised(passage: str) -> str:
    """What makes two passages the same: neither case nor spaces and line breaks."""
    return " ".join(passage.casefold().split())


def fingerprint(*collections: Sequence[Document]) -> str:
    """SHA-256 over names and texts, in order; with several collections also over where one ends."""
    digest = hashlib.sha256()
    for documents in collections:
        digest.update(len(documents).to_bytes(8, "little"))
        for field in (part for document in documents for part in (document.name, document.text)):
            encoded = field.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Splitting


def split_documents(
    documents: Sequence[Document], fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Train and validation: whole documents in an order drawn from (seed, name), held out until they make up
    `fraction` of the characters. A document that would overshoot by more than it closes is passed over."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1: the share of the text that is held out")
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.name] += len(document.text)
    if len(sizes) < 2:
        raise ValueError(f"documents={list(sizes)}: a split by whole documents needs at least two of different names")
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    wanted = fraction * sizes.total()
    held_out = set()
    for name in order[:-1]:  # one always remains to train on
        if sizes[name] <= 2 * wanted:
            held_out.add(name)
            wanted -= sizes[name]
    held_out = held_out or {min(order, key=sizes.__getitem__)}
    train = [document for document in documents if document.name not in held_out]
    return train, [document for document in documents if document.name in held_out]


# ---------------------------------------------------------------------------------------------------------------------
# Runs of words, as numbers


def word_codes(text: str) -> np.ndarray:
    """64 bits for each word."""
    hashes = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in WORD.findall(text.casefold()))
    return np.frombuffer(b"".join(hashes), dtype="<u8")


def run_codes(words: np.ndarray, length: int) -> np.ndarray:
    """64 bits for each run of `length` words: a polynomial in BASE, modulo 2^64, by differences of its partial sums.
    The cost does not depend on the length, and equal runs have equal codes wherever they stand."""
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    powers = np.full(len(words), BASE, dtype=np.uint64).cumprod()
    back = np.full(count, pow(BASE, -1, 1 << 64), dtype=np.uint64).cumprod()
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), (words * powers).cumsum()])
    return (sums[length:] - sums[:-length]) * back


def all_runs(texts: list[np.ndarray], length: int) -> np.ndarray:
    """The distinct runs of several texts, sorted; no run goes from one text into the next."""
    empty = np.empty(0, dtype=np.uint64)
    return np.unique(np.concatenate([empty, *(run_codes(words, length) for words in texts)]))


def inside_runs(words: np.ndarray, runs: np.ndarray, length: int) -> np.ndarray:
    """For each word: does it lie in one of these runs?"""
    own = run_codes(words, length)
    found = np.zeros(len(words) + 1, dtype=np.int64)
    if len(own) and len(runs):
        place = runs.searchsorted(own).clip(max=len(runs) - 1)
        starts = np.flatnonzero(runs[place] == own)
        found[starts] += 1
        found[starts + length] -= 1
    return found.cumsum()[:-1] > 0


def common_runs(left: list[np.ndarray], right: list[np.ndarray], length: int) -> np.ndarray:
    """The distinct runs that both sides have, sorted. Only the shorter side is sorted to find them: the other one may
    be a hundred times as long."""
    shorter, longer = sorted((left, right), key=lambda texts: sum(map(len, texts)))
    runs = all_runs(shorter, length)
    found = np.zeros(len(runs), dtype=bool)
    for codes in (run_codes(words, length) for words in longer if len(runs)):
        place = runs.searchsorted(codes).clip(max=len(runs) - 1)
        found[place[runs[place] == codes]] = True
    return runs[found]


def longest_run(left: list[np.ndarray], right: list[np.ndarray]) -> int:
    """Words of the longest run that both sides have, by bisection: a run in common has shorter ones in it."""

    def nothing_in_common(length):
        return not common_runs(left, right, length).size

    most = min(max(map(len, left), default=0), max(map(len, right), default=0))
    return bisect_left(range(1, most + 1), True, key=nothing_in_common)


# ---------------------------------------------------------------------------------------------------------------------
# What stands on both sides


def remover(validation: Sequence[Document]) -> Callable[[Document], Document]:
    """What takes the passages out of a document that stand in validation, or that share a run of RUN words with it. A
    document that loses nothing is the same object. It can be pickled."""
    held_out = {normalised(passage) for document in validation for passage in passages(document.text)}
    runs = all_runs([word_codes(document.text) for document in validation], RUN)
    return partial(without, held_out=held_out, runs=runs)


def remove_shared_passages(train: Sequence[Document], validation: Sequence[Document]) -> list[Document]:
    """The training documents without what also stands in validation; one of which nothing remains is left out."""
    return [document for document in map(remover(validation), train) if document.text]


def without(document: Document, held_out: set[str], runs: np.ndarray) -> Document:
    parts = passages(document.text)
    codes = [word_codes(part) for part in parts]
    # over the whole document: a run may begin in one passage and end in the next
    shared = inside_runs(np.concatenate([np.empty(0, dtype=np.uint64), *codes]), runs, RUN)
    ends = np.cumsum([len(words) for words in codes], dtype=np.int64)
    kept = [
        part
        for part, words, end in zip(parts, codes, ends)
        if normalised(part) not in held_out and not shared[end - len(words) : end].any()
    ]
    if len(kept) == len(parts):
        return document
    # once more: what remains now stands side by side
    return without(Document(document.name, "\n\n".join(kept)), held_out, runs)


def overlap(train: Sequence[Document], validation: Sequence[Document]) -> Overlap:
    """How much of the held-out text can be found in the training text."""
    known = [word_codes(document.text) for document in train]
    held_out = [word_codes(document.text) for document in validation]
    runs = common_runs(known, held_out, RUN)
    shared = sum(int(inside_runs(words, runs, RUN).sum()) for words in held_out)
    return Overlap(shared / max(1, sum(map(len, held_out))), longest_run(known, held_out))


# ---------------------------------------------------------------------------------------------------------------------
# A data set


@dataclass(frozen=True)
class TextData:
    """Documents to train on and held-out documents; `headline` are those of the latter that figures are quoted for."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    headline: tuple[Document, ...]
    source: str
    fingerprint: str
    overlap: Overlap
    removed: int  # characters that were taken out of train

    def describe(self) -> str:
        """One line for the console."""
        kept, held_out = characters(self.train), characters(self.validation)
        quoted = f" (figures on {characters(self.headline):,} in {len(self.headline)})"
        return (
            f"{self.source}: {kept:,} characters in {len(self.train)} documents; "
            f"held out {held_out:,} in {len(self.validation)}"
            f"{quoted if len(self.headline) < len(self.validation) else ''}; "
            f"removed from train {self.removed:,} ({self.removed / max(1, kept + self.removed):.1%}), "
            f"overlap left {self.overlap}; sha256 {self.fingerprint[:12]}"
        )


def text_data(
    train: Sequence[Document],
    validation: Sequence[Document],
    source: str,
    headline: Sequence[Document] | None = None,
    remove: bool = True,
) -> TextData:
    """A data set of documents that are already split: what stands on both sides is removed from train, unless it is to
    stay and only to be measured."""
    cleaned = remove_shared_passages(train, validation) if remove else train
    return TextData(
        train=tuple(cleaned),
        validation=tuple(validation),
        headline=tuple(validation if headline is None else headline),
        source=source,
        fingerprint=fingerprint(cleaned, validation),
        overlap=overlap(cleaned, validation),
        removed=characters(train) - characters(cleaned),
    )
