"""LoRA through PEFT: a saved model stays as it is, and small matrices beside its linear maps learn.

    add_adapters(model, arguments.model, fresh=["classifier.weight", "classifier.bias"])  # in place, before training
    save_adapter(model, folder, base="bert-base-uncased")  # PeftModel.from_pretrained(base_model, folder)
    merge(model)                                           # in place: an ordinary model again

A map W x becomes W x + (alpha / rank) B A x, with A (rank, in) random and B (out, rank) zero, so that the model is at
first what it was. What the saved model did not have, such as a new classifier, is trained whole. The model stays of
its class: the loop, its evaluations and its checkpoints see more parameters, most of them frozen, and no wrapper.

Source: https://arxiv.org/abs/2106.09685. PEFT is optional, and imported where it is used.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from triune.configuration.configuration_triune import nearest
from triune.training import state
from triune.training.arguments import ModelArguments, without_folders
from triune.training.durable import replace_folder
from triune.training.hub.facts import on_the_hub
from triune.training.optimizers import LAYER
from triune.training.shards import cut_like, whole


TARGETS = "q_proj,v_proj"  # the paper's choice, and PEFT's for this type of model
ALL = "all-linear"  # instead of names: every linear map of the layers
NAME = "default"  # of the adapter, as PEFT has it
PREFIX = "base_model.model."  # of every name in an adapter's file
TASK_TYPES = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}  # those that generate
CARD = """---
library_name: peft
{hub}tags: [lora]
---
LoRA, rank {rank}, for `{base}`:

```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}", trust_remote_code=True{labels})
model = PeftModel.from_pretrained(base, "this folder")
```
"""


class Added(NamedTuple):
    """What is trained."""

    maps: list[str]  # the linear maps that have matrices beside them
    heads: list[str]  # and the modules that are trained whole
    trained: int
    total: int

    def __str__(self) -> str:
        kinds = ", ".join(sorted(kinds_of(self.maps)))
        rest = f", and the whole of {', '.join(self.heads)}" if self.heads else ""
        share = f"{self.trained:,} of {self.total:,} parameters, {self.trained / self.total:.2%}"
        return f"LoRA beside {len(self.maps)} linear maps ({kinds}){rest}: trains {share}"


# ---------------------------------------------------------------------------------------------------------------------
# Before training


def add_adapters(model: nn.Module, settings: ModelArguments, fresh: Iterable[str] = ()) -> Added:
    """In place. `fresh`: names of the parameters that the saved model did not have."""
    try:
        import peft
    except ImportError as error:
        rank = settings.lora_rank
        raise ValueError(f'lora_rank={rank} needs PEFT, which is not installed: pip install "triune[lora]"') from error
    tied = tied_names(model)
    heads = sorted({module_of(name, model.base_model_prefix) for name in fresh})
    maps = chosen_maps(model, settings.lora_target_modules or TARGETS, heads, tied)
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=short_names(model, maps),
        task_type=TASK_TYPES.get(auto_class(model)),
    )
    peft.inject_adapter_in_model(config, model, NAME)  # and freezes all else
    config.modules_to_save = heads or None  # only now: PEFT would train a copy beside each
    for name in heads:
        for own, parameter in model.get_submodule(name).named_parameters():
            parameter.requires_grad_(f"{name}.{own}" not in tied)
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Added(maps, heads, trained, sum(parameter.numel() for parameter in parameters))


def chosen_maps(model: nn.Module, wanted: str, heads: list[str], tied: set[str]) -> list[str]:
    """The linear maps that are meant: by the last parts of their names, or all of the layers. What is trained whole
    has no use for LoRA, and a map that is tied to the embeddings could not be merged without them."""
    known = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.weight" not in tied
        and not any(f"{name}.".startswith(f"{head}.") for head in heads)
    ]
    if wanted == ALL:
        return [name for name in known if LAYER.match(name)]
    found = []
    for word in map(str.strip, wanted.split(",")):
        fitting = [name for name in known if f".{name}".endswith(f".{word}")]
        if not fitting:
            kinds = sorted(kinds_of(known))
            raise ValueError(
                f"lora_target_modules={wanted!r}: there is no linear map {word!r} to adapt{nearest(word, kinds)}; "
                f"there are {', '.join(kinds)}, and {ALL!r} for those of all layers"
            )
        found += fitting
    return sorted(set(found), key=known.index)


def kinds_of(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def short_names(model: nn.Module, maps: list[str]) -> list[str]:
    """`q_proj` for every q_proj, as PEFT reads it; whole names where only some are meant."""
    kinds = kinds_of(maps)
    alike = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in kinds]
    return sorted(kinds) if sorted(alike) == sorted(maps) else maps


def module_of(parameter: str, backbone: str) -> str:
    """The module that is saved whole: a head, or what is inside of the backbone."""
    first = parameter.partition(".")[0]
    return parameter.rpartition(".")[0] if first == backbone else first


def tied_names(model: nn.Module) -> set[str]:
    """The parameters that have several names, by each of them."""
    named = list(model.named_parameters(remove_duplicate=False))
    counts = Counter(id(parameter) for _, parameter in named)
    return {name for name, parameter in named if counts[id(parameter)] > 1}


def auto_class(model: nn.Module) -> str:
    """By the class that it was: FSDP2 makes another of it."""
    heads = model.config.heads
    return next(heads[base.__name__].auto_class for base in type(model).__mro__ if base.__name__ in heads)


# ---------------------------------------------------------------------------------------------------------------------
# After training


def adapted(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def save_adapter(model: nn.Module, folder: Path, base: str, main: bool = True) -> None:
    """In PEFT's format, with a page that says how to load it. All processes call it, the main one writes."""
    config, tensors = model.peft_config[NAME], state.model_tensors(model, keep=main)
    heads = tuple(f"{name}." for name in config.modules_to_save or ())
    kept = {name: value for name, value in tensors.items() if ".lora_" in name or name.startswith(heads)}
    config.base_model_name_or_path = without_folders(base)
    config.target_modules = sorted(config.target_modules)  # a set, in another order in every process
    config.inference_mode = True

    def write(partial: Path) -> None:
        config.save_pretrained(str(partial))
        named = {PREFIX + name.replace(f".{NAME}.", "."): value for name, value in kept.items()}
        save_file(named, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        labels = f", num_labels={model.config.num_labels}" if heads else ""
        hub = f"base_model: {base}\n" if on_the_hub(base) else ""
        name, kind = config.base_model_name_or_path, auto_class(model)
        page = CARD.format(hub=hub, base=name, rank=config.r, auto_class=kind, labels=labels)
        (partial / "README.md").write_text(page, encoding="utf-8")

    if main:
        replace_folder(folder, write)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """In place: W + (alpha / rank) B A takes the place of the three. Sharded ones stay sharded, which PEFT's own
    merging does not know."""
    for name, layer in list(model.named_modules()):
        if not hasattr(layer, "lora_A"):
            continue
        down, up = (whole(matrices[NAME].weight) for matrices in (layer.lora_A, layer.lora_B))
        weight = layer.get_base_layer().weight
        weight.add_(cut_like(layer.scaling[NAME] * (up @ down), weight))
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
