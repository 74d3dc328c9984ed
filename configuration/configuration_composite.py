"""Configurations of models that are made of several stacks: an encoder and a decoder, a vision and a text tower.

Each stack has a whole `TriuneConfig` of its own, as a field; what joins them are further fields. A subclass names the
stacks in `sub_configs`, and says in `fixed` what a stack cannot be otherwise.

    class TriuneTwoConfig(CompositeConfig):
        sub_configs = {"first": TriuneConfig, "second": TriuneConfig}
        fixed = {"second": {"attention": "causal"}}
        first: dict | TriuneConfig | None = None
        second: dict | TriuneConfig | None = None
"""

import copy
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from triune.configuration.configuration_triune import AXES, FamilyConfig, TriuneConfig, nearest, with_own_type


class CompositeConfig(FamilyConfig):
    """Stacks given as a configuration, as a dict of its fields, or not at all: the defaults."""

    fixed: ClassVar[dict[str, dict[str, str]]] = {}  # stack -> axis -> the choice that it needs

    def __post_init__(self, **kwargs):
        from_user = kwargs.pop("_from_user", True)
        if from_user:
            self._refuse_unknown_keys(kwargs)
        kwargs.pop("model_type", None)  # the class's own
        for name in self.sub_configs:
            setattr(self, name, self._stack(name, getattr(self, name), from_user))
        super().__post_init__(**kwargs)
        self.check()

    def _stack(self, name: str, given: Any, from_user: bool) -> PreTrainedConfig:
        kind = self.sub_configs[name]
        if isinstance(given, PreTrainedConfig):
            return copy.deepcopy(given)  # two models must not share one
        fields = {**self.fixed.get(name, {}), **(given or {})}
        return kind(**fields) if from_user else kind.from_dict(fields)

    @property
    def adds_to_scores(self) -> bool:
        return any(getattr(self, name).adds_to_scores for name in self.sub_configs)

    def check(self) -> None:
        for name, kind in self.sub_configs.items():
            stack = getattr(self, name)
            if not isinstance(stack, kind):
                raise ValueError(f"{name} must be a {kind.__name__} or a dict of its fields, got {stack!r}")
            stack.check()
            for axis, choice in self.fixed.get(name, {}).items():
                found = getattr(stack, axis)["type"]
                if found != choice:
                    raise ValueError(f"{name} of {type(self).__name__} needs {axis} {choice!r}, and has {found!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Presets


def changed_stack(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A preset's stack with other fields; options of an axis without a type change those of its entry."""
    entries = {name: with_own_type(value, fields.get(name)) for name, value in own.items() if name in AXES}
    return {**fields, **own, **entries}


def preset_fields(presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Those of a preset, to be changed at will."""
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}{nearest(name, presets)}")
    return copy.deepcopy(presets[name])


def composite_preset(kind: type[CompositeConfig], presets: dict, name: str, overrides: dict[str, Any]):
    """The configuration of a preset. An override replaces a field; for a stack, a dict changes fields of its own."""
    fields = preset_fields(presets, name)
    for field, value in overrides.items():
        whole = field not in kind.sub_configs or not isinstance(value, dict)
        fields[field] = value if whole else changed_stack(fields.get(field, {}), value)
    return kind(**fields)


__all__ = ["CompositeConfig", "TriuneConfig"]
