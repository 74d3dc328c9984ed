"""Samples to batches: padding, masking, mixing. What is random here comes from the generator that is handed in."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

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
    special: int = len(SPECIAL)  # ids below this are never chosen, and never put in

    def __post_init__(self):
        if not 0 < self.probability < 1:
            raise ValueError(f"mlm_probability={self.probability} must lie between 0 and 1")

    def choose(self, ids: torch.Tensor, generator: torch.Generator, words: torch.Tensor | None) -> torch.Tensor:
        """Which tokens are to be predicted; with `words`, all tokens of a chosen word."""
        units = torch.arange(len(ids)) if words is None else words
        drawn = torch.rand(int(units.max()) + 1 if len(units) else 1, generator=generator) < self.probability
        return drawn[units] & (ids >= self.special)

    def __call__(
        self, ids: torch.Tensor, generator: torch.Generator, words: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence: what the model reads, and the labels."""
        chosen = self.choose(ids, generator, words)
        fate = torch.rand(len(ids), generator=generator)
        noise = torch.randint(self.special, self.vocab_size, (len(ids),), generator=generator)
        read = torch.where(chosen & (fate < self.masked), self.mask_token, ids)
        replaced = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        return torch.where(replaced, noise, read), ids.masked_fill(~chosen, IGNORED)


def masked_batch(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Sequences with their labels, as `Masking` gives them."""
    ids = pad([ids for ids, _ in pairs], PAD)
    lengths = torch.tensor([len(ids) for ids, _ in pairs])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": pad([labels for _, labels in pairs], IGNORED)}


def causal_batch(sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sequences that are their own labels."""
    return masked_batch([(ids, ids) for ids in sequences])


# ---------------------------------------------------------------------------------------------------------------------
# Images: floats in [0, 1], (channels, height, width)


def shift(image: torch.Tensor, generator: torch.Generator, most: int) -> torch.Tensor:
    """Move the picture by up to `most` pixels each way; the edge is repeated into the gap."""
    if not most:
        return image
    right, down = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    height, width = image.shape[1:]
    padded = F.pad(image[None], (most, most, most, most), mode="replicate")[0]
    return padded[:, down : down + height, right : right + width]


def affine(image: torch.Tensor, generator: torch.Generator, degrees: float, scale: float, shear: float = 0.0):
    """Turn by up to `degrees`, resize by up to the share `scale`, shear by up to `shear`."""
    if not (degrees or scale or shear):
        return image
    turn, grow, lean = (torch.rand(3, generator=generator) * 2 - 1).tolist()
    angle = torch.tensor(turn * degrees).deg2rad()
    size = 1.0 / (1.0 + grow * scale)
    cos, sin = angle.cos() * size, angle.sin() * size
    matrix = torch.stack([torch.stack([cos, lean * shear - sin]), torch.stack([sin, cos])])
    grid = F.affine_grid(F.pad(matrix, (0, 1))[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def erase(image: torch.Tensor, generator: torch.Generator, probability: float) -> torch.Tensor:
    """With some probability, blank a rectangle of up to half of each side with the picture's mean."""
    if torch.rand((), generator=generator) >= probability:
        return image
    height, width = image.shape[1:]
    sides = (torch.rand(2, generator=generator) * 0.4 + 0.1) * torch.tensor([height, width])
    tall, wide = (max(1, int(side)) for side in sides)
    top = int(torch.randint(0, height - tall + 1, (), generator=generator))
    left = int(torch.randint(0, width - wide + 1, (), generator=generator))
    image = image.clone()
    image[:, top : top + tall, left : left + wide] = image.mean()
    return image


def flip(image: torch.Tensor, generator: torch.Generator, probability: float) -> torch.Tensor:
    """Left and right exchanged."""
    return image.flip(-1) if torch.rand((), generator=generator) < probability else image
