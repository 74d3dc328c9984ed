"""Curves of a run: each metric with its baselines, the learning rate and the throughput, by step.

Records are those of `metrics.jsonl`. What is not a number is left out and told. Where evaluations and the best
baseline would be squeezed into a narrow band, the axis shows that band.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triune.training.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    WIDTH,
    empty_figure,
    label_ends,
    new_figure,
    panel,
    save,
)


# ---------------------------------------------------------------------------------------------------------------------
# Values and how they are shown


class Measure(NamedTuple):
    title: str
    best: Callable
    show: Callable[[float], str]


def number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{value:.1%}"


MEASURES = {
    "loss": Measure("Loss", min, "{:.2f}".format),
    "perplexity": Measure("Perplexity", min, number),
    "bits_per_character": Measure("Bits per character", min, "{:.3f}".format),
    "accuracy": Measure("Accuracy", max, percent),
    "top5_accuracy": Measure("Top-5 accuracy", max, percent),
    "macro_f1": Measure("Macro-F1", max, percent),
}


def measure_of(metric: str) -> Measure:
    return MEASURES.get(metric) or Measure(metric.replace("_", " ").capitalize(), max, number)


@dataclass(frozen=True)
class Series:
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
    bell = np.exp(-0.5 * (offsets / width) ** 2)
    inside = slice(len(bell) // 2, len(bell) // 2 + len(values))  # `same` gives the length of the longer one
    return np.convolve(values, bell)[inside] / np.convolve(np.ones(len(values)), bell)[inside]


# ---------------------------------------------------------------------------------------------------------------------
# One metric by step


def close_up(drawn: tuple[float, float], late: np.ndarray, baselines: Sequence[float], best: Callable):
    """The range to show: all that is drawn, unless what is to be compared, the second half of the evaluations and the
    best baseline, would be squeezed into a narrow band."""
    if not len(late) or not len(baselines):
        return drawn
    compared, height = [*late, best(baselines)], drawn[1] - drawn[0]
    low, high = min(compared), max(compared)
    if high - low > 0.12 * height:
        return drawn
    room = max(high - low, 0.01 * height)
    return max(low - room, drawn[0]), min(high + 0.5 * room, drawn[1])


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
        parts[0] += f" ({number(trained[-1]['epoch'])} epochs, {trained[-1]['seconds']:,.0f} s)"
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
    train = series(records, "train", metric)
    quick, full = (series(records, "eval", metric, full=whole) for whole in (False, True))
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
    if measure.show is percent:
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


# ---------------------------------------------------------------------------------------------------------------------
# How fast


def draw_learning_rate_and_throughput(records: list[dict], unit: str):
    rate, speed = series(records, "train", "learning_rate"), series(records, "train", "throughput")
    title = "Learning rate and throughput"
    if not len(rate) + len(speed):
        return empty_figure(title)
    median = float(np.median(speed.values)) if len(speed) else math.nan
    note = f"dashed: the median, {median:,.0f} {unit} per second" if len(speed) else ""
    figure = new_figure(WIDTH, 5.0, title, note)
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
