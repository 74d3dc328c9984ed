"""The folder of a run: what it goes on from, what it may not change, and what is kept when it starts over."""

import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from triune.training import report, state
from triune.training.arguments import Arguments, known_flags
from triune.training.console import NOT_METRICS
from triune.training.durable import damage, recover


SUMMARY = "summary.json"  # written last: a run that has one is complete

# What may differ between a run and its continuation: where things are, how often one looks, how long one may stay.
MAY_CHANGE = frozenset(
    {
        *("output_dir", "resume_from_checkpoint", "dry_run", "report_to", "max_minutes", "max_train_tokens"),
        *("ddp_timeout", "verify_data"),
        *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "per_device_eval_batch_size", "load_best_model_at_end"),
        # the samples of a step are the same however they are dealt out: their product is compared
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    }
)


class Start(NamedTuple):
    """What a run goes on from: a checkpoint with its page, and what is wrong with newer ones."""

    checkpoint: Path | None = None
    page: dict[str, Any] = {}  # noqa: RUF012
    broken: list[str] = []  # noqa: RUF012


def recorded(arguments: Arguments) -> Start:
    folder, wanted = Path(arguments.training.output_dir), arguments.training.resume_from_checkpoint
    if wanted == "no":
        return Start()
    if wanted != "auto":
        page, wrong = state.read_page(Path(wanted)), damage(Path(wanted))
        if wrong:
            raise ValueError(f"resume_from_checkpoint={wanted!r} is damaged: {wrong}; go on from another checkpoint")
        return Start(Path(wanted), page)
    found, broken = state.newest_whole(folder / "checkpoints")
    if broken and found is None:
        raise ValueError(
            f"output_dir={str(folder)!r} has no checkpoint that is whole:\n  "
            + "\n  ".join(broken)
            + "\nTo start over, and keep what is there under another name: --resume_from_checkpoint no"
        )
    return Start(found, state.read_page(found), broken) if found else Start()


def refuse_changes(checkpoint: Path, page: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on as what it was. A flag that is newer than the checkpoint had its default."""
    defaults = {name: field.default for name, field in known_flags().items()}
    changed = state.differences(
        {**defaults, **(page.get("arguments") or {})}, {**defaults, **now["arguments"]}, MAY_CHANGE
    )
    for name, field in (("data", "data"), ("samples of a step", "per_step"), ("precision", "precision")):
        changed += state.differences({name: page.get(field)}, {name: now.get(field)}, frozenset())
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings:\n  "
            + "\n  ".join(changed)
            + "\nGo on with the former ones, or start over: --resume_from_checkpoint no, or another --output_dir"
        )


def make_room(folder: Path, checkpoint: Path | None) -> Path | None:
    """A run that starts over, or goes on from another folder's checkpoint, keeps what was there under another name. In
    the latter case the other one's records come along."""
    home = None if checkpoint is None else checkpoint.resolve().parent.parent
    if home == folder.resolve() or not (folder / "run.yaml").is_file():
        aside = None
    else:
        number = next(count for count in range(1, 10**6) if not folder.with_name(f"{folder.name}.{count}").exists())
        aside = folder.rename(folder.with_name(f"{folder.name}.{number}"))
    if home is not None and home != folder.resolve() and (home / report.RECORDS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / report.RECORDS, folder / report.RECORDS)
    return aside


def finished(folder: Path, step: int) -> dict[str, Any] | None:
    """The last metrics of a run that has come to its end at this step, and left all that it leaves."""
    if not (folder / SUMMARY).is_file() or not (folder / report.RECORDS).is_file():
        return None
    records = report.read(folder / report.RECORDS)
    last = records[-1] if records else {}
    ended = last.get("kind") == "eval" and last.get("full") and last.get("step") == step and step > 0
    return {name: value for name, value in last.items() if name not in NOT_METRICS} if ended else None


ENDED = "exit.json"  # how the last start of a run ended: what a scheduler reads, where a launcher hides the status


def clear(folder: Path) -> None:
    """What the last start left behind: how it ended, and what it was writing when it died."""
    if (folder / "run.yaml").is_file():
        (folder / ENDED).unlink(missing_ok=True)
        recover(folder)
        recover(folder / "checkpoints")


def note_end(folder: Path, status: int, reason: str) -> None:
    """The first process that says something is the one that knows: what others see of a death is its consequence."""
    if not (folder / "run.yaml").is_file():
        return  # nothing was begun
    end = {"status": status, "reason": reason, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        with (folder / ENDED).open("x", encoding="utf-8") as file:
            file.write(json.dumps(end, indent=1) + "\n")
    except OSError:
        pass  # said already; or the disk is full, and what failed is on the console


def write_run(folder: Path, arguments: Arguments, page: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(arguments.as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "run.yaml").write_text(plain, encoding="utf-8")
    rest = {name: value for name, value in page.items() if name != "arguments"}
    (folder / "environment.json").write_text(json.dumps(rest, indent=1), encoding="utf-8")
