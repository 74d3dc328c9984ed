"""The family as a whole: the class of a saved configuration, the presets of a class, the stack that reads an input.

CONFIGS["triune-clip"]                                     # TriuneCLIPConfig
preset_of(TriuneCLIPConfig, "clip-mini", loss="sigmoid")   # a preset of any class, with other fields
stack_reading(config, "patches")                           # of CLIP its `vision`, of one stack the stack itself
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from triune.configuration.configuration_triune import FamilyConfig, TriuneConfig, nearest
from triune.configuration.configuration_triune_clip import CLIP_PRESETS, TriuneCLIPConfig, clip_preset
from triune.configuration.configuration_triune_mae import MAE_PRESETS, TriuneMAEConfig, mae_preset
from triune.configuration.configuration_triune_seq2seq import SEQ2SEQ_PRESETS, TriuneSeq2SeqConfig, seq2seq_preset
from triune.configuration.presets import PRESETS, preset


CONFIGS: dict[str, type[FamilyConfig]] = {
    kind.model_type: kind for kind in (TriuneConfig, TriuneSeq2SeqConfig, TriuneMAEConfig, TriuneCLIPConfig)
}


class Presets(NamedTuple):
    names: Iterable[str]
    make: Callable[..., FamilyConfig]  # (name, **fields)


PRESETS_OF: dict[type[FamilyConfig], Presets] = {
    TriuneConfig: Presets(PRESETS, preset),
    TriuneSeq2SeqConfig: Presets(SEQ2SEQ_PRESETS, seq2seq_preset),
    TriuneMAEConfig: Presets(MAE_PRESETS, mae_preset),
    TriuneCLIPConfig: Presets(CLIP_PRESETS, clip_preset),
}


def preset_of(kind: type[FamilyConfig], name: str, head: str = "", **overrides: Any) -> FamilyConfig:
    """The configuration of a preset of this class. A name of another class is told from one that there is not; named
    are the presets that read what the head reads."""
    names, make = PRESETS_OF[kind]
    if name in names:
        return make(name, **overrides)
    reads = kind.heads[head].needs.get("embedding") if head else None
    fitting = [own for own in names if reads is None or make(own).embedding["type"] == reads]
    other = next((own.model_type for own, found in PRESETS_OF.items() if name in found.names), None)
    why = f"is a preset of model type {other!r}" if other else "is no preset"
    what = f"for {head}" if head else f"of {kind.model_type!r}"
    raise ValueError(f"preset={name!r} {why}; those {what} are {', '.join(fitting)}{nearest(name, fitting)}")


def stacks_of(config: FamilyConfig) -> dict[str, TriuneConfig]:
    """The stacks by their names; a model of one stack is that stack, without a name."""
    return {name: getattr(config, name) for name in config.sub_configs} or {"": config}


def stack_reading(config: FamilyConfig, embedding: str) -> TriuneConfig | None:
    """The stack into which "tokens" or "patches" go first, if there is one."""
    stacks = stacks_of(config).values()
    return next((stack for stack in stacks if stack.embedding["type"] == embedding), None)


def merged(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The user's fields over those that are there; where both are entries of options, option by option."""
    result = dict(fields)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(fields.get(name), dict)
        result[name] = merged(fields[name], value) if both else value
    return result
