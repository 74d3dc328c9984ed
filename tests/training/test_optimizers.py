"""Parameter groups against names and Hugging Face's convention; every optimiser against its rule written out, against
itself interrupted, and, sharded over two processes, against itself in one."""

import copy
import json
import math
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate_state import reset_accelerate
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from transformers.trainer_pt_utils import get_parameter_names
from two_processes import run_in_two

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM
from triune.training.optimizers import (
    DECAYS,
    OPTIMIZERS,
    SHARDABLE,
    build_optimizer,
    orthogonalized,
    parameter_groups,
    refuse_unsharded,
    set_learning_rate,
)


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 12}
MODELS = {
    "gpt": lambda: TriuneForCausalLM(TriuneConfig(**TEXT, attention="causal")),
    "untied": lambda: TriuneForCausalLM(
        TriuneConfig(**TEXT, attention="causal", norm="rmsnorm", position="relative", tie_word_embeddings=False)
    ),
    "bert": lambda: TriuneForMaskedLM(
        TriuneConfig(
            **TEXT,
            embedding={"type": "tokens", "type_vocab_size": 2, "norm": "after"},
            norm_placement="post",
            lm_head="transform",
        )
    ),
    "vit": lambda: TriuneForImageClassification(
        TriuneConfig(
            **SIZES,
            embedding={"type": "patches", "image_size": 8, "patch_size": 4, "num_register_tokens": 2},
            residual={"type": "layer_scale"},
            num_labels=3,
        )
    ),
}


def named_groups(model, **options):
    """The groups with the names of their parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=options.pop("weight_decay", 0.1), **options)
    return [(group, [names[id(parameter)] for parameter in group["params"]]) for group in groups]


# ---------------------------------------------------------------------------------------------------------------------
# Groups


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_stands_in_one_group(name):
    """The names of all groups together are those of the model, each once, tied weights under their first name."""
    model = MODELS[name]()
    for layer_decay in (1.0, 0.8):
        found = [path for _, paths in named_groups(model, layer_decay=layer_decay) for path in paths]
        assert sorted(found) == sorted(path for path, _ in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_decay_is_hugging_faces(name):
    """What decays against transformers' own rule; position tables, CLS, registers and layer scale are left out."""
    model = MODELS[name]()
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    expected = set(get_parameter_names(model, [nn.LayerNorm, nn.RMSNorm], patterns))
    expected &= {path for path, _ in model.named_parameters()}  # theirs names a tied weight twice
    expected = {path for path in expected if not re.search(r"positions|cls_token|register_tokens|\.scale$", path)}
    found = {path for group, paths in named_groups(model) for path in paths if group["weight_decay"]}
    assert found == expected


def test_kinds():
    """The kind of every parameter of two models, layers and their repetitions folded."""

    def kinds(name):
        table = {kind: set() for kind in DECAYS}
        for group, paths in named_groups(MODELS[name]()):
            table[group["kind"]] |= {re.sub(r"\.\d\.", ".N.", path).removeprefix("model.") for path in paths}
        return table

    projections = {f"layers.N.self_attn.{name}_proj.weight" for name in "qkvo"}
    projections |= {f"layers.N.mlp.{name}_proj.weight" for name in ("up", "down")}
    gpt, vit = kinds("untied"), kinds("vit")
    assert gpt["layer_matrices"] == vit["layer_matrices"] == projections
    assert gpt["other_matrices"] == {"lm_head.weight"} and gpt["embeddings"] == {"embed_tokens.weight"}
    assert gpt["positions"] == vit["positions"] | {"positions.table.weight"} == {"positions.table.weight"}
    assert vit["other_matrices"] == {"embed_tokens.projection.weight", "classifier.weight"}
    assert vit["embeddings"] == set()
    assert {"embeddings.cls_token", "embeddings.register_tokens", "layers.N.mlp_residual.scale"} <= vit["vectors"]


def test_frozen_parameters_are_left_out():
    """Frozen ones stand in no group, layers above them keep their distance, and nothing to train is an error."""
    model = MODELS["gpt"]()
    for path, parameter in model.named_parameters():
        parameter.requires_grad = "layers.1." in path
    scales = {path: group["lr_scale"] for group, paths in named_groups(model, layer_decay=0.5) for path in paths}
    assert len(scales) == 16 and set(scales.values()) == {0.25}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        parameter_groups(model, 0.1)


def test_layer_decay():
    """The factor of every parameter is 0.5 to the power of its distance from the head, through wrappers, too."""
    powers = {"embed": 4, "positions": 4, "layers.0": 3, "layers.1": 2, "layers.2": 1, "norm": 0, "classifier": 0}
    for model in (MODELS["vit"](), nn.ModuleDict({"module": MODELS["vit"]()})):
        for group, paths in named_groups(model, layer_decay=0.5):
            for path in paths:
                start = next(start for start in powers if re.search(rf"(^|\.){start}", path))
                assert group["lr_scale"] == 0.5 ** powers[start], path


def test_stacks_are_measured_by_themselves():
    """Two stacks of different height in one model: each layer's distance is to the top of its own."""
    model = nn.ModuleDict({"encoder": MODELS["gpt"]().model, "decoder": MODELS["gpt"]().model})
    del model["decoder"].layers[2]
    scales = {path: group["lr_scale"] for group, paths in named_groups(model, layer_decay=0.5) for path in paths}
    assert scales["encoder.embed_tokens.weight"] == 0.5**4 and scales["decoder.embed_tokens.weight"] == 0.5**3
    assert scales["encoder.layers.0.mlp.up_proj.weight"] == 0.5**3
    assert scales["decoder.layers.0.mlp.up_proj.weight"] == 0.5**2


def test_learning_rate_is_scaled_by_group():
    """From the start, and after each change."""
    optimizer = build_optimizer("adamw", parameter_groups(MODELS["gpt"](), 0.1, layer_decay=0.5), lr=0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * 0.5**power for power in range(5)}
    set_learning_rate(optimizer, 2.0)
    assert all(group["lr"] == 2.0 * group["lr_scale"] for group in optimizer.param_groups)


# ---------------------------------------------------------------------------------------------------------------------
# Rules


BETA1, BETA2, EPS, L2 = 0.8, 0.95, 1e-8, 0.1


def textbook_sgd(p, g, t, lr, state):
    return p - lr * g


def textbook_momentum(p, g, t, lr, state):
    state["m"] = 0.9 * state.get("m", 0) + g
    return p - lr * state["m"]


def textbook_nesterov(p, g, t, lr, state):
    """Momentum, with the gradient's look one step ahead."""
    state["m"] = 0.9 * state.get("m", 0) + g
    return p - lr * (g + 0.9 * state["m"])


def textbook_adagrad(p, g, t, lr, state):
    state["sum"] = state.get("sum", 0) + g**2
    return p - lr * g / (state["sum"].sqrt() + 1e-10)


def textbook_rmsprop(p, g, t, lr, state):
    state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
    return p - lr * g / (state["v"].sqrt() + 1e-8)


def textbook_adam(p, g, t, lr, state):
    state["m"] = BETA1 * state.get("m", 0) + (1 - BETA1) * g
    state["v"] = BETA2 * state.get("v", 0) + (1 - BETA2) * g**2
    m, v = state["m"] / (1 - BETA1**t), state["v"] / (1 - BETA2**t)
    return p - lr * m / (v.sqrt() + EPS)


def textbook_adamw(p, g, t, lr, state):
    """Adam on the gradient alone; the weights shrink by themselves."""
    return textbook_adam(p, g - L2 * p, t, lr, state) - lr * L2 * p


def textbook_adadelta(p, g, t, lr, state):
    state["v"] = 0.9 * state.get("v", 0) + 0.1 * g**2
    delta = (state.get("d", torch.zeros_like(p)) + 1e-6).sqrt() / (state["v"] + 1e-6).sqrt() * g
    state["d"] = 0.9 * state.get("d", 0) + 0.1 * delta**2
    return p - lr * delta


def textbook_nadam(p, g, t, lr, state):
    """Adam with Nesterov's look ahead, and a momentum that warms up. Dozat, 2016."""
    now, ahead = (BETA1 * (1 - 0.5 * 0.96 ** (step * 0.004)) for step in (t, t + 1))
    state["product"] = state.get("product", 1.0) * now
    state["m"] = BETA1 * state.get("m", 0) + (1 - BETA1) * g
    state["v"] = BETA2 * state.get("v", 0) + (1 - BETA2) * g**2
    m = ahead * state["m"] / (1 - state["product"] * ahead) + (1 - now) * g / (1 - state["product"])
    return p - lr * m / ((state["v"] / (1 - BETA2**t)).sqrt() + EPS)


RULES = {
    "sgd": textbook_sgd,
    "momentum": textbook_momentum,
    "nesterov": textbook_nesterov,
    "adagrad": textbook_adagrad,
    "rmsprop": textbook_rmsprop,
    "adam": textbook_adam,
    "adamw": textbook_adamw,
    "adadelta": textbook_adadelta,
    "nadam": textbook_nadam,
}


def one_group(*tensors, kind="vectors", weight_decay=0.0):
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
    return [{"params": parameters, "kind": kind, "weight_decay": weight_decay, "lr_scale": 1.0}]


def least_squares(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    a, b, start = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((9, 4), (9, 3), (4, 3)))
    return start, lambda w: a.T @ (a @ w - b) / 9


def trained(name, start, gradient, lr, steps=20, weight_decay=L2, kind="vectors", **options):
    groups = one_group(start, kind=kind, weight_decay=weight_decay)
    optimizer = build_optimizer(name, groups, lr, (BETA1, BETA2), EPS, **options)
    (weight,) = groups[0]["params"]
    for _ in range(steps):
        weight.grad = gradient(weight.detach())
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("name", RULES)
def test_textbook_rule(name):
    """20 steps of a least-squares problem with weight decay against the rule written out, to 1e-6."""
    start, gradient = least_squares()
    lr = 1.0 if name == "adadelta" else 0.05
    expected, state = start, {}
    for step in range(1, 21):
        expected = RULES[name](expected, gradient(expected) + L2 * expected, step, lr, state)
    found = trained(name, start, gradient, lr)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - start).abs().max() > 1e-3


def test_decoupled_decay_is_not_l2():
    """AdamW and Adam are the same without weight decay and far apart with it."""
    start, gradient = least_squares()
    with_decay, without = (
        [trained(name, start, gradient, 0.05, weight_decay=decay) for name in ("adamw", "adam")] for decay in (L2, 0.0)
    )
    torch.testing.assert_close(*without, atol=1e-12, rtol=0)
    assert (with_decay[0] - with_decay[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name, choice in OPTIMIZERS.items() if choice.fused])
def test_fused_equals_unfused(name):
    """The fused kernel is in use, and 20 steps of it equal those of the plain one, to 1e-6."""
    start, gradient = least_squares(torch.float32)
    groups = one_group(start, weight_decay=L2) + one_group(start, kind="layer_matrices")
    optimizers = [build_optimizer(name, copy.deepcopy(groups), 0.05) for _ in range(2)]
    for optimizer, fused in zip(optimizers, (True, None)):
        for group in optimizer.param_groups:
            if "fused" in group:
                assert group["fused"] is True
                group["fused"] = fused
        for _ in range(20):
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = gradient(weight.detach())
            optimizer.step()
    for one, other in zip(*(optimizer.param_groups for optimizer in optimizers)):
        torch.testing.assert_close(one["params"], other["params"], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize("shape", [(48, 48), (64, 16), (16, 64), (1, 8)])
def test_muons_update_is_nearly_orthogonal(shape):
    """Its singular values lie around 1 and its singular vectors are those of the gradient."""
    gradient = torch.randn(shape)
    update = -trained("muon", torch.zeros(shape), lambda _: gradient, 1.0, 1, 0.0, "layer_matrices")
    update /= 0.2 * math.sqrt(max(shape))
    values = torch.linalg.svdvals(update)
    assert 0.6 < values.min() and values.max() < 1.3
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    inner = u.T @ update @ v.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-3, rtol=0)


def test_muon_equals_torchs():
    """Matrices against torch.optim.Muon, which rounds to bfloat16 on the way: a step in bfloat16 exactly, our own and
    20 steps with weight decay to that precision; and all else against AdamW, exactly."""
    settings = {"lr": 0.05, "weight_decay": L2, "adjust_lr_fn": "match_rms_adamw"}
    gradient = torch.randn(24, 40)
    theirs = nn.Parameter(torch.zeros(24, 40))
    theirs.grad = gradient.clone()
    torch.optim.Muon([theirs], **settings).step()
    direction = gradient.lerp(0.05 * gradient, 0.95)
    expected = torch.zeros(24, 40).add_(
        orthogonalized(direction, 5, torch.bfloat16), alpha=-0.05 * 0.2 * math.sqrt(40)
    )
    torch.testing.assert_close(theirs.detach(), expected, atol=1e-7, rtol=1e-5)
    ours = trained("muon", torch.zeros(24, 40), lambda _: gradient, 0.05, 1, L2, "layer_matrices")
    assert (ours - theirs).norm() < 0.02 * theirs.norm()

    start, gradient = least_squares(torch.float32)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([theirs], **settings)
    for _ in range(20):
        theirs.grad = gradient(theirs.detach())
        optimizer.step()
    ours = trained("muon", start, gradient, 0.05, kind="layer_matrices")
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()

    groups = one_group(start, weight_decay=L2) + one_group(torch.ones(2, 2), kind="layer_matrices")
    optimizer = build_optimizer("muon", groups, 0.05, (BETA1, BETA2), EPS)
    (weight,) = groups[0]["params"]
    for _ in range(20):
        weight.grad = gradient(weight.detach())
        optimizer.step()
    assert torch.equal(weight, trained("adamw", start, gradient, 0.05))


@pytest.fixture
def accelerator():
    """accelerate keeps its state in classes: the next test starts without it."""
    yield Accelerator(cpu=True)
    reset_accelerate()


def test_muon_is_one_optimizer(accelerator):
    """It copies, returns a closure's loss, and accelerate prepares and steps it like any other."""
    plain, prepared = MODELS["gpt"](), MODELS["gpt"]()
    prepared.load_state_dict(plain.state_dict())
    weights = list(prepared.parameters())
    one, other = (build_optimizer("muon", parameter_groups(model, 0.1), 0.01) for model in (plain, prepared))
    prepared, other = accelerator.prepare(prepared, other)
    train(plain, one, range(3))
    train(prepared, other, range(3))
    assert all(map(torch.equal, plain.parameters(), weights))
    assert all(parameter.grad is None for parameter in weights)
    assert one.step(lambda: backward(plain, 3)) > 0
    again = copy.deepcopy(one)
    assert isinstance(again, torch.optim.Optimizer) and len(again.state_dict()["state"]) == len(weights)


# ---------------------------------------------------------------------------------------------------------------------
# Resume


def backward(model, step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(40, (2, 12), generator=generator)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach()


def train(model, optimizer, steps):
    for step in steps:
        set_learning_rate(optimizer, 0.01 * (1 - step / 20))
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def through_a_file(state_dict):
    """Tensors are tensors, the rest is JSON: what a checkpoint without pickle does to it."""
    numbers = json.loads(json.dumps(state_dict["param_groups"]))
    return {"state": copy.deepcopy(state_dict["state"]), "param_groups": numbers}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_exact(name):
    """5 steps, saved, loaded into a fresh optimiser, and 5 more equal 10 steps, in weights and state, bit for bit."""

    def fresh(weights):
        model = MODELS["gpt"]()
        model.load_state_dict(weights)
        return model, build_optimizer(name, parameter_groups(model, 0.1, layer_decay=0.9), 0.01)

    start = copy.deepcopy(MODELS["gpt"]().state_dict())
    straight, optimizer = fresh(start)
    train(straight, optimizer, range(5))
    saved = copy.deepcopy(straight.state_dict()), through_a_file(optimizer.state_dict())
    train(straight, optimizer, range(5, 10))
    resumed, again = fresh(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, range(5, 10))
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))
    one, other = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert one.keys() == other.keys()
    for index, entries in one.items():
        for entry, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[index][entry])), (index, entry)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: build_optimizer("adamv", g, 0.1), r"optim='adamv' is not allowed: .*nadam; did you mean 'adam"),
        (lambda g: build_optimizer("momentum", g, 0.1, momentun=0.5), "no option 'momentun'; did you mean 'momentum'"),
        (lambda g: build_optimizer("sgd", g, 0.1, momentum=0.5), "optim='sgd' has no option 'momentum'; it has none"),
        (lambda g: build_optimizer("sgd", g, -0.1), "lr=-0.1 is not allowed: it must be at least 0"),
        (lambda g: build_optimizer("adam", g, 0.1, (0.9, 1.0)), "beta2=1.0 is not allowed: .* below 1"),
        (lambda g: build_optimizer("muon", g, 0.1), "optim='muon' finds no matrix to train .*: use 'adamw'"),
        (lambda g: parameter_groups(nn.Linear(2, 2), -1), "weight_decay=-1 is not allowed"),
        (lambda g: parameter_groups(nn.Linear(2, 2), 0, 1.5), "layer_decay=1.5 is not allowed: .*at most 1"),
        (lambda g: refuse_unsharded("adagrad"), "optim='adagrad' cannot be sharded .* Use one of adamw, muon, .*DDP"),
        (lambda g: refuse_unsharded("adamx"), "optim='adamx' is not allowed"),
    ],
)
def test_errors(call, message):
    """What is wrong, its value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call(one_group(torch.zeros(2, 2)))


def test_every_optimizer_says_whether_it_can_be_sharded():
    """The two tables name the same optimisers, and only the one with a reason is refused."""
    assert set(SHARDABLE) == set(OPTIMIZERS)
    assert [name for name in SHARDABLE if SHARDABLE[name]] == ["adagrad"]
    for name in set(SHARDABLE) - {"adagrad"}:
        refuse_unsharded(name)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes

WORLD = 2


def make_narrow():
    """Without the biases of keys, whose gradient is rounding, and with a matrix of one row, which only one process
    has."""
    torch.manual_seed(0)
    attention = {"type": "causal", "qkv_bias": False}
    model = TriuneForCausalLM(TriuneConfig(**TEXT, attention=attention, initializer_range=0.2))
    model.model.layers[1].mlp.up_proj = nn.Linear(16, 1)
    model.model.layers[1].mlp.down_proj = nn.Linear(1, 16)
    return model


def batch_of(step):
    return torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(step))


def sharded(rank: int) -> None:
    accelerator = Accelerator(cpu=True)
    # accelerate has FSDP for accelerators only and falls back to DDP without a word
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=["TransformerLayer"])
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    for name in OPTIMIZERS:
        check_sharded(accelerator, name, rank)


def check_sharded(accelerator, name: str, rank: int) -> None:
    lr = 1.0 if name == "adadelta" else 1e-3
    reference, model = make_narrow(), make_narrow()
    expected, optimizer = (build_optimizer(name, parameter_groups(m, 0.1, 0.9), lr) for m in (reference, model))
    model, optimizer = accelerator.prepare(model, optimizer)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    for step in range(3):
        ids = batch_of(step)
        reference(input_ids=ids, labels=ids).loss.backward()
        own = ids.chunk(WORLD)[rank]
        accelerator.backward(model(input_ids=own, labels=own).loss)
        for one in (expected, optimizer):
            one.step()
            one.zero_grad()
    for (path, parameter), whole in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(
            parameter.detach().full_tensor(),
            whole.detach(),
            atol=3e-5,
            rtol=0,
            msg=lambda text, path=path: f"{name}, {path}: {text}",
        )
    if SHARDABLE[name]:
        with pytest.raises(KeyError):  # whole sums stay behind under parameters that are gone
            optimizer.state_dict()
        return
    for entries in optimizer.state_dict()["state"].values():
        assert all(isinstance(value, DTensor) for value in entries.values() if value.dim())
    options = StateDictOptions(full_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer.optimizer, options=options)
    if saved["state"]:  # torch's loader asks for a tensor, and plain SGD has none
        set_optimizer_state_dict(model, optimizer.optimizer, copy.deepcopy(saved), options=options)
        again = get_optimizer_state_dict(model, optimizer.optimizer, options=options)
        for path, entries in saved["state"].items():
            for entry, value in entries.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(again["state"][path][entry])), (path, entry)


@pytest.mark.slow
def test_sharded_over_two_processes(tmp_path):
    """Every optimiser with parameters cut by accelerate's FSDP2 against one process, after 3 steps of half of the
    batch each; its state is cut, and can be saved whole and loaded, but for the one that is refused."""
    run_in_two(sharded, tmp_path)
