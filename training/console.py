"""What one sees of a run: on a terminal colours and one live line, elsewhere plain lines, on other processes nothing.

    with Console(main=accelerator.is_main_process) as console:
        console.header({"versions": "torch 2.13.0, ...", "device": "cpu", ...})
        console.begin(total_steps=900)
        console.step({"step": 1, "loss": 6.2, ...})  # redraws the live line
        console.step({"step": 50, "loss": 4.2, ...}, log=True)  # prints a line where there is no terminal
        console.evaluation(record, baselines, preview, best=True)
        console.end({"loss": "6.24 -> 2.98"}, next_command="python scripts/predict.py runs/bert/model")

Notable: a pipe gets whole lines, however long, without control characters and without colours, each of them at once.
Nothing that is shown is read as markup: "[MASK]" stays "[MASK]". No thread draws the live line, so that a data loader
may fork, and the cursor is never hidden: no way for a run to die leaves the terminal worse than it was.
"""

import atexit
import math
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from numbers import Real
from typing import IO, Any, NamedTuple

import rich.box
import rich.console
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import nn


# ---------------------------------------------------------------------------------------------------------------------
# Numbers for people


PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def scaled(value: float) -> tuple[str, str]:
    """Three digits and the prefix that belongs to them: 11200 -> ("11.2", "k")."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}", ""
    power = min(max(int(math.log10(abs(value)) // 3), 0), len(PREFIXES) - 1)
    power += abs(value) >= 999.5 * 1000**power and power < len(PREFIXES) - 1  # would be rounded to 1000
    digits = value / 1000**power
    return f"{digits:.{2 if abs(digits) < 9.995 else 1 if abs(digits) < 99.95 else 0}f}", PREFIXES[power]


def number(value: float) -> str:
    """11.2k"""
    return "".join(scaled(value))


def quantity(value: float, unit: str) -> str:
    """11.2 kB"""
    digits, prefix = scaled(value)
    return f"{digits} {prefix}{unit}"


def clock(seconds: float) -> str:
    """00:31, 1:02:03 or 2d 03:04:05."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def digits(value: float) -> str:
    """Four digits that count: 4.213, 0.0123."""
    return f"{value:#.4g}".removesuffix(".")


def two_digits(value: float) -> str:
    return f"{value:#.2g}".removesuffix(".")


def percent(value: float) -> str:
    return f"{value:.1%}"


def power_of_ten(value: float) -> str:
    """9.1e-4; 0 for 0."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value and exponent else f"{value:.0f}"


class Shown(NamedTuple):
    """How a number of a record is shown."""

    label: str
    text: Callable[[float], str]
    lower_is_better: bool = False


METRICS = {
    "loss": Shown("loss", digits, lower_is_better=True),
    "perplexity": Shown("perplexity", digits, lower_is_better=True),
    "bits_per_character": Shown("bits per character", digits, lower_is_better=True),
    "accuracy": Shown("accuracy", percent),
    "top5_accuracy": Shown("top-5 accuracy", percent),
    "macro_f1": Shown("macro F1", percent),
    "mlm_loss": Shown("masked words, loss", digits, lower_is_better=True),
    "mlm_accuracy": Shown("masked words, accuracy", percent),
    "nsp_loss": Shown("next sentence, loss", digits, lower_is_better=True),
    "nsp_accuracy": Shown("next sentence, accuracy", percent),
    "exact_match": Shown("exact match", percent),
    "chrf": Shown("chrF", digits),
    "bleu": Shown("BLEU", digits),
    "word_loss": Shown("words, loss", digits, lower_is_better=True),
    "word_accuracy": Shown("words, accuracy", percent),
    "psnr": Shown("PSNR in dB", digits),
    "retrieval_at_1": Shown("retrieval at 1", percent),
    "image_to_text_at_1": Shown("image to text at 1", percent),
    "text_to_image_at_1": Shown("text to image at 1", percent),
    "zero_shot_accuracy": Shown("zero-shot accuracy", percent),
}
PROGRESS = {  # in this order; throughput has a unit, which the run names
    "loss": Shown("loss", digits),
    "accuracy": Shown("acc", percent),
    "learning_rate": Shown("lr", power_of_ten),
    "grad_norm": Shown("grad norm", two_digits),
}
NOT_LIVE = {"grad_norm"}  # for the live line to fit into 80 columns beside its bar
SHORT_UNITS = {"tokens": "tok", "images": "img"}
NOT_METRICS = {"kind", "step", "epoch", "seconds", "full"}


def shown(metric: str) -> Shown:
    return METRICS.get(metric, Shown(metric.replace("_", " "), digits))


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation's record."""
    return {
        name: value
        for name, value in record.items()
        if name not in NOT_METRICS and isinstance(value, Real) and not isinstance(value, bool)
    }


def before_after(
    before: dict[str, Any], after: dict[str, Any], baselines: dict[str, dict[str, float]] | None = None
) -> dict[str, str]:
    """Rows for the end box, from the records of the first and the last evaluation:
    {"accuracy": "0.2% -> 51.3%  (most frequent token 5.4%)"}."""
    first, rows = metrics_of(before), {}
    for name, value in metrics_of(after).items():
        label, text, _ = shown(name)
        others = ", ".join(f"{other} {text(reached)}" for other, reached in (baselines or {}).get(name, {}).items())
        start = f"{text(first[name])} -> " if name in first else ""
        rows[label] = f"{start}{text(value)}" + (f"  ({others})" if others else "")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# A model as a table


class Part(NamedTuple):
    """A row of the model's table. Parameters that an earlier row has counted are named in the note."""

    name: str
    note: str
    parameters: int
    trainable: int
    size: int  # in bytes


def model_parts(model: nn.Module) -> list[Part]:
    """The parts of a model in the order of its parameters, each parameter in one of them: what leads to a list of
    layers is opened, and equal layers of a list are one row."""
    counted: dict[int, str] = {}
    return [part for name, modules in sections(model) if (part := describe(name, modules, counted))]


def sections(module: nn.Module, path: str = "") -> Iterable[tuple[str, list[nn.Module]]]:
    """(name, modules that are equal in kind and shapes) for each row."""
    own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
    yield from ((path + name, [nn.ParameterList([parameter])]) for name, parameter in own)
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((path + name, layers) for layers in alike(child))
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from sections(child, f"{path}{name}.")
        else:
            yield path + name, [child]


def alike(layers: nn.ModuleList) -> list[list[nn.Module]]:
    groups: dict[tuple, list[nn.Module]] = {}
    for layer in layers:
        kind = (type(layer), tuple(parameter.shape for parameter in layer.parameters()))
        groups.setdefault(kind, []).append(layer)
    return list(groups.values())


def describe(name: str, modules: list[nn.Module], counted: dict[int, str]) -> Part | None:
    """A row; None for a part without parameters."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    if not parameters:
        return None
    tied = sorted({counted[key] for key in parameters if key in counted})
    new = {key: parameter for key, parameter in parameters.items() if key not in counted}
    counted.update(dict.fromkeys(new, name))
    note = layer_note(modules) if len(modules) > 1 or list(modules[0].children()) else shapes(new.values())
    tied_note = f"tied to {', '.join(tied)}" if tied else ""
    total = sum(parameter.numel() for parameter in new.values())
    trainable = sum(parameter.numel() for parameter in new.values() if parameter.requires_grad)
    size = sum(parameter.numel() * parameter.element_size() for parameter in new.values())
    title = f"{len(modules)} x {type(modules[0]).__name__}" if len(modules) > 1 else name
    return Part(title, "; ".join(filter(None, (note if new else "", tied_note))), total, trainable, size)


def layer_note(modules: list[nn.Module]) -> str:
    """How many parameters one of them has, and where they are."""
    layer = modules[0]
    each = sum(parameter.numel() for parameter in layer.parameters())
    matrices = [parameter for parameter in layer.parameters() if parameter.dim() > 1]
    if len(modules) == 1 and len(matrices) <= 1:
        return shapes(layer.parameters())
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in layer.named_children()}
    shares = [f"{name} {size / each:.0%}" for name, size in sizes.items() if size >= 0.05 * each]
    return ", ".join([f"{each:,} each"] * (len(modules) > 1) + shares)


def shapes(parameters: Iterable[nn.Parameter]) -> str:
    """512 x 128 + 128; a row of ones, as of a CLS token, is left out."""
    return " + ".join(" x ".join(str(size) for size in p.shape if size > 1) or "1" for p in parameters)


# ---------------------------------------------------------------------------------------------------------------------
# The console


WHOLE_LINES = 100_000  # the width of what is not a terminal: nothing is wrapped
LABELS = 12  # the width of the column of labels
BAR, LEAST_BAR = 24, 8  # the width of the progress bar, and from which on it is worth showing
REDRAW = 0.1  # seconds between two pictures of the live line


class Console:
    """Silent unless `main`. `file`: sys.stdout unless named."""

    def __init__(self, main: bool = True, file: IO[str] | None = None):
        probe = rich.console.Console(file=file, force_jupyter=False)
        self.main = main
        self.terminal = main and probe.file.isatty() and probe.is_terminal and not probe.is_dumb_terminal
        plain = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
        look = {} if self.terminal else {"width": WHOLE_LINES, "force_terminal": False, "color_system": None}
        self.rich = rich.console.Console(file=file, quiet=not main, **plain, **look)
        self.live: Live | None = None
        self.drawn = 0.0
        self.total_steps, self.unit, self.max_seconds = 0, "tok", math.inf
        self.clock_start: tuple[int, float] | None = None
        self.latest: dict[str, Any] = {}

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def show(self, *content, whole: bool = False) -> None:
        """Print one below the other; `whole`: a line stays one line, for it to be copied."""
        if self.terminal:
            self.rich.print(*content, sep="\n", soft_wrap=whole)
        elif self.main:
            with self.rich.capture() as capture:
                self.rich.print(*content, sep="\n")
            encoding = getattr(self.rich.file, "encoding", None) or "utf-8"
            text = capture.get().encode(encoding, "replace").decode(encoding)
            print("\n".join(line.rstrip() for line in text.splitlines()), file=self.rich.file, flush=True)

    # -- before training

    def header(self, rows: dict[str, str]) -> None:
        """The first thing that is seen: the name, and the machine in rows."""
        self.show(Text.assemble(("Triune", "bold"), (f" {version()}", "dim")))
        self.rows(rows)

    def line(self, label: str, text: str) -> None:
        """A label and what belongs to it; on a terminal wrapped beside the label."""
        self.rows({label: text})

    def rows(self, rows: dict[str, str]) -> None:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(style="dim", min_width=LABELS, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in rows.items():
            grid.add_row(Text(label), Text(str(text)))
        self.show(Padding(grid, (0, 0, 0, 2), expand=False))

    def plan(self, rows: dict[str, str]) -> None:
        self.heading("plan")
        self.rows(rows)

    def heading(self, text: str) -> None:
        self.show(Text.assemble("\n", (text, "bold")))

    def model_table(self, model: nn.Module) -> None:
        """Every parameter in one row, tied ones in the row where they are first used."""
        parts = model_parts(model)
        total, size = sum(part.parameters for part in parts), sum(part.size for part in parts)
        share = sum(part.trainable for part in parts) / max(total, 1)
        trained = "all trained" if share == 1 else f"{share:.2%} trained"
        table = Table(box=rich.box.SIMPLE, show_footer=True, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("part", Text("total"), footer_style="bold", no_wrap=True, min_width=LABELS)
        table.add_column("shape", Text(trained), style="dim", overflow="ellipsis")
        table.add_column("parameters", Text(f"{total:,}"), footer_style="bold", justify="right", no_wrap=True)
        table.add_column("MB", Text(f"{size / 1e6:,.2f}"), footer_style="bold", justify="right", no_wrap=True)
        for part in parts:
            numbers = (f"{part.parameters:,}", f"{part.size / 1e6:,.2f}") if part.parameters else ("-", "-")
            table.add_row(Text(part.name), Text(part.note), *map(Text, numbers))
        self.heading(type(model).__name__)
        self.show(Padding(table, (0, 0, 0, 2), expand=False))

    # -- during training

    def begin(
        self, total_steps: int, first_step: int = 0, unit: str = "tokens", max_seconds: float | None = None
    ) -> None:
        """Training starts. `unit`: what throughput counts, tokens or images. `max_seconds`: the run's time budget."""
        self.total_steps = total_steps
        self.unit, self.max_seconds = SHORT_UNITS.get(unit, unit), max_seconds or math.inf
        self.clock_start, self.latest = None, {"step": first_step}
        self.show(Text(""))
        if self.terminal and not self.live:
            atexit.register(self.close)
            self.live = Live(console=self.rich, auto_refresh=False, transient=True)
            self.live.start()
            self.rich.show_cursor(True)
            self.draw()

    def step(self, record: dict[str, Any], log: bool = False) -> None:
        """A step is done; what the record does not say stays as it was. `log`: to be seen in any case."""
        self.latest |= record
        if self.clock_start is None:
            self.clock_start = record["step"], time.perf_counter()  # the first step is slower than the others
        if self.live and (log or time.perf_counter() - self.drawn >= REDRAW):
            self.draw()
        elif log and not self.live:
            self.show(Text(" | ".join(self.progress())))

    def draw(self) -> None:
        self.drawn = time.perf_counter()
        fields = self.progress()
        while len(" | ".join(fields)) > self.rich.width and len(fields) > 2:
            del fields[-2]
        words = Text(" | ".join(fields), no_wrap=True, overflow="ellipsis")
        room = min(BAR, self.rich.width - words.cell_len - 2)
        line = Table.grid(padding=(0, 1, 0, 0))
        if room >= LEAST_BAR:
            bar = ProgressBar(self.total_steps, self.latest["step"], width=room, finished_style="bar.complete")
            line.add_row(bar, words)
        else:
            line.add_row(words)
        self.live.update(line, refresh=True)

    def progress(self) -> list[str]:
        """The parts of a line, live or not."""
        left_out = NOT_LIVE if self.live else ()
        fields = [
            f"{label} {text(self.latest[name])}"
            for name, (label, text, _) in PROGRESS.items()
            if self.latest.get(name) is not None and name not in left_out
        ]
        speed = self.latest.get("throughput")
        fields += [f"{number(speed)} {self.unit}/s"] if speed is not None else []
        return [f"{self.latest['step']}/{self.total_steps}", *fields, f"{clock(self.seconds_left())} left"]

    def seconds_left(self) -> float:
        """By the mean time of a step so far, evaluations and checkpoints included."""
        first, start = self.clock_start or (self.latest["step"], 0.0)
        done = self.latest["step"] - first
        each = (time.perf_counter() - start) / done if done else math.nan
        budget = self.max_seconds - self.latest.get("seconds", 0.0)
        return max(0.0, min(budget, each * (self.total_steps - self.latest["step"]))) if done else math.nan

    def evaluation(
        self,
        record: dict[str, Any],
        baselines: dict[str, dict[str, float]] | None = None,
        preview: Iterable[str] = (),
        best: bool = False,
    ) -> None:
        """The metrics of an evaluation, beside the baselines that give them meaning, and what the model does."""
        words = [f"step {record['step']}" + (f"/{self.total_steps}" if self.total_steps else "")]
        words += ["evaluation on all of the data" if record.get("full") else "evaluation"]
        words += [clock(record["seconds"])] if "seconds" in record else []
        title = Text.assemble("\n" * self.terminal, (" | ".join(words), "bold"), (" | best so far" * best, "green"))
        metrics, baselines = metrics_of(record), baselines or {}
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=LABELS)
        table.add_column(no_wrap=True)
        table.add_column(style="dim", overflow="fold")
        for name in (name for name in metrics if name in baselines):
            label, text, _ = shown(name)
            others = ", ".join(f"{other} {text(value)}" for other, value in baselines[name].items())
            style = "green" if beats(name, metrics[name], baselines[name].values()) else "yellow"
            table.add_row(Text(label), Text(text(metrics[name]), style), Text(others))
        rest = [f"{shown(name).label} {shown(name).text(metrics[name])}" for name in metrics if name not in baselines]
        content = ([table] if table.row_count else []) + ([Text(" | ".join(rest))] if rest else [])
        content += [line for text in preview for line in self.hanging(text)]
        self.show(title, *(Padding(item, (0, 0, 0, 2)) for item in content))

    def hanging(self, text: str) -> list[Padding]:
        """A line of a preview; where it is too wide it goes on further to the right, not to look like the next one."""
        lines = Text(text).wrap(self.rich, self.rich.width - 6)
        return [Padding(line, (0, 0, 0, 4 if place else 2)) for place, line in enumerate(lines)]

    def note(self, text: str) -> None:
        self.show(Text(text, "dim"))

    def warning(self, text: str) -> None:
        self.show(Text.assemble(("warning: ", "bold yellow"), (text, "yellow")))

    # -- after training

    def end(self, rows: dict[str, str], next_command: str = "", title: str = "done") -> None:
        """The box at the end; under it, so that it can be copied whole, the command to type next."""
        self.close()
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in rows.items():
            grid.add_row(Text(label), Text(str(text)))
        self.show(
            Text(""), Panel(grid, title=Text(title, "bold"), title_align="left", border_style="green", expand=False)
        )
        if next_command:
            self.show(Text("next"))
            self.show(Text(f"  {next_command}", "bold"), whole=True)

    def print_recipes(self, recipes: list[tuple[str, str, str, str]], tasks: dict[str, str]) -> None:
        """`--list`: (path, first comment line, task, preset) of each recipe, and the tasks with a line for each."""
        for title, rows in (
            ("recipes", [(path, task, preset, comment) for path, comment, task, preset in recipes]),
            ("tasks", [(task, text.strip().partition("\n")[0]) for task, text in tasks.items()]),
        ):
            table = Table.grid(padding=(0, 2, 0, 0))
            for row in rows:
                table.add_row(*(Text(cell, style) for cell, style in zip(row, ("bold", "", "dim", ""))))
            self.heading(title if rows else f"no {title} here")
            if rows:
                self.show(Padding(table, (0, 0, 0, 2), expand=False))

    def close(self) -> None:
        """Give the terminal back. Safe at any time, and more than once."""
        live, self.live = self.live, None
        if live:
            live.stop()
            atexit.unregister(self.close)


def beats(metric: str, value: float, baselines: Iterable[float]) -> bool:
    """Better than each of them."""
    sign = -1 if shown(metric).lower_is_better else 1
    return all(sign * value > sign * baseline for baseline in baselines)


def version() -> str:
    try:
        return metadata.version("triune")
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return ""


def silence() -> None:
    """No progress bars and no advice from the libraries underneath; their errors are still seen."""
    import logging
    import warnings

    import datasets
    import evaluate
    import huggingface_hub
    import transformers

    for library in (transformers.utils.logging, datasets.utils.logging, evaluate.logging, huggingface_hub.logging):
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", "Writing model shards"
    datasets.disable_progress_bars()
    evaluate.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # torch's RMS norm, in float32 beside bfloat16: it computes right, only not in one kernel
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
