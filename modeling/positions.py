"""The position axis: where a token stands, told to the model in one of three places.

Every kind has the same three hooks and overrides exactly one, so that no caller asks which kind it has:

    addend(x, places, grid)               what to add to the embeddings             learned, sinusoidal
    rotation(x, places, layer_type)       what `rotate` needs to turn q and k       rotary
    bias(x, past_key_values, layer_idx)   what to add to the attention scores       relative buckets

`places` are position ids: (batch or 1, length).

Tables that follow from a formula are computed, not stored: a buffer outside the checkpoint comes back as garbage from
`from_pretrained`, which builds on the meta device.

Sources: sinusoids, https://arxiv.org/abs/1706.03762; two-dimensional sinusoids as in MAE,
https://github.com/facebookresearch/mae; rotary, https://arxiv.org/abs/2104.09864; relative buckets as in T5,
https://arxiv.org/abs/1910.10683; interpolated tables as in ViT and DINO.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache


class Frame(NamedTuple):
    """The sizes that a kind of position may need, whichever it is."""

    hidden_size: int
    num_heads: int
    head_dim: int
    num_positions: int
    causal: bool
    grid: tuple[int, int] | None  # rows and columns of patches; None for text
    num_prefix: int  # vectors in front of the patches that have a position


# ---------------------------------------------------------------------------------------------------------------------
# Formulas


def sinusoids(positions: torch.Tensor, width: int, base: float, layout: str) -> torch.Tensor:
    """sin and cos of each position at width / 2 wavelengths: (..., ) -> (..., width), in float32."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions[..., None].float() / base**exponents
    pair = torch.stack([angles.sin(), angles.cos()], dim=-1)  # (..., width / 2, 2)
    return (pair if layout == "interleaved" else pair.transpose(-1, -2)).flatten(-2)


def sinusoids_2d(grid: tuple[int, int], width: int, base: float, layout: str, device=None) -> torch.Tensor:
    """Half of the width tells the column, half the row: (rows * columns, width)."""
    rows, columns = (torch.arange(count, device=device) for count in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    halves = [sinusoids(axis.flatten(), width // 2, base, layout) for axis in (column, row)]
    return torch.cat(halves, dim=-1)


def apply_rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Turn the pairs (i, i + head / 2) of every head by the angle of its position; cos, sin: (batch, length, head)."""
    cos, sin = cos[:, None], sin[:, None]

    def turn(x):
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

    return turn(q), turn(k)


def relative_buckets(distance: torch.Tensor, num_buckets: int, max_distance: int, causal: bool) -> torch.Tensor:
    """T5's buckets of key position minus query position: one each for near keys, logarithmic ones for far keys."""
    if causal:
        offset, distance = 0, -distance.clamp(max=0)
    else:
        num_buckets //= 2
        offset, distance = (distance > 0) * num_buckets, distance.abs()
    exact = num_buckets // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + far.long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def resize_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int) -> torch.Tensor:
    """A table of patch positions, read as a picture and interpolated to another grid; those before it stay."""
    prefix, patches = table[:num_prefix], table[num_prefix:]
    picture = patches.T.reshape(1, -1, *old)  # (1, hidden, rows, columns)
    picture = F.interpolate(picture, size=new, mode="bicubic", align_corners=False)
    return torch.cat([prefix, picture.flatten(2)[0].T])


# ---------------------------------------------------------------------------------------------------------------------
# The kinds


class Position(nn.Module):
    """No positions at all, and the base of every kind: three hooks that do nothing."""

    def __init__(self, frame: Frame):
        super().__init__()
        self.frame = frame

    def addend(self, x: torch.Tensor, places: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor | float:
        return 0.0

    def rotation(self, x: torch.Tensor, places: torch.Tensor, layer_type: str) -> tuple[torch.Tensor, ...]:
        return ()

    @staticmethod
    def rotate(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return q, k

    def bias(self, x: torch.Tensor, past_key_values: Cache | None, layer_idx: int) -> torch.Tensor | None:
        return None


class LearnedPositions(Position):
    """A trained vector for each position, read by place, or for an image of another size interpolated. `frozen`: it
    stays as it was loaded, as fixed tables that a published checkpoint brings."""

    def __init__(self, frame: Frame, frozen: bool):
        super().__init__(frame)
        self.table = nn.Embedding(frame.num_positions, frame.hidden_size)
        if frozen:  # a buffer: transformers makes every parameter that it loads a trained one
            weight = self.table.weight.data
            del self.table.weight
            self.table.register_buffer("weight", weight)

    def addend(self, x, places, grid):
        if grid != self.frame.grid:
            rows = self.table(torch.arange(self.table.num_embeddings, device=x.device))
            return resize_table(rows, self.frame.grid, grid, self.frame.num_prefix)
        if places.shape[-1] > self.table.num_embeddings:
            raise ValueError(self.too_long(f"the input has {places.shape[-1]} tokens"))
        try:
            return self.table(places)
        except IndexError as error:  # on the CPU; a GPU reports its own assertion
            wrong = places[(places < 0) | (places >= self.table.num_embeddings)]
            raise IndexError(self.too_long(f"the input has position {int(wrong[0])}")) from error

    def too_long(self, what: str) -> str:
        return (
            f"{what}, but there are {self.table.num_embeddings} learned positions (max_position_embeddings): "
            "truncate it, or build the model with more positions or with position 'rotary'"
        )


class SinusoidalPositions(Position):
    """Fixed waves, for lines of tokens or for rows and columns of patches (what is before them stands at zero)."""

    def __init__(self, frame: Frame, dimensions: int, layout: str, base: float):
        super().__init__(frame)
        self.dimensions, self.layout, self.base = dimensions, layout, base

    def addend(self, x, places, grid):
        waves = {"width": self.frame.hidden_size, "base": self.base, "layout": self.layout}
        if self.dimensions == 1:
            return sinusoids(places, **waves).to(x.dtype)
        table = sinusoids_2d(grid, device=x.device, **waves)
        return F.pad(table, (0, 0, self.frame.num_prefix, 0)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dimensions={self.dimensions}, layout={self.layout!r}, base={self.base:g}"


class RotaryPositions(Position):
    """Queries and keys turned by their position, so that their product depends on the distance between them."""

    rotate = staticmethod(apply_rotary)

    def __init__(self, frame: Frame, theta: float, local_theta: float | None):
        super().__init__(frame)
        self.theta = {"full_attention": theta, "sliding_attention": local_theta or theta}

    def rotation(self, x, places, layer_type):
        width = self.frame.head_dim
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width
        angles = places[..., None].float() * (1.0 / self.theta[layer_type] ** exponents)
        angles = torch.cat([angles, angles], dim=-1)  # (batch, length, head)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def extra_repr(self) -> str:
        return ", ".join(f"{layer_type}: theta={theta:g}" for layer_type, theta in self.theta.items())


class RelativePositions(Position):
    """A trained number per head and bucket of distances, added to the scores of every layer."""

    def __init__(self, frame: Frame, num_buckets: int, max_distance: int):
        super().__init__(frame)
        self.max_distance = max_distance
        self.table = nn.Embedding(num_buckets, frame.num_heads)

    def bias(self, x, past_key_values, layer_idx):
        # Distances are between slots of the sequence, not between position ids: left padding shifts both alike.
        query_offset, key_offset, length = 0, 0, x.shape[1]
        if past_key_values is not None:
            query_offset = past_key_values.get_query_offset(layer_idx)
            length, key_offset = past_key_values.get_mask_sizes(x.shape[1], layer_idx)
        queries = torch.arange(x.shape[1], device=x.device)[:, None] + query_offset
        keys = torch.arange(length, device=x.device)[None, :] + key_offset
        buckets = relative_buckets(keys - queries, self.table.num_embeddings, self.max_distance, self.frame.causal)
        return self.table(buckets).permute(2, 0, 1)[None]  # (1, heads, queries, keys)


POSITIONS: dict[str, type[Position]] = {
    "none": Position,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": RotaryPositions,
    "relative": RelativePositions,
}
