"""The moving average against its formula; swapped in and out, saved and loaded, and over two processes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from two_processes import run_in_two

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM
from triune.training.ema import Ema


def make_model():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return TriuneForCausalLM(TriuneConfig(**sizes, vocab_size=40, max_position_embeddings=12, attention="causal"))


def move(model, step):
    """Another model after each step, the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def copies(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_formula(decay):
    """10 steps against the formula written out, in float64."""
    model = make_model()
    ema = Ema(model, decay)
    expected = [weight.double() for weight in copies(model)]
    for step in range(10):
        move(model, step)
        ema.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * average + (1 - d) * weight.double() for average, weight in zip(expected, copies(model))]
    for found, average in zip(ema.averages.values(), expected):
        torch.testing.assert_close(found.double(), average, atol=1e-6, rtol=0)


def test_warm_up_reaches_the_decay():
    """0.1 at first, never falling, and the decay itself in the end."""
    decays = [Ema(nn.Linear(1, 1), 0.99).decay_at(step) for step in range(2000)]
    assert decays[0] == 0.1 and decays == sorted(decays) and decays[-1] == 0.99


def test_swap_restores_bits():
    """Within: the averages, and what the model computes with them; after, even after an error: its own weights."""
    model = make_model().eval()
    ema, ids = Ema(model, 0.9), torch.arange(10)[None]
    for step in range(3):
        move(model, step)
        ema.update(step)
    own, logits = copies(model), model(ids).logits
    with pytest.raises(KeyboardInterrupt), ema.swap():
        assert all(map(torch.equal, copies(model), ema.averages.values()))
        assert not torch.equal(model(ids).logits, logits)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        raise KeyboardInterrupt
    assert all(map(torch.equal, copies(model), own)) and torch.equal(model(ids).logits, logits)


def test_resume_is_exact(tmp_path):
    """5 updates, saved as safetensors, loaded into a fresh one, and 5 more equal 10 updates, bit for bit."""
    start = make_model().state_dict()
    models = [make_model(), make_model()]
    for model in models:
        model.load_state_dict(start)
    straight, resumed = (Ema(model, 0.99) for model in models)
    for step in range(10):
        for model in models:
            move(model, step)
        straight.update(step)
        if step == 4:
            save_file(straight.state_dict(), tmp_path / "ema.safetensors")
            resumed.load_state_dict(load_file(tmp_path / "ema.safetensors"))
        if step > 4:
            resumed.update(step)
    assert straight.state_dict().keys() == resumed.state_dict().keys()
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_what_is_averaged():
    """Trainable weights, a tied one once; those in bfloat16 in float32, so that small steps count."""
    model = make_model()
    model.model.layers[0].requires_grad_(False)
    names = [name for name, _ in model.named_parameters() if "layers.0." not in name]
    assert list(Ema(model, 0.9).state_dict()) == names and "lm_head.weight" not in names
    half = nn.Linear(1, 1, bias=False).bfloat16()
    ema = Ema(half, 0.999)
    (start,) = (average.clone() for average in ema.averages.values())
    with torch.no_grad():
        half.weight.mul_(1.01)
    ema.update(10**6)
    assert ema.averages["weight"].dtype == torch.float32 and not torch.equal(ema.averages["weight"], start)
    own = half.weight.detach().clone()
    with ema.swap():
        assert half.weight.dtype == torch.bfloat16
    assert torch.equal(half.weight, own)


def test_errors():
    """A decay out of range, and averages of another model."""
    model = nn.Linear(2, 3)
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"ema_decay={decay} is not allowed: .* below 1"):
            Ema(model, decay)
    ema = Ema(model, 0.9)
    with pytest.raises(ValueError, match=r"missing \['bias'\], unexpected \['gain'\]"):
        ema.load_state_dict({"weight": torch.zeros(3, 2), "gain": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"weight has shape \(2, 2\), and the weight \(3, 2\)"):
        ema.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


def sharded(rank: int) -> None:
    """Parameters cut by FSDP2, whose root keeps what it gathered for a forward: the average must get past that."""
    torch.manual_seed(0)
    model, reference = make_model().eval(), make_model().eval()
    reference.load_state_dict(model.state_dict())
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    ema, expected = Ema(model, 0.9), Ema(reference, 0.9)
    ids = torch.arange(10)[None]

    def same_logits():
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, reference(ids).logits)

    with torch.no_grad():
        for parameter, other in zip(model.parameters(), reference.parameters()):
            parameter.mul_(1.5)
            other.mul_(1.5)
    for one in (ema, expected):
        one.update(0)
    assert all(isinstance(average, DTensor) for average in ema.averages.values())
    for saved, other in zip(ema.state_dict().values(), expected.state_dict().values()):  # whole, as they are written
        torch.testing.assert_close(saved, other)
    same_logits()
    with ema.swap(), expected.swap():
        same_logits()
    same_logits()
    for average, other in zip(ema.averages.values(), expected.averages.values()):
        torch.testing.assert_close(average.full_tensor(), other)


@pytest.mark.slow
def test_sharded_over_two_processes(tmp_path):
    """Updates, and logits before, within and after a swap, of a model cut in two against the whole one."""
    run_in_two(sharded, tmp_path)
