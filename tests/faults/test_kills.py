"""`kill -9` at random moments, again and again, until the run is done."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import short_runs
from jobs import DRIVER, SETTINGS, run_job
from short_runs import assert_same_run


SAVED_EVERY = 50
FLAGS = ("--save_steps", str(SAVED_EVERY), "--logging_steps", "1", "--eval_steps", "500")


def last_logged(folder: Path) -> int:
    records = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    steps = [json.loads(line)["step"] for line in records if line.endswith("}") and '"train"' in line]
    return steps[-1] if steps else 0


def start_and_kill(text, folder: Path, flags, after: float) -> bool:
    """So long after its first step; False if it was done before. The clock of a save starts with a step too."""
    before = last_logged(folder)
    words = short_runs.words(text, folder, *flags)
    process = subprocess.Popen(
        [sys.executable, DRIVER, "[]", *words],
        env={**os.environ, **SETTINGS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    stands = None
    while process.poll() is None:
        now = last_logged(folder)
        if stands is None or now < before:
            stands = now  # the records after the checkpoint have been cut off
        elif now > stands:
            break
        time.sleep(0.005)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), errors
    return process.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [5, 50])
def test_killed_at_random_moments(kills, text, tmp_path, figures):
    """The end is that of a run left alone, to the bit, and no kill costs more than what was done since the last save:
    one interval, and what is done while it is written."""
    steps = ("--max_steps", str(120 * kills))
    draw, folder, redone, in_a_save = random.Random(kills), tmp_path / "killed", [], 0
    for _ in range(kills):
        assert start_and_kill(text, folder, (*FLAGS, *steps), draw.uniform(0, 0.5)), "done before all of the kills"
        saved = max((int(one.name[5:]) for one in (folder / "checkpoints").glob("step-*")), default=0)
        redone.append(last_logged(folder) - saved)
        in_a_save += any((folder / "checkpoints").glob(".*.partial"))
    run_job(text, folder, (), *FLAGS, *steps, processes=1)
    run_job(text, tmp_path / "straight", (), *FLAGS, *steps, processes=1)
    assert_same_run(tmp_path / "straight", folder)
    figures(kills=kills, in_a_save=in_a_save, most_steps_redone=max(redone))
    assert max(redone) <= SAVED_EVERY + 10
