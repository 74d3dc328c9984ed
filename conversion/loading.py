"""A published model as a Triune model that computes the same.

    model = load("openai-community/gpt2")                              # or a folder; the head that it was saved with
    model = load("google-bert/bert-base-uncased", head="TriuneForSequenceClassification")
    model = load("mae_pretrain_vit_base.pth")                          # an author's own file, in a known layout
    model, report = load("...", output_loading_info=True)

Strict: every tensor of the file goes somewhere, every parameter comes from somewhere, or one error names them all.
What files of a family are known to hold for another head than their own, as BERT's do for sentence pairs, is left out.
With another head than the file has, so is what belongs to its own, and what the new one needs starts fresh; the report
says what.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

import triune.modeling as modeling
from triune.configuration import CONFIGS, merged
from triune.configuration.configuration_triune import nearest
from triune.conversion.families import FAMILIES
from triune.conversion.family import BUFFERS, LABELS, Fact, Family, head_of
from triune.conversion.files import Source, Tensors, opened
from triune.conversion.layouts import in_todays_layout
from triune.conversion.rules import Plan, plan
from triune.modeling.transformer import Transformer


class Report(NamedTuple):
    family: str
    head: str
    converted: int  # tensors that went into the model
    left_out: list[str]  # of another head, as Triune calls them if it has it
    copies: list[str]  # that stood in the file twice
    fresh: list[str]  # that the file has not, as Triune calls them


def load(
    source: str,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    output_loading_info: bool = False,
    attn_implementation: str | None = None,
    config: dict[str, Any] | None = None,
    **where: Any,
) -> PreTrainedModel | tuple[PreTrainedModel, Report]:
    """`head`: the name of a class of `triune.modeling`. `dtype`: by default the one in the file. `config`: fields of
    the published configuration that the file does not tell, or tells wrongly. `where`: revision, token, cache_dir,
    subfolder, as `from_pretrained` takes them."""
    place = Source(source, **where)
    content = place.config()
    with opened(place.weights()) as tensors:
        content, tensors = in_todays_layout(changed(content, config or {}), tensors, place.name)
        content = changed(content, config or {})
        family = family_of(content, place.name)
        chosen = head_of(family, content.get("architectures")) if head is None else checked_head(family, head)
        checkpoint = Checkpoint(family, tensors)
        published = family.published_config.from_dict(content)
        own = family.to_own(published, chosen, checkpoint.has)
        own.check_head(chosen)
        own.architectures, own.converted_from, own.name_or_path = [chosen], content, place.name
        with torch.device("meta"):
            model = getattr(modeling, chosen)._from_config(own, attn_implementation=attn_implementation)
        own_head = chosen in {family.heads.get(name) for name in content.get("architectures") or ()}
        report = fill(model, checkpoint, strict=head is None or own_head, resizes=head is not None, dtype=dtype)
    if model.can_generate():
        model.generation_config = generation(place) or model.generation_config
    return (model, report) if output_loading_info else model


def generation(place: Source) -> GenerationConfig | None:
    """Before it had a file of its own, how a model generates stood in its configuration: beams, words that are bad."""
    for name in ("generation_config.json", "config.json"):
        if place.file(name):
            old = {"_from_model_config": True} if name == "config.json" else {}
            return GenerationConfig.from_pretrained(place.name, config_file_name=name, **old, **place.where)
    return None


def changed(content: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Other labels come in place of those that were there, and do not mix with them."""
    return merged({name: value for name, value in content.items() if not (name in LABELS and name in fields)}, fields)


def family_of(content: dict[str, Any], source: str) -> Family:
    kind = content.get("model_type")
    if kind in CONFIGS:
        raise ValueError(f"{source!r} is a Triune model already: load it with from_pretrained")
    if kind not in FAMILIES:
        raise ValueError(
            f"{source!r} is of model_type {kind!r}, which is not converted; there are {', '.join(FAMILIES)}"
            f"{nearest(kind, FAMILIES)}"
        )
    return FAMILIES[kind]


def checked_head(family: Family, head: str) -> str:
    known = family.kind.heads
    if head not in known:
        raise ValueError(f"head={head!r} is none of {family.name}: {', '.join(known)}{nearest(head, known)}")
    return head


def refuse(what: str, **wrong: Iterable[str]) -> None:
    """One error that names all that is wrong."""
    listed = [f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in wrong.items() if names]
    if listed:
        raise ValueError(f"{what} does not fit; {'; '.join(listed)}")


# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint


class Checkpoint:
    """The tensors of a file by the names that its family has today: what files had before is renamed, a backbone that
    was saved alone gets the prefix that it has below a head, and what holds no weights is left."""

    def __init__(self, family: Family, tensors: Tensors):
        self.family, self.tensors = family, tensors
        found = {self.renamed(name): name for name in tensors}
        if not any(name.startswith(family.prefix) for name in found):
            found = {f"{family.prefix}{new}": name for new, name in found.items()}
        self.names = {new: name for new, name in found.items() if not self.is_buffer(new)}

    def renamed(self, name: str) -> str:
        for pattern, replacement in self.family.old:
            name = re.sub(pattern, replacement, name)
        return name

    def is_buffer(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in (*BUFFERS, *self.family.buffers))

    def get(self, name: str) -> torch.Tensor:
        return self.tensors.get(self.names[name])

    def is_copy(self, name: str) -> bool:
        """Whether a tensor stands under another name as well, number for number."""
        other = self.family.copies.get(name)
        return other in self.names and torch.equal(self.get(name), self.get(other))

    def has(self, fact: Fact) -> bool:
        return fact.tensor in self.names and not self.is_copy(fact.tensor)

    def is_of_head(self, name: str) -> bool:
        return bool(self.family.prefix) and not name.startswith(self.family.prefix)

    def beside(self) -> list[str]:
        """What a file of this family may hold for another head than its own."""
        patterns = self.family.beside
        return [name for name in self.names if any(re.fullmatch(pattern, name) for pattern in patterns)]


# ---------------------------------------------------------------------------------------------------------------------
# Into a model


def fill(
    model: PreTrainedModel, checkpoint: Checkpoint, strict: bool, resizes: bool, dtype: torch.dtype | None
) -> Report:
    """Into a model without memory; not `strict`: its head may be another one than the file's. `resizes`: what is in no
    stack may be of another size there, as a classifier of other classes."""
    family, head = checkpoint.family, type(model).__name__
    rules, expected = family.rules(model.config), expected_tensors(model)
    copies = [
        name
        for name in checkpoint.names
        if not plan(rules, [name]).targets & expected.keys() and checkpoint.is_copy(name)
    ]
    made = plan(rules, [name for name in checkpoint.names if name not in copies])
    others = [] if strict else [name for name in made.unknown if checkpoint.is_of_head(name)]
    beside = plan(rules, checkpoint.beside()).targets
    left_out, fresh = sorted({*made.targets, *others} - expected.keys()), sorted(expected.keys() - made.targets)
    stacks = stacks_of(model)
    inside = [name for name in fresh if name.startswith(stacks) and ".pooler." not in name]
    refuse(
        f"the checkpoint as {head}",
        unknown=[name for name in made.unknown if name not in others],
        left_over=[name for name in left_out if strict and name not in beside],
        missing=fresh if strict else inside,
    )
    state = taken(made, checkpoint, expected, dtype)
    own = model.state_dict()
    wanted = {name: tuple(own[there].shape) for name, there in expected.items()}
    wrong = {name: tuple(one.shape) for name, one in state.items() if tuple(one.shape) != wanted[name]}
    outside = [name for name in wrong if resizes and not name.startswith(stacks)]
    for name in outside:
        del state[name]
        fresh.append(name)
    refused = [f"{name} {shape} and not {wanted[name]}" for name, shape in wrong.items() if name not in outside]
    refuse(f"the checkpoint as {head}", of_another_shape=refused)
    model.load_state_dict({expected[name]: tensor for name, tensor in state.items()}, strict=False, assign=True)
    own = model.state_dict(keep_vars=True)
    for name in state:
        own[expected[name]]._is_hf_initialized = True  # transformers' mark of what is loaded
    model.tie_weights()
    start(model)
    model.config.dtype = next(iter(state.values())).dtype
    model.eval()
    return Report(family.name, head, len(state), left_out, copies, fresh)


def expected_tensors(model: PreTrainedModel) -> dict[str, str]:
    """What has to come from somewhere, as rules call it -> as the model does: a backbone alone lacks the prefix."""
    names = (name for name in model.state_dict() if name not in model.all_tied_weights_keys)
    return {f"model.{name}" if is_backbone(model) else name: name for name in names}


def stacks_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Beginnings of the names that belong to a stack, as rules call them."""
    if is_backbone(model):
        return ("model.",)
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Transformer))


def is_backbone(model: PreTrainedModel) -> bool:
    return model.config.heads[type(model).__name__].is_backbone


def taken(
    made: Plan, checkpoint: Checkpoint, expected: dict[str, str], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Each tensor that the model has a place for, all of one type: of several in a file the widest."""
    found: dict[str, torch.Tensor] = {}
    for step in made.steps:
        if expected.keys() >= set(step.targets):
            found |= step.run(checkpoint.get)
    dtype = dtype or functools.reduce(torch.promote_types, (tensor.dtype for tensor in found.values()))
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def start(model: PreTrainedModel) -> None:
    """What the file has not starts as in a fresh model."""
    for module in model.modules():
        missing = [name for name, one in module.named_parameters(recurse=False) if one.is_meta]
        for name in missing:
            setattr(module, name, torch.nn.Parameter(torch.empty_like(getattr(module, name), device="cpu")))
        if missing:
            model._init_weights(module)
