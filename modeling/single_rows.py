"""Linear maps of one row at a time on a processor, which wait for their weights and for nothing else.

A library reads short rows of a matrix at half the speed of memory or less, and with one thread. Copies that lie
column by column, cut into as many parts as there are threads, are read as fast as memory allows. Whether that pays is
tried with the model's own maps.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of one module


class Columns:
    """The maps of one input, as one: what the first of them computes, the others find."""

    def __init__(self, maps: list[nn.Linear]):
        self.maps, self.sizes = maps, [one.out_features for one in maps]
        width = maps[0].in_features
        parts = max(count for count in range(1, torch.get_num_threads() + 1) if width % count == 0)
        weight = torch.cat([one.weight.detach() for one in maps]) if len(maps) > 1 else maps[0].weight.detach()
        self.weight = weight.t().contiguous().view(parts, width // parts, -1)
        self.bias = self.weight.new_zeros(parts, 1, sum(self.sizes))
        for place, one in zip(self.bias[0, 0].split(self.sizes), maps):
            if one.bias is not None:
                place.copy_(one.bias.detach())
        self.x = self.found = None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x is not self.x:
            parts = torch.baddbmm(self.bias, x.view(len(self.weight), 1, -1), self.weight)
            self.x, self.found = x, parts.sum(0, keepdim=True).split(self.sizes, -1)
        return self.found

    def stand_in(self) -> None:
        for place, one in enumerate(self.maps):
            one.forward = lambda x, place=place: self(x)[place]

    def stand_back(self) -> None:
        for one in self.maps:
            del one.forward


@contextmanager
def one_row_at_a_time(model: nn.Module, tokens: int) -> Iterator[None]:
    """For the time of a text of so many tokens, copies stand in for what they are faster than. The parameters stay as
    they are."""
    shapes: dict[tuple, list[list[nn.Linear]]] = {}
    for maps in maps_of(model) if tokens else ():
        shapes.setdefault(tuple(one.weight.shape for one in maps), []).append(maps)
    with ExitStack() as ends:
        for alike in shapes.values():
            for one in faster(alike, tokens):
                one.stand_in()
                ends.callback(one.stand_back)
        yield


def maps_of(model: nn.Module) -> list[list[nn.Linear]]:
    """Those of the same input stand together."""
    found = []
    for module in model.modules():
        maps = {name: one for name, one in module.named_children() if type(one) is nn.Linear and is_plain(one)}
        for names in SAME_INPUT:
            if maps.keys() >= set(names):
                found.append([maps.pop(name) for name in names])
        found += [[one] for one in maps.values()]
    return found


def is_plain(one: nn.Linear) -> bool:
    weight = one.weight
    return type(weight) is nn.Parameter and (weight.device.type, weight.dtype) == ("cpu", torch.float32)


def faster(alike: list[list[nn.Linear]], tokens: int) -> list[Columns]:
    """Copies of maps of one shape; none if they are slower, or if so few tokens cannot gain what they cost."""
    x = torch.ones(1, 1, alike[0][0].in_features)
    own = seconds(lambda: [one(x) for maps in alike for one in maps], 2)
    begun = time.perf_counter()
    first = Columns(alike[0])
    copying = len(alike) * (time.perf_counter() - begun)
    if tokens * own / 2 < 2 * copying:  # half of it may be gained
        return []
    copies = [first, *(Columns(maps) for maps in alike[1:])]
    return copies if seconds(lambda: [one(x.clone()) for one in copies], 2) < own else []


def seconds(work: Callable[[], Any], times: int) -> float:
    """The fastest of some times."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
