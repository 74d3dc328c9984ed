"""Attention rollout: what a vector is made of, traced back through the attention of all layers, over images and texts.

Source: https://arxiv.org/abs/2005.00928.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from triune.modeling.heads import POOLINGS
from triune.training.figures.images import picture, place_picture, resample
from triune.training.figures.observing import observed, read
from triune.training.figures.style import (
    BLUE,
    GREY,
    HEADING,
    MARGIN,
    ORANGE,
    SKY,
    WIDTH,
    YELLOW,
    colour_bar,
    empty_figure,
    frame,
    new_figure,
    put,
    save,
    shades,
    sheet,
    shorten,
    widest,
)


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much of each position's last vector comes from each position of the input: (batch, heads, queries, keys) of
    every layer -> (batch, queries, keys). The mean of the heads and the residual stream count half each."""
    total = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for weights in attentions:
        mixed = weights.detach().cpu().double().mean(1)
        mixed = (mixed + torch.eye(mixed.shape[-1], dtype=mixed.dtype)) / 2
        total = (mixed / mixed.sum(-1, keepdim=True)) @ total
    return total


def rollout_of(model, **inputs) -> torch.Tensor:
    with observed(model, "eager"):  # the one kernel that returns its weights
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        return rollout(model(**inputs, output_attentions=True).attentions)


def patch_rollout(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """How much of the vector that the classifier reads comes from each patch: (batch, rows, columns), in multiples of
    the mean. Pooling is a mean of some rows, so the model's own pooling is applied to the rollout; where all patches
    stand side by side, each counts alike."""
    total = rollout_of(model, pixel_values=pixel_values)
    config = model.config
    prefix, cls = config.num_prefix_tokens, int(config.embedding["cls_token"])
    kind = {"patches": "mean"}.get(config.pooling["type"], config.pooling["type"])
    pooled = POOLINGS[kind](total, torch.ones(total.shape[:2]), prefix, cls)
    patch = config.embedding["patch_size"]
    grid = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    patches = pooled[:, prefix:]
    return (patches / patches.mean(1, keepdim=True)).unflatten(1, grid)


# ---------------------------------------------------------------------------------------------------------------------
# Over images


def laid_over(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The colours of each patch over a pale grey image, whatever their sizes."""
    size = max(len(image), len(colours)), max(image.shape[1], colours.shape[1])
    grey = 0.35 + 0.65 * resample(image, *size).mean(-1, keepdims=True)
    return 0.7 * resample(colours[..., :3], *size) + 0.3 * grey


def draw_attention_rollout(maps: torch.Tensor, images: Sequence):
    title = "Attention rollout: where the answer comes from"
    if not len(images):
        return empty_figure(title)
    columns = min(8, len(images))
    tile = min(1.7, (WIDTH - 2 * MARGIN) / columns)
    height = 2 * tile + 0.12
    maps, highest = maps.numpy(), max(2.0, float(maps.max()))
    note = "share of each patch in the vector that is classified, traced back through the attention of all layers"
    figure = new_figure(WIDTH, HEADING + math.ceil(len(images) / columns) * height + 0.45, title, note)
    axes = sheet(figure)
    colours = shades("white", YELLOW, ORANGE, "#5B1A00")
    for index, image in enumerate(picture(image) for image in images):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * tile, HEADING + row * height
        for shown, below in ((image, 0), (laid_over(image, colours(maps[index] / highest)), tile)):
            frame(axes, *place_picture(axes, shown, left, top + below, tile - 0.07), GREY, 0.5)
    below = figure.get_size_inches()[1] - 0.32
    colour_bar(axes, 3.0, below, colours, ("0", f"{highest:.1f}"), "times the mean of the patches")
    return figure


def attention_rollout(model, pixel_values: torch.Tensor, images: Sequence, path: str | Path) -> Path:
    """Which patches an image model looks at. `pixel_values` is what it reads, `images` the same images to be shown."""
    maps = patch_rollout(model, pixel_values) if len(images) else torch.empty(0)
    return save(path, draw_attention_rollout, maps, images)


# ---------------------------------------------------------------------------------------------------------------------
# Between the tokens of a text


def draw_attention_rollout_text(matrix: np.ndarray, tokens: list[str]):
    title = "Attention rollout: what each token is made of"
    if not tokens:
        return empty_figure(title)
    count = len(tokens)
    cell = min(0.3, 5.8 / count)
    size, labels = min(9, cell * 58), [shorten(token.strip() or "·", 12) for token in tokens]
    left = MARGIN + widest(labels, size) + 0.1
    top, side = HEADING + left - MARGIN, cell * count
    note = "rows: a token's last vector; columns: the tokens of the input; its own share is left out"
    figure = new_figure(max(left + side + MARGIN, WIDTH), top + side + 0.5, title, note)
    axes = sheet(figure)
    others = np.where(np.eye(count) > 0, math.nan, matrix)
    highest = max(float(np.nanmax(others)) if count > 1 else 0.0, 1e-3)
    colours = shades("white", SKY, BLUE, "#00203A")
    put(axes, np.sqrt(others), left, top, side, side, cmap=colours, vmin=0, vmax=math.sqrt(highest))
    frame(axes, left, top, side, side, GREY, 0.5)
    for index, label in enumerate(labels):
        at = (index + 0.5) * cell
        axes.text(left - 0.06, top + at, label, ha="right", va="center", fontsize=size)
        axes.text(left + at, top - 0.06, label, ha="center", va="bottom", rotation=90, fontsize=size)
    colour_bar(
        axes, left + 1.0, top + side + 0.2, colours, ("0", f"{highest:.0%}, the middle {highest / 4:.0%}"), "share"
    )
    return figure


def attention_rollout_text(model, tokenizer, text: str, path: str | Path) -> Path:
    """Which tokens of a text flow into which."""
    reading = read(model, tokenizer, text)
    matrix = rollout_of(model, input_ids=reading.ids)[0].numpy() if reading.tokens else np.empty((0, 0))
    return save(path, draw_attention_rollout_text, matrix, reading.tokens)
