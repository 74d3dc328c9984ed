"""A moving average of the weights, to evaluate and to save in their place: often better, and steadier, than the last.

After step t (from 0), average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)): early on
the average forgets quickly, so that it is not held back by the weights at the start.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from triune.training.shards import cut_like, whole


class Ema:
    """The average of a model's trainable parameters, tied ones once, in float32 at least: bfloat16 would round the
    small steps away. To be made from the unwrapped model, after `accelerator.prepare`, which may shard it."""

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay!r} is not allowed: it must be at least 0 and below 1")
        self.model, self.decay = model, decay
        # named now: FSDP2 shows whole parameters, which pass, between a forward and the next backward
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: at_least_float32(weight).clone() for name, weight in self.weights.items()}

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        weights = [at_least_float32(weight) for weight in self.weights.values()]
        get_ema_multi_avg_fn(self.decay_at(step))(list(self.averages.values()), weights, None)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Within it the model has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            self.put(self.averages)
            yield
        finally:
            self.put(own)

    @torch.no_grad()
    def put(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what it gathered for the last forward is out of date

    def state_dict(self, keep: bool = True) -> dict[str, torch.Tensor]:
        """The averages by the names of the weights, whole, for the process that keeps them. All have to ask."""
        gathered = ((name, whole(average)) for name, average in self.averages.items())
        return {name: average.cpu() for name, average in gathered if keep}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        missing, extra = sorted(self.averages.keys() - tensors.keys()), sorted(tensors.keys() - self.averages.keys())
        if missing or extra:
            raise ValueError(f"the average does not fit the model: missing {missing[:5]}, unexpected {extra[:5]}")
        for name, average in self.averages.items():
            if average.shape != tensors[name].shape:
                raise ValueError(
                    f"the average of {name} has shape {tuple(tensors[name].shape)}, "
                    f"and the weight {tuple(average.shape)}"
                )
            average.copy_(cut_like(tensors[name], average))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
