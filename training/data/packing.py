"""Documents to rows of tokens: packed for training, one by one for evaluation.

In training the documents stand in a ring, one after another, and an epoch cuts the ring into rows of equal length at a
place of its own. No token is padding, none is lost but for less than a row, and an epoch cuts where the last did not.
Where a document begins in a row the positions begin again: attention keeps documents apart by that.

In evaluation a row holds tokens of one document, and every token is scored exactly once, with what stands before it in
the row as context.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from triune.training.data.text import Document
from triune.training.sampling import Key, Plan, generator, my_places, permutation


TOGETHER = 2_000_000  # characters of documents that are tokenised at once
BLOCK = 1024  # rows of a stream that are shuffled among each other


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


@dataclass(frozen=True)
class TokenStream:
    """Documents end to end, each framed by the tokenizer's special tokens."""

    ids: torch.Tensor  # int32
    begins: torch.Tensor  # bool: the first token of a document
    words: torch.Tensor | None  # bool: the first token of a word; only where it was asked for

    def __len__(self) -> int:
        return len(self.ids)


def frame_of(tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and after a document. Most tokenizers put it there; GPT-2's has it and does not."""
    first = [tokenizer.cls_token_id, tokenizer.bos_token_id]
    last = [tokenizer.sep_token_id, tokenizer.eos_token_id]
    return tuple([next((token for token in tokens if token is not None), None)] for tokens in (first, last))


def framed(ids: list[int], frame: tuple[list[int], list[int]]) -> list[int]:
    """With the frame that a tokenizer has, where it has not put it."""
    first, last = frame
    before = first if first != [None] and ids[:1] != first else []
    after = last if last != [None] and ids[-1:] != last else []
    return [*before, *ids, *after]


def first_of_word(words: list[int | None]) -> list[bool]:
    return [word is None or word != before for word, before in zip(words, [None, *words])]


class Encoded(NamedTuple):
    """A document's tokens, and which of them begin a word (none are told, unless asked)."""

    ids: np.ndarray  # int32
    words: np.ndarray  # bool, or empty


def encode(documents: Iterable[Document], tokenizer, words: bool = False) -> Iterator[Encoded]:
    frame = frame_of(tokenizer)
    for some in together(documents, lambda document: len(document.text)):
        # verbose: a document longer than the model reads is no mistake here
        encoded = tokenizer([document.text for document in some], add_special_tokens=True, verbose=False)
        for index, own in enumerate(encoded["input_ids"]):
            ids = framed(own, frame)
            starts = first_of_word(encoded.word_ids(index)) if words else []
            if words and len(ids) > len(own):
                starts = [True] * (ids[:1] != own[:1]) + starts + [True] * (ids[-1:] != own[-1:])
            yield Encoded(np.array(ids, dtype=np.int32), np.array(starts, dtype=bool))


def together(things: Iterable, size: Callable) -> Iterator[list]:
    """In lists that reach TOGETHER."""
    some, total = [], 0
    for thing in things:
        some.append(thing)
        total += size(thing)
        if total >= TOGETHER:
            yield some
            some, total = [], 0
    if some:
        yield some


def begin_flags(lengths: Sequence[int]) -> np.ndarray:
    """Where, of documents end to end, each begins."""
    begins = np.zeros(sum(lengths), dtype=bool)
    begins[np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)]] = True
    return begins


def end_to_end(encoded: Sequence[Encoded]) -> TokenStream:
    lengths = [len(one.ids) for one in encoded]
    ids, words = (np.concatenate(part) for part in zip(NOTHING, *encoded))
    return TokenStream(
        *map(torch.from_numpy, (ids, begin_flags(lengths))), torch.from_numpy(words) if len(words) else None
    )


NOTHING = Encoded(np.empty(0, np.int32), np.empty(0, bool))


def token_stream(documents: Iterable[Document], tokenizer, words: bool = False) -> TokenStream:
    return end_to_end(list(encode(documents, tokenizer, words)))


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Row(NamedTuple):
    """Some tokens in a row, and whose random numbers it has."""

    ids: torch.Tensor  # int64
    positions: torch.Tensor  # 0 where a document begins, and at the beginning of the row
    words: torch.Tensor | None  # the number of each token's word in the row
    key: Key


def make_row(ids: torch.Tensor, begins: torch.Tensor, words: torch.Tensor | None, key: Key) -> Row:
    return Row(*readings(ids, begins, words), key)


def readings(ids: torch.Tensor, begins: torch.Tensor, words: torch.Tensor | None) -> tuple:
    """Of one row or many: tokens, positions, and the numbers of words."""
    places = torch.arange(ids.shape[-1])
    last = torch.where(begins, places, 0).cummax(-1).values
    return ids.long(), places - last, None if words is None else words.long().cumsum(-1)


class Rows(NamedTuple):
    """Some rows, (rows, length) each."""

    ids: torch.Tensor
    positions: torch.Tensor
    words: torch.Tensor | None
    keys: list[Key]

    def each(self) -> list[Row]:
        words = [None] * len(self.keys) if self.words is None else self.words
        return [Row(*one) for one in zip(self.ids, self.positions, words, self.keys)]


def together_rows(rows: list[Row]) -> Rows:
    ids, positions, words, keys = zip(*rows)
    stacked = None if words[0] is None else torch.stack(words)
    return Rows(torch.stack(ids), torch.stack(positions), stacked, list(keys))


def cut(stream: TokenStream, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    words = None if stream.words is None else stream.words[start:end]
    return stream.ids[start:end], stream.begins[start:end], words


def joined(first: TokenStream, second: TokenStream) -> TokenStream:
    words = None if second.words is None else torch.cat([first.words, second.words])
    return TokenStream(torch.cat([first.ids, second.ids]), torch.cat([first.begins, second.begins]), words)


class PackedRows(Dataset):
    """The rows of an epoch."""

    def __init__(self, stream: TokenStream, length: int, seed: int):
        if not len(stream):
            raise ValueError("the training text is empty: it has no tokens")
        self.stream, self.seed = stream, seed
        self.length = min(length, len(stream))
        self.offsets: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.stream) // self.length

    def __getitem__(self, key: Key) -> Row:
        return self.__getitems__([key]).each()[0]

    def __getitems__(self, keys: list[Key]) -> Rows:
        """Many at once: what a loader asks for."""
        total = len(self.stream)
        starts = torch.tensor([(self.offset(key.epoch) + key.index * self.length) % total for key in keys])
        places = starts[:, None] + torch.arange(self.length)
        places -= total * (places >= total)  # the ring goes round
        words = None if self.stream.words is None else self.stream.words[places]
        return Rows(*readings(self.stream.ids[places], self.stream.begins[places], words), list(keys))

    def offset(self, epoch: int) -> int:
        """Where an epoch begins to cut."""
        if epoch not in self.offsets:
            drawn = torch.randint(len(self.stream), (), generator=generator(self.seed, epoch))
            self.offsets[epoch] = int(drawn)
        return self.offsets[epoch]


class StreamedRows(IterableDataset):
    """The same from documents that are read as they come: rows in the order of the text, shuffled in blocks.

    A pure function of (seed, step) like everything else; to go on at a step, what stands before it is read again.
    Every process reads all of it and keeps its share.
    """

    def __init__(self, text, tokenizer, length: int, seed: int, words: bool = False):
        self.text, self.tokenizer = text, tokenizer
        self.length, self.seed, self.words = length, seed, words
        self.deal: tuple[Plan, int, int, int] | None = None

    def dealt(self, plan: Plan, first_step: int, last_step: int, rank: int) -> "StreamedRows":
        """Those that one process sees in these steps, as micro-batches."""
        share = StreamedRows(self.text, self.tokenizer, self.length, self.seed, self.words)
        share.deal = (plan, first_step, last_step, rank)
        return share

    def rows(self, epoch: int) -> Iterator[Row]:
        left, count = None, 0
        encoded = encode(self.text.documents(), self.tokenizer, self.words)
        for some in together(encoded, lambda one: len(one.ids)):
            stream = end_to_end(some) if left is None else joined(left, end_to_end(some))
            full = len(stream) // self.length
            for start in range(0, full * self.length, self.length):
                yield make_row(*cut(stream, start, start + self.length), Key(epoch, count))
                count += 1
            left = TokenStream(*cut(stream, full * self.length, len(stream)))
        if not count:
            raise ValueError(f"the training text has fewer than max_seq_length={self.length} tokens: it fills no row")

    def shuffled(self) -> Iterator[Row]:
        """All epochs, without an end."""
        epoch = 0
        while True:
            rows = self.rows(epoch)
            for number in range(2**62):
                block = list(islice(rows, BLOCK))
                yield from (block[index] for index in permutation(len(block), self.seed, (epoch << 32) + number))
                if len(block) < BLOCK:
                    break
            epoch += 1

    def __iter__(self) -> Iterator[list[Row]]:
        plan, first_step, last_step, rank = self.deal
        worker = torch.utils.data.get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        rows = islice(self.shuffled(), first_step * plan.per_step, last_step * plan.per_step)
        number = 0
        while step := list(islice(rows, plan.per_step)):
            for micro in my_places(plan, rank):
                if number % workers == own:  # a loader takes from its workers in turn
                    yield [step[place] for place in micro]
                number += 1


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


class ScoredRow(NamedTuple):
    ids: torch.Tensor
    scored: torch.Tensor  # bool: which of the tokens count here


class ScoredRows(Dataset):
    """Rows of each document, so that every token is scored in exactly one of them. With a stride below the length rows
    overlap, and a token that is scored has at least length - stride tokens before it, or the document's beginning."""

    def __init__(self, documents: Sequence[Document], tokenizer, length: int, stride: int):
        if not 0 < stride <= length:
            raise ValueError(f"eval_stride={stride} must lie between 1 and max_seq_length={length}")
        encoded = (torch.from_numpy(ids).long() for ids, _ in encode(documents, tokenizer))
        self.rows = [row for ids in encoded for row in scored_rows(ids, length, stride)]
        self.characters = sum(len(document.text) for document in documents)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ScoredRow:
        return self.rows[index]

    def tokens(self) -> torch.Tensor:
        """All tokens, each once."""
        return torch.cat([row.ids[row.scored] for row in self.rows])


def scored_rows(ids: torch.Tensor, length: int, stride: int) -> Iterator[ScoredRow]:
    done = 0
    for start in range(0, max(1, len(ids) - length + stride), stride):
        part = ids[start : start + length]
        yield ScoredRow(part, torch.arange(start, start + len(part)) >= done)
        done = start + len(part)
