"""Samples to batches: padding and masking. What is random here comes from the generator that is handed in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triune.training.tokenizers import MASK, PAD, SPECIAL


IGNORED = -100


def pad(sequences: list[torch.Tensor], value: int) -> torch.Tensor:
    """(batch, longest)"""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


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
        noise = self.others[torch.randint(len(self.others), (len(ids),), generator=generator)]
        read = torch.where(chosen & (fate < self.masked), self.mask_token, ids)
        replaced = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        return torch.where(replaced, noise, read)


def labelled_batch(pairs: list[tuple[torch.Tensor, torch.Tensor]], pad_token: int = PAD) -> dict[str, torch.Tensor]:
    """Sequences with a label for each token, as `Masking` gives them."""
    ids = pad([ids for ids, _ in pairs], pad_token)
    lengths = torch.tensor([len(ids) for ids, _ in pairs])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": pad([labels for _, labels in pairs], IGNORED)}
