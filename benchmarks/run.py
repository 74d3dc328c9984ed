"""Triune beside transformers' own models and the plain tools: by turns, on one machine, in one run.

    python benchmarks/run.py                                 # every suite, into benchmarks/results/speed.json
    python benchmarks/run.py steps mlm clm --precision bf16  # of one suite some jobs
    python benchmarks/run.py steps --device cuda             # the same on a GPU
    python benchmarks/run.py --quick --busy                  # small models, to see that it runs; nothing is written
    python benchmarks/run.py --check                         # is anything slower than what is committed?
    python benchmarks/run.py --table                         # the tables of what was measured
    python benchmarks/run.py growth --table                  # one of them; of growth also its picture

The arms take turns, A B B A, and what counts is the median of the ratios of neighbours, with an interval of 95 % by
resampling. On a busy machine nothing is measured unless `--busy` says that it should be. `docs/performance.md` shows
the tables.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from suites import checkpoint, data, generation, growth, levers, scaling, startup, steps

from triune.training.environment import processor, versions
from triune.training.report import replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PICTURE = ROOT / "docs" / "pictures" / "growth.png"
IDLE = 0.3  # load of the machine, beside ourselves
SUITES = {
    "steps": steps,
    "levers": levers,
    "generation": generation,
    "data": data,
    "startup": startup,
    "checkpoint": checkpoint,
    "scaling": scaling,
    "growth": growth,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("suite", nargs="?", help=f"of {', '.join(SUITES)}; default: all of them")
    made.add_argument("jobs", nargs="*", help="of the suite; default: all of them")
    made.add_argument("--precision", choices=("no", "bf16"), nargs="+", default=["no", "bf16"])
    made.add_argument("--device", default="cpu")
    made.add_argument("--rounds", type=int, default=6, help="turns of each arm")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--quick", action="store_true", help="small models; nothing is written")
    made.add_argument("--busy", action="store_true", help="measure whatever else the machine does")
    made.add_argument("--check", action="store_true", help="write nothing; fail where a ratio has dropped by a tenth")
    made.add_argument("--table", action="store_true", help="measure nothing, show what was measured")
    steps.flags(made)
    return made


def refuse_busy(asked: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    if load > IDLE and not asked.busy:
        sys.exit(
            f"error: the load is {load:.2f}, and what is measured beside other work is worth little; --busy: anyway"
        )


DROPPED = 0.9  # of a committed ratio


def dropped(suite: str, row: dict[str, Any]) -> list[str]:
    """Ratios that are worse than those committed of the same job."""
    found = json.loads(RESULTS.read_text()).get(suite, [])
    before = next((one for one in found if SUITES[suite].key(one) == SUITES[suite].key(row)), {})
    ratios = {name: ratio["median"] for name, ratio in before.items() if name.startswith("against_")}
    now = {name: row[name]["median"] if name in row else 0.0 for name in ratios}  # 0: the two do not agree
    return [
        f"{row['job']}: {name} is {now[name]:.2f}, and was {ratio:.2f}"
        for name, ratio in ratios.items()
        if now[name] < DROPPED * ratio
    ]


def note(suite: str, row: dict[str, Any]) -> None:
    """In the place of what was measured of the same before."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    key = SUITES[suite].key
    kept = [one for one in found.get(suite, []) if key(one) != key(row)]
    replace(RESULTS, json.dumps(found | {suite: [*kept, row]}, indent=1) + "\n")


def main() -> None:
    asked = parser().parse_args()
    if asked.suite and asked.suite not in SUITES:
        sys.exit(f"error: there is no suite {asked.suite!r}; there are {', '.join(SUITES)}")
    names = [asked.suite] if asked.suite else list(SUITES)
    if asked.table:
        measured = json.loads(RESULTS.read_text())
        if asked.suite == "growth":
            growth.draw(measured["growth"], PICTURE)
        return print("\n\n".join(SUITES[name].table(measured[name]) for name in names if name in measured))
    for job in asked.jobs:
        if job not in SUITES[asked.suite].JOBS:
            sys.exit(f"error: {asked.suite} has no job {job!r}; it has {', '.join(SUITES[asked.suite].JOBS)}")
    torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not asked.memory_of:
        refuse_busy(asked)
    worse = []
    for name in names:
        for job in asked.jobs or SUITES[name].JOBS:
            for row in SUITES[name].rows(job, asked):
                row |= {"device": asked.device, "threads": asked.threads, "load": os.getloadavg()[0]}
                print(SUITES[name].table([row]).splitlines()[-1], flush=True)
                if asked.check:
                    worse += dropped(name, row)
                elif not asked.quick:
                    note(name, row | {"machine": processor(), "versions": versions()})
    return sys.exit("error: slower than before: " + "; ".join(worse)) if worse else None


if __name__ == "__main__":
    main()
