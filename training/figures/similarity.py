"""Images and texts beside each other: how alike a model finds them, and what it takes images for by their prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triune.training.figures.images import picture, place_picture
from triune.training.figures.style import (
    BLUE,
    GREY,
    HEADING,
    INK,
    MARGIN,
    ORANGE,
    WIDTH,
    array,
    colour_bar,
    fit,
    frame,
    new_figure,
    panel,
    put,
    save,
    shades,
    sheet,
    widest,
)


LONGEST_CAPTION, LONGEST_NAME = 3.6, 1.6  # inches
BARS, BAR = 5, 0.24  # that are shown of an image, and the height of each


def draw_similarity_matrix(similarity, images: Sequence, captions: Sequence[str]):
    similarity = array(similarity)
    count = len(images)
    if similarity.shape != (count, len(captions)) or count != len(captions):
        raise ValueError(
            f"similarities of {count} images and {len(captions)} captions, pair by pair, have the shape "
            f"{(count, count)}, got {similarity.shape}"
        )
    words = [fit(caption, LONGEST_CAPTION, 8.5) for caption in captions]
    left = MARGIN + widest(words, 8.5) + 0.1
    cell = min(0.62, max(0.3, (10 - left) / count))
    right = int((similarity.argmax(1) == np.arange(count)).sum())
    top = HEADING + 0.35 + cell
    width = max(WIDTH, left + cell * count + MARGIN)
    figure = new_figure(
        width,
        top + cell * count + MARGIN,
        f"Images and captions: {right} of {count} images are nearest to their own",
        "cosine similarity; framed: the nearest caption of each image, orange where it is not its own",
    )
    axes, low, high = sheet(figure), similarity.min(), similarity.max()
    colours = shades("white", BLUE)
    put(axes, similarity.T, left, top, cell * count, cell * count, cmap=colours, vmin=low, vmax=high)
    for place, (image, text) in enumerate(zip(images, words)):
        place_picture(axes, picture(image), left + cell * (place + 0.06), top - cell, 0.88 * cell)
        axes.text(left - 0.1, top + cell * (place + 0.5), text, ha="right", va="center", fontsize=8.5)
        write_column(axes, similarity[place], left + cell * place, top, cell, low + 0.6 * (high - low))
        nearest = int(similarity[place].argmax())
        box = (left + cell * place, top + cell * nearest, cell, cell)
        frame(axes, *box, INK if nearest == place else ORANGE, 1.5)
    colour_bar(axes, width - MARGIN - 1.9, HEADING, colours, (signed(low), signed(high)), "similarity")
    return figure


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def write_column(axes, values: np.ndarray, left: float, top: float, cell: float, bright: float) -> None:
    for row, value in enumerate(values):
        colour = "white" if value > bright else INK
        place = (left + cell / 2, top + cell * (row + 0.5))
        axes.text(*place, signed(value), ha="center", va="center", fontsize=min(8, cell * 18), color=colour)


def similarity_matrix(similarity, images: Sequence, captions: Sequence[str], path: str | Path) -> Path:
    """Cosines (images, captions) of pairs: image i, (channels, height, width) in [0, 1], belongs to caption i."""
    return save(path, draw_similarity_matrix, similarity, images, captions)


# ---------------------------------------------------------------------------------------------------------------------
# Classes by their prompts


def draw_zero_shot_bars(chances, images: Sequence, names: Sequence[str], labels: Sequence[int]):
    chances = array(chances)
    if chances.shape != (len(images), len(names)) or len(labels) != len(images):
        raise ValueError(
            f"chances of {len(images)} images, with a label each, and {len(names)} classes have the shape "
            f"{(len(images), len(names))}, got {chances.shape} and {len(labels)} labels"
        )
    shown, columns = min(BARS, len(names)), 2
    side = shown * BAR
    rows, gap = -(-len(images) // columns), 0.4
    right = int((chances.argmax(1) == np.asarray(labels)).sum())
    figure = new_figure(
        WIDTH,
        HEADING + rows * (side + gap) - gap + MARGIN,
        f"Classes by their prompts: {right} of {len(images)} images named right",
        f"the {shown} nearest of {len(names)} classes, with their probability; the right one in blue",
    )
    axes, width = sheet(figure), (WIDTH - 2 * MARGIN) / columns
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * width, HEADING + row * (side + gap)
        frame(axes, *place_picture(axes, picture(image), left, top, side), GREY, 0.5)
        order = np.argsort(-chances[place], kind="stable")[:shown]
        words = [fit(names[index], LONGEST_NAME, 9) for index in order]
        room = 0.15 + widest(words, 9)
        bars = panel(figure, left + side + room, top, width - side - room - 0.55, side)
        colours = [BLUE if index == labels[place] else GREY for index in order]
        bars.barh(range(shown), chances[place][order], color=colours, height=0.7)
        bars.set(xlim=(0, 1), ylim=(shown - 0.5, -0.5))
        bars.set_yticks(range(shown), words, fontsize=9)
        bars.set_xticks([])
        bars.grid(False)
        bars.spines[:].set_visible(False)
        for bar, index in enumerate(order):
            chance = chances[place][index]
            look = {"va": "center_baseline", "fontsize": 9, "color": colours[bar]}  # as the names are placed
            bars.text(chance + 0.02, bar, f"{chance:.0%}", **look)
    return figure


def zero_shot_bars(chances, images: Sequence, names: Sequence[str], labels: Sequence[int], path: str | Path) -> Path:
    """Probabilities (images, classes); images (channels, height, width) in [0, 1]."""
    return save(path, draw_zero_shot_bars, chances, images, names, labels)
