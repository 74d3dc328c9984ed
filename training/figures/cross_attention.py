"""Cross-attention: where in its source an encoder-decoder looks for each token that it writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from triune.training.figures.observing import observed
from triune.training.figures.style import (
    BLUE,
    GREY,
    HEADING,
    MARGIN,
    SKY,
    WIDTH,
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


TITLE = "Cross-attention: where the model looks for what it writes"
LONGEST_TOKEN = 14
CELL, SIZE = 0.26, 9.0  # inches of a cell; points of letters beside one as large
AROUND, GAP = 0.1, 0.3  # inches: between letters and what is around them; between maps
HIGHEST = 12.0  # inches of all maps


def cross_attention(model, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> np.ndarray:
    """Of one text, the mean of all heads and layers: (tokens of the decoder, tokens of the source), rows of sum 1."""
    with observed(model, "eager"):  # the one kernel that returns its weights
        ids = {"input_ids": input_ids[None], "decoder_input_ids": decoder_input_ids[None]}
        inputs = {name: value.to(model.device) for name, value in ids.items()}
        weights = model(**inputs, output_attentions=True, use_cache=False).cross_attentions
        return torch.stack(weights)[:, 0].float().mean((0, 1)).cpu().numpy()


def draw_cross_attention(maps: Sequence[np.ndarray], sources: Sequence[list[str]], targets: Sequence[list[str]]):
    """Of each text its map (written, read), the tokens read and the tokens written; the first ones, where all would be
    too high for a page. The largest share has the darkest colour: among many tokens all shares are small."""
    if not maps:
        return empty_figure(TITLE)
    read, written = list(map(shown, sources)), list(map(shown, targets))
    beside = max(widest(one, SIZE) for one in written)
    panels = [Panel(*one, beside) for one in zip(maps, read, written)]
    # as wide as a page at most; letters grow with their cells
    cell = min(CELL, (WIDTH - 2 * MARGIN - AROUND) / (max(map(len, read)) + beside / CELL))
    shelves = on_shelves(panels, cell)
    heights = [max(one.height(cell) for one in shelf) + GAP for shelf in shelves]
    whole = max(1, sum(np.cumsum(heights) <= HIGHEST))
    shelves, heights = shelves[:whole], heights[:whole]
    highest = max(float(one.weights.max()) for shelf in shelves for one in shelf)
    note = "rows: what it writes; columns: what it reads; the mean of all heads and layers"
    figure = new_figure(WIDTH, HEADING + sum(heights) + 0.35, TITLE, note)
    axes, top, colours = sheet(figure), HEADING, shades("white", SKY, BLUE, "#00203A")
    for shelf, height in zip(shelves, heights):
        left = MARGIN
        for one in shelf:
            one.draw(axes, left, top, cell, colours, highest)
            left += one.width(cell) + GAP
        top += height
    colour_bar(axes, MARGIN + 0.9, top, colours, ("0", f"{highest:.0%}"), "share")
    return figure


class Panel(NamedTuple):
    """A map with its labels: lengths in inches."""

    weights: np.ndarray
    read: list[str]
    written: list[str]
    beside: float  # the longest label of all maps, in letters beside the largest cells

    def left(self, cell: float) -> float:
        return AROUND + self.beside * cell / CELL

    def above(self, cell: float) -> float:
        return AROUND + widest(self.read, SIZE) * cell / CELL

    def width(self, cell: float) -> float:
        return self.left(cell) + cell * len(self.read)

    def height(self, cell: float) -> float:
        return self.above(cell) + cell * len(self.written)

    def draw(self, axes, left: float, top: float, cell: float, colours, highest: float) -> None:
        left, top, size = left + self.left(cell), top + self.above(cell), SIZE * cell / CELL
        box = (left, top, cell * len(self.read), cell * len(self.written))
        put(axes, self.weights, *box, cmap=colours, vmin=0, vmax=highest)
        frame(axes, *box, GREY, 0.5)
        for row, label in enumerate(self.written):
            axes.text(left - 0.06, top + (row + 0.5) * cell, label, ha="right", va="center", fontsize=size)
        for column, label in enumerate(self.read):
            place = (left + (column + 0.5) * cell, top - 0.06)
            axes.text(*place, label, ha="center", va="bottom", rotation=90, fontsize=size)


def shown(tokens: list[str]) -> list[str]:
    return [shorten(token.strip() or "·", LONGEST_TOKEN) for token in tokens]


def on_shelves(panels: Sequence[Panel], cell: float) -> list[list[Panel]]:
    """Beside each other, as many as there is room for, in their order."""
    shelves, room = [], 0.0
    for one in panels:
        if one.width(cell) > room:
            shelves.append([])
            room = WIDTH - 2 * MARGIN
        shelves[-1].append(one)
        room -= one.width(cell) + GAP
    return shelves


def cross_attention_maps(
    maps: Sequence[np.ndarray], sources: Sequence[list[str]], targets: Sequence[list[str]], path: str | Path
) -> Path:
    """One map below another, each of a text."""
    return save(path, draw_cross_attention, maps, sources, targets)
