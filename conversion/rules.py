"""Rules by which the tensors of one checkpoint become those of another: each is written once and read both ways.

    Rule("encoder.layer.{n}.output.dense.{p}", "layers.{n}.mlp.down_proj.{p}")
    Rule("h.{n}.mlp.c_fc.{p}", "layers.{n}.mlp.up_proj.{p}", TURNED)
    Rule("h.{n}.attn.c_attn.{p}", [f"layers.{{n}}.self_attn.{one}_proj.{{p}}" for one in "qkv"], Fused(3, turned=True))

A name is a template: {n} stands for a number, {p} for weight or bias. On the left is the published model's name, on
the right Triune's; what stands in braces is the same on both sides. A change says how the numbers lie; it loses none,
so that the way there and back gives every bit again.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch


Tensors = list[torch.Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Changes: from the published tensors to Triune's, and back


class Same:
    def there(self, tensors: Tensors) -> Tensors:
        return tensors

    def back(self, tensors: Tensors) -> Tensors:
        return tensors


class Turned(Same):
    """A matrix that is stored the other way round, as GPT-2 has them all; a bias is not."""

    def there(self, tensors: Tensors) -> Tensors:
        return [turned(one) for one in tensors]

    back = there


@dataclass(frozen=True)
class Fused(Same):
    """Several maps of one input in one matrix, one below the other."""

    parts: int
    turned: bool = False

    def there(self, tensors: Tensors) -> Tensors:
        (whole,) = tensors
        return list((turned(whole) if self.turned else whole).chunk(self.parts))

    def back(self, tensors: Tensors) -> Tensors:
        whole = torch.cat(tensors)
        return [turned(whole) if self.turned else whole]


@dataclass(frozen=True)
class Shaped(Same):
    """The same numbers in the same order, in another shape."""

    published: tuple[int, ...]
    own: tuple[int, ...]

    def there(self, tensors: Tensors) -> Tensors:
        return [reshaped(one, self.published, self.own) for one in tensors]

    def back(self, tensors: Tensors) -> Tensors:
        return [reshaped(one, self.own, self.published) for one in tensors]


@dataclass(frozen=True)
class Rolled(Same):
    """A table whose first rows are not for positions: they go behind the others."""

    rows: int

    def there(self, tensors: Tensors) -> Tensors:
        return [one.roll(-self.rows, 0) for one in tensors]

    def back(self, tensors: Tensors) -> Tensors:
        return [one.roll(self.rows, 0) for one in tensors]


@dataclass(frozen=True)
class Interleaved(Same):
    """Rows for the numbers of a patch: of each pixel all channels one after the other, and here channel by channel."""

    channels: int

    def there(self, tensors: Tensors) -> Tensors:
        return [transposed(one, -1, self.channels) for one in tensors]

    def back(self, tensors: Tensors) -> Tensors:
        return [transposed(one, self.channels, -1) for one in tensors]


SAME, TURNED = Same(), Turned()


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous() if tensor.dim() == 2 else tensor


def transposed(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The rows of a tensor as a table of them, read by columns."""
    if tensor.shape[0] % max(rows, columns):
        return tensor
    return tensor.unflatten(0, (rows, columns)).transpose(0, 1).flatten(0, 1)


def reshaped(tensor: torch.Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> torch.Tensor:
    """A tensor of another shape than it should have stays as it is, and is told by its name."""
    return tensor.reshape(after) if tuple(tensor.shape) == before else tensor


# ---------------------------------------------------------------------------------------------------------------------
# Names

PLACEHOLDERS = {"{n}": r"(?P<n>\d+)", "{p}": r"(?P<p>weight|bias)"}


def pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{[np]\})", template)
    return re.compile("".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts))


class Rule:
    """Names of a published model, those of Triune, and how the numbers change between them."""

    def __init__(self, published: str | Sequence[str], own: str | Sequence[str], change: Same = SAME):
        self.published, self.own = ((names,) if isinstance(names, str) else tuple(names) for names in (published, own))
        self.change = change

    @cached_property
    def patterns(self) -> tuple[re.Pattern, re.Pattern]:
        """Of the first name on each side."""
        return pattern(self.published[0]), pattern(self.own[0])


def layers(published: str, own: str, names: dict[str, str]) -> list[Rule]:
    """The parts of each layer: where the layers are, and how both sides call a part."""
    return [Rule(f"{published}.{{n}}.{name}.{{p}}", f"{own}.{{n}}.{there}.{{p}}") for name, there in names.items()]


class Step(NamedTuple):
    """A rule at work: which tensors it takes, and which it makes of them."""

    sources: list[str]
    targets: list[str]
    change: Callable[[Tensors], Tensors]

    def run(self, get: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        return zip(self.targets, self.change([get(name) for name in self.sources]))


class Plan(NamedTuple):
    steps: list[Step]
    unknown: list[str]  # names that no rule takes

    @property
    def targets(self) -> set[str]:
        return {name for step in self.steps for name in step.targets}


def plan(rules: Iterable[Rule], names: Iterable[str], back: bool = False) -> Plan:
    """What the rules make of these names; `back`: from Triune's to the published ones. A rule that takes several
    takes them only together."""
    left, steps = dict.fromkeys(names), []
    for rule in rules:
        sides = (rule.own, rule.published) if back else (rule.published, rule.own)
        known = rule.patterns[back]
        for name in list(left):
            match = known.fullmatch(name)
            if match is None:
                continue
            sources, targets = ([template.format(**match.groupdict()) for template in side] for side in sides)
            if left.keys() >= set(sources):
                for source in sources:
                    del left[source]
                steps.append(Step(sources, targets, rule.change.back if back else rule.change.there))
    return Plan(steps, list(left))
