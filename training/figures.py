"""Figures of a run, as PNG: curves, confusions, images and patches, attention, positions, surprise.

A function that writes a figure takes plain data or a model, and a path, and returns the path. The function named
`draw_...` beside it makes the figure; what it draws is computed by a function without matplotlib. matplotlib is
imported when a figure is drawn, its pyplot never, and its settings are put back: a caller's own figures stay as they
are. Lengths are in inches from the top left corner.

Sources: attention rollout, https://arxiv.org/abs/2005.00928; maps of position similarity as in figure 7 of ViT,
https://arxiv.org/abs/2010.11929; pseudo log-likelihood, https://arxiv.org/abs/1910.14659; the colours are Okabe and
Ito's, chosen so that colour-blind readers can tell them apart.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from triune.modeling.embeddings import patchify
from triune.modeling.heads import POOLINGS


MISSING = 'no figures, because matplotlib is not installed: pip install "triune[plots]"'

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, FAINT = "#222222", "#6B6B6B", "#E4E4E4"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, INK, GREY)

STYLE = {
    "savefig.dpi": 200,
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

MOST_TOKENS = 96  # of a text that is drawn
MOST_POSITIONS = 256  # that are compared
MOST_CONFUSIONS = 8  # that are named
MOST_LABELS = 12  # beside an axis


def available() -> bool:
    """Whether figures can be drawn; without matplotlib a run goes on and says `MISSING`."""
    return importlib.util.find_spec("matplotlib") is not None


# ---------------------------------------------------------------------------------------------------------------------
# One style for all


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


def new_figure(width: float, height: float, title: str, note: str = ""):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.text(MARGIN / width, 1 - 0.38 / height, title, fontsize=13, fontweight="bold")
    figure.text(MARGIN / width, 1 - 0.64 / height, note, fontsize=9.5, color=GREY)
    return figure


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


def shades(*colours: str):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colours)


def colour_bar(axes, left: float, top: float, colours, ends: tuple[str, str], label: str, width: float = 1.4) -> None:
    """What the colours mean, in one line: label, lowest, colours, highest; `left` is where the colours begin."""
    put(axes, np.linspace(0, 1, 256)[None], left, top, width, 0.13, cmap=colours)
    text = {"va": "center", "fontsize": 9, "color": GREY}
    axes.text(left - 0.08, top + 0.065, f"{label}   {ends[0]}", ha="right", **text)
    axes.text(left + width + 0.08, top + 0.065, ends[1], ha="left", **text)


def empty_figure(title: str):
    return new_figure(WIDTH, HEADING + MARGIN, title, "nothing to show")


def shorten(name: object, most: int) -> str:
    """In one line, and what is too much left out of the middle: names of a kind often differ at the end."""
    name = " ".join(str(name).split())
    kept = max(most - 1, 2)
    return name if len(name) <= most else f"{name[: kept - kept // 3]}…{name[-(kept // 3) :] if kept > 5 else ''}"


def array(values) -> np.ndarray:
    """Numbers from wherever they are."""
    return torch.as_tensor(values).detach().float().cpu().numpy()


def picture(image) -> np.ndarray:
    """(channels, height, width) as matplotlib takes it: colours for three channels, otherwise their mean as grey."""
    image = array(image)
    if image.ndim != 3:
        raise ValueError(f"an image has the shape (channels, height, width), got {tuple(image.shape)}")
    channels = image if len(image) == 3 else image.mean(0, keepdims=True).repeat(3, axis=0)
    return np.nan_to_num(channels.transpose(1, 2, 0)).clip(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Curves


class Measure(NamedTuple):
    title: str
    best: Callable
    show: Callable[[float], str]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


MEASURES = {
    "loss": Measure("Loss", min, "{:.2f}".format),
    "perplexity": Measure("Perplexity", min, number),
    "bits_per_character": Measure("Bits per character", min, "{:.3f}".format),
    "accuracy": Measure("Accuracy", max, "{:.1%}".format),
    "top5_accuracy": Measure("Top-5 accuracy", max, "{:.1%}".format),
    "macro_f1": Measure("Macro-F1", max, "{:.1%}".format),
}


def measure_of(metric: str) -> Measure:
    return MEASURES.get(metric) or Measure(metric.replace("_", " ").capitalize(), max, number)


class Series(NamedTuple):
    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray  # steps whose value is not a number

    def __len__(self) -> int:
        return len(self.steps)


def series(records: list[dict], kind: str, key: str, **wanted) -> Series:
    """One value of the records, by step. Where a step stands twice, as after a resume, the later record counts."""
    chosen = {
        record["step"]: math.nan if record[key] is None else float(record[key])
        for record in records
        if record.get("kind") == kind and key in record and wanted.items() <= {"full": False, **record}.items()
    }
    steps = np.array(sorted(chosen), dtype=float)
    values = np.array([chosen[step] for step in steps], dtype=float)
    finite = np.isfinite(values)
    return Series(steps[finite], values[finite], steps[~finite])


def smooth(values: np.ndarray) -> np.ndarray:
    """Each value with its neighbours, weighted by a bell of a fiftieth of the curve's length: no lag, as a running
    average has it, and few points stay as they are."""
    width = len(values) / 50
    offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    bell = np.exp(-0.5 * (offsets / max(width, 1e-9)) ** 2)
    inside = slice(len(bell) // 2, len(bell) // 2 + len(values))  # `same` gives the length of the longer one
    return np.convolve(values, bell)[inside] / np.convolve(np.ones(len(values)), bell)[inside]


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


def label_ends(axes, labels: list[tuple[float, str, str]]) -> None:
    """Right of the axes (value, text, colour), each at the height of its value, or near it and joined to it. An arrow
    tells what lies beyond the axes."""
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low) for value, _, _ in labels]
    gap = 0.2 / (axes.get_position().height * axes.figure.get_size_inches()[1])
    inside = np.clip(heights, 0, 1)
    for height, end, place, (_, text, colour) in zip(heights, inside, spread(inside, gap), labels):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 1, "relpos": (0, 0.5)}
        axes.annotate(
            text + (" ↓" if height < 0 else "") + (" ↑" if height > 1 else ""),
            xy=(1, end),
            xytext=(1.045, place),
            xycoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops=line,
        )


def close_up(drawn: tuple[float, float], late: np.ndarray, baselines: Sequence[float], best: Callable):
    """The range to show: all that is drawn, unless what is to be compared, the second half of the evaluations and the
    best baseline, would be squeezed into a narrow band."""
    compared = [*late, *(best(baselines) for _ in range(bool(len(baselines))))]
    if not baselines or not len(late) or max(compared) - min(compared) > 0.12 * (drawn[1] - drawn[0]):
        return drawn
    room = max(max(compared) - min(compared), 0.01 * (drawn[1] - drawn[0]))
    return max(min(compared) - room, drawn[0]), min(max(compared) + 0.5 * room, drawn[1])


def bound(axes, *groups: np.ndarray) -> None:
    """All steps, with a little room; around a single one some more."""
    steps = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    room = 0.015 * (steps.max() - steps.min()) or 0.5
    axes.set_xlim(steps.min() - room, steps.max() + room)


def curve_note(records: list[dict], evaluations: Series, lost: np.ndarray, measure: Measure) -> str:
    """How long it took, where it was best, and what was not a number."""
    trained = [record for record in records if record.get("kind") == "train"]
    parts = [f"{max(record['step'] for record in trained):,} steps"] if trained else []
    if trained and trained[-1].get("epoch") and trained[-1].get("seconds"):
        parts[0] += f" ({trained[-1]['epoch']:.3g} epochs, {trained[-1]['seconds']:,.0f} s)"
    if len(evaluations) > 1:
        best, step = measure.best(zip(evaluations.values, evaluations.steps), key=lambda point: point[0])
        parts.append(f"best evaluation at step {step:,.0f}: {measure.show(best)}")
    if len(lost):
        first = ", ".join(f"{step:,.0f}" for step in lost[:3])
        parts.append(f"not a number at step {first}" + ", …" * (len(lost) > 3))
    return "; ".join(parts)


def draw_curve(records: list[dict], metric: str, baselines: dict[str, float]):
    measure = measure_of(metric)
    baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    train, quick, full = (
        series(records, "train", metric),
        series(records, "eval", metric, full=False),
        series(records, "eval", metric, full=True),
    )
    shown = [one for one in (train, quick, full) if len(one)]
    lost = np.unique(np.concatenate([train.lost, quick.lost, full.lost]))
    told = full if len(full) else quick
    held_out = " → ".join(measure.show(value) for value in dict.fromkeys((*told.values[:1], *told.values[-1:])))
    title = f"{measure.title}: {held_out} on held-out data" if held_out else f"{measure.title} in training"
    followed = quick if len(quick) else full
    figure = new_figure(WIDTH, 4.6, title, curve_note(records, followed, lost, measure))
    axes = panel(figure, 0.75, 0.9, 5.2, 3.15, xlabel="step")
    labels = []
    for name, value in baselines.items():
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        labels.append((value, f"{name} {measure.show(value)}", GREY))
    if len(train):
        smoothed = smooth(train.values)
        axes.plot(train.steps, train.values, color=BLUE, linewidth=0.9, alpha=0.35, label="training, as logged")
        axes.plot(train.steps, smoothed, color=BLUE, label="training", marker="o" if len(train) == 1 else "")
        labels.append((smoothed[-1], f"training {measure.show(smoothed[-1])}", BLUE))
    for points, name, marker in ((quick, "held out, a part", "o"), (full, "held out", "D")):
        line = "-" if points is followed else "none"
        look = {"linestyle": line, "marker": marker, "markersize": 6, "color": ORANGE}
        axes.plot(points.steps, points.values, label=name, **look)
        labels += [(value, f"{name} {measure.show(value)}", ORANGE) for value in points.values[-1:]]
    for step in lost:
        axes.axvline(step, color=PURPLE, linewidth=1.2)
    if len(shown) + len(lost):
        bound(axes, lost, *(one.steps for one in shown))
    late = followed.values[len(followed) // 2 :]
    low, high = close_up(axes.get_ylim(), late, list(baselines.values()), measure.best)
    if "%" in measure.show(0.0):
        high = min(high, 1 + 0.02 * (1 - low))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g}%")
    axes.set_ylim(low, high)
    label_ends(axes, labels)
    return figure


def curves(records: list[dict], baselines: dict[str, dict[str, float]], folder: str | Path) -> list[Path]:
    """Loss, and every other metric that has a baseline: training and held-out data by step."""
    metrics = [
        metric
        for metric in dict.fromkeys(("loss", *baselines))
        if any(len(one) + len(one.lost) for one in (series(records, kind, metric) for kind in ("train", "eval")))
    ]
    return [
        save(Path(folder, f"{metric}.png"), draw_curve, records, metric, baselines.get(metric, {}))
        for metric in metrics
    ]


def draw_learning_rate_and_throughput(records: list[dict], unit: str):
    rate, speed = series(records, "train", "learning_rate"), series(records, "train", "throughput")
    title = "Learning rate and throughput"
    if not len(rate) + len(speed):
        return empty_figure(title)
    median = float(np.median(speed.values)) if len(speed) else math.nan
    figure = new_figure(WIDTH, 5.0, title, f"dashed: the median, {median:,.0f} {unit} per second")
    panels = ("learning rate", rate, BLUE), (f"{unit} per second", speed, GREEN)
    for row, (name, values, colour) in enumerate(panels):
        axes = panel(figure, 0.85, 1.15 + 1.8 * row, 6.85, 1.3)
        axes.set_title(name, loc="left", fontsize=10, color=colour)
        axes.plot(values.steps, values.values, color=colour, marker="o" if len(values) < 2 else "")
        bound(axes, rate.steps, speed.steps)
        axes.set_ylim(0, max(values.values.max(initial=0) * 1.1, 1e-12))
        axes.locator_params(axis="y", nbins=4)
        axes.yaxis.set_major_formatter(lambda value, _: number(value) if value >= 1 else f"{value:g}")
    axes.axhline(median, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlabel("step")
    return figure


def learning_rate_and_throughput(records: list[dict], path: str | Path, unit: str) -> Path:
    """Both by step; `unit` is what throughput counts, "tokens" or "images"."""
    return save(path, draw_learning_rate_and_throughput, records, unit)


# ---------------------------------------------------------------------------------------------------------------------
# Confusions


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; not a number for a class of which there is none."""
    total = matrix.sum(1, keepdims=True)
    return np.divide(matrix, total, out=np.full(matrix.shape, math.nan), where=total > 0)


def worst_confusions(matrix: np.ndarray, most: int = MOST_CONFUSIONS) -> list[tuple[int, int]]:
    """The (label, prediction) of which there are most, wrong ones only."""
    wrong = matrix * (1 - np.eye(len(matrix)))
    pairs = (divmod(int(place), len(matrix)) for place in np.argsort(-wrong, axis=None, kind="stable")[:most])
    return [pair for pair in pairs if wrong[pair] > 0]


def draw_confusion_matrix(matrix, names: Sequence[str]):
    matrix = np.asarray(matrix, dtype=float)
    count = len(names)
    if matrix.shape != (count, count):
        raise ValueError(f"a confusion matrix of {count} classes has the shape {(count, count)}, got {matrix.shape}")
    total, right = matrix.sum(), np.trace(matrix)
    shares = row_shares(matrix)
    cell = min(1.1, max(0.115, 5.2 / max(count, 1)))
    size = min(10, cell * 60)
    labels = [shorten(name, 18) for name in names]
    longest = max(map(len, labels), default=0) * size * 0.62 / 72
    left, top, side = MARGIN + 0.4 + longest, HEADING + 0.1, cell * count
    upright = longest > cell
    below = (longest if upright else size / 72) + 0.55
    height = max(top + side + below, top + 0.4 + 0.45 * len(worst_confusions(matrix))) + MARGIN / 2
    title = f"{right:,.0f} of {total:,.0f} right ({right / max(total, 1):.1%})"
    note = "rows: labels, columns: predictions; colour: share of the row, right in blue, wrong in orange"
    figure = new_figure(max(left + side + 3.0, WIDTH), height, f"Confusion matrix: {title}", note)
    axes = panel(figure, left, top, side, side, xlim=(0, count), ylim=(count, 0))
    right_share = np.where(np.eye(count) > 0, shares, math.nan)
    for part, colour in ((right_share, BLUE), (np.where(np.isnan(right_share), shares, math.nan), ORANGE)):
        # the root: a confusion of 2 % should be seen
        axes.imshow(np.sqrt(part), cmap=shades("white", colour), vmin=0, vmax=1, extent=(0, count, count, 0))
    write_cells(axes, matrix, shares, cell)
    mark_absent(axes, matrix)
    axes.set_xticks(np.arange(count) + 0.5, labels, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(np.arange(count) + 0.5, labels, fontsize=size)
    axes.tick_params(length=0)
    axes.grid(False)
    for lines in (axes.hlines, axes.vlines):
        lines(range(count + 1), 0, count, color=FAINT, linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    list_confusions(figure, matrix, names, left + side + 0.35, top)
    return figure


def write_cells(axes, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Counts, where they can be read, and below them the shares, where there is room."""
    room = cell >= 0.43
    size = min(11, cell * (18 if room else 32))
    for row, column in np.argwhere((matrix > 0) & (cell >= 0.15)):
        share = shares[row, column]
        text = f"{matrix[row, column]:,.0f}" + f"\n{share:.0%}" * room
        colour = "white" if share > 0.4 else INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)


def mark_absent(axes, matrix: np.ndarray) -> None:
    for row in np.flatnonzero(matrix.sum(1) == 0):
        axes.axhspan(row, row + 1, color=FAINT, alpha=0.5)
        if len(matrix) <= 30:
            axes.text(len(matrix) / 2, row + 0.5, "none", ha="center", va="center", fontsize=8, color=GREY)


def list_confusions(figure, matrix: np.ndarray, names: Sequence[str], left: float, top: float) -> None:
    axes = sheet(figure)
    worst = worst_confusions(matrix)
    axes.text(left, top + 0.1, "Most frequent confusions" if worst else "No confusions", fontweight="bold")
    for place, (label, prediction) in enumerate(worst):
        below = top + 0.4 + 0.45 * place
        count, total = matrix[label, prediction], matrix[label].sum()
        axes.text(left, below, f"{shorten(names[label], 16)} → {shorten(names[prediction], 16)}", color=ORANGE)
        axes.text(left, below + 0.18, f"{count:,.0f} of {total:,.0f} ({count / total:.0%})", fontsize=9, color=GREY)


def confusion_matrix(matrix, names: Sequence[str], path: str | Path) -> Path:
    """Counts (label, prediction), coloured by their share of the row; the most frequent confusions by name."""
    return save(path, draw_confusion_matrix, matrix, names)


# ---------------------------------------------------------------------------------------------------------------------
# Images and patches


def tiles(count: int, most: int = 10) -> tuple[int, int, float]:
    """Columns, rows and the width of a tile: near the shape of a page."""
    columns = min(most, max(1, math.ceil(math.sqrt(1.8 * count))))
    return columns, math.ceil(count / columns), min(1.7, (WIDTH - 2 * MARGIN) / columns)


def place_picture(axes, image: np.ndarray, left: float, top: float, side: float) -> tuple[float, float, float, float]:
    """An image of any shape in the middle of a square; where it lies."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    box = left + (side - width * scale) / 2, top + (side - height * scale) / 2, width * scale, height * scale
    put(axes, image, *box)
    return box


def frame(axes, left: float, top: float, width: float, height: float, colour: str, thickness: float) -> None:
    x, y = (left, left + width, left + width, left, left), (top, top, top + height, top + height, top)
    axes.plot(x, y, color=colour, linewidth=thickness, solid_joinstyle="miter")


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
            shorten(caption, int(tile / 0.078)),
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
    image = torch.as_tensor(array(image))
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
    cut = place_picture(axes, picture(image), MARGIN + 0.05, top, side)
    x, y = (
        cut[0] + cut[2] * np.arange(columns + 1) / columns,
        cut[1] + cut[3] * np.arange(rows + 1) / rows,
    )
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


# ---------------------------------------------------------------------------------------------------------------------
# Attention


@contextmanager
def observed(model, kernel: str | None = None) -> Iterator[None]:
    """A model without dropout and gradients, with another attention kernel if one is named; then as it was."""
    before, modes = model.config._attn_implementation, {module: module.training for module in model.modules()}
    model.eval()
    try:
        model.set_attn_implementation(kernel or before)
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)
        for module, mode in modes.items():
            module.training = mode


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
    the mean. Pooling is a mean of some rows, so the model's own pooling is applied to the rollout."""
    total = rollout_of(model, pixel_values=pixel_values)
    config = model.config
    prefix, cls = config.num_prefix_tokens, int(config.embedding["cls_token"])
    pooled = POOLINGS[config.pooling["type"]](total, torch.ones(total.shape[:2]), prefix, cls)
    patch = config.embedding["patch_size"]
    grid = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    patches = pooled[:, prefix:]
    return (patches / patches.mean(1, keepdim=True)).unflatten(1, grid)


def laid_over(image: np.ndarray, colours: np.ndarray, strength: float = 0.7) -> np.ndarray:
    """The colours of each patch over a pale grey image, whatever their sizes."""
    size = max(len(image), len(colours)), max(image.shape[1], colours.shape[1])
    grey = 0.35 + 0.65 * resample(image, *size).mean(-1, keepdims=True)
    return strength * resample(colours[..., :3], *size) + (1 - strength) * grey


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
# Text


class Reading(NamedTuple):
    """A text as a model reads it."""

    ids: torch.Tensor  # (1, length)
    special: np.ndarray  # which tokens frame the text
    tokens: list[str]  # to be shown


def show_token(tokenizer, index: int) -> str:
    """A token by itself; what cannot be seen has a sign. A model may have more ids than its tokenizer has tokens."""
    text = tokenizer.decode([index]) or tokenizer.convert_ids_to_tokens(index) or f"#{index}"
    return text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵")


def read(model, tokenizer, text: str) -> Reading:
    most = min(MOST_TOKENS, model.config.num_positions)
    ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    special = np.isin(ids, tokenizer.all_special_ids)
    return Reading(torch.tensor([ids]).long(), special, [show_token(tokenizer, index) for index in ids])


def draw_attention_rollout_text(matrix: np.ndarray, tokens: list[str]):
    title = "Attention rollout: what each token is made of"
    if not tokens:
        return empty_figure(title)
    count = len(tokens)
    cell = min(0.3, 5.8 / count)
    size, labels = min(9, cell * 58), [shorten(token.strip() or "·", 12) for token in tokens]
    left = MARGIN + max(map(len, labels)) * size * 0.64 / 72 + 0.1
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


class Surprise(NamedTuple):
    bits: np.ndarray  # of each token; not a number where none was asked for
    guesses: np.ndarray  # the id that was thought likeliest


def causal_logits(model, reading: Reading, mask_token: int | None) -> torch.Tensor:
    """Each token from those before it; of the first one nothing is known."""
    logits = model(input_ids=reading.ids.to(model.device)).logits[0]
    return torch.cat([torch.full_like(logits[:1], math.nan), logits[:-1]])


def masked_logits(model, reading: Reading, mask_token: int | None) -> torch.Tensor:
    """Each token from all others, masked one at a time."""
    length = reading.ids.shape[1]
    rows = reading.ids.repeat(length, 1)
    rows.fill_diagonal_(mask_token)
    batches = rows.to(model.device).split(32)
    return torch.cat([model(input_ids=batch).logits for batch in batches]).diagonal().T


LOGITS = {"causal": causal_logits, "bidirectional": masked_logits}


def surprise_of(model, reading: Reading, mask_token: int | None = None) -> Surprise:
    """-log2 of the probability that the model gave to each token."""
    with observed(model):
        logits = LOGITS[model.config.attention["type"]](model, reading, mask_token).float().cpu()
    bits = -logits.log_softmax(-1).gather(1, reading.ids.T)[:, 0].numpy() / math.log(2)
    return Surprise(np.where(reading.special, math.nan, bits), logits.argmax(-1).numpy())


def flow(widths: Sequence[float], breaks: Sequence[bool], most: float) -> list[tuple[int, float]]:
    """Line and place of each word of a text, with a new line where one is full, and after a break."""
    places, line, left = [], 0, 0.0
    for width, broken in zip(widths, breaks):
        if left and left + width > most:
            line, left = line + 1, 0.0
        places.append((line, left))
        line, left = (line + 1, 0.0) if broken else (line, left + width)
    return places


SURPRISAL = {
    "causal": ("from the tokens before it", "small: what the model expected instead"),
    "bidirectional": ("from all others, masked one at a time", "small: what the model expected instead"),
}


def draw_surprisal(tokens: list[str], bits: np.ndarray, guesses: list[str], vocab_size: int, kind: str):
    """`guesses`: what is written below each token; empty for nothing."""
    scored = np.isfinite(bits)
    if not scored.any():
        return empty_figure("Surprisal")
    letter, small, high = 0.1, 0.066, 0.5  # widths of a letter, height of a line
    shown = [token if token.strip() else "·" * max(len(token), 1) for token in tokens]
    widths = [max(len(token) * letter, len(guess) * small) + 0.08 for token, guess in zip(shown, guesses)]
    places = flow(widths, ["↵" in token for token in tokens], WIDTH - 2 * MARGIN)
    lines = places[-1][0] + 1
    most = math.log2(vocab_size)
    title = f"Surprisal: {bits[scored].mean():.2f} bits a token, where a blind guess costs {most:.2f}"
    figure = new_figure(WIDTH, HEADING + lines * high + 0.55, title, "each token " + "; ".join(SURPRISAL[kind]))
    axes = sheet(figure)
    colours = shades("white", "#FBD9B8", ORANGE)
    text = {"fontfamily": "DejaVu Sans Mono", "va": "center"}
    for token, bit, guess, width, (line, left) in zip(shown, bits, guesses, widths, places):
        left, top, known = MARGIN + left, HEADING + line * high, bool(np.isfinite(bit))
        colour = colours(min(bit / most, 1.0)) if known else FAINT
        axes.fill_between((left, left + width - 0.03), top, top + 0.25, color=colour, linewidth=0)
        axes.text(left + 0.025, top + 0.125, token, fontsize=11.5, color=INK if known else GREY, **text)
        axes.text(left + 0.025, top + 0.335, guess, fontsize=7.6, color=BLUE, **text)
    top = figure.get_size_inches()[1] - 0.35
    colour_bar(axes, MARGIN + 0.6, top, colours, ("0", f"{most:.0f} bits and more"), "")
    return figure


def surprisal(model, tokenizer, text: str, path: str | Path) -> Path:
    """A text whose tokens are coloured by how much they surprised a language model, with its own guess below."""
    reading = read(model, tokenizer, text)
    kind = model.config.attention["type"]
    bits, guesses = np.empty(0), np.empty(0)
    if reading.tokens:
        bits, guesses = surprise_of(model, reading, tokenizer.mask_token_id)
    told = [
        show_token(tokenizer, int(guess)) if math.isfinite(bit) and guess != token else ""
        for bit, guess, token in zip(bits, guesses, reading.ids[0])
    ]
    return save(path, draw_surprisal, reading.tokens, bits, told, model.config.vocab_size, kind)


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def cosine_similarity(vectors: torch.Tensor) -> np.ndarray:
    vectors = torch.nn.functional.normalize(vectors.double(), dim=-1)
    return (vectors @ vectors.T).numpy()


def addend_similarity(model) -> np.ndarray | None:
    """Of what is added to the embeddings: (positions, positions); for images the patches only."""
    backbone, config = model.base_model, model.config
    text = config.embedding["type"] == "tokens"
    count = min(config.num_positions, MOST_POSITIONS) if text else math.prod(config.grid)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    places = backbone.embeddings.places(x, torch.arange(count, device=model.device)[None])
    addend = backbone.positions.addend(x, places, None if text else config.grid)
    if not torch.is_tensor(addend):
        return None
    return cosine_similarity(addend.reshape(-1, config.hidden_size)[-count:].detach().float().cpu())


def rotation_similarity(model) -> dict[str, np.ndarray]:
    """Of two equal vectors, each turned by its position, by their distance; averaged over their directions this is
    that of a vector of ones. For each kind of layer."""
    backbone, config = model.base_model, model.config
    count = min(config.num_positions, MOST_POSITIONS)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    similarity = {}
    for kind in dict.fromkeys(config.layer_types):
        rotation = backbone.positions.rotation(x, torch.arange(count, device=model.device)[None], kind)
        if rotation:
            ones = torch.ones(1, 1, count, config.head_dim, device=model.device)
            turned, _ = backbone.positions.rotate(ones, ones, *rotation)
            similarity[kind.replace("_", " ")] = cosine_similarity(turned[0, 0].float().cpu())[0]
    return similarity


def relative_bias(model) -> np.ndarray | None:
    """What each head adds to the score of a key, by its distance from the query: (heads, distances), 0 in the middle
    or, for causal attention, at the end."""
    config = model.config
    count = min(config.num_positions, MOST_POSITIONS // 2)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    bias = model.base_model.positions.bias(x, None, 0)
    if bias is None:
        return None
    bias = array(bias[0])  # (heads, queries, keys)
    behind, ahead = bias[:, -1], bias[:, 0, 1:]
    return behind if config.attention["type"] == "causal" else np.concatenate([behind, ahead], axis=1)


def grid_of_grids(similarity: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """For each patch a map of all patches, set where the patch stands; a line of nothing between the maps."""
    rows, columns = grid
    maps = np.pad(
        similarity.reshape(rows, columns, rows, columns), ((0, 0),) * 2 + ((0, 1),) * 2, constant_values=math.nan
    )
    return maps.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]


def draw_similarity(similarity: np.ndarray, grid: tuple[int, int] | None):
    if grid:
        shown, title = grid_of_grids(similarity, grid), "Position embeddings: where each patch sees its like"
        note = "one map for each patch, set where it stands: cosine similarity of its position with all others"
    else:
        shown, title = similarity, f"Position embeddings: cosine similarity of positions 0 to {len(similarity) - 1}"
        note = "near positions should be alike; rows that were never trained look like noise"
    height, width = shown.shape
    side = 5.6
    wide, high = side * width / max(width, height), side * height / max(width, height)
    figure = new_figure(WIDTH, HEADING + high + 0.75, title, note)
    axes = panel(figure, (WIDTH - wide) / 2, HEADING, wide, high)
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    highest = float(max(np.quantile(np.abs(others), 0.99), 0.2)) if len(others) else 1.0
    lowest = float(others.min(initial=1.0))
    opposites = lowest < 0  # sinusoids have none
    lowest, colours = (-highest, shades(ORANGE, "white", BLUE)) if opposites else (lowest, shades("white", BLUE))
    axes.imshow(shown, cmap=colours, vmin=lowest, vmax=highest, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if grid:
        axes.set_xticks((grid[1] + 1) * np.arange(grid[1]) + grid[1] / 2 - 0.5, range(1, grid[1] + 1))
        axes.set_yticks((grid[0] + 1) * np.arange(grid[0]) + grid[0] / 2 - 0.5, range(1, grid[0] + 1))
    page = sheet(figure)
    ends = f"{lowest:.2g}".replace("-", "−"), f"{highest:.2g} and more"
    colour_bar(page, WIDTH / 2 - 0.7, figure.get_size_inches()[1] - 0.3, colours, ends, "cosine")
    return figure


def draw_by_distance(distances: np.ndarray, lines: dict[str, np.ndarray], title: str, note: str):
    figure = new_figure(WIDTH, 4.6, title, note)
    axes = panel(figure, 0.75, 0.9, 5.4, 3.15, xlabel="distance, in tokens")
    labels = []
    for index, (name, values) in enumerate(lines.items()):
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(distances, values, color=colour, linewidth=1.6, label=name)
        labels.append((values[-1], name, colour))
    axes.set_xlim(distances[0], distances[-1])
    axes.set_ylim(axes.get_ylim())
    label_ends(axes, labels[:MOST_LABELS])
    return figure


def draw_rotation_similarity(lines: dict[str, np.ndarray]):
    distances = np.arange(len(next(iter(lines.values()))))
    note = "two equal vectors, turned by rotary positions: cosine similarity, mean over their directions"
    return draw_by_distance(distances, lines, "Rotary positions: what distance does to a match", note)


def draw_relative_bias(bias: np.ndarray, causal: bool):
    count = bias.shape[1] if causal else (bias.shape[1] + 1) // 2
    distances = np.arange(bias.shape[1]) - (count - 1)
    note = "added to the score of a key; negative distances: keys before the query"
    heads = {f"head {index + 1}": values for index, values in enumerate(bias)}
    figure = draw_by_distance(distances, heads, "Relative positions: what each head makes of distance", note)
    far = [64, 16, 4]
    figure.axes[0].set_xscale("symlog", linthresh=4)  # as the buckets are: one each for near keys
    figure.axes[0].set_xticks([tick for tick in (*(-tick for tick in far), 0, *far[::-1]) if tick <= distances[-1]])
    figure.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:+.0f}" if value else "0")
    figure.axes[0].minorticks_off()
    return figure


def position_similarity(model, path: str | Path) -> Path | None:
    """What the model makes of positions, by their kind; nothing for a model that has none."""
    config = model.config
    with observed(model):
        similarity, turned, bias = addend_similarity(model), rotation_similarity(model), relative_bias(model)
    if similarity is not None:
        return save(path, draw_similarity, similarity, None if config.embedding["type"] == "tokens" else config.grid)
    if turned:
        return save(path, draw_rotation_similarity, turned)
    return None if bias is None else save(path, draw_relative_bias, bias, config.attention["type"] == "causal")
