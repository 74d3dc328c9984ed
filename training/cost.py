"""What a run will cost: floating-point operations, memory and time, from one forward and backward of the real model.

    cost = estimate(model, batch, batch_units=32 * 128, steps=900, optimizer_name="adamw")
    console.plan(cost.rows())

Notable: nothing is a rule of thumb. The operations are counted where torch carries them out, attention included; how
much an optimiser keeps is seen on a step of it; the activations are the tensors that autograd keeps. Model, gradients
and random numbers are afterwards as before. To be asked before `accelerator.prepare`, of the whole model.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from triune.training.console import clock, number, quantity
from triune.training.optimizers import DECAYS, build_optimizer, parameter_groups


# The attention of a processor, which torch's counter does not know. By shapes: (arguments of the operation) -> count;
# a causal mask halves nothing, as in torch's own formulas.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *_, **__: (
        sdpa_backward_flop_count(out, q, k, v)
    ),
}
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Operations per second in bfloat16 with float32 sums, without sparsity, from the data sheets: half of what those give
# "with sparsity". The first name that is found counts.
PEAK_FLOPS = {
    "B200": 2250e12,  # https://www.nvidia.com/en-us/data-center/hgx/: 36 PFLOPS with sparsity for 8
    "GH200": 989e12,  # the GPU is an H100
    "H200 NVL": 835e12,  # https://www.nvidia.com/en-us/data-center/h200/
    "H200": 989e12,
    "H100 NVL": 835e12,  # https://www.nvidia.com/en-us/data-center/h100/
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,  # https://www.nvidia.com/en-us/data-center/a100/
    "L40S": 362e12,  # https://www.nvidia.com/en-us/data-center/l40s/
    "L4": 121e12,  # https://www.nvidia.com/en-us/data-center/l4/
    "A10": 125e12,  # https://www.nvidia.com/en-us/data-center/products/a10-gpu/
    "MI300X": 1307e12,  # https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html
}


def peak_flops(device: torch.device | str) -> float | None:
    """What a GPU can do in bfloat16 at most, each second; None for a processor and for a GPU that is not known."""
    device = torch.device(device)
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)


def time_left(steps: int, seconds_per_step: float) -> str:
    """How long so many steps take, for people: 04:10."""
    return clock(steps * seconds_per_step)


class Cost(NamedTuple):
    """Of a whole run. Bytes are those of one process; operations are those of all."""

    parameters: int
    trainable: int
    batch_flops: int  # forward and backward of one micro-batch
    batch_units: int  # tokens or images of one micro-batch
    batch_seconds: float  # as measured, without the optimiser
    batches: int  # micro-batches of a step, over all processes
    accumulation: int  # of them one after another
    steps: int
    memory: dict[str, int]  # weights, gradients, optimizer, average, activations

    @property
    def step_flops(self) -> int:
        return self.batch_flops * self.batches

    @property
    def flops(self) -> int:
        return self.step_flops * self.steps

    @property
    def units(self) -> int:
        return self.batch_units * self.batches * self.steps

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())

    def mfu(self, seconds_per_step: float, peak: float | None) -> float | None:
        """The share of what the GPU can do at most; with gradient checkpointing, what is computed twice counts too."""
        return peak and self.batch_flops * self.accumulation / seconds_per_step / peak

    def rows(self, unit: str = "tokens", seconds_per_step: float | None = None) -> dict[str, str]:
        """For the console. `seconds_per_step`: of whole steps, where they have been timed."""
        each = self.batch_seconds * self.accumulation if seconds_per_step is None else seconds_per_step
        frozen = f", {number(self.trainable)} of them trained" if self.trainable < self.parameters else ""
        parts = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in self.memory.items() if size)
        without = ", without the optimiser and evaluations" if seconds_per_step is None else ", without evaluations"
        return {
            "in all": f"{number(self.units)} {unit} in {self.steps:,} steps",
            "parameters": number(self.parameters) + frozen,
            "compute": f"{quantity(self.flops, 'FLOP')}: {quantity(self.step_flops, 'FLOP')} a step, "
            f"{quantity(self.batch_flops / self.batch_units, 'FLOP')} per {unit.removesuffix('s')}",
            "memory": f"about {quantity(self.bytes, 'B')}: {parts}",
            "time": f"about {time_left(self.steps, each)}: {each:.3g} s a step{without}",
        }


def estimate(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    batch_units: int,
    steps: int,
    accumulation: int = 1,
    world: int = 1,
    optimizer_name: str = "adamw",
    optimizer_options: dict[str, Any] | None = None,
    precision: str = "no",
    ema: bool = False,
    shards: int = 1,
    loss: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> Cost:
    """The cost of a run, from a batch of it on the device of the model.

    `batch_units`: tokens or images in the batch. `shards`: processes that weights, gradients and the optimiser's state
    are cut over; 1 where each holds all. `loss`: that of the run; the model's own unless given.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"mixed_precision={precision!r} is not allowed: it must be one of {', '.join(AUTOCAST)}")

    def forward() -> torch.Tensor:
        with autocast(batch, precision):
            return model(**batch).loss if loss is None else loss(model, batch)

    with undisturbed(model, batch):
        activations = measure_activations(model, forward)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
            backward(model, forward())
        seconds = measure_seconds(model, forward)  # last: the first pass is slower than the others
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    held = {
        "weights": bytes_of(parameters),
        "gradients": bytes_of(trainable),
        "optimizer": optimizer_bytes(model, optimizer_name, **optimizer_options or {}),
        "average": sum(p.numel() * max(4, p.element_size()) for p in trainable) if ema else 0,
    }
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        batch_flops=counter.get_total_flops(),
        batch_units=batch_units,
        batch_seconds=seconds,
        batches=accumulation * world,
        accumulation=accumulation,
        steps=steps,
        memory={name: size // shards for name, size in held.items()} | {"activations": activations},
    )


# ---------------------------------------------------------------------------------------------------------------------
# One forward and backward


def backward(model: nn.Module, loss: torch.Tensor) -> None:
    """The gradients, which are given up at once: those of the model stay as they are."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, trainable, allow_unused=True)


@contextlib.contextmanager
def undisturbed(model: nn.Module, batch: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within it the model is in training; random numbers, and what the model was in, are put back."""
    training = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {tensor.device for tensor in batch.values() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        model.train()
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def autocast(batch: dict[str, torch.Tensor], precision: str) -> contextlib.AbstractContextManager:
    """As accelerate has it; "no" leaves what the caller is in."""
    kind = next(iter(batch.values())).device.type
    dtype = AUTOCAST[precision]
    return torch.autocast(kind, dtype) if dtype else contextlib.nullcontext()


def measure_seconds(model: nn.Module, forward: Callable[[], torch.Tensor]) -> float:
    """Of a forward and backward; a GPU is waited for."""
    wait = torch.cuda.synchronize if device_of(model) == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    backward(model, forward())
    wait()
    return time.perf_counter() - start


def measure_activations(model: nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward and backward take beside weights and gradients.

    On a GPU the most that was held at once; elsewhere all tensors that autograd keeps for the backward. With gradient
    checkpointing these are the inputs of the layers: what one layer computes again comes on top.
    """
    if device_of(model) == "cuda":
        return measure_peak(model, forward)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    backward(model, loss)
    return sum(size for place, size in kept.items() if place not in weights)


def measure_peak(model: nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = forward()
    after_forward = torch.cuda.max_memory_allocated() - before
    backward(model, loss)
    gradients = bytes_of([parameter for parameter in model.parameters() if parameter.requires_grad])
    return max(after_forward, torch.cuda.max_memory_allocated() - before - gradients)


def device_of(model: nn.Module) -> str:
    return next(model.parameters()).device.type


# ---------------------------------------------------------------------------------------------------------------------
# Parameters and what an optimiser keeps for them


def bytes_of(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def optimizer_bytes(model: nn.Module, name: str, **options: Any) -> int:
    """What an optimiser keeps for the trainable parameters."""
    states = states_per_parameter(name, **options)
    return sum(
        bytes_of(group["params"]) * states[group["kind"]] for group in parameter_groups(model, weight_decay=0.0)
    )


def states_per_parameter(name: str, **options: Any) -> dict[str, int]:
    """How many numbers an optimiser keeps for each parameter of a kind: seen on a step with one matrix of each."""
    probes = {kind: nn.Parameter(torch.ones(2, 3)) for kind in DECAYS}
    groups = [
        {"params": [probe], "kind": kind, "weight_decay": 0.0, "lr_scale": 1.0} for kind, probe in probes.items()
    ]
    optimizer = build_optimizer(name, groups, lr=1e-3, **options)
    for probe in probes.values():
        probe.grad = torch.ones_like(probe)
    optimizer.step()
    return {
        kind: sum(torch.is_tensor(value) and value.shape == probe.shape for value in optimizer.state[probe].values())
        for kind, probe in probes.items()
    }
