"""One process of two fails, dies, hangs, or is asked to stop: all of them end, in time, with the cause told first, and
the next start goes on as if nothing had been."""

import json
import os
import signal
import time
from functools import cache
from pathlib import Path

import psutil
import pytest
from jobs import INT, TERM, run_job, start_with_accelerate
from short_runs import assert_same_run, curve


pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def straight(text, tmp_path_factory):
    """The folder of a run that was left alone, by so many processes."""

    @cache
    def of(processes):
        folder = tmp_path_factory.mktemp("straight") / "run"
        assert run_job(text, folder, processes=processes).exit["status"] == 0
        return folder

    return of


def goes_on(text, folder, straight, processes=2):
    """The same command again: the end is that of the other."""
    job = run_job(text, folder, processes=processes)
    assert job.status == 0 and job.exit["reason"] == "finished", job.out
    assert_same_run(straight(processes), folder)


def last_step(folder):
    return max((folder / "checkpoints").glob("step-*")).name


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_in_one_process(rank, text, straight, tmp_path, figures):
    fault = {"at": "update", "step": 5, "rank": rank, "do": "raise"}
    job = run_job(text, tmp_path / "run", [fault])
    assert job.status == 1 and job.seconds < 40, job.out
    assert job.exit["status"] == 1 and job.exit["reason"] == "RuntimeError: a mistake of ours"
    told = [job.out.find(words) for words in ("a mistake of ours", "another process has ended")]
    assert told[0] >= 0 and (told[1] < 0 or told[0] < told[1]), job.out
    figures(**{f"seconds_until_all_is_gone_rank_{rank}": job.after})
    goes_on(text, tmp_path / "run", straight)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed(rank, text, straight, tmp_path, figures):
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 5, "rank": rank, "do": "kill"}])
    assert job.status == 1 and job.seconds < 40, job.out
    figures(**{f"seconds_until_all_is_gone_rank_{rank}": job.after})
    goes_on(text, tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs(rank, text, straight, tmp_path, figures):
    """Stopped: the others give up after ddp_timeout; what is stopped is killed by the launcher 30 seconds later."""
    fault = {"at": "update", "step": 5, "rank": rank, "do": "stop"}
    job = run_job(text, tmp_path / "run", [fault], "--ddp_timeout", "5")
    assert job.status == 1 and job.seconds < 70, job.out
    assert "another process has ended or does not answer" in job.out
    figures(**{f"seconds_until_all_is_gone_rank_{rank}": job.after})
    goes_on(text, tmp_path / "run", straight)


@pytest.mark.slow
def test_a_process_that_leaves_early(text, straight, tmp_path):
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 5, "rank": 1, "do": "exit"}])
    assert job.status == 1 and job.seconds < 40, job.out
    goes_on(text, tmp_path / "run", straight)


@pytest.mark.slow
def test_the_disk_of_the_first_process_is_full(text, straight, tmp_path):
    """It alone writes; both end, and both say why."""
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 7, "rank": 0, "do": "full"}])
    assert job.status == 1 and job.seconds < 40
    assert job.exit["status"] == 1 and "could not be written: No space left on device" in job.exit["reason"]
    assert last_step(tmp_path / "run") == "step-00000006"
    goes_on(text, tmp_path / "run", straight)


# ---------------------------------------------------------------------------------------------------------------------
# Signals

SIGNALS = {
    "one process, in a step": ({"at": "update", "step": 4, "rank": 1, "do": "term"}, "step-00000005"),
    "one process, in an evaluation": ({"at": "evaluate", "step": 4, "rank": 1, "do": "term"}, "step-00000004"),
    "one process, in a save": ({"at": "save", "step": 3, "rank": 0, "do": "term"}, "step-00000003"),
    "one process, in the last evaluation": ({"at": "finish", "step": 10, "rank": 1, "do": "term"}, "step-00000010"),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", SIGNALS)
def test_one_is_asked_to_stop(where, text, straight, tmp_path, figures):
    """All of them stop at the same step, which is saved; the rest is that of a run left alone."""
    fault, step = SIGNALS[where]
    job = run_job(text, tmp_path / "run", [fault], "--dataloader_num_workers", "1")
    assert job.exit["status"] == 75 and "interrupted" in job.exit["reason"], job.out
    assert last_step(tmp_path / "run") == step and job.seconds < 40
    figures(**{f"seconds_until_all_is_gone_in_{where}": job.after})
    goes_on(text, tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(TERM, 75), (INT, 130)], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("whom", ["launcher", "group"])
def test_the_job_is_asked_to_stop(whom, number, status, text, straight, tmp_path):
    """The launcher alone, or all of its processes with their workers, as a terminal and some schedulers do it."""
    fault = {"at": "update", "step": 4, "rank": 1, "do": "slow"}
    signals = [(tmp_path / "run.fault-0", 0.5, number, whom)]
    job = run_job(text, tmp_path / "run", [fault], "--dataloader_num_workers", "1", signals=signals)
    assert job.status != 0 and job.exit["status"] == status, job.out
    assert last_step(tmp_path / "run") in ("step-00000004", "step-00000005") and job.seconds < 60
    goes_on(text, tmp_path / "run", straight)


ALONE = {"term": 75, "usr1": 75, "int": 130}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_a_single_process_is_asked_to_stop(name, text, straight, tmp_path):
    """With workers; the status is the process's own."""
    flags = ("--dataloader_num_workers", "2")
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 4, "do": name}], *flags, processes=1)
    assert job.status == job.exit["status"] == ALONE[name], job.out
    assert last_step(tmp_path / "run") == "step-00000005"
    goes_on(text, tmp_path / "run", straight, processes=1)


@pytest.mark.slow
def test_asked_to_stop_before_the_first_step(text, straight, tmp_path):
    job = run_job(text, tmp_path / "run", [{"at": "evaluate", "step": 0, "do": "term"}], processes=1)
    assert job.status == job.exit["status"] == 75
    goes_on(text, tmp_path / "run", straight, processes=1)


@pytest.mark.slow
def test_asked_twice(text, straight, tmp_path):
    """It ends at once."""
    fault = {"at": "update", "step": 4, "do": "term hang"}
    signals = [(tmp_path / "run.fault-0", 2.0, TERM, "launcher")]
    job = run_job(text, tmp_path / "run", [fault], processes=1, signals=signals)
    assert job.status == -signal.SIGTERM and job.seconds < 40
    goes_on(text, tmp_path / "run", straight, processes=1)


# ---------------------------------------------------------------------------------------------------------------------
# Others


@pytest.mark.slow
def test_the_launcher_starts_again(text, straight, tmp_path):
    """`torchrun --max-restarts`: by itself it goes on where it was. With the store of the first attempt gloo hangs in
    every second restart, whoever's script it is: torchrun is told to make a new one."""
    fault = {"at": "update", "step": 8, "rank": 1, "do": "kill"}
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    job = run_job(text, tmp_path / "run", [fault], launcher=("--max-restarts", "2"), env=env)
    assert job.status == 0 and "goes on from step" in job.out, job.out
    assert_same_run(straight(2), tmp_path / "run")


def test_a_gradient_of_one_process_is_not_finite(text, tmp_path):
    """Both leave the same step out, and count it."""
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 5, "rank": 1, "do": "spoil"}])
    assert job.status == 0, job.out
    page = json.loads((max((tmp_path / "run/checkpoints").glob("step-*")) / "state.json").read_text())
    assert page["progress"]["skipped"] == 1
    assert all(record["loss"] == record["loss"] for record in curve(tmp_path / "run") if record["kind"] == "eval")


@pytest.mark.slow
def test_too_little_memory(text, straight, tmp_path):
    """What to change is said, no half of a checkpoint is left, and both end."""
    job = run_job(text, tmp_path / "run", [{"at": "update", "step": 5, "rank": 1, "do": "exhaust"}])
    assert job.status == 1 and "there is not enough memory" in job.exit["reason"]
    assert "lower per_device_train_batch_size=2" in job.out and "Traceback" not in job.out.split("error")[0]
    goes_on(text, tmp_path / "run", straight)


def test_processes_that_differ(text, tmp_path):
    """Another learning rate on one of them, as by a file that was copied to one machine only."""
    job = run_job(text, tmp_path / "run", env={"DIFFERING_RANK": "1"})
    assert job.status == 1 and "differs from process" in job.out and "learning_rate: 0.01 -> 0.02" in job.out


@pytest.mark.slow
def test_nobody_at_the_address(text, tmp_path):
    """A clear end within ddp_timeout."""
    alone = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    job = run_job(text, tmp_path / "run", (), "--ddp_timeout", "5", processes=1, env=alone)
    assert job.status == 1 and job.seconds < 40 and "error in process 1" in job.out, job.out


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "group"])
def test_what_accelerate_launch_hands_on(whom, text, straight, tmp_path):
    """With one process: a signal to the launcher ends the launcher, and the training stays; one to the group reaches
    the training, which saves."""
    process = start_with_accelerate(text, tmp_path / "run")
    while not Path(f"{tmp_path / 'run'}.fault-0").exists():
        time.sleep(0.05)
    (training,) = psutil.Process(process.pid).children()
    process.send_signal(TERM) if whom == "launcher" else os.killpg(process.pid, TERM)
    process.wait(20)
    if whom == "launcher":
        assert training.is_running()
        training.send_signal(TERM)
    psutil.wait_procs([training], timeout=30)
    assert json.loads((tmp_path / "run/exit.json").read_text())["status"] == 75
    goes_on(text, tmp_path / "run", straight, processes=1)
