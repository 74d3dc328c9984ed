"""Two processes of one thread each, beside one process of one thread: the real job."""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites.measuring import markdown, ranged


ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 8
# 1,024 tokens a process and micro-batch: what is sent between processes is the gradient of all parameters
BASE = ["--config", "{num_hidden_layers: 6, hidden_size: 512, num_attention_heads: 8}", "--max_seq_length", "256"]
JOBS = {"one micro-batch": 1, "four micro-batches": 4}


def seconds_of_a_step(processes: int, accumulation: int, folder: str, quick: bool) -> float:
    size = ["--config", "{num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 2}"] if quick else BASE
    flags = {
        **{"task": "causal_lm", "dataset_name": "pydocs", "mixed_precision": "no", "fast_fp32": "no"},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation, "max_steps": STEPS},
        **{"logging_steps": 1, "eval_steps": 1000, "save_steps": 1000, "max_eval_samples": 1},
        "output_dir": f"{folder}/{processes}",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launch, "scripts/train.py", *words, *size], cwd=ROOT, check=True, capture_output=True, env=environment
    )
    records = [json.loads(line) for line in Path(folder, str(processes), "metrics.jsonl").read_text().splitlines()]
    times = [record["seconds"] for record in records if record["kind"] == "train"]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times[1:]))


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(1 if asked.quick else 2):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                found[processes].append(seconds_of_a_step(processes, JOBS[name], folder, asked.quick))
    efficiency = [alone / both for alone, both in zip(found[1], found[2])]
    yield {"job": name, "seconds": found, "efficiency": statistics.median(efficiency), "all": efficiency}


def key(row: dict[str, Any]) -> tuple:
    return row["job"]


def table(rows: list[dict[str, Any]]) -> str:
    titles = ["a step of", "weak scaling, 2 processes x 1 thread"]
    return markdown(titles, ([row["job"], ranged(row["all"])] for row in rows))
