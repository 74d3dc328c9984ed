"""Llama and those of its shape: SmolLM2, Mistral, Qwen2 and Qwen3 (dense, without a window)."""

import copy

from triune.configuration.presets import LLAMA as BASE
from triune.conversion.families.gpt2 import PLAIN_CLASSIFIER
from triune.conversion.family import COMMON, Family, Field, fields
from triune.conversion.rules import Rule, layers


NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
NAMES = (
    *(f"self_attn.{one}_proj" for one in "qkvo"),
    *("self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def llama(config) -> list[Rule]:
    return [
        Rule("model.embed_tokens.weight", "model.embed_tokens.weight"),
        *layers("model.layers", "model.layers", {**NORMS, **{name: name for name in NAMES}}),
        Rule("model.norm.weight", "model.norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        Rule("score.weight", "classifier.weight"),
    ]


SIZES = (
    *COMMON,
    *fields(
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "hidden_act", "max_position_embeddings"),
        attention_dropout="attention_probs_dropout_prob",
        rms_norm_eps="norm.eps",
    ),
    Field("rope_parameters.rope_theta", "position.theta"),
)


def family(name: str, stem: str, attention: dict | None = None, **of_its_kind) -> Family:
    base = copy.deepcopy(BASE)
    base |= {"position": {"type": "rotary"}, "attention": {**base["attention"], **(attention or {})}}
    only = {"rope_parameters.rope_type": ("default",), **of_its_kind.pop("only", {})}
    return Family(
        name=name,
        config=f"{stem}Config",
        heads={
            f"{stem}Model": "TriuneModel",
            f"{stem}ForCausalLM": "TriuneForCausalLM",
            f"{stem}ForSequenceClassification": "TriuneForSequenceClassification",
        },
        prefix="model.",
        base=base,
        rules=llama,
        of_head={"TriuneForSequenceClassification": PLAIN_CLASSIFIER},
        copies={"lm_head.weight": "model.embed_tokens.weight"},
        fields=(*SIZES, *of_its_kind.pop("fields", ())),
        only=only,
        **of_its_kind,
    )


# Llama 2 says into how many parts its matrices were cut in training, which nothing reads.
LLAMA = family("llama", "Llama", only={"attention_bias": (False,), "mlp_bias": (False,)}, silent=("pretraining_tp",))
MISTRAL = family("mistral", "Mistral", fields=fields("sliding_window"))
QWEN = {"fields": fields("layer_types"), "silent": ("sliding_window", "max_window_layers")}
QWEN2 = family("qwen2", "Qwen2", attention={"qkv_bias": True}, only={"use_sliding_window": (False,)}, **QWEN)
QWEN3 = family(
    "qwen3",
    "Qwen3",
    attention={"qk_norm": True},
    only={"use_sliding_window": (False,), "attention_bias": (False,)},
    **QWEN,
)
