"""Samples to batches: padding and masking. What is random here comes from the generator that is handed in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triune.training.tokenizers import MASK, PAD, SPECIAL


IGNORED = -100


def pad(sequences: list[torch.Tensor], value: int) -> torch.Tensor:
    """(batch, longest)"""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def padded(sequences: list[torch.Tensor], pad_token: int = PAD) -> dict[str, torch.Tensor]:
    """Sequences of tokens, and which of them are there."""
    ids = pad(sequences, pad_token)
    lengths = torch.tensor([len(one) for one in sequences])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


@dataclass
class Masking:
    """BERT's corruption: of the chosen tokens, so many become [MASK], so many a random token, the rest stay."""

    probability: float
    vocab_size: int
    masked: float = 0.8
    random: float = 0.1
    mask_token: int = MASK
    special: Sequence[int] = range(len(SPECIAL))  # ids that are never chosen, and never put in

    def __post_init__(self):
        if not 0 < self.probability < 1:
            raise ValueError(f"mlm_probability={self.probability} must lie between 0 and 1")
        ordinary = torch.ones(self.vocab_size, dtype=torch.bool)
        ordinary[[index for index in self.special if index < self.vocab_size]] = False
        self.ordinary, self.others = ordinary, ordinary.nonzero().flatten()

    def choose(self, ids: torch.Tensor, generator: torch.Generator, words: torch.Tensor | None) -> torch.Tensor:
        """Which tokens are to be predicted; with `words`, all tokens of a chosen word."""
        units = torch.arange(len(ids)) if words is None else words
        drawn = torch.rand(int(units.max()) + 1 if len(units) else 1, generator=generator) < self.probability
        return drawn[units] & self.ordinary[ids]

    def __call__(
        self, ids: torch.Tensor, generator: torch.Generator, words: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence: what the model reads, and the labels."""
        chosen = self.choose(ids, generator, words)
        return self.corrupt(ids, chosen, generator), ids.masked_fill(~chosen, IGNORED)

    def corrupt(self, ids: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        fate = torch.rand(len(ids), generator=generator)
        return self.replaced(ids, chosen, fate, torch.randint(len(self.others), (len(ids),), generator=generator))

    def replaced(self, ids: torch.Tensor, chosen: torch.Tensor, fate: torch.Tensor, which: torch.Tensor):
        """What is read: `fate`, between 0 and 1, says what becomes of a chosen token, `which` what a random one is."""
        read = torch.where(chosen & (fate < self.masked), self.mask_token, ids)
        noisy = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        return torch.where(noisy, self.others[which], read)

    def rows(self, ids: torch.Tensor, numbers: torch.Tensor, words: torch.Tensor | None = None):
        """The same of many at once, (rows, length), from three uniform numbers for each token, (rows, 3 * length)."""
        drawn, fate, which = numbers.chunk(3, dim=1)
        chosen = (drawn if words is None else drawn.gather(1, words - words[:, :1])) < self.probability
        chosen &= self.ordinary[ids]
        read = self.replaced(ids, chosen, fate, (which * len(self.others)).long())
        return read, ids.masked_fill(~chosen, IGNORED)


@dataclass
class SpanCorruption:
    """T5's corruption: spans of tokens are hidden, each behind a sentinel of its own, and the target says what they
    were: each sentinel with its span, one more sentinel, and the end. How many tokens and spans are hidden follows
    from the length alone, so that all rows of a length become sources of one length and targets of one length.

    Source: `random_spans_noise_mask` of https://github.com/google-research/text-to-text-transfer-transformer; the last
    sentinel is the paper's, https://arxiv.org/abs/1910.10683, and not the code's.
    """

    probability: float
    mean_length: float  # of a span
    sentinels: Sequence[int]  # token ids, in the order in which they stand in a text
    end: int  # the token at the end of source and target

    def __post_init__(self):
        if not 0 < self.probability < 1:
            raise ValueError(f"mlm_probability={self.probability} must lie between 0 and 1")

    def counts(self, length: int) -> tuple[int, int]:
        """Of a row of so many tokens, 2 at least: how many are hidden, in how many spans."""
        hidden = min(max(round(length * self.probability), 1), length - 1)
        spans = max(round(hidden / self.mean_length), 1)
        return hidden, min(spans, hidden, length - hidden)

    def source_length(self, length: int) -> int:
        hidden, spans = self.counts(length)
        return length - hidden + spans + 1

    def target_length(self, length: int) -> int:
        return sum(self.counts(length)) + 2

    def row_length(self, source_length: int) -> int:
        """The tokens of a row whose source has so many: one token more makes it longer by one, or by none."""
        length = 2
        while self.source_length(length + 1) <= source_length:
            length += 1
        if self.counts(length)[1] >= len(self.sentinels):
            raise ValueError(
                f"max_seq_length={source_length} hides {self.counts(length)[1]} spans, and the tokenizer has "
                f"{len(self.sentinels)} sentinels, of which one ends the target: raise mean_noise_span_length"
            )
        return length

    def hidden(self, length: int, generator: torch.Generator) -> torch.Tensor:
        """Which tokens of a row are hidden: spans that are kept and spans that are hidden take turns, the first is
        kept, and every way of cutting them is as likely as any other."""
        hidden, spans = self.counts(length)
        kept, lost = (segments(count, spans, generator) for count in (length - hidden, hidden))
        turns = torch.stack([kept, lost], dim=1).flatten()
        return (torch.arange(len(turns)) % 2 == 1).repeat_interleave(turns)

    def __call__(self, ids: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The source and the target of a row."""
        hidden = self.hidden(len(ids), generator)
        begins = hidden & ~hidden.roll(1)  # the first token is never hidden, so nothing comes round
        sentinels, end = torch.tensor(self.sentinels), torch.tensor([self.end])
        span = begins.cumsum(0) - 1
        source = torch.where(begins, sentinels[span.clamp(min=0)], ids)[begins | ~hidden]
        spans = int(begins.sum())
        words = torch.arange(int(hidden.sum())) + span[hidden] + 1  # where they stand in the target
        target = ids.new_zeros(len(words) + spans)
        behind = torch.ones(len(target), dtype=torch.bool).index_fill_(0, words, False)
        target[words], target[behind] = ids[hidden], sentinels[:spans]
        return torch.cat([source, end]), torch.cat([target, sentinels[spans : spans + 1], end])


def segments(items: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Lengths of so many segments, none empty, that make up so many items."""
    cuts = torch.randperm(items - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([items])]).diff()


def labelled_batch(pairs: list[tuple[torch.Tensor, torch.Tensor]], pad_token: int = PAD) -> dict[str, torch.Tensor]:
    """Sequences with a label for each token, as `Masking` gives them."""
    return {**padded([ids for ids, _ in pairs], pad_token), "labels": pad([labels for _, labels in pairs], IGNORED)}
