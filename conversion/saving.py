"""A Triune model as a published one: a folder that transformers loads without any code of ours.

    save(model, "out")                       # as what it was loaded from
    save(model, "out", family="bert")        # a model that was trained here, if its configuration is one of BERT's

The folder is complete or not there: it is written beside its place and then moved. Tokenizer and image processor come
along from where the model was loaded from, or from `beside`.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedModel

from triune.configuration.configuration_triune import nearest
from triune.conversion.families import FAMILIES
from triune.conversion.family import Family
from triune.conversion.files import Source
from triune.conversion.loading import expected_tensors, is_backbone, refuse
from triune.conversion.rules import plan


MAX_SHARD = "5GB"
INDEX = "model.safetensors.index.json"


def save(
    model: PreTrainedModel, folder: str | Path, family: str | None = None, beside: str | Path | None = None
) -> Path:
    """Gives the folder."""
    chosen = family_of(model, family)
    head = type(model).__name__
    content = getattr(model.config, "converted_from", None) or {}
    content = content if content.get("model_type") == chosen.name else {}
    source = chosen.published_config.from_dict(content) if content else None
    config = chosen.to_published(model.config, head, source)
    architecture = architecture_of(chosen, head, content)
    config.architectures = [architecture]
    config.dtype = model.dtype
    tensors = published_tensors(chosen, model, architecture)
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{str(target)!r} is not empty: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial:
        place = Path(partial) / "model"
        place.mkdir()
        config.save_pretrained(place)
        write_tensors(tensors, place)
        if model.can_generate():
            model.generation_config.save_pretrained(place)
        carry(model, beside, place)
        shutil.rmtree(target, ignore_errors=True)
        place.rename(target)
    return target


def family_of(model: PreTrainedModel, name: str | None) -> Family:
    source = getattr(model.config, "converted_from", None) or {}
    name = name or source.get("model_type")
    if name is None:
        raise ValueError(f"this model was not loaded from a published one: say family=, one of {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        raise ValueError(f"family={name!r} is not there; there are {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def architecture_of(family: Family, head: str, source: dict[str, Any]) -> str:
    """transformers' class: the one that it was, if the head is the same."""
    named = [name for name in source.get("architectures") or () if family.heads.get(name) == head]
    fitting = [*named, *(name for name, own in family.heads.items() if own == head)]
    if not fitting:
        raise ValueError(f"{family.name} has no model for {head}; it has those for {', '.join(family.heads.values())}")
    return fitting[0]


def published_tensors(family: Family, model: PreTrainedModel, architecture: str) -> dict[str, torch.Tensor]:
    """Under the names of the family, in the order of the file."""
    state = model.state_dict()
    own = {name: state[there] for name, there in expected_tensors(model).items()}
    own |= {name: computed(model, name) for name in family.computed if name not in own}
    made = plan(family.rules(model.config), own, back=True)
    refuse(f"this model as {family.name}", unknown=made.unknown)
    found: dict[str, torch.Tensor] = {}
    for step in made.steps:
        found |= step.run(own.get)
    prefix = family.prefix if is_backbone(model) else ""
    return {name.removeprefix(prefix): tensor.contiguous() for name, tensor in sorted(found.items())}


def carry(model: PreTrainedModel, beside: str | Path | None, folder: Path) -> None:
    """What lies beside the weights that it came from, if they are still there."""
    if beside is not None:
        Source(str(beside)).carry(folder)
    elif model.name_or_path:
        with contextlib.suppress(ValueError):
            Source(model.name_or_path).carry(folder)


def computed(model: PreTrainedModel, name: str) -> torch.Tensor:
    """A table of positions, from the formula that stands for it."""
    positions = model.get_submodule(name.removesuffix(".table.weight"))
    frame, like = positions.frame, next(model.parameters())
    places = torch.arange(frame.num_positions, device=like.device)[None]
    return positions.addend(like, places, frame.grid).reshape(frame.num_positions, frame.hidden_size)


def write_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """As transformers writes them: parts of at most `MAX_SHARD`, with an index where there are several."""
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=MAX_SHARD)
    for file, names in split.filename_to_tensors.items():
        # a tensor that is a part of another one's memory is written by itself
        save_file({name: tensors[name].clone() for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
    if split.is_sharded:
        page = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")
