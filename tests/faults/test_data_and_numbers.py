"""What data and arithmetic may do to a run of one process, and what a run goes on as on other machines."""

import gc
import json
import math
import os
import re
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from jobs import run_job
from PIL import Image
from safetensors.torch import load_file
from script_loading import load_script
from short_runs import Killed, arguments, assert_same_run, curve, killed_at
from torch.utils.data import get_worker_info
from two_processes import run_in_two

from triune.modeling import TriuneForMaskedLM
from triune.training import environment, leaving, run
from triune.training.arguments import parse
from triune.training.collators import IGNORED
from triune.training.loading import GRACE
from triune.training.loop import Loop
from triune.training.prediction import load_config
from triune.training.tasks.task import Task


pytestmark = pytest.mark.usefixtures("as_found", "no_figures")
SCRIPT = load_script("scripts/train.py")


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(folder):
    return [record["loss"] for record in curve(folder) if record["kind"] == "train"]


# ---------------------------------------------------------------------------------------------------------------------
# Going on exactly


def images(folder, *flags):
    given = {
        **{"task": "image_classification", "dataset_name": "digits", "output_dir": folder, "max_train_samples": 64},
        **{"max_eval_samples": 32, "config": "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"},
        **{"max_steps": 8, "per_device_train_batch_size": 8, "save_steps": 3, "eval_steps": 4, "fast_fp32": "no"},
        **{"shift": 1, "rotate": 10, "noise": 0.1, "mixup_alpha": 0.2, "dataloader_num_workers": 2},
    }
    return parse([word for name, value in given.items() for word in (f"--{name}", str(value))] + list(flags))


def test_random_images(tmp_path, monkeypatch):
    """Moved, turned, noisy and mixed, by two workers: what is random belongs to the sample and not to the process."""
    run.train(images(tmp_path / "straight"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 4)
        run.train(images(tmp_path / "broken"))
    run.train(images(tmp_path / "broken", "--dataloader_num_workers", "0"))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def train_and_die(rank, text, folder, death):
    leaving.figures.available = lambda: False
    if death is not None:
        killed_at(pytest.MonkeyPatch(), death)
    try:
        run.train(arguments(text, folder, "--per_device_train_batch_size", "2", dropout=0.0))
    except Killed:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes(first, text, tmp_path, monkeypatch):
    """Begun by one and gone on with by two, or the other way round: the samples of each step and the curve are those
    of a run by one."""
    run.train(arguments(text, tmp_path / "straight", dropout=0.0))
    if first == 2:
        run_in_two(partial(train_and_die, text=text, folder=tmp_path / "run", death=5), tmp_path)
        run.train(arguments(text, tmp_path / "run", dropout=0.0))
    else:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, 5)
            run.train(arguments(text, tmp_path / "run", dropout=0.0))
        run_in_two(partial(train_and_die, text=text, folder=tmp_path / "run", death=None), tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


def test_the_scale_of_half_precision(text, tmp_path, monkeypatch):
    """What a scaler of losses has learnt goes on with the run. On a processor it is torch's own, put in by hand."""

    def scaled(self):
        prepare(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    prepare = Loop.prepare
    monkeypatch.setattr(Loop, "prepare", scaled)
    run.train(arguments(text, tmp_path / "straight"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 7)
        run.train(arguments(text, tmp_path / "broken"))
    run.train(arguments(text, tmp_path / "broken"))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
    page = json.loads((tmp_path / "broken/checkpoints/step-00000010/state.json").read_text())
    assert page["scaler"]["growth_interval"] == 2


def test_the_same_run_twice(text, tmp_path):
    """To the bit with as many threads; with others sums have another order."""
    for name in ("one", "other"):
        run.train(arguments(text, tmp_path / name))
    assert_same_run(tmp_path / "one", tmp_path / "other")
    torch.set_num_threads(2)
    run.train(arguments(text, tmp_path / "threads"))
    assert losses(tmp_path / "threads") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite(value, text, tmp_path, monkeypatch):
    """Its step is left out, counted and named; the weights stay finite, and the others learn on."""
    loss, calls = Task.loss, []

    def spoiled(self, *given):
        calls.append(None)
        return loss(self, *given) * (value if len(calls) == 5 else 1)

    monkeypatch.setattr(Task, "loss", spoiled)
    monkeypatch.setattr(run, "measured_cost", lambda loop, former: (None, run.Kernels(), "torch's"))
    run.train(arguments(text, tmp_path / "run"))
    left_out = records(tmp_path / "run", "skipped")
    assert [one["step"] for one in left_out] == [5] and len(left_out[0]["samples"]) == 4
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped"] == 1
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_to_learn(whole, text, tmp_path, monkeypatch):
    """No label in all micro-batches of a step, or in one of two: no NaN, and the mean is over the labels that are."""
    collate, calls = Task.count, []

    def without(self, batch):
        calls.append(None)
        if len(calls) in ((5, 6) if whole else (5,)):
            batch["labels"].fill_(IGNORED)
        return collate(self, batch)

    monkeypatch.setattr(Task, "count", without)
    monkeypatch.setattr(run, "measured_cost", lambda loop, former: (None, run.Kernels(), "torch's"))
    flags = ("--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1")
    run.train(arguments(text, tmp_path / "run", *flags))
    found = losses(tmp_path / "run")
    others = [loss for place, loss in enumerate(found) if place != 2]
    assert all(map(math.isfinite, found)) and min(others) > 1
    assert found[2] == 0 if whole else found[2] > 1
    assert not records(tmp_path / "run", "skipped")


def one_without_labels(rank, text, folder):
    """One of two processes has nothing to learn from in step 3: heads and layers get a gradient of 0 there."""
    leaving.figures.available = lambda: False
    count, calls = Task.count, []

    def without(self, batch):
        calls.append(None)
        if len(calls) == 3 and rank == 1:
            batch["labels"].fill_(IGNORED)
        return count(self, batch)

    Task.count = without
    flags = ("--per_device_train_batch_size", "2", "--logging_steps", "1")
    run.train(arguments(text, folder, *flags, task="masked_lm"))


@pytest.mark.slow
def test_one_process_has_nothing_to_learn(text, tmp_path):
    """Nobody waits for a gradient that does not come."""
    run_in_two(partial(one_without_labels, text=text, folder=tmp_path / "run"), tmp_path, timeout=60)
    found = losses(tmp_path / "run")
    assert len(found) == 10 and all(map(math.isfinite, found)) and min(found) > 1


def test_a_learning_rate_that_is_much_too_high(text, tmp_path, capsys):
    """It is told what the loss was, and what to lower; where no step can be made any more, that is the end."""
    with pytest.raises(
        ValueError, match=r"the gradient was not finite in 20 steps in a row.*lower learning_rate=1000"
    ):
        run.train(arguments(text, tmp_path / "run", "--learning_rate", "1e3", "--max_steps", "40"))
    assert re.search(r"the loss was 2\.7\d+ before training and is .*: lower learning_rate", capsys.readouterr().out)


def test_half_precision_where_it_is_slow(monkeypatch):
    """`auto` times it, and takes float32."""
    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(environment, "seconds", lambda work, count: next(times))
    assert environment.choose_precision("auto", gpu=False) == "no"
    assert environment.choose_precision("auto", gpu=False) == "bf16"


@pytest.mark.parametrize("length", [0, 1])
def test_texts_of_hardly_anything(length, text, tmp_path):
    """One token has an answer; none has a sentence that says so."""
    run.train(arguments(text, tmp_path / "run", "--max_steps", "1", "--warmup_steps", "0", task="masked_lm"))
    model = TriuneForMaskedLM.from_pretrained(tmp_path / "run/model")
    ids = torch.zeros(2, length, dtype=torch.long)
    if length:
        assert model(ids).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match=r"the input has no tokens: its shape is \(2, 0\)"):
        model(ids)


# ---------------------------------------------------------------------------------------------------------------------
# Workers


def spoil(monkeypatch, act, in_worker):
    """Something else happens when the third batch is put together."""
    make, asked = run.make_task, []

    def made(given):
        task = make(given)
        sound = task.collate

        def spoilt(samples):
            if in_worker == (get_worker_info() is not None):
                asked.append(samples)
                if len(asked) == 3:
                    act()
            return sound(samples)

        task.collate = spoilt
        return task

    monkeypatch.setattr(run, "make_task", made)


ENDS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "is killed by signal: Killed"),
    "gone": (lambda: os._exit(3), "exited unexpectedly"),
    "hangs": (lambda: time.sleep(1000), "timed out after 3 seconds"),
}


@pytest.mark.parametrize("end", ["killed", "gone", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_worker_that_gives_nothing(end, text, tmp_path, monkeypatch):
    """The run ends with what to do, in time, and nobody stays."""
    act, says = ENDS[end]
    monkeypatch.setattr(run, "measured_cost", lambda loop, former: (None, run.Kernels(), "torch's"))
    spoil(monkeypatch, act, in_worker=True)
    begun = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        flags = ("--dataloader_num_workers", "1", "--ddp_timeout", "3")
        run.train(arguments(text, tmp_path / "run", *flags, task="masked_lm"))
    told = SCRIPT.known(caught.value)
    assert told.startswith("a worker that reads data gives none") and says in told
    assert "--dataloader_num_workers 0 shows what it meets" in told
    assert time.monotonic() - begun < 30
    del caught  # as the process would end here
    gc.collect()
    workers = [one for one in psutil.Process().children() if one.name() == "pt_data_worker"]
    assert psutil.wait_procs(workers, timeout=GRACE + 5)[1] == []


@pytest.mark.slow
def test_tokenizers_and_workers(text, tmp_path):
    """Rust's threads and a fork: no deadlock, and nobody is told about an environment variable."""
    job = run_job(text, tmp_path / "run", (), "--dataloader_num_workers", "2", processes=1)
    assert job.status == 0 and "parallelism" not in job.out.lower(), job.out


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_every_sample_is_verified(tmp_path, capsys):
    """Many are broken: all of them are listed, and nothing is written. Those that are sound are not."""
    for place in range(60):
        folder = tmp_path / "pets" / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (place, 0, 99)).save(folder / f"{place:02}.png")
    broken = [f"{'ab'[place % 2]}/{place:02}.png" for place in range(0, 60, 4)]
    for name in broken:
        data = (tmp_path / "pets" / name).read_bytes()
        (tmp_path / "pets" / name).write_bytes(data[: len(data) // 2])
    words = ["--task", "image_classification", "--train_dir", str(tmp_path / "pets"), "--verify_data"]
    words += ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        SCRIPT.main(words)
    assert str(stop.value) == "error: 15 samples cannot be read"
    told = capsys.readouterr().out
    assert sorted(re.findall(r"[ab]/\d\d\.png", told)) == sorted(broken)
    for name in broken:
        (tmp_path / "pets" / name).unlink()
    SCRIPT.main(words)
    assert "every sample was read" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_text_is_verified(text, tmp_path, capsys, monkeypatch):
    run.train(arguments(text, tmp_path / "run", "--verify_data", task="masked_lm"))
    assert "every sample was read" in capsys.readouterr().out and not (tmp_path / "run").exists()

    def fails():
        raise IndexError("no such token")

    spoil(monkeypatch, fails, in_worker=False)
    with pytest.raises(ValueError, match="1 samples cannot be read"):
        run.train(arguments(text, tmp_path / "run", "--verify_data", task="masked_lm"))
    assert "validation sample 2: IndexError: no such token" in capsys.readouterr().out


@pytest.mark.slow
def test_one_enormous_line(tmp_path):
    """5 million characters without a break, with NUL in it: rows like any others, and nothing grows beyond measure."""
    file = tmp_path / "line.txt"
    file.write_text("abc \0def" * 640_000)
    before = psutil.Process().memory_info().rss
    flags = ("--max_steps", "2", "--max_eval_samples", "1", "--remove_shared_passages", "false")
    run.train(arguments(file, tmp_path / "run", *flags))
    assert psutil.Process().memory_info().rss - before < 1e9


def test_names_are_no_commands(text, tmp_path):
    """Whatever a folder is called, nothing of it is run."""
    name = f"run; touch {tmp_path / 'canary'}; $(touch {tmp_path / 'canary'}) `touch canary`"
    run.train(arguments(text, tmp_path / name.replace("/", "-"), "--max_steps", "1", "--warmup_steps", "0"))
    assert not list(tmp_path.rglob("canary"))


# ---------------------------------------------------------------------------------------------------------------------
# Without network


def test_without_network(tmp_path, monkeypatch):
    """A name of the Hub that nobody has fetched before: told at once."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(ValueError, match="'user/none' is neither a model folder nor a model that the Hub gives"):
        load_config("user/none")
    assert time.monotonic() - begun < 5
