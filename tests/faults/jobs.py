"""Jobs of one process or two, as a user starts them, with a fault in them; and that nothing of them stays."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import short_runs


DRIVER = Path(__file__).with_name("driver.py")
SETTINGS = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}


class Job(NamedTuple):
    status: int
    seconds: float
    after: float  # seconds from the first fault to the end of everything
    out: str
    exit: dict  # what the run folder says


def run_job(
    text, folder, faults=(), *flags, processes=2, launcher=(), signals=(), env=(), timeout=150, **named
) -> Job:
    """`signals`: (a file that is waited for, seconds more, the signal, to whom: "launcher" or "group")."""
    own = ("--per_device_train_batch_size", "2") if processes == 2 else ()
    words = short_runs.words(text, folder, *own, *flags, **named)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start = [*(torchrun if processes > 1 or launcher else [sys.executable]), *launcher]
    begun = time.monotonic()
    process = subprocess.Popen(
        [*start, DRIVER, json.dumps(list(faults)), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **SETTINGS, **dict(env)},
    )
    for one in signals:
        threading.Thread(target=send, args=(process, *one), daemon=True).start()
    try:
        out, _ = process.communicate(timeout=150)
    finally:
        left = [one for one in psutil.process_iter() if of_session(one, process.pid)]
        for one in left:
            one.kill()
    ended, seconds = time.time(), time.monotonic() - begun
    assert not left, f"still there: {[' '.join(one.info.get('cmdline') or []) for one in left]}\n{out}"
    assert not forgotten(), out
    for number in range(len(faults)):
        assert Path(f"{folder}.fault-{number}").exists(), f"the fault did not happen\n{out}"
    page = Path(folder) / "exit.json"
    after = ended - Path(f"{folder}.fault-0").stat().st_mtime if faults else seconds
    return Job(process.returncode, seconds, after, out, json.loads(page.read_text()) if page.exists() else {})


def start_with_accelerate(text, folder, *flags) -> subprocess.Popen:
    """One process below `accelerate launch`, slow enough to be met at work."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    words = short_runs.words(text, folder, *flags)
    fault = {"at": "update", "step": 5, "do": "slow"}
    return subprocess.Popen(
        [sys.executable, *launch, *plain, DRIVER, json.dumps([fault]), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **SETTINGS},
    )


def forgotten() -> list[str]:
    """What torch has shared between processes, named by the one that made it, which is gone."""
    owned = ((name, re.match(r"torch_(\d+)_", name)) for name in os.listdir("/dev/shm"))
    return [name for name, match in owned if match and not psutil.pid_exists(int(match[1]))]


def of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess, PermissionError):
        return False


def send(process: subprocess.Popen, awaited: Path, more: float, number: int, whom: str) -> None:
    while not Path(awaited).exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(more)
    if process.poll() is None:
        os.killpg(process.pid, number) if whom == "group" else process.send_signal(number)


TERM, INT = signal.SIGTERM, signal.SIGINT
