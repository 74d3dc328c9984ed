"""What a run needs to go on: weights, the optimiser's tensors, and a page of JSON. Nothing that can execute.

A checkpoint is a folder that is whole or not there (`durable.py`). Where the run stands in its data is the step: order
and randomness follow from it. Sharded tensors are gathered, so a checkpoint can be read by any number of processes.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from triune.configuration.configuration_triune import shown
from triune.training.durable import MANIFEST, PARTIAL, beside, damage, replace_folder
from triune.training.shards import cut_like, whole
from triune.training.writing import Writer


PREFIX = "step-"
BEST = "best-"
PAGE = "state.json"
WEIGHTS, MOMENTS, AVERAGES = "model.safetensors", "optimizer.safetensors", "ema.safetensors"


# ---------------------------------------------------------------------------------------------------------------------
# The optimiser


def split_optimizer(
    optimizer: torch.optim.Optimizer, keep: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state as named tensors, and all else as JSON."""
    tensors, numbers = {}, {}
    content = optimizer.state_dict()
    for parameter, entries in content["state"].items():
        for name, value in entries.items():
            if torch.is_tensor(value):
                gather(tensors, f"{parameter}.{name}", value, keep)
            else:
                numbers[f"{parameter}.{name}"] = value
    groups = [{key: value for key, value in group.items() if is_plain(value)} for group in content["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def gather(tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor, keep: bool) -> None:
    """One tensor after the other, whole, into the memory of the process that writes. All processes have to ask."""
    complete = whole(value.detach())
    if keep:
        tensors[name] = complete.cpu().contiguous()


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def join_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Put back what `split_optimizer` took apart."""
    content = optimizer.state_dict()
    groups = content["param_groups"]
    if len(groups) != len(plain["groups"]):
        raise ValueError(f"the checkpoint has {len(plain['groups'])} parameter groups and this run {len(groups)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["numbers"]}.items():
        index, name = key.split(".", 1)
        if torch.is_tensor(value) and value.shape == parameters[int(index)].shape:
            value = cut_like(value, parameters[int(index)].detach())
        state.setdefault(int(index), {})[name] = value
    merged = [{**group, **saved} for group, saved in zip(groups, plain["groups"])]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def kept(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What a file holds: every parameter once, a tied one under its first name; of a model with adapters what is
    trained, because a run that goes on loads the rest from where it came from."""
    adapted = hasattr(model, "peft_config")
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad or not adapted}


def model_tensors(model: torch.nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """What is kept, whole. Nothing on a process that does not write."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in kept(model).items():
        gather(tensors, name, parameter, keep)
    return tensors


def sum_of_the_rest(model: torch.nn.Module) -> int:
    """By which it is noticed that what is not kept has changed: a sum of integers, the same in any order."""
    files, total = kept(model), 0
    for name, parameter in model.named_parameters():
        if name not in files:
            numbers = whole(parameter.detach()).contiguous().view(-1).view(torch.int16)
            total += int(numbers.sum(dtype=torch.int64))
    return total


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}; go on from another checkpoint") from error


@torch.no_grad()
def put_tensors(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    own = kept(model)
    if tensors.keys() != own.keys():
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise ValueError(f"{source} does not fit the model: missing {missing[:5]}, unexpected {extra[:5]}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(parameter.shape)} in the model"
            raise ValueError(f"{source} does not fit the model: {name} has shape {shapes}")
        parameter.copy_(cut_like(tensors[name], parameter))


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def save_best(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The best weights so far, which take the place of those that no checkpoint names."""
    replace_folder(folder, lambda partial: save_file(tensors, partial / WEIGHTS), listed=True)
    drop_best(folder.parent, folder.name)


def save_checkpoint(
    folder: Path,
    step: int,
    model,
    optimizer,
    page: dict[str, Any],
    averages=None,
    keep: int = 2,
    main: bool = True,
    writer: Writer | None = None,
) -> Path:
    """Write the checkpoint of a step, then drop all but the newest `keep`. All processes call it, one writes; with a
    `writer` behind what follows."""
    moments, plain = split_optimizer(optimizer, keep=main)
    files = {WEIGHTS: model_tensors(model, keep=main), MOMENTS: moments}
    if averages is not None:
        files[AVERAGES] = averages.state_dict(keep=main)
    page = {**page, "step": step, "optimizer": plain, "rest": sum_of_the_rest(model)}

    def write(partial: Path) -> None:
        for name, tensors in files.items():
            save_file(tensors, partial / name)
        (partial / PAGE).write_text(json.dumps(page, indent=1), encoding="utf-8")

    final = folder / f"{PREFIX}{step:08d}"

    def work() -> None:
        replace_folder(final, write, listed=True)
        drop_old(folder, keep)

    if main:
        writer.write(files.values(), work) if writer else work()
    return final


def drop_old(folder: Path, keep: int) -> None:
    """All but the newest `keep`, and the best weights that none of these knows of."""
    found = checkpoints(folder)
    for old in found[:-keep]:
        drop(old)
    drop_best(folder, None)


def drop(folder: Path) -> None:
    """Under a name that says so: a death in the middle leaves no half of it."""
    os.rename(folder, beside(folder, PARTIAL))
    shutil.rmtree(beside(folder, PARTIAL))


def drop_best(folder: Path, newest: str | None) -> None:
    """Best weights that no checkpoint names, but for the newest, which the next one will."""
    known = {newest}
    for checkpoint in checkpoints(folder):
        try:
            known.add(best_of(read_page(checkpoint)))
        except ValueError:
            pass  # a page that nobody can read names nothing
    for best in folder.glob(f"{BEST}*"):
        if best.name not in known:
            drop(best)


def best_of(page: dict[str, Any]) -> str | None:
    """The name of the folder with the best weights when a checkpoint was written."""
    best = page.get("progress", {}).get("best")
    return f"{BEST}{int(best['step']):08d}" if best else None


def adopt(checkpoint: Path, folder: Path, best: str | None) -> str | None:
    """Make a folder's own what a run goes on from: the best weights, where the checkpoint stands in another folder.
    What is later than the checkpoint is set aside, or it would be taken for newer. Gives what is wrong with the best
    weights, if they are lost."""
    for later in checkpoints(folder):
        if later.name > checkpoint.name:
            later.rename(later.with_name(f"set-aside-{later.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    wrong = damage(checkpoint.parent / best) if best else None
    if best and not wrong and not (folder / best).exists():
        replace_folder(folder / best, lambda partial: copy_files(checkpoint.parent / best, partial))
    return f"{checkpoint.parent / best}: {wrong}" if wrong else None


def copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first, by step and never by clock."""
    return sorted(path for path in Path(folder).glob(f"{PREFIX}*") if (path / MANIFEST).is_file())


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and what is wrong with those that are newer."""
    broken = []
    for checkpoint in sorted(Path(folder).glob(f"{PREFIX}*"), reverse=True):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint, broken
        broken.append(f"{checkpoint}: {wrong}")
    return None, broken


# What a page must hold, or may.
KINDS: dict[str, Any] = {
    "step": int,
    "optimizer": dict,
    **dict.fromkeys(("arguments", "progress"), dict | None),
    **dict.fromkeys(("kernels", "attention", "precision", "data"), str | None),
    **dict.fromkeys(("threads", "world", "per_step", "rest", "flops"), int | None),
}


def read_page(checkpoint: Path) -> dict[str, Any]:
    if not (checkpoint / PAGE).is_file():
        raise ValueError(f"resume_from_checkpoint={str(checkpoint)!r} is not a checkpoint: it has no {PAGE}")
    try:
        page = json.loads((checkpoint / PAGE).read_text(encoding="utf-8"))
        wrong = [name for name, kinds in KINDS.items() if not isinstance(page.get(name), kinds)]
        best_of(page)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{checkpoint / PAGE} cannot be read: {error}; go on from another checkpoint") from error
    if wrong:
        raise ValueError(f"{checkpoint / PAGE} cannot be read: {wrong[0]}={shown(page.get(wrong[0]))} is not possible")
    return page


def load_checkpoint(checkpoint: Path, model, optimizer, averages=None) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state in place, strictly, and return its page."""
    page = read_page(checkpoint)
    if page.get("rest", 0) != sum_of_the_rest(model):
        raise ValueError(f"{checkpoint} belongs to another base: model_name_or_path has other weights than it had")
    put_tensors(model, read_tensors(checkpoint / WEIGHTS), checkpoint)
    join_optimizer(optimizer, read_tensors(checkpoint / MOMENTS), page["optimizer"])
    if averages is not None:
        averages.load_state_dict(read_tensors(checkpoint / AVERAGES))
    return page


def differences(saved: dict[str, Any], now: dict[str, Any], ignore: frozenset[str]) -> list[str]:
    """What changed between two runs, a line each."""
    keys = sorted((saved.keys() | now.keys()) - ignore)
    return [f"{key}: {saved.get(key)!r} -> {now.get(key)!r}" for key in keys if saved.get(key) != now.get(key)]
