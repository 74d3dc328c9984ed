"""What a run writes while it goes: metrics.jsonl line by line, metrics.csv at the end, and trackers by name.

    report = Report(Path("runs/bert"), trackers="tensorboard", main=True, arguments=arguments.as_dict())
    report.log({"kind": "train", "step": 50, "loss": 3.2})
    report.finish()

Notable: each line is on its way to the disk before `log` returns, so that a killed run loses none. Every line is JSON
as the standard has it: a loss that is not a number is null. A resumed run drops what the interrupted one had written
after the checkpoint, so that no step is there twice.
"""

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.tracking import (
    GeneralTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from triune.configuration.configuration_triune import nearest


RECORDS, TABLE = "metrics.jsonl", "metrics.csv"
PREVIEW = "preview"  # the kind of a record that holds what the model did with the same examples, as lines of text
SKIPPED = "skipped"  # that of a step whose gradient was not finite, with its samples
FIRST_COLUMNS = ("kind", "step")

# Made from the run folder and the step that the run goes on from.
TRACKERS: dict[str, Callable[[Path, int | None], GeneralTracker]] = {
    "tensorboard": lambda folder, step: TensorBoardTracker("tensorboard", folder, purge_step=step and step + 1),
    "wandb": lambda folder, step: WandBTracker("triune", name=folder.name, dir=str(folder)),
    "trackio": lambda folder, step: TrackioTracker("triune", name=folder.name),
}


# ---------------------------------------------------------------------------------------------------------------------
# Records in a file


def plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python; None for what JSON cannot say."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_line(record: dict[str, Any]) -> str:
    return json.dumps({key: plain(value) for key, value in record.items()}, allow_nan=False) + "\n"


def read(path: Path | str) -> list[dict[str, Any]]:
    """The records of a run: of its folder or of the file. A last line that was cut short is left out."""
    path = Path(path)
    path = path / RECORDS if path.is_dir() else path
    records = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for place, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if place < len(lines) or line.endswith("\n"):
                raise ValueError(f"{path}, line {place} is not JSON: {error}") from error
    return records


def replace(path: Path, text: str) -> None:
    """The whole new content or the whole old one, whatever happens."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def drop_after(path: Path, step: int, judged: bool = True) -> None:
    """Only the records up to a checkpoint: those after it will be written again, an evaluation of its own step too,
    unless it was made before (`judged`)."""
    kept = []
    for record in read(path) if path.exists() else []:
        own = record.get("step", 0) == step and record.get("kind") in ("eval", PREVIEW)
        if record.get("step", 0) <= step and (judged or not own):
            kept.append(record)
            judged = judged and not (own and record["kind"] == "eval")
    replace(path, "".join(map(as_line, kept)))


def write_table(records: list[dict[str, Any]], path: Path) -> None:
    """The records as CSV: a column for every key, empty where a record has none. Previews are left out."""
    records = [record for record in records if record.get("kind") not in (PREVIEW, SKIPPED)]
    columns = dict.fromkeys((*FIRST_COLUMNS, *(key for record in records for key in record)))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    os.replace(partial, path)


# ---------------------------------------------------------------------------------------------------------------------
# Trackers


def tracker_names(report_to: str) -> list[str]:
    """The names in the flag, each checked: known, and installed."""
    names = list(dict.fromkeys(word.strip() for word in report_to.split(",") if word.strip() not in ("", "none")))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"report_to={name!r} is not allowed: it must be none or some of {', '.join(TRACKERS)}"
                f"{nearest(name, TRACKERS)}"
            )
        if not installed(name):
            raise ValueError(f"report_to={name!r} is not installed; to install it: pip install {name}")
    return names


def installed(name: str) -> bool:
    return name in {str(found) for found in get_available_trackers()}


def flat(arguments: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings opened, lists and None as words: TensorBoard takes nothing else than words and numbers."""
    entries: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, dict):
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return entries


# ---------------------------------------------------------------------------------------------------------------------
# Both


class Report:
    """The records of a run. Only the main process writes; the others check the trackers' names, so that all stop.

    `resumed_step`: the step of the checkpoint that the run goes on from; None begins a new file. `judged`: whether an
    evaluation of that step had been made.
    """

    def __init__(
        self,
        folder: Path | str,
        trackers: str = "none",
        main: bool = True,
        arguments: dict[str, Any] | None = None,
        resumed_step: int | None = None,
        judged: bool = True,
    ):
        names = tracker_names(trackers)
        self.folder, self.main = Path(folder), main
        self.trackers: list[GeneralTracker] = []
        if not main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_after(self.folder / RECORDS, -1 if resumed_step is None else resumed_step, judged)
        self.file = (self.folder / RECORDS).open("a", encoding="utf-8")
        for name in names:
            tracker = TRACKERS[name](self.folder, resumed_step)
            tracker.start()
            tracker.store_init_configuration(flat(arguments or {}))
            self.trackers.append(tracker)

    def log(self, record: dict[str, Any]) -> None:
        """A record more: a line in the file, and its numbers to the trackers as train/loss, eval/accuracy, ..."""
        if not self.main:
            return
        self.file.write(as_line(record))
        self.file.flush()
        kind, step = record.get("kind", "run"), record.get("step")
        numbers = {
            f"{kind}/{key}": plain(value)
            for key, value in record.items()
            if key not in FIRST_COLUMNS and not isinstance(plain(value), (bool, str, list, type(None)))
        }
        for tracker in self.trackers:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Write the table and close. Safe more than once."""
        if not self.main or self.file.closed:
            return
        self.file.close()
        write_table(read(self.folder / RECORDS), self.folder / TABLE)
        for tracker in self.trackers:
            tracker.finish()
