"""Pairs of texts for next-sentence prediction: the second follows the first in its document, or it stands in another.

A document is cut at its sentences. A pair belongs to a break between two of them: the first text is what stands before
the break, as much as there is room for; the second what stands behind it, or behind a break of another document. So
both kinds of second texts are alike, and only the two texts together tell which kind a pair is.

Training pairs come in fours: two breaks of different documents, each first text with its own second text and with the
other one's. What can be read from one of the texts alone then cancels out in every batch, and only what they have in
common is learned. With pairs drawn one by one a model of three layers stood at chance for 1,000 steps; with fours one
of two layers left it within 200.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from triune.training.data.sections import cut_up
from triune.training.data.text import Document
from triune.training.sampling import Key, generator, permutation


FOLLOWS, STRANGE = 0, 1  # as BERT numbers them
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n[^\S\n]*\n\s*")
LINE = re.compile(r"\n\s*")
PARTS = 0.25  # a single document is cut up into sections of this share of it
EVAL_SEED = 0  # the held-out pairs are the same in every run


def sentences(text: str) -> list[str]:
    """The text in contiguous parts; by its lines where nothing else tells sentences apart."""
    cuts = [match.end() for match in SENTENCE.finditer(text)]
    cuts = cuts or [match.end() for match in LINE.finditer(text)]
    places = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(places) if text[start:end].strip()]


class Pair(NamedTuple):
    first: torch.Tensor  # token ids, without special ones
    second: torch.Tensor
    label: int
    key: Key  # what its masks are drawn from
    held_out: bool = False


class Texts:
    """Tokens of all documents end to end, and the breaks between their sentences."""

    def __init__(self, documents: Sequence[Document], tokenizer, length: int, source: str):
        if length < 5:
            raise ValueError(f"max_seq_length={length} has no room for two texts and three special tokens: at least 5")
        self.first_room = (length - 3) // 2
        self.second_room = length - 3 - self.first_room
        parts = documents if len(documents) > 1 else cut_up(documents, PARTS)
        cut = [sentences(document.text) for document in parts]
        encoded = tokenizer([one for part in cut for one in part], add_special_tokens=False, verbose=False)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        self.tokens = torch.from_numpy(
            np.concatenate([np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids in encoded["input_ids"])])
        )
        self.sentences = len(lengths)
        self._find_breaks(np.concatenate([[0], lengths.cumsum()]), [len(part) for part in cut])
        if len(np.unique(self.starts)) < 2:
            raise ValueError(
                f"{source}: pretraining needs two documents of two sentences each, for texts that follow and texts "
                f"that do not; there are {len(documents)} documents with {self.sentences} sentences"
            )

    def _find_breaks(self, ends: np.ndarray, counts: Iterable[int]) -> None:
        """Of each break its place among the tokens, and where its document begins and ends."""
        rows, sentence = [np.zeros((0, 3), np.int64)], 0
        for count in counts:
            edges = ends[sentence : sentence + count + 1]
            inside = np.unique(edges[(edges > edges[0]) & (edges < edges[-1])])
            rows.append(np.stack([inside, *(np.full_like(inside, edge) for edge in (edges[0], edges[-1]))], axis=1))
            sentence += count
        self.breaks, self.starts, self.ends = np.concatenate(rows).T

    def __len__(self) -> int:
        return len(self.breaks)

    def elsewhere(self, place: int, random: torch.Generator) -> int:
        """A break of another document, each as likely as any other."""
        low, high = (int(self.starts.searchsorted(self.starts[place], side)) for side in ("left", "right"))
        drawn = int(torch.randint(len(self) - (high - low), (), generator=random))
        return drawn if drawn < low else drawn + high - low

    def pair(self, place: int, other: int, key: Key) -> Pair:
        """What stands before one break, and what stands behind one."""
        before, behind = int(self.breaks[place]), int(self.breaks[other])
        first = self.tokens[max(int(self.starts[place]), before - self.first_room) : before]
        second = self.tokens[behind : min(int(self.ends[other]), behind + self.second_room)]
        return Pair(first.long(), second.long(), FOLLOWS if place == other else STRANGE, key)


class TrainingPairs(Dataset):
    """Fours of pairs, side by side, in every epoch others: its order is random already."""

    def __init__(self, texts: Texts, seed: int):
        self.texts, self.seed = texts, seed
        self.order = lru_cache(maxsize=2)(permutation)  # of an epoch: where two meet a batch needs both

    def __len__(self) -> int:
        return len(self.texts) // 2 * 4

    def __getitem__(self, key: Key) -> Pair:
        four, member = divmod(key.index, 4)
        both = self.order(len(self.texts), self.seed, key.epoch)[2 * four : 2 * four + 2].tolist()
        place, partner = both if member % 2 == 0 else both[::-1]
        return self.texts.pair(place, place if member < 2 else self.strange(place, partner, key), key)

    def strange(self, place: int, partner: int, key: Key) -> int:
        apart = self.texts.starts[place] != self.texts.starts[partner]
        return partner if apart else self.texts.elsewhere(place, generator(self.seed, *key))


class HeldOutPairs(Dataset):
    """Two pairs for each break, one that follows and one that does not; or for `most` of them, far apart."""

    def __init__(self, texts: Texts, most: int | None = None):
        self.texts = texts
        self.places = np.linspace(0, len(texts), min(most or len(texts), len(texts)), endpoint=False).astype(int)

    def __len__(self) -> int:
        return 2 * len(self.places)

    def __getitem__(self, index: int) -> Pair:
        key = Key(index % 2, int(self.places[index // 2]))  # held out there are two epochs, so to say
        place = key.index
        other = place if index % 2 == FOLLOWS else self.texts.elsewhere(place, generator(EVAL_SEED, *key))
        return self.texts.pair(place, other, key)._replace(held_out=True)


def shared_words(train: Sequence[Pair], held_out: Sequence[Pair], vocab_size: int) -> float:
    """The accuracy on held-out pairs of who only looks which tokens both texts have, the rare ones above all: a text
    follows if they are more than a threshold, which is the best one on the training pairs."""
    counts = torch.cat([ids for pair in train for ids in (pair.first, pair.second)]).bincount(minlength=vocab_size)
    rarity = ((counts.sum() + vocab_size) / (counts + 1)).log()

    def score(pair: Pair) -> float:
        own = pair.second.unique()
        return float(rarity[own[torch.isin(own, pair.first)]].sum() / rarity[own].sum())

    (known, truth), (asked, answers) = (
        (np.array([score(pair) for pair in pairs]), np.array([pair.label == FOLLOWS for pair in pairs]))
        for pairs in (train, held_out)
    )
    thresholds = np.unique(known)
    best = max(thresholds, key=lambda threshold: ((known >= threshold) == truth).mean())
    return float(((asked >= best) == answers).mean())
