"""An hour of training that is stopped every few minutes and goes on: do memory, open files and the time of a step stay
what they were?

    python tests/faults/soak.py                  # an hour; writes benchmarks/results/soak.json and its picture
    python tests/faults/soak.py --minutes 5 --every 1

A run of a small model evaluates and saves every 2,000 steps, with two workers for its data. By turns it is sent
SIGTERM and SIGKILL, and the same command starts it again. What the process tree takes is asked every two seconds; the
time of a step is processor time between two lines of its log, which work beside it disturbs least.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil


ROOT = Path(__file__).resolve().parents[2]

RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
PICTURE = ROOT / "docs" / "pictures" / "soak.png"
CONFIG = "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, position: rotary, hidden_dropout_prob: 0.1}"
WORKERS_NOTICE = 15  # seconds in which those that read data have to see that nobody asks any more
SETTLED = 0.3  # of a leg: before that, what is loaded at the beginning is still growing


def command(folder: Path) -> list[str]:
    sys.path.insert(0, str(ROOT / "tests"))
    from short_runs import write_text

    given = {
        **{"task": "causal_lm", "train_file": write_text(folder), "output_dir": folder / "run", "config": CONFIG},
        **{"tokenizer_type": "characters", "vocab_size": 40, "max_seq_length": 64, "validation_split_percentage": 20},
        **{"max_steps": 10**7, "warmup_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        **{"logging_steps": 200, "eval_steps": 2000, "save_steps": 2000, "dataloader_num_workers": 2},
        **{"fast_fp32": "no", "ema_decay": 0.99},
    }
    return [
        sys.executable,
        "scripts/train.py",
        *(word for name, value in given.items() for word in (f"--{name}", str(value))),
    ]


def taken(process: psutil.Process) -> dict[str, float]:
    """By the process and its children."""
    tree = [process, *process.children(recursive=True)]
    return {
        "memory": sum(own_memory(one.pid) for one in tree),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "processes": len(tree),
        "processor": sum(process.cpu_times()[:2]),
    }


def own_memory(pid: int) -> int:
    """What a process holds that no file does, its share of what it has in common with others: a library counts as its
    own or not as other programs come and go."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def leg(words: list[str], seconds: float, end: signal.Signals, begun: float, metrics: Path) -> dict[str, Any]:
    """One start of the run, and what was seen of it until its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    process, seen, until = psutil.Process(child.pid), [], time.monotonic() + seconds
    while time.monotonic() < until and child.poll() is None:
        time.sleep(2)
        step = last_step(metrics)
        try:
            seen.append({"at": time.monotonic() - begun, "step": step, **taken(process)})
        except (psutil.Error, OSError):
            continue
    child.send_signal(end)
    status = child.wait(60)
    if status not in (75, -9):
        sys.exit(f"ended with {status}: {child.stderr.read().decode()[-2000:]}")
    gone = time.monotonic()
    while left := [one.pid for one in psutil.process_iter() if of_session(one.pid, child.pid)]:
        if time.monotonic() - gone > WORKERS_NOTICE:
            break
        time.sleep(0.5)
    return {"end": end.name, "status": status, "seen": seen, "left": left, "disk": size_of(metrics.parent)}


def of_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


def last_step(metrics: Path) -> int:
    """Of the log; from its last whole line."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4000))
        lines = file.read().split(b"\n")[1:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def steps_of(seen: list[dict[str, float]]) -> list[tuple[float, float]]:
    """(when, milliseconds of processor time that a step took), over half a minute each."""
    found = []
    for place in range(0, len(seen) - 15, 15):
        first, last = seen[place], seen[place + 15]
        if last["step"] > first["step"] > 0:
            took = (last["processor"] - first["processor"]) / (last["step"] - first["step"])
            found.append((last["at"], 1e3 * took))
    return found


def summary(legs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each thing the median over the settled part of the first and of the last leg."""
    settled = [one["seen"][int(SETTLED * len(one["seen"])) :] for one in legs]
    first, last = settled[0], settled[-1]
    medians = {
        name: [statistics.median(one[name] for one in part) for part in (first, last)]
        for name in ("memory", "files", "threads", "processes")
    }
    times = [statistics.median(took for _, took in steps_of(part)) for part in (first, last)]
    within = [part[-1]["memory"] / part[0]["memory"] for part in settled]
    return {
        "minutes": legs[-1]["seen"][-1]["at"] / 60,
        "starts": len(legs),
        "steps": legs[-1]["seen"][-1]["step"],
        "first and last leg": {**medians, "step_ms": times},
        "memory_growth_within_a_leg": max(within),
        "disk": [one["disk"] for one in legs],
        "processes_left": sum(len(one["left"]) for one in legs),
    }


def draw(legs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 1, figsize=(9, 6.5), sharex=True, constrained_layout=True)
    for one in legs:
        minutes = [seen["at"] / 60 for seen in one["seen"]]
        panels[0].plot(minutes, [seen["memory"] / 1e6 for seen in one["seen"]], color="C0")
        panels[1].plot(minutes, [seen["files"] for seen in one["seen"]], color="C1")
        took = steps_of(one["seen"])
        panels[2].plot([at / 60 for at, _ in took], [ms for _, ms in took], ".-", color="C2")
        for panel in panels:
            panel.axvline(minutes[-1], color="0.8" if one["end"] == "SIGTERM" else "0.6", linewidth=0.8, zorder=0)
    for panel, label in zip(panels, ("memory, MB", "open files", "step, ms of processor")):
        panel.set_ylabel(label)
        panel.set_ylim(0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title("A run that is stopped (grey lines: SIGTERM and SIGKILL by turns) and goes on", fontsize=10)
    panels[-1].set_xlabel("minutes")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="minutes between two ends")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    asked = parser.parse_args()
    begun, legs = time.monotonic(), []
    ends = itertools.cycle([signal.SIGTERM, signal.SIGKILL])
    with tempfile.TemporaryDirectory() as name:
        words, metrics = command(Path(name)), Path(name) / "run" / "metrics.jsonl"
        while time.monotonic() - begun < 60 * asked.minutes:
            legs.append(leg(words, 60 * asked.every, next(ends), begun, metrics))
            print(f"{legs[-1]['seen'][-1]}", flush=True)
    found = summary(legs)
    asked.output.write_text(json.dumps({**found, "legs": legs}) + "\n", encoding="utf-8")
    draw(legs, asked.picture)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
