"""Train a model of the family, from a recipe:

    accelerate launch scripts/train.py recipes/bert.yaml [--learning_rate 2e-3 ...]
    python scripts/train.py --list

A flag beats the recipe, the recipe beats the default; `--help` names all flags, `--dry_run` shows what a run would
cost. Started again, a run goes on where it stopped.
"""

import os
import sys
import time
from pathlib import Path


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or they warn when a loader forks its workers

import yaml

from triune.training.arguments import Arguments, parse


def recipes(folder: Path = Path("recipes")) -> list[tuple[str, str, str, str]]:
    """Of every recipe, in its sub-folders too: its path, what its first line says, its task and its preset."""
    found = []
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        if "task" in content:  # what accelerate is told has none
            says = text.splitlines()[0].lstrip("# ")
            found.append((str(file), says, content["task"], content.get("preset", "")))
    return found


# What takes seconds to import is imported when it is needed: `--help` and a mistyped flag are answered at once.


def print_recipes() -> None:
    from triune.training.console import Console
    from triune.training.tasks import TASKS

    Console().print_recipes(recipes(), {name: task.__doc__ for name, task in TASKS.items()})


def run(arguments: Arguments) -> None:
    import triune.conversion as conversion
    from triune.training.console import silence
    from triune.training.run import train

    silence()
    train(arguments, read_original=conversion.load)


def main(argv: list[str]) -> None:
    try:
        print_recipes() if "--list" in argv else run(parse(argv))
    except (ValueError, OSError) as error:
        give_up(str(error))
    except RuntimeError as error:
        words = known(error)
        if words is None:
            raise
        give_up(words)


def known(error: RuntimeError) -> str | None:
    """What torch says in many lines when others have ended."""
    said = str(error).splitlines()[0] if str(error) else ""
    if "gloo" in str(error) or type(error).__name__.startswith("Dist"):
        return f"another process has ended or does not answer; what it says itself is the cause ({said})"
    if "DataLoader" in str(error):
        return f"a worker that reads data gives none ({said}); --dataloader_num_workers 0 shows what it meets"
    return None


def give_up(words: str) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(5)  # a mistake that all processes find is told once: by now the launcher has ended the others
    sys.exit(f"error: {words}" if rank == "0" else f"error in process {rank}: {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
