"""CLS against mean pooling: one backbone, one recipe, the same digits; only what the classifier reads differs.

    python benchmarks/pooling.py      # writes benchmarks/results/pooling.json

Four short runs.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from triune.training.environment import versions
from triune.training.report import read, replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pooling.json"
RECIPE, STEPS, SEEDS = "recipes/vit.yaml", 300, (0, 1)


def accuracy(pooling: str, seed: int) -> float:
    """Of the held-out digits, after the last step."""
    config = yaml.safe_load((ROOT / RECIPE).read_text(encoding="utf-8"))["config"]
    config["pooling"], config["embedding"]["cls_token"] = pooling, pooling == "cls"
    folder = ROOT / "runs" / f"pooling-{pooling}-{seed}"
    flags = {"config": yaml.safe_dump(config), "max_steps": STEPS, "seed": seed, "output_dir": folder}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "scripts/train.py", RECIPE, *words, "--resume_from_checkpoint", "no"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    last = [record for record in read(folder) if record["kind"] == "eval" and record["full"]][-1]
    shutil.rmtree(folder)
    return last["accuracy"]


def main() -> None:
    found = {pooling: [accuracy(pooling, seed) for seed in SEEDS] for pooling in ("cls", "mean")}
    means = {pooling: statistics.mean(runs) for pooling, runs in found.items()}
    spreads = {pooling: statistics.stdev(runs) for pooling, runs in found.items()}
    page = {"recipe": RECIPE, "steps": STEPS, "seeds": SEEDS, "accuracy": found, "mean": means, "spread": spreads}
    replace(RESULTS, json.dumps({**page, "versions": versions()}, indent=1) + "\n")
    print(means, spreads)


if __name__ == "__main__":
    main()
