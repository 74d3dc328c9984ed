"""A family of published models: what its configuration says in Triune's words, and which tensor is which.

A family is a table, in a file of its own in `families/`. Both halves are read in both directions. Its configuration is
translated field by field; what Triune lacks is refused by the name of the field. A model of Triune belongs to a family
if its configuration, translated there and back, is the same again: no family says what it excludes.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import transformers
from transformers import PreTrainedConfig

from triune.configuration.configuration_triune import FamilyConfig, TriuneConfig, nearest
from triune.conversion.rules import Rule


def same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Field:
    """A field of the published configuration and the one of Triune's, or several on a side that are decided together;
    "norm.eps" is an option of an entry."""

    published: str | tuple[str, ...]
    own: str | tuple[str, ...]
    there: Callable[..., Any] = same
    back: Callable[..., Any] = same

    def put_own(self, content: dict[str, Any], published: PreTrainedConfig) -> None:
        values = [read(published, name) for name in names_of(self.published)]
        if MISSING not in values:
            put_all(content, self.own, self.there(*values))

    def put_published(self, content: dict[str, Any], own: FamilyConfig) -> None:
        put_all(content, self.published, self.back(*(read(own, name) for name in names_of(self.own))))


@dataclass(frozen=True)
class Fact:
    """A field of Triune's configuration that the published one does not tell: whether the file has a tensor."""

    own: str
    tensor: str
    there: Any  # the value where it has
    absent: Any
    heads: tuple[str, ...] = ()  # of Triune, for which it matters; none named: all

    def matters(self, head: str) -> bool:
        return not self.heads or head in self.heads


def names_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


def fields(*shared: str, **different: str) -> tuple[Field, ...]:
    """Those of one name on both sides, and published=own."""
    return (*(Field(name, name) for name in shared), *(Field(*names) for names in different.items()))


def under(published: str, own: str, members: Iterable[Field]) -> tuple[Field, ...]:
    """The same fields of a part: of a stack, as both sides call it."""

    def inside(place: str, name: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return f"{place}{name}" if isinstance(name, str) else tuple(f"{place}{one}" for one in name)

    return tuple(
        dataclasses.replace(field, published=inside(published, field.published), own=inside(f"{own}.", field.own))
        for field in members
    )


# What a configuration of one stack may say beside its sizes, and what says nothing about what is computed.
COMMON = fields("pad_token_id", "bos_token_id", "eos_token_id", "initializer_range", "tie_word_embeddings")
LABELS = ("id2label", "label2id", "problem_type")
HARMLESS = frozenset(
    {
        *("architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "use_cache", "num_labels"),
        *(
            *LABELS,
            "_name_or_path",
            "gradient_checkpointing",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
        ),
        *("chunk_size_feed_forward", "is_encoder_decoder", "task_specific_params", "finetuning_task"),
        *("initializer_factor", "projection_size"),
    }
)
# Tensors of files of any family that hold no weights: a buffer that transformers wrote once, and no longer reads.
BUFFERS = (r"(.+\.)?position_ids", r".+\.rotary_emb\.inv_freq")
# Positions that a file holds though a formula gives them: what is there stays as it is.
FROZEN = {"type": "learned", "frozen": True}
MISSING = object()
# What of Triune's configuration says nothing about what is computed, where a family has no word for it.
FREE = HARMLESS | {"initializer_range"}


def read(content: Any, path: str) -> Any:
    """The value at a path through attributes and mappings; MISSING where it ends before."""
    for name in path.split("."):
        content = content.get(name, MISSING) if isinstance(content, dict) else getattr(content, name, MISSING)
        if content is MISSING or content is None:
            break
    return content


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """A name of a choice, which stands for an entry, becomes the entry."""
    *outer, last = path.split(".")
    for name in outer:
        if not isinstance(content.get(name), dict):
            content[name] = {"type": content[name]} if name in content else {}
        content = content[name]
    content[last] = value


def unshared(content: dict[str, Any]) -> dict[str, Any]:
    """A copy in which no two places hold the same entry, as stacks of one preset do (and copies of them)."""
    return {name: unshared(one) if isinstance(one, dict) else copy.copy(one) for name, one in content.items()}


def put_all(content: dict[str, Any], paths: str | tuple[str, ...], found: Any) -> None:
    """One value at a path, or one for each of several."""
    for path, value in [(paths, found)] if isinstance(paths, str) else zip(paths, found):
        put(content, path, value)


def leaves(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its path."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def parents(path: str) -> Iterator[str]:
    names = path.split(".")
    return (".".join(names[:count]) for count in range(1, len(names)))


@dataclass(frozen=True)
class Family:
    name: str  # transformers' model_type
    config: str  # transformers' class of the configuration
    heads: dict[str, str]  # transformers' class of the model -> Triune's
    prefix: str  # of the backbone, in the names of a model with a head
    base: dict[str, Any]  # what all of the family have in common, as fields of Triune's configuration
    fields: tuple[Field, ...]
    rules: Callable[[FamilyConfig], list[Rule]]
    only: dict[str, tuple] = dataclasses.field(default_factory=dict)  # published field -> what it may be
    silent: tuple[str, ...] = ()  # published fields that follow from others, or that nothing reads
    of_head: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # further fields of Triune's head
    copies: dict[str, str] = dataclasses.field(default_factory=dict)  # a tensor that is there again -> the tensor
    buffers: tuple[str, ...] = ()  # patterns of names that hold no weights, beside BUFFERS
    beside: tuple[str, ...] = ()  # patterns of names that files have beside their own head, and of another one
    old: tuple[tuple[str, str], ...] = ()  # patterns of names that files had before -> as they are now
    former: dict[str, str] = dataclasses.field(default_factory=dict)  # a class as it was called before -> today
    kind: type[FamilyConfig] = TriuneConfig
    facts: tuple[Fact, ...] = ()
    computed: tuple[str, ...] = ()  # tables of its files, as Triune calls them, that a formula may stand for here

    @cached_property
    def published_config(self) -> type[PreTrainedConfig]:
        return getattr(transformers, self.config)

    # -- there

    def to_own(self, published: PreTrainedConfig, head: str, has: Callable[[Fact], bool]) -> FamilyConfig:
        """`has`: whether the file has the tensor of a fact."""
        self.refuse(published)
        found = unshared({**self.base, **self.of_head.get(head, {})})
        for field in self.fields:
            field.put_own(found, published)
        for fact in self.facts:
            if fact.matters(head):
                put(found, fact.own, copy.deepcopy(fact.there if has(fact) else fact.absent))
        own = self.kind(**found)
        for name in LABELS:
            if getattr(published, name, None) is not None:
                setattr(own, name, copy.deepcopy(getattr(published, name)))
        return own

    def refuse(self, published: PreTrainedConfig) -> None:
        """What Triune has no words for."""
        for name, allowed in self.only.items():
            value = read(published, name)
            if value is not MISSING and value not in allowed:
                listed = " or ".join(map(repr, allowed))
                raise ValueError(f"{self.name}: {name}={value!r} is not converted: Triune has {listed} only")
        known = {*(name for field in self.fields for name in names_of(field.published)), *self.only, *self.silent}
        found, default = (dict(leaves(one.to_dict())) for one in (published, self.published_config()))
        for path, value in found.items():
            told = path in known or not HARMLESS.isdisjoint(path.split(".")) or not known.isdisjoint(parents(path))
            if not told and path in default and value != default[path]:
                raise ValueError(f"{self.name}: {path}={value!r} is not converted: Triune has {default[path]!r} only")

    # -- back

    def to_published(self, own: FamilyConfig, head: str, source: PreTrainedConfig | None) -> PreTrainedConfig:
        """The published configuration: that which the model came from, if it still says the same. ValueError names
        the options that the family has not."""
        if not isinstance(own, self.kind):
            raise ValueError(f"a configuration of model type {own.model_type!r} is none of {self.name}")

        def has(fact: Fact) -> bool:
            return read(own, fact.own) == fact.there

        if source is not None and not any(differences(self.to_own(source, head, has), own)):
            return source
        found: dict[str, Any] = {} if source is None else source.to_dict()
        default = self.published_config()
        for name, allowed in self.only.items():
            if read(default, name.split(".")[0]) is not MISSING:
                put(found, name, allowed[0])
        for field in self.fields:
            field.put_published(found, own)
        found |= {name: getattr(own, name) for name in LABELS if getattr(own, name, None) is not None}
        published = self.published_config(**copy.deepcopy(found))
        in_the_way = list(differences(self.to_own(published, head, has), own))
        if in_the_way:
            raise ValueError(f"this model is not one of {self.name}: {'; '.join(in_the_way)}")
        return published


def differences(expected: FamilyConfig, own: FamilyConfig) -> Iterator[str]:
    """What the family would have, and what the model has."""
    names = [field.name for field in dataclasses.fields(own)]
    for name in (*names, *LABELS):
        wanted, found = (getattr(one, name, None) for one in (expected, own))
        if isinstance(found, PreTrainedConfig):
            yield from (f"{name} {one}" for one in differences(wanted, found))
        elif wanted != found and name not in FREE:
            yield f"{name}={shortened(found)} where the family has {shortened(wanted)}"


def shortened(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def head_of(family: Family, architectures: Iterable[str] | None) -> str:
    """Triune's class for what a checkpoint was saved as."""
    named = [family.former.get(name, name) for name in architectures or ()]
    for architecture in named:
        if architecture in family.heads:
            return family.heads[architecture]
    known = ", ".join(family.heads)
    raise ValueError(
        f"{family.name}: there is no head for {', '.join(named) or 'a checkpoint that names none'}; there are those "
        f"of {known}{nearest(named[0], family.heads) if named else ''}"
    )
