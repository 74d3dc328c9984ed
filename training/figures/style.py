"""The one look of all figures: colours, sizes, places, and matplotlib left as it was.

matplotlib is imported when a figure is drawn, its pyplot never, and its settings are put back: a caller's own figures
stay as they are. Lengths are in inches from the top left corner. The colours are Okabe and Ito's, chosen so that
colour-blind readers can tell them apart.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


MISSING = 'no figures, because matplotlib is not installed: pip install "triune[plots]"'

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, FAINT = "#222222", "#6B6B6B", "#E4E4E4"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, INK, GREY)

DPI = 200
STYLE = {
    "savefig.dpi": DPI,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a text is a $
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}
WIDTH, MARGIN, HEADING = 8.0, 0.25, 0.85  # of a figure; around what is drawn; for the title and the line below it


def available() -> bool:
    """Whether figures can be drawn; without matplotlib a run goes on and says `MISSING`."""
    return importlib.util.find_spec("matplotlib") is not None


# ---------------------------------------------------------------------------------------------------------------------
# matplotlib


@contextmanager
def style() -> Iterator[None]:
    """Ours on matplotlib's defaults, whatever a user has set; afterwards everything is as it was."""
    try:
        import matplotlib
    except ImportError as error:
        raise ModuleNotFoundError(MISSING) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a text may hold any script
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(path: str | Path, draw: Callable, *arguments) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        draw(*arguments).savefig(path, metadata={"Software": None})
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Figures and what is placed on them


def new_figure(width: float, height: float, title: str, note: str = ""):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    headline(figure, title, 0.38, 13, weight="bold")
    headline(figure, note, 0.64, 9.5, color=GREY)
    return figure


def headline(figure, text: str, below: float, size: float, weight: str = "normal", **look) -> None:
    """A line across the figure: smaller where it is too long, down to three quarters, then shortened."""
    width, height = figure.get_size_inches()
    room = width - 2 * MARGIN
    size *= max(0.75, room / max(inches(text, size, weight=weight), room))
    shown = fit(text, room, size, weight=weight)
    figure.text(MARGIN / width, 1 - below / height, shown, fontsize=size, fontweight=weight, **look)


def panel(figure, left: float, top: float, width: float, height: float, **options):
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height), **options
    )


def sheet(figure):
    """Axes over the whole figure, for what is placed and not plotted."""
    width, height = figure.get_size_inches()
    axes = panel(figure, 0, 0, width, height, xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def put(axes, picture: np.ndarray, left: float, top: float, width: float, height: float, **options) -> None:
    """A picture on a sheet."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(picture, extent=(left, left + width, top + height, top), aspect="auto", **options)
    axes.set(xlim=limits[0], ylim=limits[1])


def frame(axes, left: float, top: float, width: float, height: float, colour: str, thickness: float) -> None:
    x, y = (left, left + width, left + width, left, left), (top, top, top + height, top + height, top)
    axes.plot(x, y, color=colour, linewidth=thickness, solid_joinstyle="miter")


def shades(*colours: str):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colours)


def colour_bar(axes, left: float, top: float, colours, ends: tuple[str, str], label: str) -> None:
    """What the colours mean, in one line: label, lowest, colours, highest; `left` is where the colours begin."""
    width = 1.4
    put(axes, np.linspace(0, 1, 256)[None], left, top, width, 0.13, cmap=colours)
    text = {"va": "center", "fontsize": 9, "color": GREY}
    axes.text(left - 0.08, top + 0.065, f"{label}   {ends[0]}", ha="right", **text)
    axes.text(left + width + 0.08, top + 0.065, ends[1], ha="left", **text)


def empty_figure(title: str):
    return new_figure(WIDTH, HEADING + MARGIN, title, "nothing to show")


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def shorten(name: object, most: int) -> str:
    """In one line, and what is too much left out of the middle: names of a kind often differ at the end."""
    name = " ".join(str(name).split())
    end = (most - 1) // 3
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[len(name) - end :]}"


def inches(text: str, size: float, **font) -> float:
    """How wide a text is drawn, in letters of so many points."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer = RendererAgg(1, 1, DPI)
    return renderer.get_text_width_height_descent(text, FontProperties(size=size, **font), ismath=False)[0] / DPI


def widest(texts: Sequence[str], size: float) -> float:
    return max((inches(text, size) for text in texts), default=0.0)


def fit(name: object, room: float, size: float, **font) -> str:
    """In one line, shortened to as many inches as there is room for."""
    name = " ".join(str(name).split())
    shown = name
    while len(shown) > 1 and (wide := inches(shown, size, **font)) > room:
        shown = shorten(name, max(1, min(len(shown) - 1, int(len(shown) * room / wide))))
    return shown


def array(values) -> np.ndarray:
    """Numbers from wherever they are."""
    return torch.as_tensor(values).detach().float().cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Names at the ends of lines


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved apart, as little as it takes: neighbours keep `gap`, their order stays, and so does the middle
    of those that are pushed together; all between 0 and 1, if there is room."""
    order = np.argsort(np.asarray(places, dtype=float), kind="stable")
    groups: list[tuple[float, int]] = []  # their middle and their size
    for index in order:
        middle, size = float(places[index]), 1
        while groups and middle - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            low, below = groups.pop()
            middle, size = (low * below + middle * size) / (below + size), below + size
            half = gap * (size - 1) / 2
            middle = min(max(middle, half), max(1 - half, half))
        groups.append((middle, size))
    moved = [middle + gap * (place - (size - 1) / 2) for middle, size in groups for place in range(size)]
    return [place for _, place in sorted(zip(order, moved))]


AWAY = 1.045  # where labels begin, in widths of the axes


def label_ends(axes, labels: list[tuple[float, str, str]]) -> None:
    """Right of the axes (value, text, colour), each at the height of its value, or near it and joined to it. An arrow
    tells what lies beyond the axes."""
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low) for value, _, _ in labels]
    gap = 0.2 / (axes.get_position().height * axes.figure.get_size_inches()[1])
    inside = np.clip(heights, 0, 1)
    arrows = (" ↓" if height < 0 else " ↑" if height > 1 else "" for height in heights)
    texts = make_room(axes, [text + arrow for (_, text, _), arrow in zip(labels, arrows)])
    for end, place, text, (_, _, colour) in zip(inside, spread(inside, gap), texts, labels):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 1, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            xy=(1, end),
            xytext=(AWAY, place),
            xycoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops=line,
        )


def make_room(axes, texts: list[str]) -> list[str]:
    """Labels that end before the figure does: the axes become narrower, down to half of their width, and what is still
    too long is shortened."""
    from matplotlib import rcParams

    place, width, size = axes.get_position(), axes.figure.get_size_inches()[0], rcParams["font.size"]
    room, drawn = width * (1 - place.x0) - MARGIN / 2, width * place.width
    kept = max((room - widest(texts, size)) / AWAY, drawn / 2)
    if kept < drawn:
        axes.set_position((place.x0, place.y0, kept / width, place.height))
    left = room - AWAY * min(kept, drawn) + 1e-6  # the longest of them just fits
    return [fit(text, left, size) for text in texts]
