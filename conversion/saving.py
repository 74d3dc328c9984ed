"""A Triune model as a published one: a folder that transformers loads without any code of ours.

    save(model, "out")                       # as what it was loaded from
    save(model, "out", family="bert")        # a model that was trained here, if its configuration is one of BERT's

The folder is complete or not there: it is written beside its place and then moved. Tokenizer and image processor are
taken from where the model was loaded from, or from `beside`.
"""

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
from triune.conversion.loading import expected_tensors, refuse
from triune.conversion.rules import plan


MAX_SHARD = "5GB"
ALONE = ("TriuneModel", "TriuneSeq2SeqModel")  # without a head, and without the prefix that is there below one
INDEX = "model.safetensors.index.json"
# What turns inputs into tensors, and is not the configuration or the weights of a model.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "spiece.model", "source.spm", "target.spm", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json"),
)


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
        carry(Path(beside or model.name_or_path), place)
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
    own = {name: model.get_parameter(there) for name, there in expected_tensors(model).items()}
    made = plan(family.rules(model.config), own, back=True)
    refuse(f"this model as {family.name}", unknown=made.unknown)
    found: dict[str, torch.Tensor] = {}
    for step in made.steps:
        found |= step.run(lambda name: own[name].detach())
    prefix = family.prefix if family.heads[architecture] in ALONE else ""
    return {name.removeprefix(prefix): tensor.contiguous() for name, tensor in sorted(found.items())}


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


def carry(source: Path, folder: Path) -> None:
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
