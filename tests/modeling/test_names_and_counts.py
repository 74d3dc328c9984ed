"""Parameter names are an interface, and parameter counts a check on every size: both are frozen here."""

import pytest
import torch

from triune import modeling
from triune.configuration import TriuneConfig, preset


def on_meta(config, head):
    with torch.device("meta"):
        return getattr(modeling, head)(config)


def count(name, head=None, **overrides):
    config = preset(name, **overrides)
    if head is None:
        text = "TriuneForCausalLM" if config.attention["type"] == "causal" else "TriuneForMaskedLM"
        head = "TriuneForImageClassification" if config.embedding["type"] == "patches" else text
    return on_meta(config, head).num_parameters()


# To the digit: the published figure, and the preset that reproduces it.
PUBLISHED = [
    (124_439_808, "gpt2", {}),
    (109_482_240, "bert-base", {"head": "TriuneModel"}),
    (85_800_963, "vit-b16", {"num_labels": 3}),
    (5_717_416, "vit-tiny", {"num_labels": 1000}),
    (149_655_232, "modernbert-base", {}),
    (134_515_008, "smollm2-135m", {}),
    (162_826_560, "smollm2-135m", {"tie_word_embeddings": False}),
    (7_719_680, "era-bert", {}),
    (7_717_120, "era-bert-sinusoidal", {}),
    (11_866_176, "era-bert-wide", {}),
    (89_476_410, "era-gpt", {}),
    (89_439_546, "era-gpt-sinusoidal", {}),
    (63_490_560, "era-gpt-narrow", {}),
    (43_120_899, "era-vit-sinusoidal", {"num_labels": 3}),
    (43_273_728, "era-vit", {"num_labels": 3}),
    (1_440_744, "scratch-vit-pico", {"num_labels": 1000}),
    (86_530_024, "scratch-vit-base", {"num_labels": 1000}),
    (21_531_648, "scratch-mlm", {}),
    (6_861_056, "scratch-mlm-rms", {}),
    (109_038_338, "scratch-bert-nsp", {"head": "TriuneForPreTraining"}),
]


@pytest.mark.parametrize(("published", "name", "options"), PUBLISHED)
def test_published_counts(published, name, options):
    """The count that the paper, the checkpoint or the older system's own log states."""
    assert count(name, **options) == published


@pytest.mark.parametrize(
    ("name", "published", "bug", "without", "changes"),
    [
        ("era-gpt", 89_476_410, "its final norm is built and never called", 89_474_874, {"final_norm": False}),
        ("era-gpt-narrow", 63_490_560, "its final norm is built and never called", 63_489_024, {"final_norm": False}),
        (
            "era-bert-wide",
            11_866_176,
            "16,052 rows beyond its vocabulary of 23,948",
            7_740_812,
            {"vocab_size": 23_948},
        ),
        (
            "scratch-bert-nsp",
            109_038_338,
            "its final norm is built and never called",
            109_038_338 - 2 * 768,
            {"final_norm": False},
        ),
    ],
)
def test_counts_that_contain_a_bug(name, published, bug, without, changes):
    """Where an older system counted parameters that do nothing: the figure without them, and what they were."""
    head = {"scratch-bert-nsp": "TriuneForPreTraining"}.get(name)
    assert count(name, head, **changes) == without, bug
    assert count(name, head) - count(name, head, **changes) == published - without


def test_modern_mini_by_formula():
    """Two maps in the feed-forward, grouped heads, a norm of queries and keys; no bias anywhere; a tied decoder."""
    width, head, keys, wide = 256, 64, 2 * 64, 1024
    layer = 2 * width * width + 2 * width * keys + 2 * width * wide + 2 * width + 2 * head
    assert count("modern-mini") == 32_000 * width + 4 * layer + width == 11_078_400


def test_layer_and_part_counts():
    """The parts of the older systems' totals, as their own summaries list them."""

    def parts(name, pattern):
        model = on_meta(preset(name, num_labels=3), "TriuneModel")
        return sum(p.numel() for key, p in model.named_parameters() if key.startswith(pattern))

    assert parts("era-bert-wide", "layers.0.") == 198_272
    assert parts("era-bert-wide", "layers.0.self_attn") == 66_048
    assert parts("era-bert-wide", "layers.0.mlp.") == 131_712
    assert parts("era-gpt-sinusoidal", "layers.0.") == 7_087_872
    assert parts("era-gpt-narrow", "layers.0.") == 2_759_680
    assert parts("vit-b16", "embed_tokens") == 590_592
    assert parts("vit-b16", "positions") + parts("vit-b16", "embeddings") == 152_064


def test_untied_head_counts_twice():
    """Tying saves exactly the decoder's matrix."""
    assert count("gpt2", tie_word_embeddings=False) - count("gpt2") == 50257 * 768


# Every parameter of one layer and everything around it, for a configuration that has each kind once.
BACKBONE_NAMES = {
    "text": """
        embed_tokens.weight embeddings.norm.bias embeddings.norm.weight embeddings.segments.weight
        layers.0.attn_norm.bias layers.0.attn_norm.weight
        layers.0.mlp.down_proj.bias layers.0.mlp.down_proj.weight layers.0.mlp.up_proj.bias layers.0.mlp.up_proj.weight
        layers.0.mlp_norm.bias layers.0.mlp_norm.weight
        layers.0.self_attn.k_proj.bias layers.0.self_attn.k_proj.weight
        layers.0.self_attn.o_proj.bias layers.0.self_attn.o_proj.weight
        layers.0.self_attn.q_proj.bias layers.0.self_attn.q_proj.weight
        layers.0.self_attn.v_proj.bias layers.0.self_attn.v_proj.weight
        norm.bias norm.weight pooler.dense.bias pooler.dense.weight positions.table.weight
    """,
    "image": """
        embed_tokens.output_norm.weight embed_tokens.pixel_norm.weight embed_tokens.projection.weight
        embeddings.cls_token embeddings.norm.weight embeddings.register_tokens
        layers.0.attn_norm.weight layers.0.attn_residual.scale
        layers.0.mlp.down_proj.weight layers.0.mlp.gate_proj.weight layers.0.mlp.up_proj.weight
        layers.0.mlp_norm.weight layers.0.mlp_residual.scale
        layers.0.self_attn.k_norm.weight layers.0.self_attn.k_proj.weight layers.0.self_attn.o_proj.weight
        layers.0.self_attn.q_norm.weight layers.0.self_attn.q_proj.weight layers.0.self_attn.v_proj.weight
        norm.weight positions.table.weight
    """,
}
BACKBONES = {
    "text": {
        "embedding": {"type": "tokens", "type_vocab_size": 2, "norm": "after"},
        "pooling": {"type": "cls", "dense": True},
    },
    "image": {
        "embedding": {
            **{"type": "patches", "image_size": 16, "patch_size": 4, "num_register_tokens": 2},
            **{"norm": "after", "patch_norms": True, "bias": False},
        },
        "norm": "rmsnorm",
        "attention": {"type": "bidirectional", "qkv_bias": False, "out_bias": False, "qk_norm": True},
        "feed_forward": {"type": "gated", "bias": False},
        "residual": "layer_scale",
    },
}
HEAD_NAMES = {
    ("TriuneForMaskedLM", "transform"): "lm_head.bias lm_head.weight transform.dense.bias transform.dense.weight "
    "transform.norm.bias transform.norm.weight",
    ("TriuneForMaskedLM", "plain"): "lm_head.weight",
    ("TriuneForTokenClassification", "plain"): "classifier.bias classifier.weight",
    ("TriuneForSequenceClassification", "mlp"): "classifier.dense.bias classifier.dense.weight "
    "classifier.out_proj.bias classifier.out_proj.weight",
}
ONE_LAYER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def names(model):
    return sorted(key for key, _ in model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbone_names_are_frozen(kind):
    """A renamed parameter breaks every saved model: a change here needs a migration and a line in the changelog."""
    sizes = ONE_LAYER if kind == "text" else {key: value for key, value in ONE_LAYER.items() if key != "vocab_size"}
    model = on_meta(TriuneConfig(**sizes, **BACKBONES[kind]), "TriuneModel")
    assert names(model) == sorted(BACKBONE_NAMES[kind].split())


@pytest.mark.parametrize(("head", "kind"), HEAD_NAMES)
def test_head_names_are_frozen(head, kind):
    """The names outside the backbone; the backbone's own stand under `model.`"""
    field = "classifier" if kind in ("mlp",) else "lm_head"
    model = on_meta(TriuneConfig(**ONE_LAYER, tie_word_embeddings=False, **{field: kind}), head)
    outside = [name for name in names(model) if not name.startswith("model.")]
    assert outside == sorted(HEAD_NAMES[head, kind].split())
