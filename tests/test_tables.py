"""The reference pages: their formulas against transformers, autograd and torch.optim, their ranges against brute
force, and the pages in docs/tables against what `scripts/tables.py` makes."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from script_loading import load_script
from torch import nn
from transformers.activations import ACT2FN

from triune.configuration.configuration_triune import ACTIVATIONS as ALLOWED
from triune.modeling.embeddings import patchify, unpatchify
from triune.modeling.positions import POSITIONS
from triune.training.optimizers import OPTIMIZERS, build_optimizer
from triune.training.reference import ACTIVATIONS, L2, RULES, evaluated, extremes, follow, steepest


ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "tables"
BY_TITLE = {activation.title: activation for activation in ACTIVATIONS}
NAMED = [pytest.param(activation, name, id=name) for activation in ACTIVATIONS for name in activation.names]

script = load_script("scripts/tables.py")


# ---------------------------------------------------------------------------------------------------------------------
# Activations


def module_of(name: str) -> nn.Module:
    """transformers' own, or torch's where it has none."""
    return (nn.ELU() if name == "elu" else ACT2FN[name]).double()


@pytest.mark.parametrize("activation, name", NAMED)
def test_formulas_equal_transformers_and_autograd(activation, name):
    """Value, derivative and derivative for a parameter over a grid, against the module and autograd, to 1e-9."""
    module = module_of(name)
    x = torch.linspace(-8, 12, 2001, dtype=torch.float64).requires_grad_()
    parameters = list(module.parameters())
    assert len(parameters) == len(activation.parameters) == len(activation.by_parameter)
    value = module(x)
    slope, *slopes = torch.autograd.grad(value.sum(), [x, *parameters])
    x = x.detach()
    torch.testing.assert_close(evaluated(activation.value, activation, x), value.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(evaluated(activation.derivative, activation, x), slope, atol=1e-9, rtol=0)
    for (parameter, formula), found in zip(activation.by_parameter.items(), slopes):
        assert activation.parameters[parameter] == 0.25 == module.state_dict()["weight"].item()
        expected = evaluated(formula, activation, x).sum().reshape(1)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.title)
def test_ranges_equal_brute_force(activation):
    """Lowest and highest value and the largest slope against a fine grid of the module itself, which no value leaves;
    what is said to be reached is, what is said to be approached is not."""
    module, (low, high) = module_of(activation.names[0]), extremes(activation)
    x = torch.linspace(-30, 30, 120_001, dtype=torch.float64).requires_grad_()
    values = module(x)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    if math.isfinite(low.value):
        assert values.min().item() == pytest.approx(low.value, abs=1e-7)
    else:
        assert values.min() < -0.25
    if math.isfinite(high.value):
        assert values.max().item() == pytest.approx(high.value, abs=1e-7)
    else:
        assert values.max() >= 30 - 1e-9
    if math.isfinite(low.place):
        assert x[values.argmin()].item() == pytest.approx(low.place, abs=1e-3)
    near = (x > -2) & (x < 10.5)  # farther out, what only approaches its end is rounded to it
    for extreme, bracket, closed in ((low, activation.ends[0], "["), (high, activation.ends[1], "]")):
        flat = (values == extreme.value) & (slopes == 0) & near
        reached = math.isfinite(extreme.place) or bool(flat.any())
        assert (bracket == closed) == reached
    largest = steepest(activation)
    assert slopes.abs().max().item() == pytest.approx(largest, abs=1e-6) or (math.isinf(largest) and slopes.max() > 50)


def test_known_minima():
    """The numbers that an older table had wrong, to their published digits."""
    published = {"Swish, SiLU": (-0.27846, -1.2785), "GELU": (-0.16997, -0.7518), "GELU, tanh": (-0.17004, -0.7525)}
    for title, (value, place) in published.items():
        low, high = extremes(BY_TITLE[title])
        assert (round(low.value, 5), round(low.place, 4)) == (value, place)
        assert high.value == math.inf
    text = (PAGES / "activations.md").read_text(encoding="utf-8")
    for number in ("−0.27846", "−1.2785", "−0.16997", "−0.17004", "0.9277", "1.0908", "1.083 ", "−0.0861"):
        assert number in text, number


def test_every_activation_of_the_configuration_is_on_the_page():
    """Each allowed `hidden_act` in one entry, and nothing there that is not allowed."""
    names = [name for activation in ACTIVATIONS for name in activation.names]
    assert sorted(names) == sorted(ALLOWED)
    text = (PAGES / "activations.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in names)


def test_distances_in_words():
    """How far the two stand-ins are from GELU, as the table says it."""
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    for title, distance in (("GELU, tanh", 0.0005), ("QuickGELU", 0.0203)):
        found = (evaluated(BY_TITLE[title].value, BY_TITLE[title], x) - F.gelu(x)).abs().max().item()
        assert found == pytest.approx(distance, abs=5e-5) and str(distance) in BY_TITLE[title].shape


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers

TORCHS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "nadam": (torch.optim.NAdam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def least_squares():
    generator = torch.Generator().manual_seed(1)
    a, b, start = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 4), (9, 3), (4, 3)))
    return start, lambda w: a.T @ (a @ w - b) / 9


def twenty_steps(optimizer, weight, gradient):
    for _ in range(20):
        weight.grad = gradient(weight.detach())
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("name", RULES)
def test_rules_equal_torchs(name):
    """The lines of the page, 20 steps with weight decay, against torch.optim's class with its own defaults; Muon's
    against ours, which another test ties to torch's."""
    start, gradient = least_squares()
    lr, weight = 1.0 if name == "adadelta" else 0.05, nn.Parameter(start.clone())
    group = {"params": [weight], "kind": "layer_matrices", "weight_decay": 0.1, "lr_scale": 1.0}
    if name in TORCHS:
        make, options = TORCHS[name]
        optimizer = make([weight], lr=lr, weight_decay=0.1, **options)
    else:
        optimizer = build_optimizer(name, [group], lr)
    expected = twenty_steps(optimizer, weight, gradient)
    found = follow(RULES[name], start, gradient, lr, 0.1, 20)
    torch.testing.assert_close(found, expected, atol=1e-9 if name in TORCHS else 1e-6, rtol=0)
    assert (found - start).abs().max() > 1e-3
    other = RULES["nesterov" if name == "sgd" else "sgd"]
    assert (follow(other, start, gradient, lr, 0.1, 20) - expected).abs().max() > 1e-3


def test_rules_are_those_of_the_optimizers():
    """One rule for each optimiser, and its decay as `build_optimizer` says: decoupled in AdamW and Muon alone."""
    assert set(RULES) == set(OPTIMIZERS)
    assert {name for name, rule in RULES.items() if L2 not in rule.lines} == {"adamw", "muon"}
    text = (PAGES / "optimizers.md").read_text(encoding="utf-8")
    for rule in RULES.values():
        assert "```python\n" + "\n".join(rule.lines) + "\n```" in text


def test_numbers_kept_are_the_rules_own():
    """What an optimiser keeps for a weight, counted in its state, against the names that its rule keeps."""
    for name, rule in RULES.items():
        assert script.numbers_kept(name) == len(set(rule.start) - {"c"}), name  # c: one number for all


def test_measured_file_is_complete():
    """Every planned run is there, with a curve of its steps; where a loss is missing the run broke, with a chance's
    accuracy or a curve that ends early."""
    found = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    runs = found["runs"]
    assert found["setting"] == {"steps": 150, "warmup": 15, "batch": 64, "curve_of": 10}
    assert {run.name for run in script.planned(runs)} == set(runs)
    for name, run in runs.items():
        broken = run["loss"] is None
        assert 0 <= run["accuracy"] <= 1 and (broken or len(run["train_loss"]) == 15), name


def test_a_measurement_repeats():
    """The same run twice gives the same numbers, another seed others."""
    data = script.prepared_digits()
    run = script.Run("adamw", 0.003)
    one, again = (script.measure(run, data, steps=16) for _ in range(2))
    assert one == again and len(one["train_loss"]) == 2
    assert script.measure(run._replace(seed=1), data, steps=16)["train_loss"] != one["train_loss"]


def test_good_rates_are_around_the_best():
    """A best rate with neighbours within two points on one side, and one beyond a gap that does not count."""
    rates = script.RATES["sgd"]
    accuracy = dict.fromkeys(rates, 0.5) | {rates[3]: 0.9, rates[4]: 0.89, rates[6]: 0.895}
    runs = {script.Run("sgd", rate).name: {"accuracy": value, "loss": 1 - value} for rate, value in accuracy.items()}
    assert script.best_rate(runs, "sgd") == rates[3]
    assert script.good_rates(runs, "sgd") == rates[3:5]
    flat = {name: {"accuracy": 0.5, "loss": 1.0} for name in runs}
    assert script.good_rates(flat, "sgd") == rates


# ---------------------------------------------------------------------------------------------------------------------
# Patches


@pytest.mark.parametrize("shape, patch", [((1, 1, 4, 4), 2), ((2, 3, 6, 10), 2), ((2, 4, 9, 3), 3)])
def test_unpatchify_inverts_patchify(shape, patch):
    """There and back for images that are not square, and patches against torch's unfold."""
    images = torch.randn(shape)
    patches = patchify(images, patch)
    assert torch.equal(unpatchify(patches, (shape[2] // patch, shape[3] // patch), patch), images)
    assert torch.equal(patches, F.unfold(images, patch, stride=patch).transpose(1, 2))


def test_the_mixed_up_patches_are_wrong():
    """The mistake in the picture: same size, other pixels; a patch of it holds tiles of one channel."""
    picture = torch.arange(3 * 64 * 96).reshape(3, 64, 96)
    wrong = script.mixed_up(picture)
    assert wrong.shape == picture.shape and not torch.equal(wrong, picture)
    first = patchify(wrong[None], 32)[0, 0]
    assert first.max() < 64 * 96 and patchify(picture[None], 32)[0, 0].max() >= 2 * 64 * 96


# ---------------------------------------------------------------------------------------------------------------------
# The pages


@pytest.mark.parametrize("name", script.TEXTS)
def test_pages_are_what_the_script_makes(name):
    """Every page as committed against what the code makes now."""
    assert (PAGES / name).read_text(encoding="utf-8") == script.TEXTS[name](), "run scripts/tables.py"


def test_pictures_and_links():
    """Each picture is shown on a page and small, and each link leads somewhere."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")}
    assert set(texts) == set(script.TEXTS)
    shown = {name for text in texts.values() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)}
    assert shown == {*script.DRAWINGS, *script.SIMILARITIES} == {picture.name for picture in PAGES.glob("*.png")}
    for text in texts.values():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (PAGES / link).stat().st_size < 150_000
        for path in re.findall(r"`((?:modeling|training|tests|scripts|benchmarks)/[\w./]+)`", text):
            assert (ROOT / path).exists(), path


def test_check_finds_a_page_that_differs(tmp_path, monkeypatch):
    """A folder with one page changed and one picture gone: both are named, and nothing else."""
    for file in PAGES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(script, "PAGES", tmp_path)
    assert script.differing() == []
    (tmp_path / "patches.md").write_text("another")
    (tmp_path / "patches.png").unlink()
    assert script.differing() == ["patches.md", "patches.png"]


def test_every_position_is_on_the_page():
    """The table of kinds against the table in the code."""
    assert set(script.KINDS) == set(POSITIONS)
