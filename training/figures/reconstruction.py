"""What a masked autoencoder makes of an image: the image, what is visible of it, and the drawing, side by side."""

from collections.abc import Sequence
from pathlib import Path

from triune.training.figures.images import picture, place_picture
from triune.training.figures.style import (
    GREY,
    HEADING,
    INK,
    MARGIN,
    WIDTH,
    empty_figure,
    frame,
    new_figure,
    save,
    sheet,
)


ACROSS = 2  # triples in a row, where there are so many
PARTS = ("the image", "what is seen of it", "what the model draws")
GAP, LINE = 0.3, 0.24  # between triples; below each


def draw_reconstructions(triples: Sequence, notes: Sequence[str], title: str):
    if len(triples) != len(notes):
        raise ValueError(f"{len(triples)} images and {len(notes)} notes: one for each is needed")
    if not len(triples):
        return empty_figure(title)
    across = min(ACROSS, len(triples))
    rows = -(-len(triples) // across)
    block = (WIDTH - 2 * MARGIN - (across - 1) * GAP) / across
    side = block / len(PARTS)
    says = f"Side by side {', '.join(PARTS)}; below, the PSNR of what was hidden"
    figure = new_figure(WIDTH, HEADING + rows * (side + LINE) + MARGIN, title, says)
    axes = sheet(figure)
    for index, (triple, note) in enumerate(zip(triples, notes)):
        row, column = divmod(index, across)
        left, top = MARGIN + column * (block + GAP), HEADING + row * (side + LINE)
        for place, image in enumerate(triple):
            box = place_picture(axes, picture(image), left + place * side + 0.03, top, side - 0.06)
            frame(axes, *box, GREY, 0.5)
        middle = left + (len(PARTS) - 0.5) * side  # of the drawing
        axes.text(middle, top + side + 0.06, note, ha="center", va="center", fontsize=9, color=INK)
    return figure


def reconstructions(
    triples: Sequence,
    notes: Sequence[str],
    path: str | Path,
    title: str = "Held-out images, in part hidden, and drawn again",
) -> Path:
    """Triples of images (channels, height, width) in [0, 1], and a line for each."""
    return save(path, draw_reconstructions, triples, notes, title)
