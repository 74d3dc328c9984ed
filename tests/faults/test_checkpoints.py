"""What is left of a checkpoint when the process dies, the disk fills up, or somebody touches the files."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from injection import Fault, dies_at, half_written, raising
from short_runs import Killed, arguments, assert_same_run, killed_at

from triune.training import durable, owning, run, state
from triune.training.durable import MANIFEST, damage, recover
from triune.training.loop import Loop
from triune.training.owning import owned


pytestmark = pytest.mark.usefixtures("as_found", "no_figures")
FULL = OSError(28, "No space left on device")


def tiny():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(folder, step, keep=2):
    model, optimizer = tiny()
    with torch.no_grad():
        model.weight.fill_(step)
    return state.save_checkpoint(folder, step, model, optimizer, {"progress": {}}, keep=keep)


def loads(checkpoint, step):
    model, optimizer = tiny()
    assert state.load_checkpoint(checkpoint, model, optimizer)["step"] == step
    assert bool((model.weight == step).all())


# ---------------------------------------------------------------------------------------------------------------------
# Death in the middle


@pytest.mark.parametrize("before", [(1, 2), (2, 3)], ids=["a new one", "the same step again"])
def test_death_at_every_request(before, tmp_path):
    """Of the third save, which drops the first: at each of them one is there that loads, and it is no older than the
    newest before; what was begun is swept away at the next start."""
    number, ended = 0, False
    while not ended:
        number += 1
        shutil.rmtree(tmp_path, ignore_errors=True)
        for step in before:
            saved(tmp_path, step)
        ended = not dies_at(number, lambda: saved(tmp_path, 3))
        recover(tmp_path)
        newest, broken = state.newest_whole(tmp_path)
        step = int(newest.name.removeprefix("step-"))
        assert step >= before[-1] and not broken
        loads(newest, step)
        assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
        saved(tmp_path, 4)
        assert len(state.checkpoints(tmp_path)) == 2
    assert number > 25 and step == 3


def killed_run(text, folder, step=7):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, step)
        run.train(arguments(text, folder))


# ---------------------------------------------------------------------------------------------------------------------
# Somebody has touched the files


def cut(share):
    def change(folder, name="model.safetensors"):
        file = folder / name
        os.truncate(file, int(file.stat().st_size * share))

    return change


def flipped(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def rewritten(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FORGED = json.dumps({"format": 1, "files": {"../../words.txt": {"bytes": 1, "sha256": ""}}}).encode()
DAMAGES = {
    "weights cut in half": (cut(0.5), "model.safetensors has .* bytes, and was written with"),
    "weights empty": (cut(0), "model.safetensors has 0 bytes"),
    "a bit of the weights": (flipped, "model.safetensors has other bytes"),
    "moments missing": (lambda folder: (folder / "optimizer.safetensors").unlink(), "optimizer.safetensors missing"),
    "a file too many": (rewritten("sitecustomize.py", b"raise SystemExit"), "sitecustomize.py does not belong to it"),
    "a page of garbage": (rewritten("state.json", b"\xff{"), "state.json has 2 bytes"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "it has no manifest.json"),
    "a manifest of garbage": (rewritten(MANIFEST, b"[1"), "manifest.json cannot be read"),
    "a manifest of something else": (rewritten(MANIFEST, b'{"files": 3}'), "manifest.json cannot be read"),
    "a manifest of other files": (rewritten(MANIFEST, FORGED), "missing"),
    "a later version": (rewritten(MANIFEST, b'{"format": 2, "files": {}}'), "written in format 2"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(what, text, tmp_path, capsys):
    """The older one is gone on from, the damaged one is named and set aside, and the end is that of a run left alone.
    Asked for by its name it is refused; where it is the only one nothing is begun anew without being told."""
    change, told = DAMAGES[what]
    killed_run(text, tmp_path / "broken")
    old, new = sorted((tmp_path / "broken/checkpoints").glob("step-*"))
    change(new)
    with pytest.raises(ValueError, match=f"step-00000006' is damaged: .*{told}|state.json cannot be read"):
        run.train(arguments(text, tmp_path / "other", "--resume_from_checkpoint", str(new)))
    shutil.copytree(tmp_path / "broken", tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone/checkpoints" / old.name)
    with pytest.raises(
        ValueError, match=f"has no checkpoint that is whole:\n.*{told}.*\n.*--resume_from_checkpoint no"
    ):
        run.train(arguments(text, tmp_path / "alone"))
    capsys.readouterr()
    run.train(arguments(text, tmp_path / "broken"))
    out = capsys.readouterr().out.replace("\n", " ")
    assert "not gone on from" in out and new.name in out and "goes on from step 3" in out
    run.train(arguments(text, tmp_path / "straight"))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_lost_best_weights_are_told(text, tmp_path, capsys):
    killed_run(text, tmp_path / "run")
    best = next((tmp_path / "run/checkpoints").glob("best-*"))
    cut(0.5)(best)
    run.train(arguments(text, tmp_path / "run"))
    assert "the best weights so far are lost" in capsys.readouterr().out
    assert (tmp_path / "run/model/model.safetensors").is_file()


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_a_disk_that_is_full_ten_times(text, tmp_path, capsys):
    """Every save of ten in a row finds it full, half way through a file: training goes on, what was saved before is as
    it was, nothing half-written stays, the message names path and bytes. Then there is room again."""
    flags = ("--save_steps", "1", "--eval_steps", "100", "--max_steps", "14")
    folder = tmp_path / "run"
    seen = []

    def watch(self, *given):
        if 3 <= self.progress.step <= 12:
            self.writer.wait()
            seen.append(state.newest_whole(folder / "checkpoints")[0].name)
            assert len(list((folder / "checkpoints").glob(".*"))) == 0
        return update(self, *given)

    update = Loop.update
    # each checkpoint is two files, and the first of the two fails
    with Fault(state, "save_file", half_written(FULL), range(5, 15)) as fault, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "update", watch)
        run.train(arguments(text, folder, *flags))
    assert fault.fired == 10 and seen == ["step-00000002"] * 10
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("No space left on device (after") == 10
    assert "checkpoints/step-00000003 could not be written" in out and "bytes are free" in out
    run.train(arguments(text, tmp_path / "straight", *flags))
    assert_same_run(tmp_path / "straight", folder)


def test_the_last_checkpoint_must_be_written(text, tmp_path):
    """A run whose end cannot be saved has not ended: started again with room, it does, and trains no step more."""
    flags = ("--save_steps", "3", "--eval_steps", "100", "--load_best_model_at_end", "false")
    with (
        Fault(state, "save_file", raising(FULL), range(7, 9)) as fault,
        pytest.raises(OSError, match="step-00000010 could not be written: No space left"),
    ):
        run.train(arguments(text, tmp_path / "run", *flags))
    assert fault.fired
    assert json.loads((tmp_path / "run/exit.json").read_text())["status"] == 1
    run.train(arguments(text, tmp_path / "run", *flags))
    run.train(arguments(text, tmp_path / "straight", *flags))
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("number, words", [(5, "Input/output error"), (30, "Read-only file system"), (13, "denied")])
@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_a_disk_that_refuses(name, number, words, tmp_path):
    """EIO, EROFS, EACCES: one error with the path, and the one before still loads."""
    saved(tmp_path, 1)
    error = OSError(number, os.strerror(number))
    with Fault(durable.os, name, raising(error)), pytest.raises(OSError, match=f"step-00000002 .*{words}"):
        saved(tmp_path, 2)
    newest, broken = state.newest_whole(tmp_path)
    assert newest.name == "step-00000001" and not broken
    loads(newest, 1)


def test_a_file_where_the_folder_should_be(text, tmp_path):
    (tmp_path / "run").write_text("here already")
    with pytest.raises((ValueError, OSError), match="run"):
        run.train(arguments(text, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "here already"


def test_a_mistake_in_the_background_is_raised(text, tmp_path):
    """What is not the disk's is not passed over."""
    with Fault(state, "save_file", raising(TypeError("a mistake"))), pytest.raises(TypeError, match="a mistake"):
        run.train(arguments(text, tmp_path / "run"))


def test_an_exit_waits_for_what_is_being_written(text, tmp_path, monkeypatch):
    """The process leaves while a checkpoint is in flight: it is whole."""

    def slow(sound, *given, **named):
        time.sleep(0.3)
        return sound(*given, **named)

    def leaves(self, *given):
        if self.progress.step == 3:
            raise SystemExit(3)
        return update(self, *given)

    update = Loop.update
    with Fault(state, "save_file", slow), monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Loop, "update", leaves)
        run.train(arguments(text, tmp_path / "run"))
    assert damage(tmp_path / "run/checkpoints/step-00000003") is None
    assert not any(thread.name.startswith("writer") for thread in threading.enumerate())


# ---------------------------------------------------------------------------------------------------------------------
# Names, clocks, owners


def test_files_can_be_read_by_others(tmp_path):
    folder = saved(tmp_path, 1)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o555 == 0o555


def test_a_clock_means_nothing(tmp_path, monkeypatch):
    """Checkpoints of 1970, of the future and of the same second: the step counts."""
    monkeypatch.setattr(time, "time", lambda: -1.0)
    for step, when in ((1, 4e9), (2, 0), (3, 0)):
        os.utime(saved(tmp_path, step, keep=3), (when, when))
    assert state.newest_whole(tmp_path)[0].name == "step-00000003"
    saved(tmp_path, 10, keep=2)
    assert [one.name for one in state.checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("name", ["with spaces", "ünïcødé 模型", "$(touch x);'\"", "n" * 200, "a/../b"])
def test_names_of_folders(name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.train(arguments(text, name, "--max_steps", "2"))
    assert damage(tmp_path / name / "checkpoints" / "step-00000002") is None
    assert not (tmp_path / "x").exists()


def test_a_name_that_is_too_long(text, tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        run.train(arguments(text, tmp_path / ("n" * 300)))


def test_a_link_to_another_disk(text, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    run.train(arguments(text, tmp_path / "run", "--max_steps", "2"))
    assert damage(tmp_path / "elsewhere/checkpoints/step-00000002") is None


HOLD = "import sys, time; from pathlib import Path; from triune.training.owning import owned\n"
HOLD += "with owned(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"


def test_two_runs_in_one_folder(tmp_path, text):
    """The second is refused and told whose it is; what a dead one has left is taken over at once."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "mine\n"
    with pytest.raises(ValueError, match=f"is in use by another run \\(process {holder.pid} on .*, since .*\\)"):
        run.train(arguments(text, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    holder.kill()
    holder.wait()
    assert (tmp_path / ".run.lock").is_file()
    with owned(tmp_path / "run"):
        pass
    assert not (tmp_path / ".run.lock").exists()


def test_a_disk_without_locks(tmp_path):
    """It is not taken for one that is in use."""
    with Fault(owning.fcntl, "lockf", raising(OSError(37, "No locks available"))), owned(tmp_path / "run"):
        assert (tmp_path / ".run.lock").is_file()
    assert not (tmp_path / ".run.lock").exists()


def test_a_dry_run_says_nothing_of_an_end(text, tmp_path):
    """In the folder of a run that was killed."""
    killed_run(text, tmp_path / "run")
    (tmp_path / "run/exit.json").unlink()
    run.train(arguments(text, tmp_path / "run", "--dry_run"))
    assert not (tmp_path / "run/exit.json").exists()


def test_a_state_of_another_version_is_refused(text, tmp_path):
    """Never guessed."""
    folder = saved(tmp_path, 1)
    page = json.loads((folder / MANIFEST).read_text())
    for version in (0, 2, "1", None):
        (folder / MANIFEST).write_text(json.dumps({**page, "format": version}))
        assert damage(folder) == f"it was written in format {version!r}, and this version reads 1"
