"""What a run needs to go on: weights, the optimiser's tensors, and a page of JSON. Nothing that can execute.

A checkpoint is written into a temporary folder and renamed when it is complete, so the newest folder with the right
name is whole. Where the run stands in its data is the step: order and randomness follow from it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


PREFIX = "step-"


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state as named tensors, and all else as JSON."""
    tensors, numbers = {}, {}
    content = optimizer.state_dict()
    for parameter, entries in content["state"].items():
        for name, value in entries.items():
            target = tensors if torch.is_tensor(value) else numbers
            target[f"{parameter}.{name}"] = value.clone().contiguous() if torch.is_tensor(value) else value
    groups = [{key: value for key, value in group.items() if is_plain(value)} for group in content["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def join_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Put back what `split_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["numbers"]}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(plain["groups"]):
        raise ValueError(f"the checkpoint has {len(plain['groups'])} parameter groups and this run {len(groups)}")
    merged = [{**group, **saved} for group, saved in zip(groups, plain["groups"])]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter once: a tied one under its first name."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def save_checkpoint(folder: Path, step: int, model, optimizer, page: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of a step, then drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors, plain = split_optimizer(optimizer)
    save_file(model_tensors(model), partial / "model.safetensors")
    save_file(tensors, partial / "optimizer.safetensors")
    page = {**page, "step": step, "optimizer": plain}
    (partial / "state.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first, by step and never by clock."""
    return sorted(path for path in Path(folder).glob(f"{PREFIX}*") if (path / "state.json").is_file())


def read_page(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def load_checkpoint(checkpoint: Path, model, optimizer) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state in place, strictly, and return its page."""
    page = read_page(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    own = dict(model.named_parameters())
    if tensors.keys() != own.keys():
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise ValueError(f"{checkpoint} does not fit the model: missing {missing[:5]}, unexpected {extra[:5]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    join_optimizer(optimizer, load_file(checkpoint / "optimizer.safetensors"), page["optimizer"])
    return page


def differences(saved: dict[str, Any], now: dict[str, Any], ignore: frozenset[str]) -> list[str]:
    """What changed between two runs, a line each."""
    keys = sorted((saved.keys() | now.keys()) - ignore)
    return [f"{key}: {saved.get(key)!r} -> {now.get(key)!r}" for key in keys if saved.get(key) != now.get(key)]
