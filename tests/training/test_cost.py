"""The cost of a run against formulas worked out by hand, real optimisers, and what torch keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM
from triune.training.cost import (
    Cost,
    estimate,
    optimizer_bytes,
    peak_flops,
    peak_of,
    states_per_parameter,
    time_left,
)
from triune.training.optimizers import OPTIMIZERS, build_optimizer, parameter_groups


LAYERS, WIDTH, HEADS, LENGTH, SAMPLES, WORDS = 3, 32, 4, 24, 5, 50
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64}


def make_model(**fields):
    config = TriuneConfig(**SIZES, vocab_size=WORDS, max_position_embeddings=LENGTH, attention="causal", **fields)
    return TriuneForCausalLM(config)


def make_batch():
    ids = torch.randint(0, WORDS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def by_hand(model):
    """6 operations for each weight that multiplies each token, the tied head included; and attention: two products
    forward, five backward for it computes the scores again, each of 2 * heads * length^2 * head."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    products = (2 + 5) * 2 * LENGTH * LENGTH * WIDTH * LAYERS
    return 6 * weights * SAMPLES * LENGTH + products * SAMPLES


# ---------------------------------------------------------------------------------------------------------------------
# Operations


def test_operations_by_hand():
    """6 N a token and attention, to the last operation."""
    model = make_model()
    assert estimate(model, make_batch(), SAMPLES * LENGTH, steps=1).batch_flops == by_hand(model)


def test_operations_of_eager_attention():
    """Attention as plain products, without torch's fused operation: forward and backward are 3 times forward's."""
    model = make_model(attn_implementation="eager")
    less = 2 * LENGTH * LENGTH * WIDTH * LAYERS * SAMPLES  # scores are kept, not computed again
    assert estimate(model, make_batch(), SAMPLES * LENGTH, steps=1).batch_flops == by_hand(model) - less


def test_operations_of_a_run():
    """Micro-batches, processes and steps multiply; a process does its share, which is what MFU is about."""
    model = make_model()
    cost = estimate(model, make_batch(), SAMPLES * LENGTH, steps=7, accumulation=3, world=2)
    assert cost.step_flops == 6 * by_hand(model) and cost.flops == 42 * by_hand(model)
    assert cost.units == 42 * SAMPLES * LENGTH
    assert cost.mfu(0.5, 1e12) == pytest.approx(3 * by_hand(model) / 0.5 / 1e12)
    assert cost.mfu(0.5, None) is None


def test_operations_of_frozen_layers():
    """Without gradients for the first layers, fewer: at least their weights' third, and the rest stays."""
    model, frozen = make_model(), make_model()
    for parameter in [*frozen.model.embed_tokens.parameters(), *frozen.model.layers[0].parameters()]:
        parameter.requires_grad_(False)
    batch = make_batch()
    all_of_them = estimate(model, batch, SAMPLES * LENGTH, steps=1)
    fewer = estimate(frozen, batch, SAMPLES * LENGTH, steps=1)
    matrices = sum(p.numel() for p in frozen.model.layers[0].parameters() if p.dim() == 2)
    assert fewer.batch_flops <= all_of_them.batch_flops - 2 * matrices * SAMPLES * LENGTH
    assert fewer.parameters == all_of_them.parameters and fewer.trainable < all_of_them.trainable


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_of_the_real_optimizer(name):
    """Bytes against the state of the optimiser itself after a step of the model, its counts of steps left out."""
    model = make_model()
    groups = parameter_groups(model, weight_decay=0.01)
    optimizer = build_optimizer(name, groups, lr=1e-3)
    model(**make_batch()).loss.backward()
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert optimizer_bytes(model, name) == sum(tensor.nbytes for tensor in tensors if tensor.dim())


def test_states_per_parameter():
    """Against what is known of them: Adam's two means, Muon's one for the matrices of layers; options add theirs."""
    expected = {"adamw": 2, "sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "adadelta": 2, "nadam": 2}
    assert {name: states_per_parameter(name)["layer_matrices"] for name in expected} == expected
    assert states_per_parameter("muon")["layer_matrices"] == 1 and states_per_parameter("muon")["embeddings"] == 2
    assert states_per_parameter("adam", amsgrad=True)["vectors"] == 3
    assert states_per_parameter("rmsprop", centered=True, momentum=0.9)["vectors"] == 3


def test_memory_of_parameters():
    """4 bytes for each number in float32, 2 in bfloat16, an average never below float32; shards divide all but
    activations."""
    model = make_model()
    count = model.num_parameters()
    memory = estimate(model, make_batch(), 1, steps=1, ema=True).memory
    held = {"weights": 4 * count, "gradients": 4 * count, "optimizer": 8 * count, "average": 4 * count}
    assert memory == held | {"activations": memory["activations"]}
    half = estimate(model.to(torch.bfloat16), make_batch(), 1, steps=1, ema=True, shards=4).memory
    assert half["weights"] == count // 2 and half["optimizer"] == count and half["average"] == count
    assert estimate(model, make_batch(), 1, steps=1).memory["average"] == 0


def test_activations_by_hand():
    """Two linear maps and relu: the input, relu's result (once, for two uses), the answer and what it should be."""
    model = Regression()
    batch = {"x": torch.randn(7, 5), "y": torch.randn(7, 2)}
    expected = 4 * (7 * 5 + 7 * 11 + 7 * 2 + 7 * 2)
    assert estimate(model, batch, 7, steps=1, optimizer_name="sgd").memory["activations"] == expected


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 11), nn.Linear(11, 2)

    def forward(self, x, y):
        answer = self.second(self.first(x).relu())
        return type("Output", (), {"loss": F.mse_loss(answer, y)})


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    """Twice the samples keep twice as much, but for the positions; layers that are computed again keep their input."""
    model, batch = make_model(), make_batch()
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    single, double = (estimate(model, b, 1, steps=1).memory["activations"] for b in (batch, twice))
    assert 1.95 < double / single <= 2
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    assert estimate(model, batch, 1, steps=1).memory["activations"] < single / 2


# ---------------------------------------------------------------------------------------------------------------------
# Around it


@pytest.mark.parametrize("head", [TriuneForMaskedLM, TriuneForImageClassification])
def test_model_is_left_as_it_was(head):
    """Weights, gradients, mode and the next random number: bit for bit, with dropout in the model."""
    patches = {"type": "patches", "image_size": 8, "patch_size": 4, "num_channels": 1}
    image = {"embedding": patches, "id2label": {0: "a", 1: "b"}}
    text = {"vocab_size": WORDS, "max_position_embeddings": LENGTH}
    images = head is TriuneForImageClassification
    model = head(TriuneConfig(**SIZES, **(image if images else text), hidden_dropout_prob=0.1))
    batch = {"pixel_values": torch.randn(4, 1, 8, 8), "labels": torch.tensor([0, 1, 0, 1])} if images else make_batch()
    model.eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    cost = estimate(model, batch, 4, steps=1)
    assert cost.batch_flops > 0 and cost.batch_seconds > 0 and cost.memory["activations"] > 0
    assert torch.equal(torch.get_rng_state(), state) and not any(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])


def test_dropout_is_measured_as_in_training():
    """A model in evaluation is measured as it will be trained: its dropout keeps masks."""
    plain, dropped = (make_model(hidden_dropout_prob=rate).eval() for rate in (0.0, 0.1))
    kept = [estimate(model, make_batch(), 1, steps=1).memory["activations"] for model in (plain, dropped)]
    assert kept[1] > kept[0]


def test_own_loss_and_precision():
    """Another loss is the one that is measured; bfloat16 changes no count, and no unknown precision is taken."""
    model, batch = make_model(), make_batch()
    plain = estimate(model, batch, 1, steps=1)
    twice = estimate(model, batch, 1, steps=1, loss=lambda model, batch: model(**batch).loss + model(**batch).loss)
    assert twice.batch_flops == 2 * plain.batch_flops
    assert estimate(model, batch, 1, steps=1, precision="bf16").batch_flops == plain.batch_flops
    with pytest.raises(ValueError, match="mixed_precision='fp8' is not allowed: it must be one of no, bf16, fp16"):
        estimate(model, batch, 1, steps=1, precision="fp8")


def test_rows():
    """What the console shows, against numbers that are easy to read."""
    memory = {"weights": 4_000_000, "gradients": 4_000_000, "optimizer": 8_000_000, "average": 0, "activations": 500}
    cost = Cost(1_000_000, 250_000, 3_000_000_000, 1000, 0.25, 4, 2, 100, memory)
    rows = cost.rows(unit="images")
    assert rows["in all"] == "400k images in 100 steps"
    assert rows["parameters"] == "1.00M, 250k of them trained"
    assert rows["compute"] == "1.20 TFLOP: 12.0 GFLOP a step, 3.00 MFLOP per image"
    assert rows["memory"].startswith("about 16.0 MB: weights 4.00 MB") and "average" not in rows["memory"]
    assert rows["time"] == "about 00:50: 0.5 s a step, without the optimiser and evaluations"
    assert cost.rows(seconds_per_step=2.0)["time"] == "about 03:20: 2 s a step, without evaluations"
    assert time_left(90, 40.0) == "1:00:00"


def test_peaks():
    """Names as CUDA and ROCm give them; a processor and an unknown GPU have none."""
    expected = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A10": 125e12,
        "NVIDIA A10G": None,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "NVIDIA B200": 2250e12,
        "AMD Instinct MI300X": 1307e12,
        "Some GPU": None,
    }
    assert {name: peak_of(name) for name in expected} == expected
    assert peak_flops("cpu") is None
