"""The files of a run, read back with the standard library; trackers, by accelerate's classes on stand-ins of what they
write to."""

import csv
import functools
import json
import math
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from accelerate.state import PartialState

from triune.training import report as report_file
from triune.training.report import Report, flat, read


TRAIN = {"kind": "train", "step": 50, "epoch": 0.4, "loss": 3.25, "learning_rate": 1e-3}
EVAL = {"kind": "eval", "step": 50, "full": False, "loss": 3.0, "accuracy": 0.31}


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def lines(folder):
    """As a strict reader takes them."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def test_lines_are_the_records(tmp_path):
    """Each line is there as soon as `log` returns, in order, equal to the record; `read` takes folder or file."""
    report = Report(tmp_path / "new" / "run")
    for count, record in enumerate((TRAIN, EVAL), start=1):
        report.log(record)
        assert lines(tmp_path / "new" / "run") == [TRAIN, EVAL][:count]
    assert read(tmp_path / "new" / "run") == read(tmp_path / "new" / "run" / "metrics.jsonl") == [TRAIN, EVAL]


def test_numbers_become_json(tmp_path):
    """Numbers of numpy and torch as Python's; what is not a number as null, wherever it comes from."""
    report = Report(tmp_path)
    numbers = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(0.25), "d": np.bool_(True)}
    not_numbers = {"e": math.nan, "f": -math.inf, "g": torch.tensor(math.inf), "h": np.float32("nan")}
    report.log({"kind": "train", "step": 1, **numbers, **not_numbers})
    expected = {"a": 0.5, "b": 3, "c": 0.25, "d": True, **dict.fromkeys("efgh")}
    assert lines(tmp_path) == [{"kind": "train", "step": 1, **expected}]


@pytest.mark.slow
def test_killed_run_loses_nothing(tmp_path):
    """A process that is killed right after its tenth record leaves ten lines, and a table can still be made."""
    program = f"""
        import os, signal
        from triune.training.report import Report
        report = Report({str(tmp_path)!r})
        for step in range(10):
            report.log({{"kind": "train", "step": step}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode == -9
    assert [record["step"] for record in read(tmp_path)] == list(range(10))


def test_resume_drops_what_will_come_again(tmp_path):
    """Records up to the step of the checkpoint stay, whatever their kind, those after it and half a line go."""
    report = Report(tmp_path)
    for step in (10, 20, 30, 40):
        report.log({"kind": "train", "step": step})
        report.log({"kind": "eval", "step": step})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    resumed = Report(tmp_path, resumed_step=20)
    resumed.log({"kind": "train", "step": 30, "again": True})
    assert [(record["kind"], record["step"]) for record in lines(tmp_path)] == [
        *(("train", 10), ("eval", 10), ("train", 20), ("eval", 20)),
        ("train", 30),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("judged, left", [(True, 3), (False, 1)])
def test_evaluations_behind_a_checkpoint_come_again(judged, left, tmp_path):
    """At its own step: that of the end, and the one before where the checkpoint does not know of it."""
    report = Report(tmp_path)
    for kind in ("train", "preview", "eval", "preview", "eval"):
        report.log({"kind": kind, "step": 20})
    Report(tmp_path, resumed_step=20, judged=judged)
    assert [record["kind"] for record in lines(tmp_path)] == ["train", "preview", "eval"][:left]


def test_without_resuming_the_file_is_new(tmp_path):
    """A run that starts over does not go on in the records of another."""
    Report(tmp_path).log(TRAIN)
    Report(tmp_path).log(EVAL)
    assert lines(tmp_path) == [EVAL]


def test_dropping_is_atomic(tmp_path, monkeypatch):
    """An error while the shorter file is written leaves the old one as it was."""
    Report(tmp_path).log(TRAIN)
    monkeypatch.setattr(report_file.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Report(tmp_path, resumed_step=10)
    assert lines(tmp_path) == [TRAIN]


def test_broken_line_is_named(tmp_path):
    """A line in the middle that is not JSON: an error with file and number, and not a shorter list."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        read(tmp_path)


def test_table(tmp_path):
    """metrics.csv by csv's own reader: every key a column, kind and step first, empty where a record has none."""
    report = Report(tmp_path)
    report.log(TRAIN)
    report.log({**EVAL, "loss": math.nan})
    report.finish()
    report.finish()
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "step", "epoch", "loss", "learning_rate", "full", "accuracy"]
    assert rows[1:] == [["train", "50", "0.4", "3.25", "0.001", "", ""], ["eval", "50", "", "", "", "False", "0.31"]]


def test_other_processes_write_nothing(tmp_path):
    """No file, not even a folder; but a wrong tracker stops them too."""
    report = Report(tmp_path / "run", main=False)
    report.log(TRAIN)
    report.finish()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="report_to"):
        Report(tmp_path / "run", "tensorbord", main=False)


# ---------------------------------------------------------------------------------------------------------------------
# Trackers


class Recorder:
    """Takes every call, and notes it."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        return lambda *args, **named: self.calls.append((f"{self.name}.{name}", args, named))


def begin(calls, tracker, **named):
    calls.append((f"{tracker}.init", (), named))
    return Recorder(calls, f"{tracker}.run")


@pytest.fixture
def calls(monkeypatch):
    """wandb, trackio and TensorBoard's writer, each a stand-in that notes what accelerate's tracker does with it."""
    calls = []
    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.config = Recorder(calls, f"{name}.config")
        module.init = functools.partial(begin, calls, name)
        monkeypatch.setitem(sys.modules, name, module)

    def writer(folder, **named):
        calls.append(("tensorboard.writer", (folder,), named))
        return Recorder(calls, "tensorboard")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(torch.utils, "tensorboard", module, raising=False)
    monkeypatch.setattr(report_file, "installed", lambda name: True)
    PartialState(cpu=True)  # without it accelerate's trackers refuse to work; a run has it from its Accelerator
    yield calls
    PartialState._reset_state()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_gets_configuration_and_numbers(tmp_path, calls, name):
    """Started with the folder's name, told the flags in a flat form, the numbers by kind at their step, and closed."""
    options = {"learning_rate": 1e-3, "config": {"hidden_size": 16, "layers": [1, 2]}, "max_minutes": None}
    given = {"project": "triune"} if name == "trackio" else {"project": "triune", "dir": str(tmp_path / "bert")}
    report = Report(tmp_path / "bert", name, arguments=options)
    report.log({**TRAIN, "note": "words"})
    report.log({**EVAL, "loss": math.nan})
    report.finish()
    report.finish()
    stored = {"learning_rate": 1e-3, "config.hidden_size": 16, "config.layers": "[1, 2]", "max_minutes": "None"}
    trained = {"train/epoch": 0.4, "train/loss": 3.25, "train/learning_rate": 1e-3}
    assert calls == [
        (f"{name}.init", (), {"name": "bert", **given}),
        (f"{name}.config.update", (stored,), {"allow_val_change": True}),
        (f"{name}.run.log", (trained,), {"step": 50}),
        (f"{name}.run.log", ({"eval/accuracy": 0.31},), {"step": 50}),
        (f"{name}.run.finish", (), {}),
    ]


def test_tensorboard_gets_scalars_and_forgets_what_comes_again(tmp_path, calls):
    """Scalars by name, value and step; a resumed run purges from the step after its checkpoint on."""
    report = Report(tmp_path, "tensorboard", resumed_step=40)
    report.log(TRAIN)
    report.finish()
    assert calls[0] == ("tensorboard.writer", (str(tmp_path / "tensorboard"),), {"purge_step": 41})
    scalars = [args for name, args, _ in calls if name == "tensorboard.add_scalar"]
    assert scalars == [("train/epoch", 0.4), ("train/loss", 3.25), ("train/learning_rate", 1e-3)]
    assert calls[-1][0] == "tensorboard.close"


def test_several_trackers(tmp_path, calls):
    """Names with commas and spaces, each once."""
    report = Report(tmp_path, " trackio,wandb , trackio")
    assert [tracker.name for tracker in report.trackers] == ["trackio", "wandb"]
    assert Report(tmp_path, "none").trackers == Report(tmp_path, "").trackers == []


def test_unknown_and_missing_trackers_stop_before_training(tmp_path, monkeypatch):
    """An error that names the flag, the value, and what is allowed or to be installed; nothing has been written."""
    with pytest.raises(ValueError, match=r"report_to='tensorbord'.*tensorboard, wandb, trackio.*tensorboard"):
        Report(tmp_path / "run", "tensorbord")
    monkeypatch.setattr(report_file, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"report_to='wandb' is not installed.*pip install wandb"):
        Report(tmp_path / "run", "tensorboard,wandb")
    assert not (tmp_path / "run").exists()


def test_flat():
    """What TensorBoard takes: words and numbers, by dotted names."""
    content = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": True, "g": "word", "h": {}}
    assert flat(content) == {"a.b.c": 1, "a.d": "None", "e": "[1, 2]", "f": True, "g": "word"}
