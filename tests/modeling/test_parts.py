"""Each part alone, against a formula, torch's own module, or the module of transformers that does the same."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn
from transformers.loss import loss_utils
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune import ACTIVATIONS
from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForPreTraining,
    TriuneModel,
    losses,
)
from triune.modeling.embeddings import PatchEmbedding, TokenEmbedding, patchify
from triune.modeling.feed_forward import FeedForward, GatedFeedForward
from triune.modeling.heads import POOLINGS, MLPClassifier, Pooler, PredictionTransform
from triune.modeling.norms import NORMS
from triune.modeling.positions import (
    Frame,
    LearnedPositions,
    RelativePositions,
    apply_rotary,
    relative_buckets,
    resize_table,
    sinusoids,
    sinusoids_2d,
)
from triune.modeling.residuals import Residual, ScaledResidual
from triune.modeling.transformer import Attention, TransformerLayer, attention_window
from triune.training.optimizers import parameter_groups


def small_config(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
    config = TriuneConfig(**{**sizes, **changes})
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def spread(model):
    """Weights large enough that a lost part shows."""
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def identity(q, k):
    return q, k


def frame(**changes):
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 8, "num_positions": 16, "causal": False}
    return Frame(**{**sizes, "grid": None, "num_prefix": 0, **changes})


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def test_attention_equals_torch():
    """Output and weights against nn.MultiheadAttention with copied weights."""
    ours = Attention(small_config(), 0, identity).eval()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
        theirs.out_proj.bias.copy_(ours.o_proj.bias)
    x = torch.randn(2, 9, 32)
    mask = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min)
    for ours_mask, theirs_mask in ((None, None), (mask[None, None], mask)):
        out, weights = ours(x, ours_mask)
        expected, expected_weights = theirs(x, x, x, attn_mask=theirs_mask, average_attn_weights=False)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))


def test_attention_scale():
    """1 / sqrt(head size) unless the configuration names another."""
    assert Attention(small_config(), 0, identity).scaling == 8**-0.5
    assert Attention(small_config(head_dim=16), 0, identity).scaling == 0.25
    fixed = {"type": "bidirectional", "scale": 1.0}
    assert Attention(small_config(attention=fixed), 0, identity).scaling == 1.0


def test_grouped_heads_equal_repeated_heads():
    """Two key-value heads for four query heads, against four heads whose keys and values are copies."""
    grouped = Attention(small_config(num_key_value_heads=2), 0, identity).eval()
    full = Attention(small_config(), 0, identity).eval()
    state = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            heads = state[f"{name}.{kind}"].unflatten(0, (2, 8))
            state[f"{name}.{kind}"] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(grouped(x)[0], full(x)[0])


def test_query_key_norm_equals_qwen3():
    """Normalised heads, rotary, grouped heads: a whole layer's attention against Qwen3's."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    reference_config = hf.Qwen3Config(**sizes, num_hidden_layers=1, rope_parameters=rope)
    reference_config._attn_implementation = "eager"
    attention = {"type": "causal", "qkv_bias": False, "out_bias": False, "qk_norm": True}
    config = small_config(**sizes, attention=attention, norm="rmsnorm", position="rotary")
    theirs, ours = Qwen3Attention(reference_config, 0).eval(), Attention(config, 0, apply_rotary).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 32)
    tables = LlamaRotaryEmbedding(hf.LlamaConfig(**sizes, rope_parameters=rope))(x, torch.arange(6)[None])
    expected = theirs(x, position_embeddings=tables, attention_mask=None)[0]
    torch.testing.assert_close(ours(x, rotation=tables)[0], expected, atol=1e-5, rtol=1e-5)


def test_attention_dropout_acts_on_the_weights():
    """In training, weights are zero or scaled up by 1 / (1 - p), after the softmax; in evaluation untouched."""
    attention = Attention(small_config(attention_probs_dropout_prob=0.5), 0, identity)
    x = torch.randn(2, 12, 32)
    plain = attention.eval()(x)[1]
    dropped = attention.train()(x)[1]
    kept = dropped > 0
    assert 0.35 < kept.float().mean() < 0.65
    torch.testing.assert_close(dropped[kept], (plain * 2)[kept])


def test_attention_window_counts_the_token_itself():
    """What kernels are given: n for causal layers, n + 1 for n tokens on each side, None for full layers."""
    layers = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    causal, both = small_config(attention="causal", **layers), small_config(**layers)
    assert [attention_window(causal, index) for index in range(2)] == [None, 4]
    assert [attention_window(both, index) for index in range(2)] == [None, 5]


@torch.no_grad()
@pytest.mark.parametrize(("direction", "first", "last"), [("causal", 0, 2), ("bidirectional", -3, 3)])
def test_sliding_window_reaches_exactly_so_far(direction, first, last):
    """One sliding layer with a window of 3: which outputs change when token 10 changes."""
    config = TriuneConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=50,
        attention=direction,
        sliding_window=3,
    )
    for implementation in ("eager", "sdpa"):
        model = TriuneModel(config, add_pooling_layer=False).eval()
        model.set_attn_implementation(implementation)
        ids = torch.randint(0, 50, (1, 20))
        other = ids.clone()
        other[0, 10] = (ids[0, 10] + 1) % 50
        change = (model(ids).last_hidden_state - model(other).last_hidden_state).abs().amax(-1)[0]
        assert change.nonzero().flatten().tolist() == list(range(10 + first, 10 + last + 1))


# ---------------------------------------------------------------------------------------------------------------------
# Layer


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_silent_sublayers_leave_the_stream_alone(norm):
    """Pre-norm: with the last projections at zero the layer is the identity. Post-norm: it is the two norms."""
    x = torch.randn(2, 5, 32)
    for placement in ("pre", "post"):
        layer = TransformerLayer(small_config(norm=norm, norm_placement=placement), 0, identity).eval()
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        expected = x if placement == "pre" else layer.mlp_norm(layer.attn_norm(x))
        torch.testing.assert_close(layer(x), expected)


STACKS = {
    "pre": {"attention": "causal"},
    "post": {"norm_placement": "post"},
    "gated": {"feed_forward": "gated", "norm": "rmsnorm", "position": "rotary"},
    "layer scale": {"residual": {"type": "layer_scale", "init": 0.1, "zero_init": True}},
}


@pytest.mark.parametrize("kind", STACKS)
def test_branches_that_start_at_zero(kind):
    """zero_init: a fresh layer adds nothing, so that hidden states are the embeddings (post-norm: those normed, layer
    by layer); after two steps every parameter has had a gradient. Without it neither holds."""
    changes = {"residual": {"type": "plain", "zero_init": True}, "num_hidden_layers": 3, **STACKS[kind]}
    model = TriuneModel(small_config(**changes, pooling="mean"))
    for layer in model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert not any(parameter.any() for parameter in projection.parameters())
    ids = torch.arange(6)[None]
    states, expected = model(ids, output_hidden_states=True).hidden_states, model.embed(ids)
    for layer, state in zip(model.layers, states):
        torch.testing.assert_close(state, expected)
        expected = layer.mlp_norm(layer.attn_norm(expected)) if kind == "post" else expected
    started = TriuneModel(small_config(**{**changes, "residual": "plain"}))
    assert any(parameter.any() for parameter in started.layers[2].mlp.down_proj.parameters())
    learned = set()
    for _ in range(3):
        model.zero_grad()
        output = model(ids)
        (output.last_hidden_state**3).sum().backward()
        learned |= {name for name, parameter in model.named_parameters() if parameter.grad.abs().max() > 0}
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert learned == {name for name, _ in model.named_parameters()}


def test_an_encoder_decoder_that_starts_at_zero():
    """Attention to the source starts at zero too, in the decoder alone where only it asks for that."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
    config = TriuneSeq2SeqConfig(encoder=sizes, decoder={**sizes, "residual": {"type": "plain", "zero_init": True}})
    model = TriuneForConditionalGeneration(config)
    encoder, decoder = model.model.encoder.layers[0], model.model.decoder.layers[0]
    ends = (decoder.self_attn.o_proj, decoder.cross.attn.o_proj, decoder.mlp.down_proj)
    assert not any(end.weight.any() for end in ends) and encoder.mlp.down_proj.weight.any()


def test_stochastic_depth_grows_with_depth():
    """Linear from 0 at the first layer to the configured rate at the last."""
    config = small_config(num_hidden_layers=5, residual={"type": "plain", "stochastic_depth": 0.2})
    model = TriuneModel(config)
    rates = [layer.mlp_residual.drop_path for layer in model.layers]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_stochastic_depth_drops_whole_samples():
    """In training a sample's branch is gone or scaled up by 1 / (1 - p); the mean is kept; evaluation is untouched."""
    residual = Residual(4, dropout=0.0, drop_path=0.25)
    y = torch.ones(4000, 3, 4)
    out = residual.train()(y)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out.amin(dim=(1, 2)), out.amax(dim=(1, 2)))
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(residual.eval()(y), y)


def test_layer_scale_equals_dinov2():
    """The factor per channel against DINOv2's, and its start in a model."""
    theirs = Dinov2LayerScale(hf.Dinov2Config(hidden_size=4))
    ours = ScaledResidual(4, 0.0, 0.0, init=0.3)
    with torch.no_grad():
        theirs.lambda1.normal_()
        ours.scale.copy_(theirs.lambda1)
    y = torch.randn(2, 3, 4)
    torch.testing.assert_close(ours(y), theirs(y))
    model = TriuneModel(small_config(residual={"type": "layer_scale", "init": 0.3}))
    assert torch.equal(model.layers[0].attn_residual.scale, torch.full((32,), 0.3))


# ---------------------------------------------------------------------------------------------------------------------
# Norms and feed-forwards


def test_norms_equal_their_formulas():
    """LayerNorm by mean and variance; RMSNorm against Llama's, in float32 and in bfloat16."""
    x = torch.randn(3, 5, 16) * 3 + 1
    layernorm = NORMS["layernorm"](16, eps=1e-5)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(layernorm(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    rmsnorm, llama = NORMS["rmsnorm"](16, eps=1e-6), LlamaRMSNorm(16, eps=1e-6)
    torch.testing.assert_close(rmsnorm(x), llama(x))
    low = x.bfloat16()
    torch.testing.assert_close(rmsnorm.bfloat16()(low), llama.bfloat16()(low), atol=0.02, rtol=0.01)
    assert NORMS["layernorm"](16, bias=False).bias is None


def test_gated_feed_forward_equals_llama():
    """SwiGLU against LlamaMLP, by the same parameter names."""
    theirs = LlamaMLP(hf.LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=4))
    ours = GatedFeedForward(16, 24, "silu", bias=False, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_plain_feed_forward_equals_its_formula():
    """down(gelu(up(x))), and dropout between the two in training only."""
    ours = FeedForward(16, 24, "gelu", bias=True, dropout=0.5)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours.eval()(x), ours.down_proj(F.gelu(ours.up_proj(x))))
    assert not torch.equal(ours.train()(x), ours.eval()(x))


# By torch.nn.functional, or by formula where it has none.
FUNCTIONS = {
    **{name: getattr(F, name) for name in ("elu", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "tanh")},
    **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
    **dict.fromkeys(
        ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"), lambda x: F.gelu(x, approximate="tanh")
    ),
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "laplace": lambda x: (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))) / 2,
    "linear": lambda x: x,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x).square(),
    "swish": F.silu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_every_activation_in_a_layer(activation, kind):
    """What the feed-forward of a built model does with each allowed name, against torch.nn.functional: values and
    gradients of what comes in; no name has parameters but PReLU, whose slope starts at 1/4 and learns."""
    mlp = TriuneModel(small_config(hidden_act=activation, feed_forward=kind, initializer_range=0.5)).layers[0].mlp
    x = torch.linspace(-12, 12, 8 * 32).view(8, 32).requires_grad_()
    wide = mlp.up_proj(x)
    middle = FUNCTIONS[activation](wide if kind == "plain" else mlp.gate_proj(x)) * (1 if kind == "plain" else wide)
    expected, out = F.linear(middle, mlp.down_proj.weight, mlp.down_proj.bias), mlp(x)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    slopes = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0] for one in (out, expected)]
    torch.testing.assert_close(*slopes, atol=1e-3, rtol=1e-3)
    own = dict(mlp.act_fn.named_parameters())
    assert list(own) == (["weight"] if activation == "prelu" else [])
    for slope in own.values():
        assert slope.tolist() == [0.25] and torch.autograd.grad(out.sum(), slope)[0].abs() > 0


def test_the_slope_of_prelu_is_kept(tmp_path):
    """One number for each layer: counted, saved and loaded; left to start afresh it is 1/4; weight decay leaves it."""
    config = small_config(num_hidden_layers=3, hidden_act="prelu")
    model = TriuneModel(config)
    assert model.num_parameters() - TriuneModel(small_config(num_hidden_layers=3)).num_parameters() == 3
    with torch.no_grad():
        for place, layer in enumerate(model.layers):
            layer.mlp.act_fn.weight.fill_(place)
    model.save_pretrained(tmp_path)
    assert [layer.mlp.act_fn.weight.item() for layer in TriuneModel.from_pretrained(tmp_path).layers] == [0, 1, 2]
    state = {name: weight for name, weight in model.state_dict().items() if "act_fn" not in name}
    fresh = TriuneModel.from_pretrained(None, config=config, state_dict=state)
    assert [layer.mlp.act_fn.weight.item() for layer in fresh.layers] == [0.25] * 3
    assert torch.equal(fresh.layers[0].mlp.up_proj.weight, model.layers[0].mlp.up_proj.weight)
    groups = [group for group in parameter_groups(model, 0.1) if group["weight_decay"]]
    assert not any(parameter.numel() == 1 for group in groups for parameter in group["params"])


def test_fused_gelu_equals_gpt2s():
    """The preset's gelu_pytorch_tanh against gelu_new, which GPT-2's published configuration names."""
    from transformers.activations import ACT2FN

    x = torch.linspace(-8, 8, 1001)
    torch.testing.assert_close(ACT2FN["gelu_pytorch_tanh"](x), ACT2FN["gelu_new"](x), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def test_sinusoids_equal_the_papers_formula():
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of the same, number by number."""
    table = sinusoids(torch.arange(7), 6, 10000.0, "interleaved")
    for position in range(7):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_concatenated_sinusoids_equal_marians():
    """All sines before all cosines, against Marian's table."""
    theirs = hf.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(9, 8)
    expected = theirs.create_weight()
    torch.testing.assert_close(sinusoids(torch.arange(9), 8, 10000.0, "concatenated"), expected, atol=1e-6, rtol=0)


def test_two_dimensional_sinusoids_equal_maes():
    """The table of rows and columns against transformers' for ViT-MAE, whose checkpoints have the column first."""
    row_first = build_2d_sinusoidal_position_embedding(3, 4, embed_dim=16)
    expected = torch.cat([row_first[:, 8:], row_first[:, :8]], dim=1)
    torch.testing.assert_close(sinusoids_2d((3, 4), 16, 10000.0, "concatenated"), expected, atol=1e-6, rtol=0)


def test_two_dimensional_sinusoids_of_an_oblong_grid():
    """Patches of a row share the half of the row, patches of a column the half of the column."""
    table = sinusoids_2d((2, 3), 8, 10000.0, "interleaved").unflatten(0, (2, 3))
    column, row = table.chunk(2, dim=-1)
    assert torch.equal(row, row[:, :1].expand_as(row)) and torch.equal(column, column[:1].expand_as(column))
    assert not torch.equal(row[0], row[1]) and not torch.equal(column[:, 0], column[:, 1])


def test_rotary_equals_llama():
    """Turned queries and keys against Llama's functions, at positions that do not start at zero."""
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    positions = torch.tensor([[3, 4, 5, 9, 10, 11], [0, 1, 2, 3, 4, 5]])
    config = TriuneConfig(hidden_size=32, num_attention_heads=4, vocab_size=9, position="rotary", num_hidden_layers=1)
    ours = TriuneModel(config).positions
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    theirs = LlamaRotaryEmbedding(hf.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope))
    expected = apply_rotary_pos_emb(q, k, *theirs(q, positions))
    turned = ours.rotate(q, k, *ours.rotation(q, positions, "full_attention"))
    for mine, other in zip(turned, expected):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_rotary_depends_on_the_distance_only():
    """Scores of positions shifted by 100 are the same, and local layers turn by their own theta."""
    position = {"type": "rotary", "theta": 10000.0, "local_theta": 100.0}
    config = TriuneConfig(hidden_size=32, num_attention_heads=4, vocab_size=9, position=position, num_hidden_layers=1)
    ours, q, k = TriuneModel(config).positions, torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)

    def scores(shift, kind):
        turned = ours.rotate(q, k, *ours.rotation(q, torch.arange(5)[None] + shift, kind))
        return turned[0] @ turned[1].transpose(-1, -2)

    torch.testing.assert_close(scores(0, "full_attention"), scores(100, "full_attention"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(0, "full_attention"), scores(0, "sliding_attention"), atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
def test_relative_buckets_equal_t5s(causal, buckets, furthest):
    """Buckets of every distance from -300 to 300 against T5's function."""
    distance = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distance, not causal, buckets, furthest)
    assert torch.equal(relative_buckets(distance, buckets, furthest, causal), expected)


def test_relative_bias_equals_t5s():
    """The bias of a whole sequence against T5Attention.compute_bias with the same table."""
    reference = T5Attention(
        hf.T5Config(d_model=32, num_heads=4, d_kv=8), has_relative_attention_bias=True, layer_idx=0
    )
    ours = RelativePositions(frame(), num_buckets=32, max_distance=128)
    ours.table.load_state_dict(reference.relative_attention_bias.state_dict())
    expected = reference.compute_bias(11, 11)
    torch.testing.assert_close(ours.bias(torch.zeros(1, 11, 32), None, 0), expected)


def test_learned_positions_resize_like_vits():
    """A table for 3x3 patches at 2x4, against ViT's own interpolation."""
    config = hf.ViTConfig(hidden_size=32, image_size=24, patch_size=8)
    theirs = hf.models.vit.modeling_vit.ViTEmbeddings(config)
    table = theirs.position_embeddings.detach()[0]
    expected = theirs.interpolate_pos_encoding(torch.zeros(1, 9, 32), 16, 32)[0]
    torch.testing.assert_close(resize_table(table, (3, 3), (2, 4), num_prefix=1), expected)
    same = LearnedPositions(frame(num_positions=10, grid=(3, 3), num_prefix=1), frozen=False)
    torch.testing.assert_close(same.addend(torch.zeros(1, 10, 32), torch.arange(10), (3, 3)), same.table.weight)


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings


@pytest.mark.parametrize(("height", "width", "patch", "channels"), [(8, 8, 4, 3), (6, 9, 3, 1), (4, 2, 1, 2)])
def test_patchify_equals_unfold(height, width, patch, channels):
    """Patches of square and oblong images against torch's unfold, channels first within a patch."""
    images = torch.randn(2, channels, height, width)
    expected = F.unfold(images, patch, stride=patch).transpose(1, 2)
    assert torch.equal(patchify(images, patch), expected)


def test_patch_embedding_equals_convolution():
    """The linear map against Conv2d with kernel = stride = patch and the same weights."""
    convolution = nn.Conv2d(3, 10, 4, stride=4)
    ours = PatchEmbedding(3, 4, 10, bias=True, norms=[nn.Identity(), nn.Identity()])
    with torch.no_grad():
        ours.projection.weight.copy_(convolution.weight.flatten(1))
        ours.projection.bias.copy_(convolution.bias)
    images = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(ours(images), convolution(images).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_token_embedding_scale():
    """Rows of the table, times sqrt(width) where asked."""
    ids = torch.tensor([[1, 2]])
    plain, scaled = TokenEmbedding(5, 16, scale=False), TokenEmbedding(5, 16, scale=True)
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(plain(ids), plain.weight[ids])
    assert torch.equal(scaled(ids), plain.weight[ids] * 4)


def test_prefix_tokens_stand_where_they_should():
    """CLS first, registers after it and without positions, then patches in reading order."""
    embedding = {"type": "patches", "image_size": 8, "patch_size": 4, "num_register_tokens": 2}
    config = TriuneConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, embedding=embedding)
    model = TriuneModel(config).eval()
    images = torch.randn(1, 3, 8, 8)
    x = model.embed(pixel_values=images)[0]
    table, patches = model.positions.table.weight, model.embed_tokens(images)[0]
    torch.testing.assert_close(x[0], model.embeddings.cls_token[0, 0] + table[0])
    torch.testing.assert_close(x[1:3], model.embeddings.register_tokens[0])
    torch.testing.assert_close(x[3:], patches + table[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Heads


def test_poolings_equal_their_definitions():
    """Each kind on a batch with padding right and left, one CLS and two registers in front where they apply."""
    x = torch.randn(2, 6, 4)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(POOLINGS["cls"](x, mask, 0, 0), x[:, 0])
    torch.testing.assert_close(POOLINGS["last"](x, mask, 0, 0), torch.stack([x[0, 3], x[1, 5]]))
    torch.testing.assert_close(POOLINGS["mean"](x, mask, 0, 0), torch.stack([x[0, :4].mean(0), x[1, 2:].mean(0)]))
    ones = torch.ones_like(mask)
    torch.testing.assert_close(POOLINGS["mean"](x, ones, 3, 1), x[:, 3:].mean(1))
    torch.testing.assert_close(POOLINGS["registers"](x, ones, 3, 1), x[:, 1:3].mean(1))
    torch.testing.assert_close(POOLINGS["patches"](x, ones, 3, 1), torch.cat([x[:, 3], x[:, 4], x[:, 5]], dim=-1))


def test_a_probe_sees_every_patch_in_its_place():
    """With pooling "patches" a class has a weight for each number of each patch; the logits against that product."""
    embedding = {"type": "patches", "image_size": 8, "patch_size": 4, "num_register_tokens": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TriuneConfig(embedding=embedding, pooling="patches", num_labels=3, **sizes)
    model = TriuneForImageClassification(config).eval()
    images = torch.randn(2, 3, 8, 8)
    seen = model.model(pixel_values=images).last_hidden_state[:, 3:].reshape(2, 4 * 16)
    torch.testing.assert_close(model(images).logits, seen @ model.classifier.weight.mT + model.classifier.bias)
    assert model.classifier.weight.shape == (3, 64)


def test_pooler_without_and_with_a_mask():
    """No mask counts every token; a mask longer than the input (a cache) counts its end; a row of pads is finite."""
    pooler, x = Pooler(4, "mean", dense=False, num_prefix=0, num_placed=0), torch.randn(2, 3, 4)
    torch.testing.assert_close(pooler(x, None), x.mean(1))
    torch.testing.assert_close(pooler(x, torch.tensor([[0, 0, 1, 1, 1]] * 2)), x.mean(1))
    assert pooler(x, torch.zeros(2, 3)).isfinite().all()


def test_prediction_transform_equals_berts():
    """Projection, activation, norm against BertPredictionHeadTransform."""
    theirs = hf.models.bert.modeling_bert.BertPredictionHeadTransform(hf.BertConfig(hidden_size=16))
    ours = PredictionTransform(16, "gelu", norm=nn.LayerNorm(16, eps=1e-12), dense_bias=True)
    ours.dense.load_state_dict(theirs.dense.state_dict())
    x = torch.randn(2, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def heads_with(lm_head):
    """Every language head with the same options of its decoder, tokens and labels."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
    causal, both = ({**sizes, "attention": kind, "lm_head": lm_head} for kind in ("causal", "bidirectional"))
    ids, special = torch.arange(8)[None], {"pad_token_id": 0, "decoder_start_token_id": 1}
    seq2seq = TriuneSeq2SeqConfig(encoder=sizes, decoder={**sizes, "lm_head": lm_head}, **special)
    models = (
        *(TriuneForCausalLM(TriuneConfig(**causal)), TriuneForMaskedLM(TriuneConfig(**both))),
        *(TriuneForPreTraining(TriuneConfig(**both)), TriuneForConditionalGeneration(seq2seq)),
    )
    return [(model.eval(), {"input_ids": ids, "labels": ids}) for model in models]


@pytest.mark.parametrize("kind", ["plain", "transform"])
def test_logits_are_capped_as_gemma_2_does_it(kind):
    """cap * tanh(logits / cap) of the logits without it, for every language head, decoders with a bias and shared
    ones; the loss is that of the capped logits, and its gradient is finite and reaches every parameter."""
    cap, capped = 0.5, {"type": kind, "bias": True, "softcap": 0.5}
    for (model, batch), (plain, _) in zip(heads_with(capped), heads_with({**capped, "softcap": None})):
        spread(model)
        plain.load_state_dict(model.state_dict())
        found, free = (one(**batch) for one in (model, plain))
        logits, expected = (getattr(one, "prediction_logits", one[1]) for one in (found, free))
        torch.testing.assert_close(logits, cap * torch.tanh(expected / cap), atol=1e-5, rtol=1e-5)
        assert logits.abs().max() <= cap < expected.abs().max()
        torch.testing.assert_close(found.loss, model.loss_function(logits, batch["labels"], vocab_size=50))
        found.loss.backward()
        learning = {name: parameter.grad for name, parameter in model.named_parameters() if "seq_rel" not in name}
        learning = {name: value for name, value in learning.items() if "pooler" not in name and "k_proj.b" not in name}
        assert all(value.isfinite().all() and value.abs().max() > 0 for value in learning.values())


def test_a_capped_model_equals_gemma_2s_head():
    """Softcap against the lines of Gemma2ForCausalLM: its head on the same hidden states."""
    from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 50, "intermediate_size": 48, "head_dim": 8}
    theirs = spread(Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0, pad_token_id=0))).eval()
    states = theirs.model(torch.arange(9)[None]).last_hidden_state
    ours = TriuneForCausalLM(
        TriuneConfig(**sizes, attention="causal", lm_head={"type": "plain", "softcap": 2.0}, pad_token_id=0)
    )
    with torch.no_grad():
        ours.lm_head.weight.copy_(theirs.lm_head.weight)
    expected = theirs(torch.arange(9)[None]).logits
    torch.testing.assert_close(ours.logits_of(states), expected, atol=1e-6, rtol=1e-6)
    assert 1.5 < expected.abs().max() <= 2.0


def test_a_resized_decoder_keeps_its_cap():
    """transformers puts another linear map in the decoder's place: the logits of the old tokens are what they were."""
    model = spread(heads_with({"type": "plain", "softcap": 0.5})[0][0])
    before = model(torch.arange(8)[None]).logits
    model.resize_token_embeddings(60, mean_resizing=False)
    after = model(torch.arange(8)[None]).logits
    torch.testing.assert_close(after[..., :50], before)
    assert after.abs().max() <= 0.5


def test_mlp_classifier_equals_its_formula():
    """out(act(dense(x))) with its own width."""
    head = MLPClassifier(8, 3, "tanh", dropout=0.0, bias=True, hidden_size=5)
    x = torch.randn(2, 8)
    torch.testing.assert_close(head(x), head.out_proj(torch.tanh(head.dense(x))))


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def labels_with_holes(shape, classes):
    labels = torch.randint(0, classes, shape)
    labels.flatten()[::3] = -100
    return labels


def test_mean_pooling_in_half_precision():
    """3,000 tokens of mean 30, whose sum half precision cannot hold, against the mean."""
    x = torch.full((1, 3000, 2), 30.0, dtype=torch.float16)
    ones = torch.ones(1, 3000, dtype=torch.long)
    torch.testing.assert_close(POOLINGS["mean"](x, ones, 0, 0), x[:, 0], atol=0.2, rtol=0)


@pytest.mark.parametrize("items", [None, 7, torch.tensor(11)])
def test_token_losses_equal_transformers(items):
    """Masked and next-token losses against transformers' functions, with and without num_items_in_batch."""
    logits, labels = torch.randn(3, 8, 10), labels_with_holes((3, 8), 10)
    options = {"vocab_size": 10, "num_items_in_batch": items}
    expected = loss_utils.ForMaskedLMLoss(logits, labels, **options)
    torch.testing.assert_close(losses.token_loss(logits, labels, **options), expected)
    expected = loss_utils.ForCausalLMLoss(logits, labels, **options)
    torch.testing.assert_close(losses.next_token_loss(logits, labels, **options), expected)
    expected = loss_utils.ForCausalLMLoss(logits, None, shift_labels=labels, **options)
    torch.testing.assert_close(losses.next_token_loss(logits, labels, shift_labels=labels, **options), expected)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (5, torch.tensor([0, 4, 2]), None),
        (5, torch.tensor([0, -100, 2]), "single_label_classification"),
        (5, torch.rand(3, 5).round(), None),
        (5, torch.rand(3, 5), "regression"),
        (1, torch.rand(3), None),
        (1, torch.rand(3, 1), "regression"),
    ],
)
def test_classification_losses_equal_transformers(num_labels, labels, problem):
    """One class, several classes, regression, named or inferred, against transformers' function."""
    logits = torch.randn(3, num_labels)
    config = hf.BertConfig(num_labels=num_labels, problem_type=problem)
    expected = loss_utils.ForSequenceClassificationLoss(labels, logits, config)
    torch.testing.assert_close(losses.classification_loss(logits, labels, problem_type=problem), expected)


def test_nothing_to_learn_costs_nothing():
    """All labels ignored: a loss of 0 and finite gradients, where transformers gives NaN."""
    logits = torch.randn(2, 4, 6, requires_grad=True)
    nothing = torch.full((2, 4), -100)
    counted = losses.token_loss(logits, nothing, num_items_in_batch=torch.tensor(0))
    for loss in (losses.token_loss(logits, nothing), losses.next_token_loss(logits, nothing), counted):
        assert loss.item() == 0.0
        loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss_utils.ForMaskedLMLoss(logits, nothing, vocab_size=6).isnan()


def test_ignored_labels_do_not_count():
    """Changing the logits where the label is ignored leaves the loss as it was."""
    logits, labels = torch.randn(2, 8, 10), labels_with_holes((2, 8), 10)
    other = torch.where((labels == -100)[..., None], torch.randn(2, 8, 10), logits)
    assert torch.equal(losses.token_loss(logits, labels), losses.token_loss(other, labels))
