"""The folder of a run: what it goes on from, what it may not change, and what is kept when it starts over."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from triune.training import report, state
from triune.training.arguments import Arguments, known_flags
from triune.training.console import NOT_METRICS


SUMMARY = "summary.json"  # written last: a run that has one is complete

# What may differ between a run and its continuation: where things are, how often one looks, how long one may stay.
MAY_CHANGE = frozenset(
    {
        *("output_dir", "resume_from_checkpoint", "dry_run", "report_to", "max_minutes", "max_train_tokens"),
        *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "per_device_eval_batch_size", "load_best_model_at_end"),
        # the samples of a step are the same however they are dealt out: their product is compared
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    }
)


def recorded(arguments: Arguments) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from, with its page."""
    folder, wanted = Path(arguments.training.output_dir), arguments.training.resume_from_checkpoint
    if wanted == "no":
        return None, {}
    if wanted != "auto":
        return Path(wanted), state.read_page(Path(wanted))
    found = state.checkpoints(folder / "checkpoints")
    return (found[-1], state.read_page(found[-1])) if found else (None, {})


def refuse_changes(checkpoint: Path, page: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on as what it was. A flag that is newer than the checkpoint had its default."""
    defaults = {name: field.default for name, field in known_flags().items()}
    changed = state.differences({**defaults, **page["arguments"]}, {**defaults, **now["arguments"]}, MAY_CHANGE)
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


def write_run(folder: Path, arguments: Arguments, page: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(arguments.as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "run.yaml").write_text(plain, encoding="utf-8")
    rest = {name: value for name, value in page.items() if name != "arguments"}
    (folder / "environment.json").write_text(json.dumps(rest, indent=1), encoding="utf-8")
