"""Which tokens of a batch are computed: all of them, or those alone whose hidden states somebody reads.

Only attention looks from one token to another. Everything else is done for each token by itself, and need not be done
for padding, nor in the last layer for a token that nobody reads. The tokens that are left stand side by side in one
row (1, tokens, ...); attention alone sees them as a batch (batch, length, ...), with zeros in the place of the others.
"""

import torch

from .losses import check_labels


WORTH_IT = 7 / 8  # with more than this share left, the copying costs what is saved


class Everything:
    """The batch as it is."""

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def random(self, x: torch.Tensor) -> torch.Tensor:
        """A uniform number for each sample, to stand beside each of its tokens: (batch, 1, 1)."""
        return torch.rand(len(x), 1, 1, device=x.device)


class Selection:
    """Some of its tokens, by a mask (batch, length)."""

    def __init__(self, mask: torch.Tensor):
        self.shape = mask.shape
        self.places = mask.flatten().nonzero().flatten()

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, ...) -> (1, tokens, ...)"""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, ...) -> (batch, length, ...)"""
        rows = x.new_zeros(self.shape.numel(), *x.shape[2:])
        return rows.index_copy(0, self.places, x[0]).unflatten(0, self.shape)

    def random(self, x: torch.Tensor) -> torch.Tensor:
        """The same numbers, (1, tokens, 1)."""
        return torch.rand(self.shape[0], 1, 1, device=x.device)[self.places // self.shape[1]].transpose(0, 1)


Tokens = Everything | Selection
EVERYTHING = Everything()


def placed(wanted: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """(batch, length), from that or from one value for all."""
    if wanted is None:
        return None
    if wanted.dim():
        check_labels(wanted, x.shape[:2], "(batch, length)")
    return wanted.to(x.device).expand(x.shape[:2])


def select(wanted: torch.Tensor | None, attention_mask: torch.Tensor | None) -> tuple[Tokens, Tokens]:
    """What the layers compute, and what the last one does, where `wanted` (batch, length) is read: padding too, if it
    is read. A compiler wants shapes that do not depend on the data: it computes everything."""
    if wanted is None or torch.compiler.is_compiling():
        return EVERYTHING, EVERYTHING
    given = last = EVERYTHING
    count = wanted.numel()
    if torch.is_tensor(attention_mask) and attention_mask.shape == wanted.shape:
        needed = attention_mask.to(wanted.device).bool() | wanted
        own = int(needed.sum())
        if own < WORTH_IT * count:
            given, count = Selection(needed), own
            last = given
    if int(wanted.sum()) < WORTH_IT * count:
        last = Selection(wanted)
    return given, last


def narrow(x: torch.Tensor, given: Tokens, last: Tokens) -> torch.Tensor:
    """From what a layer is given to what it gives."""
    return x if given is last else last.pick(given.spread(x))
