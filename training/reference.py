"""What the reference pages in `docs/tables/` say: activations and optimisers as formulas, and the inverse of patches.

A formula is a line of Python, shown as it stands and computed as it stands: the tests evaluate the very strings that
the pages print, activations against transformers' modules and autograd, rules against torch.optim. `scripts/tables.py`
makes the pages.

Sources: ELU, https://arxiv.org/abs/1511.07289; PReLU, https://arxiv.org/abs/1502.01852; GELU,
https://arxiv.org/abs/1606.08415; Swish, https://arxiv.org/abs/1710.05941; Mish, https://arxiv.org/abs/1908.08681;
squared ReLU, https://arxiv.org/abs/2109.08668; Laplace, https://arxiv.org/abs/2209.10655.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from triune.training.optimizers import orthogonalized


# ---------------------------------------------------------------------------------------------------------------------
# Activations


class Activation(NamedTuple):
    title: str
    names: tuple[str, ...]  # `hidden_act`
    value: str
    derivative: str
    ends: str  # of the range: "[" or "]" for a value that is reached, "(" or ")" for one that is only approached
    shape: str
    pros: str
    cons: str
    terms: dict[str, str] = {}  # noqa: RUF012 - never changed; names in the formulas, computed first
    parameters: dict[str, float] = {}  # noqa: RUF012 - learned, with their start
    by_parameter: dict[str, str] = {}  # noqa: RUF012 - the derivative for each of them


GELU_TERMS = {
    "u": "sqrt(2 / pi) * (x + 0.044715 * x**3)",
    "du": "sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2)",
}

ACTIVATIONS = (
    Activation(
        "Sigmoid",
        ("sigmoid",),
        "1 / (1 + exp(-x))",
        "s * (1 - s)",
        "()",
        "an S, flat at both ends",
        "a probability; the gate of gated units",
        "its slope is 1/4 at most, so gradients shrink in every layer; never negative, so it shifts the mean",
        {"s": "sigmoid(x)"},
    ),
    Activation(
        "Tanh",
        ("tanh",),
        "tanh(x)",
        "1 - tanh(x)**2",
        "()",
        "an S through 0, flat at both ends",
        "centred on 0, slope 1 there; bounded",
        "flat for large values, where the gradient vanishes",
    ),
    Activation(
        "ReLU",
        ("relu",),
        "max(x, 0)",
        "where(x > 0, 1, 0)",
        "[)",
        "two straight lines with a corner at 0",
        "cheapest; slope 1 however large the value; many exact zeros",
        "no gradient below 0: a unit that is negative for all inputs learns no more; unbounded",
    ),
    Activation(
        "Leaky ReLU",
        ("leaky_relu",),
        "where(x > 0, x, 0.01 * x)",
        "where(x > 0, 1, 0.01)",
        "()",
        "two straight lines with a corner at 0",
        "as cheap as ReLU, and no unit dies",
        "the slope below 0 is one more choice, and the zeros are gone",
    ),
    Activation(
        "PReLU",
        ("prelu",),
        "where(x > 0, x, a * x)",
        "where(x > 0, 1, a)",
        "()",
        "two straight lines with a corner at 0",
        "the slope below 0 is learned, starting at 1/4, one number for each feed-forward",
        "a parameter more, which wants no weight decay: decay would make it a ReLU",
        parameters={"a": 0.25},
        by_parameter={"a": "where(x > 0, 0, x)"},
    ),
    Activation(
        "ELU",
        ("elu",),
        "where(x > 0, x, exp(x) - 1)",
        "where(x > 0, 1, exp(x))",
        "()",
        "a line above 0, an exponential down to −1 below",
        "mean nearer 0 than ReLU's; smooth where it bends, with alpha = 1",
        "an exponential to compute; flat far below 0",
    ),
    Activation(
        "Swish, SiLU",
        ("silu", "swish"),
        "x * s",
        "s * (1 + x * (1 - s))",
        "[)",
        "a smooth ReLU with a dip below 0",
        "smooth; a gradient nearly everywhere; the gate of SwiGLU (Llama)",
        "an exponential to compute; not monotonic: two inputs, one output, left and right of the dip",
        {"s": "sigmoid(x)"},
    ),
    Activation(
        "GELU",
        ("gelu", "gelu_python"),
        "x * Phi(x)",
        "Phi(x) + x * phi(x)",
        "[)",
        "a smooth ReLU with a dip below 0",
        "smooth; BERT's and ViT's",
        "an error function to compute; not monotonic",
    ),
    Activation(
        "GELU, tanh",
        ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"),
        "x * (1 + tanh(u)) / 2",
        "(1 + tanh(u)) / 2 + x * (1 - tanh(u)**2) * du / 2",
        "[)",
        "GELU's, at most 0.0005 away from it",
        "GPT-2's; exact parity needs this one for its weights",
        "an approximation: weights that were trained with the other GELU lose their parity",
        GELU_TERMS,
    ),
    Activation(
        "QuickGELU",
        ("quick_gelu",),
        "x * s",
        "s * (1 + 1.702 * x * (1 - s))",
        "[)",
        "GELU's, at most 0.0203 away from it",
        "OpenAI's CLIP; cheaper than GELU",
        "far enough from GELU to spoil weights that were trained with the other one",
        {"s": "sigmoid(1.702 * x)"},
    ),
    Activation(
        "GELU, clipped",
        ("gelu_10",),
        "min(max(x * Phi(x), -10), 10)",
        "where(x <= 10, Phi(x) + x * phi(x), 0)",
        "[]",
        "GELU's, flat from 10 on",
        "bounded, which suits 8-bit integers",
        "no gradient above 10",
    ),
    Activation(
        "ReLU squared",
        ("relu2",),
        "max(x, 0)**2",
        "2 * max(x, 0)",
        "[)",
        "flat, then a parabola",
        "exact zeros and no corner; cheap; did best in the Primer search",
        "grows fast: large values want a norm before it and half precision may overflow",
    ),
    Activation(
        "ReLU6",
        ("relu6",),
        "min(max(x, 0), 6)",
        "where((x > 0) & (x < 6), 1, 0)",
        "[]",
        "ReLU, flat from 6 on",
        "bounded, which suits 8-bit integers",
        "no gradient below 0 and none from 6 on",
    ),
    Activation(
        "Mish",
        ("mish",),
        "x * t",
        "t + x * (1 - t**2) * sigmoid(x)",
        "[)",
        "a smooth ReLU with a dip below 0",
        "smooth; close to Swish with a slightly deeper dip",
        "three transcendental functions to compute; not monotonic",
        {"t": "tanh(log(1 + exp(x)))"},
    ),
    Activation(
        "Laplace",
        ("laplace",),
        "(1 + erf(z / sqrt(2))) / 2",
        "exp(-(z**2) / 2) / sqrt(2 * pi) / 0.282095",
        "()",
        "a steep S around 0.71, flat at both ends",
        "a bounded stand-in for squared ReLU (Mega)",
        "flat at both ends; never negative",
        {"z": "(x - 0.707107) / 0.282095"},
    ),
    Activation(
        "Linear",
        ("linear",),
        "x",
        "1",
        "()",
        "a straight line",
        "with a gated feed-forward it is the bilinear unit of the GLU paper",
        "without a gate the two projections are one: nothing is gained by the layer",
    ),
)

FUNCTIONS: dict[str, object] = {
    **{name: getattr(torch, name) for name in ("exp", "log", "tanh", "erf", "where", "sigmoid")},
    **{"sqrt": math.sqrt, "pi": math.pi},
    "max": lambda x, low: x.clamp(min=low),
    "min": lambda x, high: x.clamp(max=high),
    "Phi": lambda x: torch.special.erfc(-x / math.sqrt(2)) / 2,
    "phi": lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
}


def evaluated(formula: str, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """A formula of an activation at x."""
    space = {**FUNCTIONS, **activation.parameters, "x": x}
    for name, term in activation.terms.items():
        space[name] = eval(term, space)  # the formulas are ours
    return torch.as_tensor(eval(formula, space), dtype=x.dtype).expand_as(x)


class Extreme(NamedTuple):
    value: float  # may be infinite
    place: float  # may be infinite: the value is that of the far end


def extremes(activation: Activation) -> tuple[Extreme, Extreme]:
    """The lowest and the highest value: at both far ends, or where the derivative changes its sign."""

    def value(x):
        return evaluated(activation.value, activation, x)

    def slope(x):
        return evaluated(activation.derivative, activation, x)

    far = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    found = []
    for place, height in zip(far.sign() * math.inf, value(far)):
        endless = abs(height) > 50
        found.append(Extreme(float(height.sign() * math.inf if endless else height), float(place)))
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64) + 1e-4
    signs = slope(grid).sign()
    for left in (signs[:-1] * signs[1:] < 0).nonzero().flatten():
        low, high = grid[left], grid[left + 1]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) * signs[left] > 0 else (low, middle)
        found.append(Extreme(float(value(low)), float(low)))
    return min(found), max(found)


def steepest(activation: Activation) -> float:
    """The largest slope in size, to four digits; infinite where it grows without an end."""
    far = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    if evaluated(activation.derivative, activation, far).abs().max() > 50:
        return math.inf
    grid = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    return float(evaluated(activation.derivative, activation, grid).abs().max())


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers


class Rule(NamedTuple):
    title: str
    lines: tuple[str, ...]  # of one step
    start: dict[str, float]  # what is kept between steps, with its start
    constants: dict[str, float]  # torch's defaults
    use: str
    watch: str


L2 = "g = g + decay * w"
DECOUPLED = "w = w - lr * decay * w"
MOMENTS = ("m = b1 * m + (1 - b1) * g", "v = b2 * v + (1 - b2) * g**2")
ADAM_STEP = "w = w - lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)"
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
KEPT = {"m": 0.0, "v": 0.0}

RULES: dict[str, Rule] = {
    "sgd": Rule(
        "SGD",
        (L2, "w = w - lr * g"),
        {},
        {},
        "convex problems; the reference for all others; no memory beside the weights",
        "one rate for all weights: transformers, whose gradients differ in size from matrix to matrix, learn slowly",
    ),
    "momentum": Rule(
        "SGD with momentum",
        (L2, "m = 0.9 * m + g", "w = w - lr * m"),
        {"m": 0.0},
        {},
        "convolutional networks, with a schedule",
        "the sum of 0.9, 0.81, ... is 10: the rate is a tenth of plain SGD's",
    ),
    "nesterov": Rule(
        "Nesterov's momentum",
        (L2, "m = 0.9 * m + g", "w = w - lr * (g + 0.9 * m)"),
        {"m": 0.0},
        {},
        "as momentum; on smooth problems the look ahead damps its swings",
        "as momentum",
    ),
    "adagrad": Rule(
        "Adagrad",
        (L2, "v = v + g**2", "w = w - lr * g / (sqrt(v) + eps)"),
        {"v": 0.0},
        {"eps": 1e-10},
        "sparse features: rare ones take large steps",
        "the sum only grows, so steps shrink until nothing moves; cannot be sharded by FSDP here",
    ),
    "rmsprop": Rule(
        "RMSprop",
        (L2, "v = 0.99 * v + 0.01 * g**2", "w = w - lr * g / (sqrt(v) + eps)"),
        {"v": 0.0},
        {"eps": 1e-8},
        "recurrent networks, reinforcement learning: Adagrad that forgets",
        "the mean starts at 0 and is not corrected: the first steps are 10 times too large, so warm up",
    ),
    "adam": Rule(
        "Adam, with L2",
        (L2, *MOMENTS, ADAM_STEP),
        KEPT,
        ADAM,
        "anything, without weight decay",
        "weight decay goes through the division: weights with large gradients hardly decay at all. Use AdamW",
    ),
    "adadelta": Rule(
        "Adadelta",
        (
            L2,
            "v = 0.9 * v + 0.1 * g**2",
            "d = g * sqrt(u + eps) / sqrt(v + eps)",
            "u = 0.9 * u + 0.1 * d**2",
            "w = w - lr * d",
        ),
        {"v": 0.0, "u": 0.0},
        {"eps": 1e-6},
        "where no rate can be tuned: the ratio has the unit of the weights, and lr is 1",
        "the first steps are about 3 sqrt(eps) long, 0.003, whatever the gradient: a run begins slowly",
    ),
    "nadam": Rule(
        "NAdam",
        (
            L2,
            *MOMENTS,
            "now, ahead = (b1 * (1 - 0.5 * 0.96 ** (0.004 * step)) for step in (t, t + 1))",
            "c = c * now",
            "n = ahead * m / (1 - c * ahead) + (1 - now) * g / (1 - c)",
            "w = w - lr * n / (sqrt(v / (1 - b2**t)) + eps)",
        ),
        {**KEPT, "c": 1.0},
        ADAM,
        "as Adam, with Nesterov's look ahead",
        "as Adam: L2, not decoupled",
    ),
    "adamw": Rule(
        "AdamW",
        (DECOUPLED, *MOMENTS, ADAM_STEP),
        KEPT,
        ADAM,
        "transformers: the default here",
        "decay is times lr: a schedule that lowers the rate lowers the decay",
    ),
    "muon": Rule(
        "Muon (matrices of the layers; the rest is AdamW's)",
        (
            "m = 0.95 * m + 0.05 * g",
            DECOUPLED,
            "w = w - lr * 0.2 * sqrt(max(w.shape)) * orthogonalized(0.05 * g + 0.95 * m)",
        ),
        {"m": 0.0},
        {},
        "matrices of transformers: the fewest steps to a given loss below, for one number kept",
        "for matrices only. `orthogonalized`, five steps of Newton and Schulz's iteration, takes time beside a small "
        "model, and a matrix that is cut over GPUs has to be gathered for it",
    ),
}


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    return orthogonalized(matrix, 5, torch.float32).to(matrix.dtype)


def follow(
    rule: Rule, w: torch.Tensor, gradient: Callable[[torch.Tensor], torch.Tensor], lr: float, decay: float, steps: int
) -> torch.Tensor:
    """The weights after so many steps of the lines of a rule, as they stand."""

    def root(x):
        return x.sqrt() if torch.is_tensor(x) else math.sqrt(x)

    code = compile("\n".join(rule.lines), "rule", "exec")
    space = {"sqrt": root, "max": max, "orthogonalized": orthogonal, **rule.constants, "lr": lr, "decay": decay}
    space |= {name: torch.tensor(value, dtype=w.dtype) for name, value in rule.start.items()} | {"w": w}
    for step in range(1, steps + 1):
        space |= {"g": gradient(space["w"]), "t": step}
        exec(code, space)  # the rules are ours
    return space["w"]
