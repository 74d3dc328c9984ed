"""Named points of the space: the published models, small ones to train, and the systems that Triune supersedes.

A preset is what differs from `TriuneConfig`'s defaults. `preset(name, **overrides)` makes the configuration.
"""

from typing import Any

from triune.configuration.configuration_composite import preset_fields
from triune.configuration.configuration_triune import AXES, TriuneConfig, with_own_type


# The widths that the small models share: with them the layers of BERT, GPT and ViT hold the same 3,159,040 numbers.
MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
NO_BIAS = {"qkv_bias": False, "out_bias": False}

BERT = {
    "embedding": {"type": "tokens", "type_vocab_size": 2, "norm": "after"},
    "norm": {"type": "layernorm", "eps": 1e-12},
    "norm_placement": "post",
    "pooling": {"type": "cls", "dense": True},
    "lm_head": "transform",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    **DROPOUT,
}
GPT2 = {
    "attention": "causal",
    "hidden_act": "gelu_pytorch_tanh",  # what transformers calls gelu_new, fused
    "vocab_size": 50257,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    **DROPOUT,
}
VIT = {"embedding": "patches", "norm": {"type": "layernorm", "eps": 1e-12}}
LLAMA = {
    "position": "rotary",
    "norm": {"type": "rmsnorm", "eps": 1e-5},
    "attention": {"type": "causal", **NO_BIAS},
    "feed_forward": {"type": "gated", "bias": False},
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What came after Llama, together: squared ReLU, normalised queries and keys and branches that start at zero, as in
# nanochat; a bound on the logits, as in Gemma 2.
MODERN = {
    **LLAMA,
    "norm": "rmsnorm",
    "attention": {**LLAMA["attention"], "qk_norm": True},
    "feed_forward": {"type": "plain", "bias": False},
    "hidden_act": "relu2",
    "residual": {"type": "plain", "zero_init": True},
    "lm_head": {"type": "plain", "softcap": 30.0},
}
MODERNBERT = {
    "embedding": {"type": "tokens", "norm": "first"},
    "position": {"type": "rotary", "theta": 160000.0, "local_theta": 10000.0},
    "norm": {"type": "layernorm", "bias": False},
    "attention": {"type": "bidirectional", **NO_BIAS},
    "feed_forward": {"type": "gated", "bias": False},
    "lm_head": {"type": "transform", "dense_bias": False},
    "sliding_window": 64,
}


def every_third_global(num_layers: int) -> list[str]:
    """ModernBERT's alternation: one layer that sees everything, two that see a window."""
    return ["sliding_attention" if index % 3 else "full_attention" for index in range(num_layers)]


# The older systems, as their authors sized them: vocabularies, lengths and widths are theirs, rows of era-bert-wide
# that no word uses included. How they compute is not: what was wrong there (a missing mask, a norm never called, a
# softmax too many) does not exist here.
ERA = {"hidden_act": "relu", "tie_word_embeddings": False}
ERA_BERT = {
    **{"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 512},
    **{"vocab_size": 23948, "max_position_embeddings": 20},
    **ERA,
    **DROPOUT,
}
ERA_GPT = {
    **{"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    **{"vocab_size": 30522, "max_position_embeddings": 64, "attention": "causal"},
    **{"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    **ERA,
}
ERA_VIT = {"embedding": "patches", "num_hidden_layers": 6, "hidden_act": "relu"}
SCRATCH_VIT = {
    "embedding": {"type": "patches", "cls_token": False, "patch_norms": True, "bias": False},
    "attention": {"type": "bidirectional", **NO_BIAS},
    "final_norm": False,
}
SCRATCH_MLM = {
    "attention": {"type": "bidirectional", "qkv_bias": False},
    **{"num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 128},
    **DROPOUT,
}

PRESETS: dict[str, dict[str, Any]] = {
    # published sizes
    "bert-base": BERT,
    "gpt2": {**GPT2, "max_position_embeddings": 1024},
    "vit-b16": VIT,
    "vit-tiny": {**VIT, "hidden_size": 192, "num_attention_heads": 3},
    "modernbert-base": {
        **MODERNBERT,
        **{"num_hidden_layers": 22, "intermediate_size": 1152, "layer_types": every_third_global},
        **{"vocab_size": 50368, "max_position_embeddings": 8192, "pad_token_id": 50283},
    },
    "smollm2-135m": {
        **LLAMA,
        **{"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        **{"intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192},
        "position": {"type": "rotary", "theta": 100000.0},
    },
    # small ones, to train
    "bert-mini": {**BERT, **MINI},
    "gpt2-mini": {**GPT2, **MINI, "max_position_embeddings": 512},
    "vit-mini": {**VIT, **MINI, "embedding": {"type": "patches", "image_size": 32, "patch_size": 4}},
    "llama-mini": {
        **LLAMA,
        **MINI,
        **{"num_key_value_heads": 2, "intermediate_size": 688, "vocab_size": 32000, "max_position_embeddings": 1024},
    },
    "modern-mini": {
        **MODERN,
        **MINI,
        **{"num_key_value_heads": 2, "vocab_size": 32000, "max_position_embeddings": 1024},
    },
    "modernbert-mini": {
        **MODERNBERT,
        **MINI,
        **{"num_hidden_layers": 6, "intermediate_size": 384, "layer_types": every_third_global},
        **{"vocab_size": 30522, "max_position_embeddings": 1024, "pad_token_id": 0},
    },
    # the older systems
    "era-bert": ERA_BERT,
    "era-bert-sinusoidal": {**ERA_BERT, "position": "sinusoidal"},
    "era-bert-wide": {
        **ERA_BERT,
        "embedding": {"type": "tokens", "scale": True},
        "position": "sinusoidal",
        "final_norm": False,
        "lm_head": {"type": "plain", "bias": True},
        "vocab_size": 40000,
    },
    "era-gpt": {
        **ERA_GPT,
        "attention": {"type": "causal", "qkv_bias": False},
        "lm_head": {"type": "plain", "bias": True},
    },
    "era-gpt-sinusoidal": {
        **ERA_GPT,
        "position": "sinusoidal",
        "final_norm": False,
        "lm_head": {"type": "plain", "bias": True},
    },
    "era-gpt-narrow": {**ERA_GPT, "intermediate_size": 256},
    "era-vit": {**ERA_VIT, "num_attention_heads": 8, "classifier": {"type": "linear", "bias": False}},
    "era-vit-sinusoidal": {**ERA_VIT, "num_attention_heads": 6, "position": "sinusoidal", "final_norm": False},
    "scratch-vit-pico": {**SCRATCH_VIT, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},
    "scratch-vit-base": SCRATCH_VIT,
    "scratch-bert-nsp": {
        **BERT,
        **{"vocab_size": 30000, "max_position_embeddings": 500, "lm_head": "plain", "final_norm": True},
        "attention": {"type": "bidirectional", **NO_BIAS},
    },
    "scratch-mlm": {**SCRATCH_MLM, "hidden_size": 512, "vocab_size": 5000},
    "scratch-mlm-rms": {**SCRATCH_MLM, "hidden_size": 256, "vocab_size": 8192, "norm": "rmsnorm"},
}


def preset(name: str, **overrides) -> TriuneConfig:
    """The configuration of a preset.

    An override replaces a field. For an axis, a dict without `type` changes options of the preset's own choice:
    `preset("vit-mini", embedding={"image_size": 64}, num_labels=10)`. A pattern of layers follows their number.
    """
    fields = preset_fields(PRESETS, name)
    defaults = TriuneConfig.__dataclass_fields__
    for field, value in overrides.items():
        own = fields.get(field, defaults[field].default) if field in AXES else None
        fields[field] = with_own_type(value, own)
    if callable(fields.get("layer_types")):
        fields["layer_types"] = fields["layer_types"](fields.get("num_hidden_layers", 12))
    return TriuneConfig(**fields)
