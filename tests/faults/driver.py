"""`scripts/train.py` with something that goes wrong in it:

    python driver.py '[{"at": "update", "step": 7, "rank": 1, "do": "kill"}]' --task causal_lm ...

Each fault happens once, however often the script is started again, and leaves a file that says so beside the run.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from script_loading import load_script

from triune.training import leaving, state
from triune.training.loop import Loop


def spoil(loop: Loop) -> None:
    """A gradient that is not finite, of this process alone."""
    task = loop.task
    loss = task.loss

    def spoiled(*given):
        task.loss = loss
        return loss(*given) * float("nan")

    task.loss = spoiled


def fail(_) -> None:
    raise RuntimeError("a mistake of ours")


def fill_disk(_) -> None:
    def full(*given, **named):
        raise OSError(28, os.strerror(28))

    state.save_file = full


def exhaust(_) -> None:
    torch.empty(2**50)


ACTIONS = {
    "raise": fail,
    "exit": lambda _: os._exit(0),
    "spoil": spoil,
    "full": fill_disk,
    "exhaust": exhaust,
    "hang": lambda _: time.sleep(1000),
    "slow": lambda _: time.sleep(3),
    **{
        name: lambda _, number=number: os.kill(os.getpid(), number)
        for name, number in {
            "kill": signal.SIGKILL,
            "stop": signal.SIGSTOP,
            "term": signal.SIGTERM,
            "int": signal.SIGINT,
            "usr1": signal.SIGUSR1,
        }.items()
    },
}


def install(fault: dict, number: int) -> None:
    """Before the loop's method `at` of the step: update, evaluate, save or finish."""
    sound = getattr(Loop, fault["at"])
    rank = int(os.environ.get("RANK", "0"))

    def faulty(self, *given, **named):
        mark = Path(f"{self.folder}.fault-{number}")
        if self.progress.step == fault["step"] and rank == fault.get("rank", 0) and not mark.exists():
            mark.touch()
            for action in fault["do"].split():
                ACTIONS[action](self)
        return sound(self, *given, **named)

    setattr(Loop, fault["at"], faulty)


if __name__ == "__main__":
    for place, one in enumerate(json.loads(sys.argv[1])):
        install(one, place)
    leaving.figures.available = lambda: False
    differing = ["--learning_rate", "0.02"] if os.environ.get("DIFFERING_RANK") == os.environ.get("RANK", "0") else []
    load_script("scripts/train.py").main([*sys.argv[2:], *differing])
