"""The matrix of faults: runs what has not passed on this commit, and writes what came out.

python tests/faults/run.py            # or: make test-faults
python tests/faults/run.py C1 C2      # some rows, again
python tests/faults/run.py --table    # docs/faults.md from what was written
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import yaml


ROOT = Path(__file__).resolve().parents[2]
MATRIX = Path(__file__).with_name("matrix.yaml")
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "faults.md"
HEAD = """# What happens to a run, and what comes of it

Written by `python tests/faults/run.py` (`make test-faults`) from `tests/faults/matrix.yaml` and its results. Each
fault is injected into a real run; a fault that does not happen fails its test.

| | fault | how | came out | seconds |
|---|---|---|---|---|
"""


def load() -> dict[str, dict]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def state_of_the_tree() -> str:
    """The commit, and what is not committed."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    others = [line for line in changed.splitlines() if not line.endswith((RESULTS.name, PAGE.name))]
    return commit[:12] + ("+" if others else "")


def run(row: dict, state: str) -> dict:
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        words = ["-q", "-m", "", "-p", "no:cacheprovider", "--junitxml", report.name, "-o", "junit_family=xunit1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *words, *row["tests"]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        found = figures(Path(report.name))
    says = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else done.stderr.strip()[-200:]
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-1000:])
    counts = says.split(" in ")[0]
    seconds = round(time.monotonic() - begun)
    return {"passed": done.returncode == 0, "says": counts, "figures": found, "seconds": seconds, "commit": state}


def figures(report: Path) -> dict[str, float]:
    """What the tests measured; of one that ran with few and with many cases, the many."""
    text = report.read_text(encoding="utf-8")
    entries = ElementTree.fromstring(text).iter("property") if text else ()
    return {entry.get("name"): float(entry.get("value")) for entry in entries}


def said(result: dict) -> str:
    measured = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in result.get("figures", {}).items())
    return "; ".join(filter(None, (result["says"], measured)))


def table(rows: list[dict], found: dict[str, dict]) -> str:
    lines = []
    for row in rows:
        result = found.get(row["id"])
        came, seconds = (said(result), result["seconds"]) if result else (row.get("missing", "not run"), "")
        lines.append(f"| {row['id']} | {row['fault']} | {row['how']} | {came} | {seconds} |")
    passed = sum(result["passed"] for result in found.values())
    return HEAD + "\n".join(lines) + f"\n\n{passed} of {len(rows)} rows passed.\n"


def main(words: list[str]) -> None:
    rows = yaml.safe_load(MATRIX.read_text(encoding="utf-8"))
    wanted, state = [word for word in words if not word.startswith("--")], state_of_the_tree()
    for row in rows if "--table" not in words else ():
        found = load()
        before = found.get(row["id"], {})
        again = row["id"] in wanted or (not wanted and not (before.get("passed") and before["commit"] == state))
        if again and row.get("tests"):
            result = found[row["id"]] = run(row, state)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{row['id']:4} {result['says']} ({result['seconds']} s)  {row['fault']}", flush=True)
    found = {row["id"]: load()[row["id"]] for row in rows if row["id"] in load()}
    PAGE.write_text(table(rows, found), encoding="utf-8")
    if not all(result["passed"] for result in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
