"""A race to a loss: nanoGPT's public configuration for a processor, and the best recipe of as many parameters.

    python benchmarks/race.py text.txt [--seeds 0 1 2] [--name shakespeare]
    python benchmarks/race.py --table

The first 90 % of the text are trained on, the last 10 % are held out, as nanoGPT does it. Both recipes
(`benchmarks/race/*.yaml`) run by turns on this machine; time is that of training, without evaluations. What counts is
the time at which the held-out loss is what the first recipe ends with; and the loss after as much time, by a run of
the second one with as many more steps. Written into `benchmarks/results/race.json`, with the hash of the text, which
is not part of this repository.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from suites.measuring import markdown

from triune.training.environment import processor
from triune.training.report import replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "race.json"
RECIPES = {name: ROOT / "benchmarks" / "race" / f"{name}.yaml" for name in ("nanogpt", "best")}
LONGER = "best, for as long"


def split(text: str, folder: Path) -> list[str]:
    """The flags that name both parts."""
    place = int(0.9 * len(text))
    flags = []
    for name, part in (("train", text[:place]), ("validation", text[place:])):
        file = folder / f"{name}.txt"
        file.write_text(part, encoding="utf-8")
        flags += [f"--{name}_file", str(file)]
    return flags


def run(name: str, seed: int, flags: list[str], folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Its curve, (seconds of training, loss on some of the held-out rows), and at the end the loss on all of them."""
    place = folder / f"{name}-{seed}-{steps}"
    words = [str(RECIPES[name]), *flags, "--seed", str(seed), "--output_dir", str(place)]
    words += ["--max_steps", str(steps)] if steps else []
    command = [sys.executable, "scripts/train.py", *words, "--resume_from_checkpoint", "no"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["kind"] == "eval"]
    curve = [(record["seconds"], record["loss"]) for record in evaluations if not record["full"]]
    page = json.loads((place / "environment.json").read_text())
    ended = {"final": evaluations[-1]["loss"], "seconds": curve[-1][0], "steps": evaluations[-1]["step"]}
    return {"curve": curve, **ended, "kernels": page["kernels"]}


def reached(curve: list[tuple[float, float]], loss: float) -> float | None:
    """The seconds at which a curve comes down to a loss, on the line between two evaluations."""
    for (earlier, above), (later, below) in itertools.pairwise(curve):
        if below <= loss:
            return earlier + (later - earlier) * (above - loss) / max(above - below, 1e-9)
    return None


def race(text: str, seeds: list[int]) -> dict[str, Any]:
    found: dict[str, list[dict]] = {name: [] for name in (*RECIPES, LONGER)}
    with tempfile.TemporaryDirectory() as folder:
        flags = split(text, Path(folder))
        for place, seed in enumerate(seeds):
            for name in RECIPES if place % 2 == 0 else reversed(RECIPES):
                found[name].append(run(name, seed, flags, Path(folder)))
                print(f"{name}, seed {seed}: {found[name][-1]['final']}", flush=True)
            theirs, ours = found["nanogpt"][-1], found["best"][-1]
            steps = round(ours["steps"] * theirs["seconds"] / ours["seconds"])
            found[LONGER].append(run("best", seed, flags, Path(folder), steps))
            print(f"{LONGER}, seed {seed}: {found[LONGER][-1]['final']}", flush=True)
    pairs = list(zip(found["nanogpt"], found["best"]))
    times = [reached(ours["curve"], theirs["curve"][-1][1]) for theirs, ours in pairs]
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "characters": len(text),
        "runs": found,
        "share_of_time": [None if one is None else one / theirs["seconds"] for one, (theirs, _) in zip(times, pairs)],
        "machine": processor(),
    }


def table(found: dict[str, dict]) -> str:
    """Of each text, medians over the seeds, with the lowest and the highest."""
    rows = []
    for name, result in found.items():
        shares = [math.inf if share is None else share for share in result["share_of_time"]]
        cells = [f"{name}, {result['characters']:,} characters", spread(shares, "{:.2f}", bold=True)]
        for runs in (result["runs"].get(arm, []) for arm in (*RECIPES, LONGER)):
            cells.append(spread([one["curve"][-1][1] for one in runs], "{:.3f}"))
            cells.append(spread([one["seconds"] for one in runs], "{:.0f}"))
        rows.append(cells)
    head = ["text", "share of its time until ours is where nanoGPT's recipe ends"]
    ends = ["loss of nanoGPT's recipe", "seconds", "of ours", "seconds", "of ours for as long", "seconds"]
    return markdown([*head, *ends], rows)


def spread(values: list[float], form: str, bold: bool = False) -> str:
    if not values:
        return "not run"
    middle = form.format(statistics.median(values))
    return f"{f'**{middle}**' if bold else middle} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--table", action="store_true", help="race nothing, show what was measured")
    parser.add_argument("--name", help="of the text, in the results; default: its file's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    if asked.table:
        return print(table(json.loads(RESULTS.read_text())))
    result = race(asked.text.read_text(encoding="utf-8"), asked.seeds)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    replace(RESULTS, json.dumps(kept | {asked.name or asked.text.stem: result}, indent=1) + "\n")
    for name, runs in result["runs"].items():
        loss, seconds = (statistics.median(one[what] for one in runs) for what in ("final", "seconds"))
        print(f"{name}: {loss:.3f} after {seconds:.0f} s")
    return print("share of the time to the same loss:", result["share_of_time"])


if __name__ == "__main__":
    main()
