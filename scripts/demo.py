"""Three models of the family, trained one after another on data that comes with Triune: `make demo`.

Each is an ordinary run, `python scripts/train.py recipes/<name>.yaml`, and stays in `runs/demo-<name>`. Run again, it
starts afresh and keeps what was there. (On one processor the launcher of accelerate adds nothing but its threads.)
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from triune.training.console import Console, before_after, clock
from triune.training.report import read


RECIPES = {
    "bert": "reads words both ways, fills in what is hidden",
    "gpt": "reads words left to right, goes on",
    "vit": "reads pictures, names them",
}


def train(name: str, flags: list[str]) -> Path:
    folder = Path("runs", f"demo-{name}")
    run = [f"recipes/{name}.yaml", "--output_dir", str(folder), "--resume_from_checkpoint", "no"]
    if subprocess.run([sys.executable, "scripts/train.py", *run, *flags]).returncode:
        sys.exit(f"error: the run of recipes/{name}.yaml ended early, see above")
    return folder


def evaluations(folder: Path) -> tuple[dict, dict]:
    """The first and the last."""
    records = [record for record in read(folder) if record["kind"] == "eval" and record["full"]]
    return records[0], records[-1]


def main(flags: list[str]) -> None:
    console, start = Console(), time.perf_counter()
    folders = {}
    for number, (name, says) in enumerate(RECIPES.items(), 1):
        console.heading(f"{number} of {len(RECIPES)}: {name.upper()} {says}")
        folders[name] = train(name, flags)
    for name, folder in folders.items():
        baselines = json.loads((folder / "environment.json").read_text())["baselines"]
        rows = before_after(*evaluations(folder), baselines)
        rows |= {"model": f"{folder}/model/", "figures": f"{folder}/figures/", "numbers": f"{folder}/metrics.jsonl"}
        console.end(rows, title=f"{name.upper()} {RECIPES[name]}")
    console.note(f"three models in {clock(time.perf_counter() - start)}; try them:")
    console.note('  python scripts/predict.py runs/demo-bert/model "The with statement is used to [MASK] a block."')
    console.note('  python scripts/predict.py runs/demo-gpt/model "The with statement"')
    console.note("and see the page that each would have on the Hub:")
    console.note("  python scripts/publish.py --preview runs/demo-vit")


if __name__ == "__main__":
    main(sys.argv[1:])
