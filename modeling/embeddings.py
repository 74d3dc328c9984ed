"""The embedding axis: how words or pixels become the vectors that enter the first layer.

Two steps, each with one class per kind and one signature for both kinds. `embed_tokens` turns the input into vectors,
one per token or patch: the name is the one that pipeline stages, tensor parallelism and servers look for. `embeddings`
makes them the hidden states of layer 0: positions, segments, CLS and register tokens, norm, dropout.
"""

import math

import torch
from torch import nn


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut images into patches, row by row; within a patch channels come first, as in a convolution's kernel.

    (batch, channels, rows * patch, columns * patch) -> (batch, rows * columns, channels * patch * patch)
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    tiles = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(patches: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """The inverse of `patchify`, for a grid of (rows, columns): -> (batch, channels, height, width)."""
    rows, columns = grid
    if patches.shape[1] != rows * columns or patches.shape[2] % patch_size**2:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} are no {rows} rows and {columns} columns of patches with "
            f"{patch_size} x {patch_size} pixels"
        )
    tiles = patches.reshape(len(patches), rows, columns, -1, patch_size, patch_size)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, rows * patch_size, columns * patch_size)


# ---------------------------------------------------------------------------------------------------------------------
# Input to vectors


class TokenEmbedding(nn.Embedding):
    """Rows of a table. `embed_scale` is the name under which servers look for the factor."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: bool):
        super().__init__(vocab_size, hidden_size)
        self.embed_scale = math.sqrt(hidden_size) if scale else 1.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.is_floating_point() or input_ids.dim() != 2:
            raise ValueError(
                f"input_ids must be integers of shape (batch, length), got {input_ids.dtype} of shape "
                f"{tuple(input_ids.shape)}; this model reads tokens (embedding 'tokens')"
            )
        try:
            x = super().forward(input_ids)
            return x if self.embed_scale == 1.0 else x * self.embed_scale
        except IndexError as error:  # on the CPU; a GPU reports its own assertion
            wrong = input_ids[(input_ids < 0) | (input_ids >= self.num_embeddings)]
            raise IndexError(
                f"input_ids holds the token id {int(wrong[0])}, but the vocabulary has ids 0 to "
                f"{self.num_embeddings - 1} (vocab_size={self.num_embeddings}): does the tokenizer fit the model?"
            ) from error


class PatchEmbedding(nn.Module):
    """A linear map of every patch's pixels: what a convolution with kernel = stride = patch computes."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int, bias: bool, norms: list[nn.Module]):
        super().__init__()
        self.patch_size = patch_size
        self.pixel_norm, self.output_norm = norms
        self.projection = nn.Linear(num_channels * patch_size**2, hidden_size, bias=bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        dtype = self.projection.weight.dtype
        if dtype.is_floating_point and dtype.itemsize > 1:  # a quantised projection takes what it is given
            pixel_values = pixel_values.to(dtype)
        patches = patchify(pixel_values, self.patch_size)
        return self.output_norm(self.projection(self.pixel_norm(patches)))


# ---------------------------------------------------------------------------------------------------------------------
# Vectors to the hidden states of layer 0


class TokenInput(nn.Module):
    """Words: add positions and segments, then norm and dropout."""

    def __init__(self, hidden_size: int, type_vocab_size: int, norm: nn.Module, dropout: float):
        super().__init__()
        self.segments = Segments(type_vocab_size, hidden_size) if type_vocab_size else NoSegments()
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def grid(self, inputs: torch.Tensor | None, interpolate: bool) -> None:
        """Text has no rows and columns."""

    def places(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Where each vector stands that gets a position."""
        return position_ids

    def forward(self, x: torch.Tensor, addend: torch.Tensor | float, token_type_ids: torch.Tensor | None = None):
        x = x + self.segments(x, token_type_ids) + addend
        return self.dropout(self.norm(x))


class Segments(nn.Embedding):
    """A vector for the sentence that a token belongs to; the first one where nothing is said."""

    def forward(self, x: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        if token_type_ids is None:
            return self.weight[0].to(x.dtype)
        try:
            return super().forward(token_type_ids)
        except IndexError as error:  # on the CPU; a GPU reports its own assertion
            wrong = token_type_ids[(token_type_ids < 0) | (token_type_ids >= self.num_embeddings)]
            raise IndexError(
                f"token_type_ids holds {int(wrong[0])}, but the model has {self.num_embeddings} segments, "
                f"0 to {self.num_embeddings - 1} (type_vocab_size)"
            ) from error


class NoSegments(nn.Module):
    """Tokenizers send token_type_ids to every model; one without segments ignores them."""

    def forward(self, x: torch.Tensor, token_type_ids: torch.Tensor | None) -> float:
        return 0.0


class PatchInput(nn.Module):
    """Patches: put the CLS token (and the one that a DeiT distils into) in front, add positions, insert the register
    tokens, then norm and dropout."""

    def __init__(self, hidden_size: int, entry: dict, trained_grid: tuple[int, int], norm: nn.Module, dropout: float):
        super().__init__()
        self.num_channels, self.patch_size = entry["num_channels"], entry["patch_size"]
        self.trained_grid = trained_grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size)) if entry["cls_token"] else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, hidden_size)) if entry["distillation_token"] else None
        registers = entry["num_register_tokens"]
        self.register_tokens = nn.Parameter(torch.empty(1, registers, hidden_size)) if registers else None
        if entry["mask_token"]:  # nothing reads it here: a checkpoint that was pretrained with one keeps it
            self.register_buffer("mask_token", torch.empty(1, hidden_size))
        self.num_placed = entry["num_given_tokens"] + entry["cls_token"] + entry["distillation_token"]
        self.num_own = self.num_placed - entry["num_given_tokens"]
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def grid(self, pixel_values: torch.Tensor | None, interpolate: bool) -> tuple[int, int]:
        """Rows and columns of patches, after checking that the model can take this image."""
        if pixel_values is None:  # inputs_embeds: patches given as vectors
            return self.trained_grid
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}; this model reads images of {self.num_channels} channel(s)"
            )
        height, width = pixel_values.shape[2:]
        grid = height // self.patch_size, width // self.patch_size
        rows, columns = self.trained_grid
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {self.patch_size}")
        if grid != self.trained_grid and not interpolate:
            raise ValueError(
                f"an image of {height}x{width} pixels, but this model was built for "
                f"{rows * self.patch_size}x{columns * self.patch_size}: resize the image, or pass "
                "interpolate_pos_encoding=True"
            )
        return grid

    def places(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """What is in front of the patches, and the patches in reading order."""
        return torch.arange(x.shape[1] + self.num_own, device=x.device)[None]

    def forward(self, x: torch.Tensor, addend: torch.Tensor | float, token_type_ids: torch.Tensor | None = None):
        x = prepend(prepend(x, self.distillation_token), self.cls_token) + addend
        if self.register_tokens is not None:
            x = torch.cat([x[:, : self.num_placed], prepend(x[:, self.num_placed :], self.register_tokens)], dim=1)
        return self.dropout(self.norm(x))


def prepend(x: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    return x if tokens is None else torch.cat([tokens.expand(x.shape[0], -1, -1), x], dim=1)
