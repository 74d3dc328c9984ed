"""Texts and what is to be made of them: two columns of any table, or bundled pairs.

    names     docstrings of the standard library, and the words of the functions' names
    copy      strings of letters and digits, and themselves
    reverse   the same, and themselves from the end

Without validation data a share is split off; pairs whose source is the same fall on one side. A training pair whose
source also stands in validation is removed. Of `names` whole modules are held out.
"""

import platform
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import DataArguments
from triune.training.data.files import SPLIT_SEED
from triune.training.data.function_names import named_functions
from triune.training.data.tables import Source, entries, text_of
from triune.training.data.text import Document, fingerprint, normalised, split_documents
from triune.training.data.text_sources import check_bundled, check_named, source_name, sources
from triune.training.sampling import permutation


ALPHABET = string.ascii_lowercase + string.digits
SHORTEST, LONGEST = 2, 12  # strings
STRINGS, HELD_OUT_STRINGS = 50_000, 1_100
HELD_OUT_NAMES = 0.1


class TextPair(NamedTuple):
    source: str
    target: str


# ---------------------------------------------------------------------------------------------------------------------
# Answers that take no model: made from the training pairs, each gives a text for a pair


WORD = re.compile(r"[^\W\d_]+|\d+")


def words(text: str) -> list[str]:
    """In small letters; never none."""
    return WORD.findall(text.lower()) or [text]


def rarest_word(train: Sequence[TextPair]) -> Callable[[TextPair], str]:
    """The one that the fewest sources to train on have."""
    counts = Counter(word for pair in train for word in set(words(pair.source)))
    return lambda pair: min(words(pair.source), key=lambda word: counts[word])


def most_frequent(train: Sequence[TextPair]) -> Callable[[TextPair], str]:
    target, _ = Counter(pair.target for pair in train).most_common(1)[0]
    return lambda pair: target


GUESSES: dict[str, Callable[[Sequence[TextPair]], Callable[[TextPair], str]]] = {
    "source as it is": lambda train: lambda pair: pair.source,
    "first word": lambda train: lambda pair: words(pair.source)[0],
    "rarest word": rarest_word,
    "most frequent target": most_frequent,
}


# ---------------------------------------------------------------------------------------------------------------------
# Two sides


@dataclass(frozen=True)
class PairedText:
    """Pairs to train on and held-out pairs."""

    train: tuple[TextPair, ...]
    validation: tuple[TextPair, ...]
    source: str
    fingerprint: str
    removed: int  # training pairs whose source stood in validation as well
    tokenizer: str = "bpe"  # the kind that suits it
    metrics: tuple[str, ...] = ("exact_match", "bleu", "chrf")  # what tells something of its targets
    guesses: tuple[str, ...] = tuple(GUESSES)  # what its targets could be taken for without a model

    def describe(self) -> str:
        """One line for the console."""
        return (
            f"{self.source}: {len(self.train):,} pairs of a source and a target; held out {len(self.validation):,}; "
            f"removed from train {self.removed:,} whose source stands in both; sha256 {self.fingerprint[:12]}"
        )


def paired_text(
    train: Sequence[TextPair], validation: Sequence[TextPair], source: str, remove: bool = True, **of_its_kind
) -> PairedText:
    """Two sides that are already split."""
    held_out = {normalised(pair.source) for pair in validation} if remove else set()
    kept = [pair for pair in train if normalised(pair.source) not in held_out]
    if not kept:
        raise ValueError(f"{source}: every source text stands in validation as well, and none is left to train on")
    removed = len(train) - len(kept)
    return PairedText(tuple(kept), tuple(validation), source, identity(kept, validation), removed, **of_its_kind)


def identity(*sides: Sequence[TextPair]) -> str:
    return fingerprint(*([Document(*pair) for pair in side] for side in sides))


def some_of(pairs: Sequence[TextPair], limit: int | None) -> list[TextPair]:
    """No more than so many, drawn from all: files are often sorted."""
    places = sorted(permutation(len(pairs), SPLIT_SEED, 0)[:limit].tolist())
    return [pairs[place] for place in places]


def split_pairs(pairs: Sequence[TextPair], percentage: float, flag: str) -> tuple[list[TextPair], list[TextPair]]:
    """A share of the different sources, held out with all their targets."""
    different = list(dict.fromkeys(normalised(pair.source) for pair in pairs))
    count = max(1, round(len(different) * percentage / 100))
    if count >= len(different):
        raise ValueError(f"{flag}: of {len(different)} different sources none can be held out: give --validation_file")
    held_out = {different[place] for place in permutation(len(different), SPLIT_SEED, 0)[:count]}
    sides = ([pair for pair in pairs if (normalised(pair.source) in held_out) == side] for side in (False, True))
    return tuple(sides)


# ---------------------------------------------------------------------------------------------------------------------
# Bundled


def names() -> PairedText:
    """In small letters, as names are; one of each docstring on the held-out side: many modules have the same ones."""
    found = named_functions()
    modules = {one.module: "" for one in found}
    for one in found:
        modules[one.module] += one.docstring
    documents = [Document(name, text) for name, text in modules.items()]
    known = {document.name for document in split_documents(documents, HELD_OUT_NAMES, SPLIT_SEED)[0]}
    train, validation = (
        [TextPair(one.docstring.lower(), one.name) for one in found if (one.module in known) == side]
        for side in (True, False)
    )
    return paired_text(
        list(dict.fromkeys(train)),
        list({normalised(pair.source): pair for pair in reversed(validation)}.values())[::-1],
        f"names in the standard library of Python {platform.python_version()}, whole modules held out",
        metrics=("exact_match", "chrf"),
    )


def strings(count: int, number: int) -> list[str]:
    """Drawn at random, as many of each length."""
    drawn = np.random.default_rng([SPLIT_SEED, number]).integers(len(ALPHABET), size=(count, LONGEST))
    lengths = np.arange(count) % (LONGEST - SHORTEST + 1) + SHORTEST
    return ["".join(ALPHABET[place] for place in row[:length]) for row, length in zip(drawn.tolist(), lengths)]


def generated(name: str, change: Callable[[str], str], guesses: tuple[str, ...]) -> PairedText:
    sides = [
        [TextPair(text, change(text)) for text in dict.fromkeys(strings(count, number))]
        for number, count in enumerate((STRINGS, HELD_OUT_STRINGS))
    ]
    return paired_text(
        *sides,
        f"{name}: random strings of {SHORTEST} to {LONGEST} letters and digits",
        tokenizer="characters",
        metrics=("exact_match",),
        guesses=guesses,
    )


BUNDLED: dict[str, Callable[[], PairedText]] = {
    "names": names,
    "copy": lambda: generated("copy", str, ("most frequent target",)),
    "reverse": lambda: generated("reverse", lambda text: text[::-1], ("source as it is", "most frequent target")),
}


def bundled(data: DataArguments) -> PairedText:
    check_bundled(data)
    whole = BUNDLED[data.dataset_name]()
    sides = some_of(whole.train, data.max_train_samples), some_of(whole.validation, data.max_eval_samples)
    return replace(whole, train=tuple(sides[0]), validation=tuple(sides[1]), fingerprint=identity(*sides))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read_pairs(source: Source, data: DataArguments) -> list[TextPair]:
    """Those of which neither side is blank."""
    columns = {"text_column": data.text_column, "target_column": data.target_column}
    pairs = [
        TextPair(*(text_of(entry, column, flag) for flag, column in columns.items()))
        for entry in entries(source, columns)
    ]
    found = [pair for pair in pairs if pair.source.strip() and pair.target.strip()]
    if not found:
        listed = " and ".join(f"{flag}={column!r}" for flag, column in columns.items())
        raise ValueError(f"{source.flag} has no row in which both {listed} hold text")
    return found


def load_paired_text(data: DataArguments) -> PairedText:
    """The pairs that a run names."""
    check_named(data)
    if data.streaming:
        raise ValueError("streaming=True: pairs of texts are read at once")
    if data.text_column == data.target_column:
        raise ValueError(f"text_column and target_column are both {data.text_column!r}: a target is not its source")
    if data.dataset_name in BUNDLED:
        return bundled(data)
    try:
        train_source, validation_source = sources(data)
    except ValueError as error:
        guess = nearest(data.dataset_name, BUNDLED) if data.dataset_name else ""
        raise ValueError(f"{error} (bundled pairs: {', '.join(BUNDLED)}{guess})") from error
    train = read_pairs(train_source, data)
    if validation_source is None:
        train, validation = split_pairs(train, data.validation_split_percentage, train_source.flag)
    else:
        validation = read_pairs(validation_source, data)
    train, validation = some_of(train, data.max_train_samples), some_of(validation, data.max_eval_samples)
    return paired_text(train, validation, source_name(data), remove=data.remove_shared_passages)
