"""Optimisers by name, and the groups of parameters that they treat differently.

    groups = parameter_groups(model, weight_decay=0.01, layer_decay=0.9)
    optimizer = build_optimizer("adamw", groups, lr=1e-3)
    ...
    set_learning_rate(optimizer, 1e-3 * factor("cosine", step, total, warmup))

Everything is torch's own but for Muon, which torch has for matrices alone. `Muon` here is one optimiser, for a loop, a
checkpoint and accelerate to see one: Muon for the matrices of the layers, AdamW for all else. For the matrices it is
torch.optim.Muon with two differences, both about the orthogonalisation. On a processor it computes in float32, up to 2
times slower than bfloat16 where there are instructions for that, and 20 to 30 times faster where there are none. And
it gathers a sharded matrix once, where torch.optim.Muon communicates in every product, which takes 2 to 20 times
longer and fails for a matrix of one row.

Sources: Muon, https://kellerjordan.github.io/posts/muon/; its learning rate for one that suits AdamW,
https://arxiv.org/abs/2502.16982; layer-wise decay, https://arxiv.org/abs/2003.10555 and https://arxiv.org/abs/2106.08254.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.adamw import adamw

from triune.configuration.configuration_triune import nearest
from triune.modeling.positions import Position
from triune.training.shards import cut_like, whole


# ---------------------------------------------------------------------------------------------------------------------
# Parameters by kind

# Which kinds decay. As in Hugging Face's Trainer all matrices and the tables of tokens and segments do, biases and
# norms do not; as in ViT's recipes neither do position tables, CLS and register tokens, and layer scale.
DECAYS = {
    "layer_matrices": True,  # linear maps inside the layers: Muon's
    "other_matrices": True,  # linear maps outside: patch projection, poolers, heads that are not tied
    "embeddings": True,  # tables of tokens and segments; a head tied to one is this one parameter
    "positions": False,  # position tables
    "vectors": False,  # biases, norms, layer scale, CLS and register tokens
}

LAYER = re.compile(r"^(?P<stack>(?:.*\.)?)layers\.(?P<index>\d+)\.")
INPUT = re.compile(r"^(?P<stack>(?:.*\.)?)(?:embed_tokens|embeddings|positions)\.")


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """The trainable parameters, each in one group, tied ones once, under the first of their names.

    A group has a `kind`, its `weight_decay`, and the `lr_scale` that its learning rate is multiplied by: `layer_decay`
    to the power of the distance from the head, which is 0 for heads and the last norm, 1 for the last layer, and the
    number of layers + 1 for the embeddings.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay} is not allowed: it must be 0 or more")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} is not allowed: it must be above 0 and at most 1 (1: none)")
    heights = stack_heights(name for name, _ in model.named_parameters())
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, scale = kind_of(model, name, parameter), layer_decay ** distance_from_head(name, heights)
        decay = weight_decay if DECAYS[kind] else 0.0
        group = {"params": [], "kind": kind, "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((kind, scale), group)["params"].append(parameter)
    if not groups:
        raise ValueError("the model has no parameter to train: all of them are frozen")
    return list(groups.values())


def kind_of(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    path, _, own_name = name.rpartition(".")
    owner, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    if isinstance(owner, Position) or isinstance(parent, Position):
        return "positions"
    if isinstance(owner, nn.Embedding):
        return "embeddings"
    if own_name == "weight" and parameter.dim() > 1:
        return "layer_matrices" if LAYER.match(name) and parameter.dim() == 2 else "other_matrices"
    return "vectors"


def stack_heights(names: Iterable[str]) -> dict[str, int]:
    """The number of layers of every stack, by what stands before `layers` in their names."""
    found = [match for match in map(LAYER.match, names) if match]
    heights = dict.fromkeys((match["stack"] for match in found), 0)
    for match in found:
        heights[match["stack"]] = max(heights[match["stack"]], int(match["index"]) + 1)
    return heights


def distance_from_head(name: str, heights: dict[str, int]) -> int:
    layer, below = LAYER.match(name), INPUT.match(name)
    if layer:
        return heights[layer["stack"]] - int(layer["index"])
    return heights.get(below["stack"], 0) + 1 if below else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


# ---------------------------------------------------------------------------------------------------------------------
# Muon with AdamW


def orthogonalized(matrix: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Nearly U Vᵀ of U S Vᵀ, by Newton and Schulz's iteration with coefficients that bring all singular values near 1
    (0.7 to 1.2) soon, and no nearer."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the groups of kind `layer_matrices`, AdamW for the others, with one learning rate: a step of a matrix
    is scaled to the size that AdamW's has, as `match_rms_adamw` of torch.optim.Muon does it."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        fused: bool = False,
    ):
        matrices = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        others = {"betas": betas, "eps": eps, "fused": fused}
        groups = [{**group, **(matrices if takes_muon(group) else others)} for group in groups]
        if not any(map(takes_muon, groups)):
            raise ValueError("optim='muon' finds no matrix to train in the layers: use 'adamw'")
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self.update_matrices if takes_muon(group) else self.update_others
            update(group, [parameter for parameter in group["params"] if parameter.grad is not None])
        return loss

    def update_matrices(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            direction = whole(parameter.grad.lerp(mean, momentum) if group["nesterov"] else mean)
            dtype = torch.float32 if direction.device.type == "cpu" else torch.bfloat16
            update = orthogonalized(direction, group["ns_steps"], dtype).to(parameter.dtype)
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(cut_like(update, parameter), alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))

    def update_others(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # where the kernel wants its count of steps
                device = parameter.device if group["fused"] else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def takes_muon(group: dict[str, Any]) -> bool:
    return group["kind"] == "layer_matrices"


# ---------------------------------------------------------------------------------------------------------------------
# By name


class Choice(NamedTuple):
    """An optimiser: its class, the options that one may give with their defaults, and what else makes it this one."""

    make: type[torch.optim.Optimizer]
    options: dict[str, Any]
    fixed: dict[str, Any] = {}  # noqa: RUF012 - never changed
    adam: bool = False  # takes Adam's betas and eps
    fused: bool = False  # has one kernel for everything, for shards as well (SGD's and Adagrad's refuse those)


OPTIMIZERS: dict[str, Choice] = {
    "adamw": Choice(torch.optim.AdamW, {"amsgrad": False}, adam=True, fused=True),
    "muon": Choice(Muon, {"momentum": 0.95, "nesterov": True, "ns_steps": 5}, adam=True, fused=True),
    "sgd": Choice(torch.optim.SGD, {}),
    "momentum": Choice(torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": Choice(torch.optim.SGD, {"momentum": 0.9}, fixed={"nesterov": True}),
    "adagrad": Choice(torch.optim.Adagrad, {"lr_decay": 0.0, "initial_accumulator_value": 0.0}),
    "rmsprop": Choice(torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.0, "centered": False}),
    "adam": Choice(torch.optim.Adam, {"amsgrad": False}, adam=True, fused=True),
    "adadelta": Choice(torch.optim.Adadelta, {"rho": 0.9}),
    "nadam": Choice(torch.optim.NAdam, {"momentum_decay": 0.004}, adam=True),
}

FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}

# From the lowest value to below the highest.
RANGES = {
    **dict.fromkeys(("lr", "eps", "lr_decay", "initial_accumulator_value", "momentum_decay"), (0, math.inf)),
    **dict.fromkeys(("beta1", "beta2", "momentum", "alpha", "rho"), (0, 1)),
    "ns_steps": (1, 100),
}


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimiser of a name for the groups of `parameter_groups`.

    `betas` and `eps` are Adam's: adamw, adam, nadam and the AdamW in muon take them; what is an optimiser's own is an
    option. Weight decay stands in the groups: decoupled from the gradient in adamw and muon, added to it (L2) in the
    others.
    """
    choice = choice_of(name)
    for option in options:
        if option not in choice.options:
            raise ValueError(
                f"optim={name!r} has no option {option!r}{nearest(option, choice.options)}; "
                f"it has {', '.join(choice.options) or 'none'}"
            )
    check_ranges({"lr": lr, "eps": eps, "beta1": betas[0], "beta2": betas[1], **options})
    arguments = {**choice.options, **choice.fixed, **options}
    if choice.adam:
        arguments |= {"betas": tuple(betas), "eps": eps}
    if choice.fused:
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        arguments["fused"] = True if devices <= FUSED_DEVICES else None  # None: torch's choice of the other kernels
    return choice.make([{**group, "lr": lr * group["lr_scale"]} for group in groups], lr=lr, **arguments)


def choice_of(name: str) -> Choice:
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optim={name!r} is not allowed: it must be one of {', '.join(OPTIMIZERS)}{nearest(name, OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def check_ranges(values: dict[str, Any]) -> None:
    for name, value in values.items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not low <= value < high:
            raise ValueError(f"{name}={value!r} is not allowed: it must be at least {low} and below {high}")


# ---------------------------------------------------------------------------------------------------------------------
# Shards

# Why an optimiser cannot be sharded (FSDP2), and None where it can, which a test shows in two processes.
SHARDABLE: dict[str, str | None] = {
    **dict.fromkeys(OPTIMIZERS),
    "adagrad": "it makes its sums when it is built, before the parameters are cut, and cannot save them afterwards",
}


def refuse_unsharded(name: str) -> None:
    """Raise where the optimiser cannot work on sharded parameters."""
    choice_of(name)
    if SHARDABLE[name]:
        able = [other for other, reason in SHARDABLE.items() if reason is None]
        raise ValueError(
            f"optim={name!r} cannot be sharded by FSDP: {SHARDABLE[name]}. Use one of {', '.join(able)}, or DDP"
        )
