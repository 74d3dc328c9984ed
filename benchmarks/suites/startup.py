"""Seconds until something answers, in fresh processes."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites.measuring import markdown, ranged


ROOT = Path(__file__).resolve().parent.parent.parent
IMPORT = (
    "import time, torch; from transformers import PreTrainedConfig, PreTrainedModel; begun = time.perf_counter(); "
    "import triune.modeling; print(time.perf_counter() - begun)"
)
JOBS = {
    "`python scripts/train.py --help`": ["scripts/train.py", "--help"],
    "`import triune.modeling`, beyond torch and transformers' base": ["-c", IMPORT],
}


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    found = []
    for _ in range(1 if asked.quick else 7):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, *JOBS[name]], cwd=ROOT, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - begun
        found.append(float(done.stdout) if JOBS[name][0] == "-c" else whole)
    yield {"job": name, "seconds": statistics.median(found), "all": found}


def key(row: dict[str, Any]) -> tuple:
    return row["job"]


def table(rows: list[dict[str, Any]]) -> str:
    return markdown(["start-up", "seconds, median (and range)"], ([row["job"], ranged(row["all"])] for row in rows))
