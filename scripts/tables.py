"""The reference pages in `docs/tables/`: activations, optimisers, positions, patches; their numbers and pictures.

    python scripts/tables.py               # write all pages and pictures again
    python scripts/tables.py --check       # say which pages are not what the code makes, and write nothing
    python scripts/tables.py --measure     # train the optimisers first: those runs that are not there yet

Formulas and words are in `training/reference.py`, where tests hold them to torch; numbers are computed here. What is
measured by training stands in `benchmarks/results/optimizers.json`, run by run, so that an interrupted measurement
goes on where it was.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForImageClassification, TriuneModel
from triune.modeling.embeddings import patchify, unpatchify
from triune.modeling.positions import POSITIONS, relative_buckets, sinusoids, sinusoids_2d
from triune.training.data.bundled import digits
from triune.training.environment import versions
from triune.training.figures import positions, style
from triune.training.optimizers import OPTIMIZERS, build_optimizer, parameter_groups, set_learning_rate
from triune.training.reference import (
    ACTIVATIONS,
    DECOUPLED,
    RULES,
    Activation,
    Extreme,
    evaluated,
    extremes,
    steepest,
)
from triune.training.report import replace as write
from triune.training.sampling import Plan, step_keys
from triune.training.schedules import factor


ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "tables"
RESULTS = ROOT / "benchmarks" / "results" / "optimizers.json"


# ---------------------------------------------------------------------------------------------------------------------
# Measured: one small image model, trained on digits by each optimiser

STEPS, WARMUP, BATCH, EVERY = 150, 15, 64, 10
# Seven rates for each, half a decade apart, from one that is too low on.
LOWEST = {"sgd": 0.01, "momentum": 0.001, "nesterov": 0.001, "adagrad": 0.001, "adadelta": 0.01}
RATES = {optim: [round(LOWEST.get(optim, 0.0001) * 10 ** (half / 2), 7) for half in range(7)] for optim in OPTIMIZERS}
SEEDS = (0, 1, 2)  # the first at every rate, all of them at the best
DECAYS = (0.01, 0.1, 0.3)  # of AdamW and of Adam with L2, at AdamW's best rate


class Run(NamedTuple):
    optim: str
    lr: float
    seed: int = 0
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.optim} lr={self.lr:g} seed={self.seed} weight_decay={self.weight_decay:g}"


def small_model(seed: int, position: str = "learned") -> TriuneForImageClassification:
    embedding = {"type": "patches", "image_size": 8, "patch_size": 2, "num_channels": 1, "cls_token": False}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 10}
    sizes["initializer_range"] = 0.1  # at this width 0.02 begins on a plateau, whose end is a matter of luck
    config = TriuneConfig(embedding=embedding, position=position, pooling="mean", **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TriuneForImageClassification(config)


def prepared_digits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pixels and labels of what is trained on and of what is held out; mean 0 and deviation 1 of the former."""
    data = digits()
    pixels = data.train.pixels.float()
    mean, deviation = pixels.mean(), pixels.std()
    return [((part.pixels.float() - mean) / deviation, part.labels) for part in (data.train, data.validation)]


def train(model, run: Run, data, steps: int = STEPS) -> list[float]:
    """The loss of every step: a rise, then half a cosine down to 0; nothing is clipped, so that what breaks shows."""
    (pixels, labels), _ = data
    optimizer = build_optimizer(run.optim, parameter_groups(model, run.weight_decay), run.lr)
    losses = []
    for step in range(steps):
        keys = [key.index for key in step_keys(Plan(len(labels), BATCH), run.seed, step)]
        set_learning_rate(optimizer, run.lr * factor("cosine", step + 1, steps + 1, WARMUP))
        loss = model(pixel_values=pixels[keys], labels=labels[keys]).loss
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def measure(run: Run, data, steps: int = STEPS) -> dict:
    model = small_model(run.seed)
    losses = train(model, run, data, steps)
    with torch.no_grad():
        output = model(pixel_values=data[1][0], labels=data[1][1])
        matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name]
        norm = math.sqrt(sum(float(weight.square().sum()) for weight in matrices))
    curve = [statistics.fmean(losses[first : first + EVERY]) for first in range(0, len(losses), EVERY)]
    finite = math.isfinite(losses[-1]) and bool(output.loss.isfinite())
    return {
        "accuracy": round(float((output.logits.argmax(-1) == data[1][1]).float().mean()), 6),
        "loss": round(float(output.loss), 4) if finite else None,
        "norm": round(norm, 3) if finite else None,
        "train_loss": [round(value, 4) if math.isfinite(value) else None for value in curve],
    }


def best_rate(runs: dict[str, dict], optim: str) -> float:
    """Of the highest accuracy, and among equals of the lowest loss."""
    found = {rate: runs[Run(optim, rate).name] for rate in RATES[optim]}
    return max(found, key=lambda rate: (found[rate]["accuracy"], -(found[rate]["loss"] or math.inf)))


def planned(runs: dict[str, dict]) -> Iterator[Run]:
    """Every rate with one seed; the best rate with the others; weight decay of two kinds."""
    for optim in OPTIMIZERS:
        yield from (Run(optim, rate) for rate in RATES[optim])
    for optim in OPTIMIZERS:
        yield from (Run(optim, best_rate(runs, optim), seed) for seed in SEEDS)
    for decay in DECAYS:
        yield from (Run(optim, best_rate(runs, "adamw"), seed, decay) for optim in ("adamw", "adam") for seed in SEEDS)
    yield from (Run("adam", best_rate(runs, "adamw"), seed) for seed in SEEDS)


def measure_all() -> None:
    setting = {"steps": STEPS, "warmup": WARMUP, "batch": BATCH, "curve_of": EVERY}
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if found.get("setting") != setting:
        found = {"setting": setting, "versions": versions(), "runs": {}}
    torch.set_num_threads(1)
    data = prepared_digits()
    for run in planned(found["runs"]):
        if run.name in found["runs"]:
            continue
        found["runs"][run.name] = measure(run, data)
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in found["runs"].items())
        head = json.dumps({name: value for name, value in found.items() if name != "runs"}, indent=1)
        write(RESULTS, f'{head[:-2]},\n "runs": {{\n{lines}\n }}\n}}\n')
        print(run.name, {name: found["runs"][run.name][name] for name in ("accuracy", "loss")}, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def table(*rows) -> str:
    head, *body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def shown(value: float, digits: int = 5) -> str:
    """Without zeros at the end, and a minus that is one."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".").replace("-", "−")


def code(*lines: str) -> str:
    return "<br>".join(f"`{line}`" for line in lines)


MADE = "<!-- made by scripts/tables.py: change it there -->"


# ---------------------------------------------------------------------------------------------------------------------
# Activations


def value_range(activation: Activation) -> str:
    low, high = extremes(activation)
    return f"{activation.ends[0]}{shown(low.value)}, {shown(high.value)}{activation.ends[1]}"


def lowest_at(extreme: Extreme) -> str:
    return "" if math.isinf(extreme.place) else f", lowest at {shown(extreme.place, 4)}"


def formula_row(activation: Activation) -> tuple[str, ...]:
    terms = [f"{name} = {term}" for name, term in activation.terms.items()]
    terms += [f"{name} is learned, from {start}" for name, start in activation.parameters.items()]
    slopes = [activation.derivative]
    slopes += [f"by {name}: {formula}" for name, formula in activation.by_parameter.items()]
    return activation.title, code(activation.value, *terms), code(*slopes)


def at(activation: Activation, formula: str, *places: float) -> list[str]:
    x = torch.tensor(places, dtype=torch.float64)
    return [shown(value, 4) for value in evaluated(formula, activation, x).tolist()]


def activations_page() -> str:
    titles = {activation.title: activation for activation in ACTIVATIONS}
    formulas = table(("", "value", "derivative"), *map(formula_row, ACTIVATIONS))
    ranges = table(
        ("", "`hidden_act`", "range", "largest slope", "value at −2, −1, 1, 2", "slope at −2, −1, 1, 2"),
        *(
            (
                activation.title,
                code(*activation.names),
                value_range(activation) + lowest_at(extremes(activation)[0]),
                shown(steepest(activation), 4),
                ", ".join(at(activation, activation.value, -2, -1, 1, 2)),
                ", ".join(at(activation, activation.derivative, -2, -1, 1, 2)),
            )
            for activation in ACTIVATIONS
        ),
    )
    words = table(
        ("", "shape", "for it", "against it"),
        *((one.title, one.shape, one.pros, one.cons) for one in ACTIVATIONS),
    )
    swish, gelu, fused = titles["Swish, SiLU"], titles["GELU"], titles["GELU, tanh"]
    lowest = [shown(extremes(one)[0].value) for one in (swish, gelu, fused)]
    swish_at = shown(extremes(swish)[0].place, 4)
    swish_slopes, fused_slopes = at(swish, swish.derivative, 1, 2), at(fused, fused.derivative, 1, -2)
    return f"""# Activations

{MADE}

A layer's activation is the field `hidden_act` of the configuration. It stands between the two projections of a plain
feed-forward, `down(act(up(x)))`; in a gated one it is the gate's, `down(act(gate(x)) * up(x))`, which with `sigmoid`
is the GLU, with `linear` the bilinear unit, with `relu` ReGLU, with `gelu` GEGLU and with `silu` SwiGLU.

![value and derivative of every activation](activations.png)

Blue is the value, orange the derivative.

## Formulas

They are Python, and what stands here is what the tests compute, against transformers' modules and against autograd.
`Phi` and `phi` are the distribution and the density of the normal distribution. At a corner the derivative is
torch's: ReLU's is 0 at 0.

{formulas}

## Ranges and slopes

Computed, not quoted. A square bracket: the value is reached.

{ranges}

## For and against

{words}

## What the table before this one had wrong

* Swish and GELU do not stay above 0. Their lowest values are {lowest[0]} (Swish, at {swish_at}), {lowest[1]} (GELU)
  and {lowest[2]} (its tanh form).
* The slope of Swish is {swish_slopes[0]} at 1 and {swish_slopes[1]} at 2. The formula there gave 3.440 and 17.97.
* The slope of GELU's tanh form is {fused_slopes[0]} at 1 and {fused_slopes[1]} at −2. The formula there gave 0.9573
  and −0.2103.
"""


def draw_activations():
    columns, rows = 4, math.ceil(len(ACTIVATIONS) / 4)
    figure = style.new_figure(
        style.WIDTH, style.HEADING + 1.75 * rows, "Activations", "value (blue), derivative (orange)"
    )
    for index, activation in enumerate(ACTIVATIONS):
        row, column = divmod(index, columns)
        axes = style.panel(figure, 0.4 + 1.93 * column, style.HEADING + 0.15 + 1.75 * row, 1.6, 1.3)
        highest = extremes(activation)[1].value
        reach = highest + 2 if 1 < highest < math.inf else 4.0
        x = torch.linspace(-reach, reach, 801, dtype=torch.float64)
        axes.plot(x, evaluated(activation.derivative, activation, x), color=style.ORANGE, linewidth=1.2)
        axes.plot(x, evaluated(activation.value, activation, x), color=style.BLUE, linewidth=1.6)
        axes.set(xlim=(-reach, reach), ylim=(-0.35 * reach, 0.85 * reach), xticks=(-reach, 0, reach))
        axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
        axes.set_title(activation.title, fontsize=10, loc="left", pad=3)
        axes.tick_params(labelsize=8)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers


def results() -> dict[str, dict]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]


def numbers_kept(optim: str) -> int:
    """For each weight of a matrix, beside the weight and its gradient."""
    weight = torch.nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones(64, 64)
    group = {"params": [weight], "kind": "layer_matrices", "weight_decay": 0.0, "lr_scale": 1.0}
    optimizer = build_optimizer(optim, [group], 0.1)
    optimizer.step()
    return round(sum(entry.numel() for entry in optimizer.state[weight].values() if torch.is_tensor(entry)) / 64**2)


def over_seeds(runs: dict[str, dict], optim: str, rate: float, decay: float, key: str) -> tuple[float, float]:
    values = [runs[Run(optim, rate, seed, decay).name][key] for seed in SEEDS]
    return statistics.fmean(values), statistics.stdev(values)


def percent(mean: float, spread: float) -> str:
    return f"{mean:.1%} ± {100 * spread:.1f}"


def accuracies(runs: dict[str, dict], optim: str) -> list[float]:
    return [runs[Run(optim, rate).name]["accuracy"] for rate in RATES[optim]]


def good_rates(runs: dict[str, dict], optim: str) -> list[float]:
    """Those around the best whose accuracy is at most two points below it."""
    found, best = accuracies(runs, optim), RATES[optim].index(best_rate(runs, optim))
    near = [accuracy > found[best] - 0.02 for accuracy in found]
    first, last = best, best
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(near) - 1 and near[last + 1]:
        last += 1
    return RATES[optim][first : last + 1]


def by_accuracy(runs: dict[str, dict]) -> list[str]:
    return sorted(RULES, key=lambda optim: -over_seeds(runs, optim, best_rate(runs, optim), 0.0, "accuracy")[0])


def rates_row(runs: dict[str, dict], optim: str) -> tuple:
    best, good = best_rate(runs, optim), good_rates(runs, optim)
    edge = ", the highest tried" if best == RATES[optim][-1] else ""
    return (
        f"`{optim}`",
        numbers_kept(optim),
        f"{best:.2g}{edge}",
        percent(*over_seeds(runs, optim, best, 0.0, "accuracy")),
        f"{good[0]:.2g} to {good[-1]:.2g}" if len(good) > 1 else f"{good[0]:.2g} only",
    )


def decay_row(runs: dict[str, dict], rate: float, decay: float) -> tuple:
    cells = []
    for optim in ("adamw", "adam"):
        norm = over_seeds(runs, optim, rate, decay, "norm")[0]
        cells += [percent(*over_seeds(runs, optim, rate, decay, "accuracy")), shown(norm, 1)]
    return (f"{decay:g}", *cells)


def rule_section(optim: str, rule) -> str:
    constants = ", ".join(f"{name} = {value:g}" for name, value in rule.constants.items())
    kept = ", ".join(f"{name} from {value:g}" for name, value in rule.start.items()) or "nothing"
    lines = "\n".join(rule.lines)
    return f"""### {rule.title}: `{optim}`

```python
{lines}
```

* Kept between steps: {kept}.{f" Constants: {constants}." if constants else ""}
* Use: {rule.use}.
* Watch: {rule.watch}.
"""


def optimizers_page() -> str:
    runs = results()
    adamw = best_rate(runs, "adamw")
    measured = table(
        ("`optim`", "numbers kept per weight", "best rate", "held-out accuracy there", "rates within 2 points"),
        *(rates_row(runs, optim) for optim in by_accuracy(runs)),
    )
    decays = table(
        ("`weight_decay`", "AdamW", "norm of its matrices", "Adam + L2", "norm of its matrices"),
        *(decay_row(runs, adamw, decay) for decay in (0.0, *DECAYS)),
    )
    return f"""# Optimisers

{MADE}

Chosen with `--optim`, for every task; `training/optimizers.py` has them, and `python scripts/train.py --help` their
options. `lr` is the learning rate of the step, schedule included; `decay` is `--weight_decay` for the parameters that
decay, which are matrices and token tables, not biases, norms and positions.

## Rules

One step, for a weight `w` with gradient `g`, at step `t` counted from 1. They are Python, and what stands here is what
the tests run for 20 steps against torch.optim (`test_rules_equal_torchs`; a second, independent set of rules is in
`tests/training/test_optimizers.py`). Weight decay is L2 (a first line that adds it to the gradient) in all but AdamW
and Muon, where it is decoupled: `{DECOUPLED}`.

{"".join(rule_section(optim, rule) + chr(10) for optim, rule in RULES.items())}
## How much the learning rate matters

Measured: a transformer of 2 layers of 32 on the bundled `digits` (1,437 images to learn from, 360 held out, fold 1 of
5), {STEPS} steps of {BATCH} images, {WARMUP} of them warm-up, then half a cosine; no weight decay, no clipping;
weights from N(0, 0.1). (A first version, from N(0, 0.02) and with 300 steps, began on a plateau that ends by luck,
and was given up for this one after its results were seen.) Every
optimiser ran with one seed at the seven rates of the picture, half a decade apart, and with three seeds at the best of
them: mean and spread (standard deviation) stand here. The best rate was picked on the same held-out images, so these
are figures to compare optimisers by, not results on digits; and a short run favours what starts fast.

{measured}

![held-out accuracy by learning rate](optimizers-rates.png)

One run of each at its best rate: the loss on the batches, a mean over {EVERY} steps. Without decay AdamW is Adam, and
their lines coincide.

![training loss by step](optimizers-curves.png)

## AdamW against Adam with L2

The same training at lr {adamw:.2g}, three seeds, by weight decay. In Adam what decay adds to the gradient is divided
by the gradient's own size, so that it does not shrink a weight in proportion: where gradients are small, decay of any
size becomes a step of full length, and the model is pulled to 0. In AdamW a step takes off lr * decay of the weight.

{decays}

![weight decay, decoupled and L2](optimizers-decay.png)
"""


def draw_rates():
    runs = results()
    title = "Learning rates: held-out accuracy on digits"
    figure = style.new_figure(style.WIDTH, style.HEADING + 3.9, title, "each optimiser in blue, the others in grey")
    for index, optim in enumerate(RULES):
        row, column = divmod(index, 5)
        axes = style.panel(figure, 0.5 + 1.5 * column, style.HEADING + 0.2 + 1.9 * row, 1.3, 1.3)
        for other in RULES:
            axes.semilogx(RATES[other], accuracies(runs, other), color=style.FAINT, linewidth=0.8)
        axes.semilogx(RATES[optim], accuracies(runs, optim), color=style.BLUE, marker="o", markersize=2.5)
        axes.set(ylim=(0, 1), yticks=(0, 0.5, 1), xlim=(7e-5, 14))
        axes.set_xticks((1e-4, 1e-2, 1), ("0.0001", "0.01", "1"))
        axes.set_yticklabels(("0 %", "50 %", "100 %") if column == 0 else ())
        axes.set_title(optim, fontsize=10, loc="left", pad=3)
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
    return figure


def draw_curves():
    runs = results()
    figure = style.new_figure(style.WIDTH, 4.9, "Training loss on digits, each at its best rate", "mean over 10 steps")
    axes = style.panel(figure, 0.65, style.HEADING, 5.3, 3.4, xlabel="step")
    labels = []
    for index, optim in enumerate(by_accuracy(runs)):
        rate = best_rate(runs, optim)
        curve = np.array(runs[Run(optim, rate).name]["train_loss"], dtype=float)
        colour = style.PALETTE[index % len(style.PALETTE)]
        steps = EVERY * (np.arange(len(curve)) + 0.5)
        dashes = "-" if index < len(style.PALETTE) else "--"
        axes.plot(steps, curve, dashes, color=colour, linewidth=1.5)
        labels.append((curve[-1], f"{optim}, {rate:.2g}", colour))
    axes.set(xlim=(0, STEPS), ylim=(0, 2.5))
    style.label_ends(axes, labels)
    return figure


def draw_decay():
    runs = results()
    rate, decays = best_rate(runs, "adamw"), (0.0, *DECAYS)
    title = f"Weight decay at lr {rate:.2g}: decoupled and L2"
    figure = style.new_figure(style.WIDTH, 3.9, title, "mean over three seeds")
    for index, (key, label) in enumerate(
        (("accuracy", "held-out accuracy"), ("norm", "norm of the layers' matrices"))
    ):
        axes = style.panel(figure, 0.65 + 4.0 * index, style.HEADING + 0.25, 2.3, 2.1, xlabel="weight decay")
        labels = []
        for name, optim, colour in (("AdamW", "adamw", style.BLUE), ("Adam + L2", "adam", style.ORANGE)):
            values = [over_seeds(runs, optim, rate, decay, key)[0] for decay in decays]
            axes.plot(range(len(decays)), values, color=colour, marker="o", markersize=4)
            labels.append((values[-1], name, colour))
        axes.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axes.set_ylim(0, 1 if key == "accuracy" else None)
        axes.set_title(label, fontsize=10, loc="left")
        style.label_ends(axes, labels)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Positions

KINDS = {
    "learned": ("a vector added to each embedding", "an error that says so; for images the table is interpolated"),
    "none": ("nowhere: causal attention alone can count", "nothing changes"),
    "sinusoidal": ("waves added to each embedding", "computed for any position; not seen in training"),
    "rotary": ("queries and keys are turned", "computed for any position; only distances matter"),
    "relative": ("a number added to each score", "far distances share the last bucket"),
}
WIDE = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "max_position_embeddings": 512}

NARROW = {"hidden_size": 64, "num_attention_heads": 1}


def stack(position: str | dict, **options) -> TriuneModel:
    config = TriuneConfig(position=position, vocab_size=8, **{**WIDE, "intermediate_size": 8, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TriuneModel(config)


def kind_row(kind: str) -> tuple:
    with torch.device("meta"):
        count = sum(weight.numel() for weight in stack(kind).positions.parameters())
    return f"`{kind}`", *KINDS[kind], f"{count:,}"


def wave_table() -> str:
    waves = sinusoids(torch.arange(6), 8, 10000.0, "interleaved").double()
    head = [f"{wave} p{slower}" for slower in ("", " / 10", " / 100", " / 1000") for wave in ("sin", "cos")]
    return table(
        ("p", *head), *((place, *(shown(value, 3) for value in row)) for place, row in enumerate(waves.tolist()))
    )


def plane_table() -> str:
    waves = sinusoids_2d((2, 3), 8, 10000.0, "concatenated").double()
    columns = ("sin c", "sin c / 100", "cos c", "cos c / 100", "sin r", "sin r / 100", "cos r", "cos r / 100")
    rows = [(*divmod(place, 3), *(shown(value, 3) for value in row)) for place, row in enumerate(waves.tolist())]
    return table(("row r", "column c", *columns), *rows)


def angle_table() -> str:
    width, places = 8, (0, 1, 2, 10, 100)
    model = stack("rotary", hidden_size=width, num_attention_heads=1)
    cos, _ = model.positions.rotation(torch.zeros(1), torch.tensor([places]), "full_attention")
    angles = torch.tensor(places)[:, None] / 10000 ** (torch.arange(4) / 4)
    assert torch.allclose(cos[0, :, :4], angles.cos(), atol=1e-5)
    head = ("position", *(f"pair ({pair}, {pair + width // 2})" for pair in range(width // 2)))
    return table(head, *((place, *(shown(value, 4) for value in row)) for place, row in zip(places, angles.tolist())))


DISTANCES = (-200, -128, -64, -32, -16, -12, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 64, 128)


def bucket_table() -> str:
    distance = torch.tensor(DISTANCES)
    both, behind = (relative_buckets(distance, 32, 128, causal).tolist() for causal in (False, True))
    seen = [bucket if place <= 0 else "" for bucket, place in zip(behind, DISTANCES)]
    rows = [("bidirectional", *both), ("causal", *seen)]
    return table(("key minus query", *(str(place).replace("-", "−") for place in DISTANCES)), *rows)


def positions_page() -> str:
    return f"""# Positions

{MADE}

The field `position` of the configuration. Attention by itself does not know order; each kind tells it in one of three
places (`modeling/positions.py`).

{table(("`position`", "where it acts", "beyond the trained length", "parameters"), *map(kind_row, POSITIONS))}

Parameters: for 512 positions, a width of 768, 12 heads, 32 buckets.

## Learned

A table of vectors. It begins as noise, and what it makes of order is learned from the data. Here are the positions of
the 4 x 4 patches of `digits` after {STEPS} steps (AdamW, the model of [optimizers.md](optimizers.md)): most of the
noise is still there, which is enough to tell patches apart. Smooth maps come with far longer training.

![similarity of learned positions](positions-learned.png)

## Sinusoidal

Waves of growing length; the first six positions at width 8, layout `interleaved`. Layout `concatenated` has all sines
before all cosines, as Marian.

{wave_table()}

![similarity of sinusoidal positions](positions-sinusoidal.png)

With `dimensions: 2`, one half of the width tells the column, the other the row, as in MAE (layout `concatenated`,
width 8, a grid of 2 x 3):

{plane_table()}

![similarity of two-dimensional sinusoids](positions-plane.png)

## Rotary

Each pair of numbers of a query or key is turned by position / theta^(2 pair / head_dim); the product of a turned query
and a turned key depends on their distance alone. Angles in radians for a head of 8, theta 10000:

{angle_table()}

![what distance does to a match](positions-rotary.png)

## Relative

One learned number for each head and bucket of distances, as in T5: near keys have a bucket each, far ones share
(32 buckets, `max_distance` 128). A bidirectional stack spends half of them on keys that come after the query.

{bucket_table()}

![buckets by distance](positions-buckets.png)
"""


def trained_positions() -> TriuneForImageClassification:
    model = small_model(0)
    train(model, Run("adamw", best_rate(results(), "adamw")), prepared_digits())
    return model


def draw_buckets():
    distances = np.arange(-128, 129)
    lines = {
        name: relative_buckets(torch.from_numpy(distances), 32, 128, causal).numpy()
        for name, causal in (("bidirectional", False), ("causal", True))
    }
    note = "key minus query; a causal stack never sees a distance above 0"
    return positions.draw_by_distance(distances, lines, "Relative positions: the bucket of a distance", note)


# ---------------------------------------------------------------------------------------------------------------------
# Patches

PATCH = 32


def photographs() -> list[torch.Tensor]:
    """scikit-learn's two, cut so that patches fit: (channels, rows, columns), uint8."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in load_sample_images().images]
    return [
        picture[:, : picture.shape[1] // PATCH * PATCH, : picture.shape[2] // PATCH * PATCH] for picture in pictures
    ]


def grid_of(picture: torch.Tensor) -> tuple[int, int]:
    return picture.shape[1] // PATCH, picture.shape[2] // PATCH


def tiny_tables() -> str:
    """What becomes of numbered pixels."""
    picture = torch.arange(48).reshape(1, 2, 4, 6)
    rows = [
        (patch, *(", ".join(map(str, channel)) for channel in numbers))
        for patch, numbers in enumerate(patchify(picture, 2)[0].unflatten(1, (2, 4)).tolist())
    ]
    return table(("patch", "channel 0", "channel 1"), *rows)


def photograph_rows() -> list[tuple]:
    rows = []
    for name, picture in zip(("china.jpg", "flower.jpg"), photographs()):
        patches = patchify(picture[None], PATCH)
        back = unpatchify(patches, grid_of(picture), PATCH)[0]
        wrong = int((back.int() - picture.int()).abs().max())
        rows.append((name, " x ".join(map(str, picture.shape)), " x ".join(map(str, patches.shape[1:])), wrong))
    return rows


def patches_page() -> str:
    return f"""# Patches and back

{MADE}

`patchify` (`modeling/embeddings.py`) cuts an image row by row; within a patch channels come first, then rows, then
columns, as in the kernel of a convolution, so a linear map of a patch is that convolution with its weights reshaped.
`unpatchify`, beside it, is its exact inverse, for any grid.

```python
patches = patchify(images, patch_size)  # (batch, rows * columns, channels * patch * patch)
images = unpatchify(patches, (rows, columns), patch_size)
```

An image of 2 channels, 4 rows and 6 columns, whose pixels are numbered from 0 to 47, in patches of 2:

{tiny_tables()}

scikit-learn's two photographs, cut to a multiple of {PATCH}, neither of them square:

{table(("", "image", "patches", "largest difference after there and back"), *photograph_rows())}

![a photograph, its patches, and patches whose channels are mixed up](patches.png)

The third picture is what an older system fed its model: tiles of the three channels viewed as patches without moving
the channel axis, so that a "patch" is three neighbouring tiles of one channel. It trains, and nothing warns.
"""


def mixed_up(picture: torch.Tensor) -> torch.Tensor:
    """The mistake: (channels, rows, columns, patch, patch) read as if channels were in the patches."""
    tiles = picture.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    patches = tiles.reshape(1, math.prod(grid_of(picture)), -1)
    return unpatchify(patches, grid_of(picture), PATCH)[0]


def apart(picture: torch.Tensor, gap: int) -> torch.Tensor:
    """The patches with white between them."""
    tiles = patchify(picture[None], PATCH).unflatten(2, (picture.shape[0], PATCH, PATCH))
    tiles = torch.nn.functional.pad(tiles, (0, gap, 0, gap), value=255).flatten(2)
    return unpatchify(tiles, grid_of(picture), PATCH + gap)[0]


def draw_patches():
    (_, picture) = photographs()
    rows, columns = grid_of(picture)
    width = 2.1
    height = width * rows / columns
    note = f"{rows} x {columns} patches of {PATCH}; each patch is one vector of {3 * PATCH**2:,} numbers"
    figure = style.new_figure(style.WIDTH, style.HEADING + height + 0.45, "A photograph in patches", note)
    page = style.sheet(figure)
    shown_pictures = (
        ("the photograph", picture),
        ("its patches", apart(picture, 4)),
        ("channels mixed up: wrong", mixed_up(picture)),
    )
    for index, (label, pixels) in enumerate(shown_pictures):
        left = style.MARGIN + index * (width + 0.45)
        page.text(left, style.HEADING + 0.1, label, fontsize=9.5, color=style.GREY)
        style.put(page, pixels.permute(1, 2, 0).numpy(), left, style.HEADING + 0.2, width, height)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# All of them

TEXTS = {
    "activations.md": activations_page,
    "optimizers.md": optimizers_page,
    "positions.md": positions_page,
    "patches.md": patches_page,
}
DRAWINGS = {
    "activations.png": draw_activations,
    "optimizers-rates.png": draw_rates,
    "optimizers-curves.png": draw_curves,
    "optimizers-decay.png": draw_decay,
    "positions-buckets.png": draw_buckets,
    "patches.png": draw_patches,
}
SIMILARITIES = {
    "positions-learned.png": trained_positions,
    "positions-sinusoidal.png": lambda: stack("sinusoidal", **NARROW, max_position_embeddings=64),
    "positions-plane.png": lambda: TriuneForImageClassification(
        TriuneConfig(
            embedding={"type": "patches", "image_size": 16, "patch_size": 2, "num_channels": 1, "cls_token": False},
            position={"type": "sinusoidal", "dimensions": 2, "layout": "concatenated"},
            pooling="mean",
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    ),
    "positions-rotary.png": lambda: stack("rotary", **NARROW, max_position_embeddings=256),
}
COLOURS = 256  # of a picture in this folder: a third of the bytes, and no difference to see


def shrink(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def draw_all() -> None:
    for name, draw in DRAWINGS.items():
        style.save(PAGES / name, draw)
    for name, build in SIMILARITIES.items():
        positions.position_similarity(build().eval(), PAGES / name)
    for name in (*DRAWINGS, *SIMILARITIES):
        shrink(PAGES / name)


def differing() -> list[str]:
    """Pages that are not what the code makes, and pictures that are not there."""
    pages = [name for name, text in TEXTS.items() if not same(PAGES / name, text())]
    return pages + [name for name in (*DRAWINGS, *SIMILARITIES) if not (PAGES / name).exists()]


def same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--measure", action="store_true", help="train the optimisers first, what is not there yet")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if a page is not what the code makes"
    )
    asked = parser.parse_args()
    if asked.check:
        wrong = differing()
        sys.exit(f"docs/tables: run scripts/tables.py for {', '.join(wrong)}" if wrong else 0)
    if asked.measure:
        measure_all()
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        write(PAGES / name, text())
    draw_all()


if __name__ == "__main__":
    main()
