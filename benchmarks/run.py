"""What the recipes reach, over seeds: every figure that the README or a card quotes comes from a file written here.

    python benchmarks/run.py bert gpt vit letters     # minutes each, on an idle machine
    python benchmarks/run.py vit --seeds 0            # a part of it

A run is an ordinary one, `scripts/train.py recipes/<name>.yaml --seed ...`; its last evaluation is kept, with the
baselines measured on the same data. Results are added to `benchmarks/results/recipes.json`, by recipe and seed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from triune.training.environment import versions
from triune.training.report import read


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"

# What is varied beside the seed.
PARTS = {"vit": [{"fold": fold} for fold in range(5)]}


def train(recipe: str, seed: int, part: dict[str, int]) -> dict[str, float]:
    """One run: its last evaluation, its time, and what it was compared with."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"seed": seed, "output_dir": folder, **part}
        command = [sys.executable, "scripts/train.py", f"recipes/{recipe}.yaml"]
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        last = [record for record in read(folder) if record["kind"] == "eval" and record["full"]][-1]
        baselines = json.loads(Path(folder, "environment.json").read_text())["baselines"]
    metrics = {name: value for name, value in last.items() if name not in ("kind", "full", "step", "seconds")}
    return {"seed": seed, **part, **metrics, "wall_seconds": seconds, "training_seconds": last["seconds"]} | {
        "baselines": baselines
    }


def summary(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Mean over all runs, and the spread (standard deviation) over seeds of the mean of a seed's parts."""
    numbers = [name for name, value in runs[0].items() if isinstance(value, float)]
    found = {}
    for name in numbers:
        seeds = {run["seed"] for run in runs}
        means = [statistics.fmean(run[name] for run in runs if run["seed"] == seed) for seed in sorted(seeds)]
        spread = statistics.stdev(means) if len(means) > 1 else None
        found[name] = {"mean": statistics.fmean(means), "spread": spread, "lowest": min(means), "highest": max(means)}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# As the README shows it

SHOWN = {
    "bert": ("accuracy", "masked accuracy at 15 %, vocabulary of 512"),
    "gpt": ("bits_per_character", "bits per character"),
    "vit": ("accuracy", "accuracy on `digits`, mean of five folds"),
    "letters": ("accuracy", "accuracy on `letters`, in fonts never seen"),
}
FURTHER = {"bert": ("loss", "loss in nats")}


def shown(metric: str, value: float) -> str:
    return f"{value:.2%}" if metric in ("accuracy", "macro_f1") else f"{value:.3f}"


def beside(runs: list[dict], metric: str) -> str:
    """The mean of each baseline over the runs; k-NN is given for the best k."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run["baselines"].get(metric, {}).items():
            found.setdefault(re.sub(r"^\d+-NN", "k-NN", name), []).append(value)
    return ", ".join(f"{name} {shown(metric, statistics.fmean(values))}" for name, values in found.items())


def table(results: dict) -> str:
    """Markdown: a line for each recipe and metric."""
    lines = [
        "| recipe | measured on held-out data | mean ± spread | lowest, highest seed | baselines |",
        "|---|---|---|---|---|",
    ]
    for recipe, what in [(name, SHOWN[name]) for name in SHOWN] + list(FURTHER.items()):
        metric, says = what
        found = results[recipe]["summary"][metric]
        mean, spread, low, high = (shown(metric, found[key]) for key in ("mean", "spread", "lowest", "highest"))
        others = beside(results[recipe]["runs"], metric)
        lines.append(f"| `{recipe}` | {says} | **{mean}** ± {spread} | {low}, {high} | {others} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipes", nargs="+", help="names of files in recipes/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    for recipe in asked.recipes:
        runs = []
        for seed in asked.seeds:
            for part in PARTS.get(recipe, [{}]):
                runs.append(train(recipe, seed, part))
                print(recipe, {name: value for name, value in runs[-1].items() if name != "baselines"}, flush=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        machine = {"versions": versions(), "cores": os.cpu_count()}
        kept = [run for run in results.get(recipe, {}).get("runs", []) if run["seed"] not in asked.seeds]
        runs = sorted([*kept, *runs], key=lambda run: (run["seed"], run.get("fold", 0)))
        results[recipe] = {"summary": summary(runs), "runs": runs, **machine}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if all(recipe in results for recipe in SHOWN):
        print(table(results))


if __name__ == "__main__":
    main()
