"""Images as pictures: a grid of them with a line below each, and the patches that a model reads."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from triune.modeling.embeddings import patchify
from triune.training.figures.style import (
    GREY,
    HEADING,
    INK,
    MARGIN,
    ORANGE,
    WIDTH,
    YELLOW,
    array,
    empty_figure,
    fit,
    frame,
    new_figure,
    put,
    save,
    sheet,
)


def picture(image) -> np.ndarray:
    """(channels, height, width) as matplotlib takes it: colours for three channels, otherwise their mean as grey."""
    image = array(image)
    if image.ndim != 3:
        raise ValueError(f"an image has the shape (channels, height, width), got {tuple(image.shape)}")
    channels = image if len(image) == 3 else image.mean(0, keepdims=True).repeat(3, axis=0)
    return np.nan_to_num(channels.transpose(1, 2, 0)).clip(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# A grid of images


def tiles(count: int) -> tuple[int, int, float]:
    """Columns, rows and the width of a tile: near the shape of a page."""
    columns = min(10, max(1, math.ceil(math.sqrt(1.8 * count))))
    return columns, math.ceil(count / columns), min(1.7, (WIDTH - 2 * MARGIN) / columns)


def place_picture(axes, image: np.ndarray, left: float, top: float, side: float) -> tuple[float, float, float, float]:
    """An image of any shape in the middle of a square; where it lies."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    box = left + (side - width * scale) / 2, top + (side - height * scale) / 2, width * scale, height * scale
    put(axes, image, *box)
    return box


def draw_image_grid(images: Sequence, titles: Sequence[str], wrong: set[int], title: str):
    if len(images) != len(titles):
        raise ValueError(f"{len(images)} images and {len(titles)} titles: one for each is needed")
    if not len(images):
        return empty_figure(title)
    columns, rows, tile = tiles(len(images))
    note = f"{len(wrong)} of {len(images)} wrong, framed in orange" if wrong else ""
    figure = new_figure(WIDTH, HEADING + rows * (tile + 0.22) + MARGIN, title, note)
    axes = sheet(figure)
    for index, (image, caption) in enumerate(zip(images, titles)):
        row, column = divmod(index, columns)
        left, top, side = MARGIN + column * tile + 0.05, HEADING + row * (tile + 0.22), tile - 0.1
        box = place_picture(axes, picture(image), left, top, side)
        frame(axes, *box, ORANGE if index in wrong else GREY, 2.5 if index in wrong else 0.5)
        axes.text(
            left + side / 2,
            top + side + 0.14,
            fit(caption, tile - 0.02, 9),
            ha="center",
            va="center",
            fontsize=9,
            color=ORANGE if index in wrong else INK,
        )
    return figure


def image_grid(
    images: Sequence,
    titles: Sequence[str],
    path: str | Path,
    wrong: set[int] = frozenset(),
    title: str = "Held-out images, with label and prediction",
) -> Path:
    """Images (channels, height, width) in [0, 1], a line below each; those whose index is in `wrong` are framed."""
    return save(path, draw_image_grid, images, titles, set(wrong), title)


# ---------------------------------------------------------------------------------------------------------------------
# Patches


def resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """To another size by the nearest pixel: squares stay squares."""
    rows, columns = image.shape[:2]
    return image[np.arange(height) * rows // height][:, np.arange(width) * columns // width]


def apart(patches: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Patches (patch, patch, 3), row by row, as one picture with room between them; small patches are enlarged."""
    side = len(patches[0]) * math.ceil(24 / len(patches[0]))
    room = ((side // 12, side // 12),) * 2 + ((0, 0),)
    framed = [np.pad(resample(patch, side, side), room, constant_values=0.88) for patch in patches]
    rows = [np.concatenate(framed[first : first + columns], axis=1) for first in range(0, len(framed), columns)]
    return np.concatenate(rows)


def draw_patch_grid(image, patch_size: int):
    whole, image = picture(image), torch.as_tensor(array(image))
    height, width = image.shape[-2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    patches = patchify(image[None], patch_size)[0].unflatten(-1, (len(image), patch_size, patch_size))
    figure = new_figure(
        WIDTH,
        HEADING + 3.75 + MARGIN,
        f"An image as the model reads it: {rows * columns} patches of {patch_size} × {patch_size} pixels",
        f"cut, then read row by row: each patch becomes one vector, number 1 to {rows * columns}",
    )
    axes, side, top = sheet(figure), 3.4, HEADING + 0.1
    cut = place_picture(axes, whole, MARGIN + 0.05, top, side)
    x = cut[0] + cut[2] * np.arange(columns + 1) / columns
    y = cut[1] + cut[3] * np.arange(rows + 1) / rows
    axes.vlines(x, y[0], y[-1], color=YELLOW, linewidth=1)
    axes.hlines(y, x[0], x[-1], color=YELLOW, linewidth=1)
    pieces = apart([picture(patch) for patch in patches], columns)
    box = place_picture(axes, pieces, WIDTH - MARGIN - side - 0.25, top, side)
    write_row_numbers(axes, rows, columns, *box)
    return figure


def write_row_numbers(axes, rows: int, columns: int, left: float, top: float, width: float, height: float) -> None:
    """The numbers of the first and the last patch of every row."""
    step = height / rows
    for row in range(rows):
        text = {"va": "center", "fontsize": min(9, step * 55), "color": GREY}
        axes.text(left - 0.06, top + (row + 0.5) * step, row * columns + 1, ha="right", **text)
        axes.text(left + width + 0.06, top + (row + 0.5) * step, (row + 1) * columns, ha="left", **text)


def patch_grid(image, patch_size: int, path: str | Path) -> Path:
    """An image (channels, height, width) in [0, 1], and the patches that the model sees."""
    return save(path, draw_patch_grid, image, patch_size)
