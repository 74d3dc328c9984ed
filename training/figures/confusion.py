"""Confusions of a classifier: counts, coloured by their share of the row, and the most frequent ones by name.

Of more classes than there is room for names, the colours and the list remain: a thousand make a file of 16 inches.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triune.training.figures.style import (
    BLUE,
    FAINT,
    GREY,
    HEADING,
    INK,
    MARGIN,
    ORANGE,
    WIDTH,
    inches,
    new_figure,
    panel,
    save,
    shades,
    sheet,
    shorten,
    widest,
)


MOST_CONFUSIONS = 8  # that are named
SMALLEST_NAMED = 0.115  # a cell that has room for its class's name
WIDEST = 16.0  # the matrix: the memory to draw it grows with the square


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; not a number for a class of which there is none."""
    total = matrix.sum(1, keepdims=True)
    return np.divide(matrix, total, out=np.full(matrix.shape, math.nan), where=total > 0)


def worst_confusions(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The (label, prediction) of which there are most, wrong ones only."""
    wrong = matrix * (1 - np.eye(len(matrix)))
    most = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = (divmod(int(place), len(matrix)) for place in most)
    return [pair for pair in pairs if wrong[pair] > 0]


def draw_confusion_matrix(matrix, names: Sequence[str]):
    matrix = np.asarray(matrix, dtype=float)
    count = len(names)
    if matrix.shape != (count, count):
        raise ValueError(f"a confusion matrix of {count} classes has the shape {(count, count)}, got {matrix.shape}")
    total, right = matrix.sum(), np.trace(matrix)
    shares = row_shares(matrix)
    cell = min(1.1, max(SMALLEST_NAMED, 5.2 / max(count, 1)), WIDEST / max(count, 1))
    size = min(10, cell * 60)
    labels = [shorten(name, 18) for name in names if cell >= SMALLEST_NAMED]
    ticks = np.arange(len(labels)) + 0.5
    longest = widest(labels, size)
    left, top, side = MARGIN + 0.4 + longest, HEADING + 0.1, cell * count
    upright = longest > cell
    below = (longest if upright else size / 72) + 0.55
    height = max(top + side + below, top + 0.4 + 0.45 * len(worst_confusions(matrix))) + MARGIN / 2
    title = f"{right:,.0f} of {total:,.0f} right ({right / max(total, 1):.1%})"
    note = "rows: labels, columns: predictions; colour: share of the row, right in blue, wrong in orange"
    listed = 0.35 + max([2.4, *(inches(one, 10) for one in named(matrix, names))]) + MARGIN
    figure = new_figure(max(left + side + listed, WIDTH), height, f"Confusion matrix: {title}", note)
    axes = panel(figure, left, top, side, side, xlim=(0, count), ylim=(count, 0))
    right_share = np.where(np.eye(count) > 0, shares, math.nan)
    for part, colour in ((right_share, BLUE), (np.where(np.isnan(right_share), shares, math.nan), ORANGE)):
        # the root: a confusion of 2 % should be seen
        axes.imshow(np.sqrt(part), cmap=shades("white", colour), vmin=0, vmax=1, extent=(0, count, count, 0))
    write_cells(axes, matrix, shares, cell)
    mark_absent(axes, matrix)
    axes.set_xticks(ticks, labels, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(ticks, labels, fontsize=size)
    axes.tick_params(length=0)
    axes.grid(False)
    for lines in (axes.hlines, axes.vlines) if labels else ():
        lines(range(count + 1), 0, count, color=FAINT, linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    list_confusions(figure, matrix, names, left + side + 0.35, top)
    return figure


def write_cells(axes, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Counts, where they can be read, and below them the shares, where there is room."""
    if cell < 0.15:
        return
    room = cell >= 0.43
    size = min(11, cell * (18 if room else 32))
    for row, column in np.argwhere(matrix > 0):
        share = shares[row, column]
        text = f"{matrix[row, column]:,.0f}" + f"\n{share:.0%}" * room
        colour = "white" if share > 0.4 else INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)


def mark_absent(axes, matrix: np.ndarray) -> None:
    for row in np.flatnonzero(matrix.sum(1) == 0):
        axes.axhspan(row, row + 1, color=FAINT, alpha=0.5)
        if len(matrix) <= 30:
            axes.text(len(matrix) / 2, row + 0.5, "none", ha="center", va="center", fontsize=8, color=GREY)


def named(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    return [
        f"{shorten(names[label], 16)} → {shorten(names[prediction], 16)}"
        for label, prediction in worst_confusions(matrix)
    ]


def list_confusions(figure, matrix: np.ndarray, names: Sequence[str], left: float, top: float) -> None:
    axes = sheet(figure)
    worst = worst_confusions(matrix)
    axes.text(left, top + 0.1, "Most frequent confusions" if worst else "No confusions", fontweight="bold")
    for place, ((label, prediction), text) in enumerate(zip(worst, named(matrix, names))):
        below = top + 0.4 + 0.45 * place
        count, total = matrix[label, prediction], matrix[label].sum()
        axes.text(left, below, text, color=ORANGE)
        axes.text(left, below + 0.18, f"{count:,.0f} of {total:,.0f} ({count / total:.0%})", fontsize=9, color=GREY)


def confusion_matrix(matrix, names: Sequence[str], path: str | Path) -> Path:
    """Counts (label, prediction), coloured by their share of the row; the most frequent confusions by name."""
    return save(path, draw_confusion_matrix, matrix, names)
