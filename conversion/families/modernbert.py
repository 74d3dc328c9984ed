"""ModernBERT, with queries, keys and values in one matrix, and the two halves of its gate in another."""

from triune.configuration.presets import MODERNBERT as BASE
from triune.conversion.family import COMMON, Family, Field, fields
from triune.conversion.rules import Fused, Rule, layers


LAYER = {"attn_norm": "attn_norm", "attn.Wo": "self_attn.o_proj", "mlp_norm": "mlp_norm", "mlp.Wo": "mlp.down_proj"}
FUSED = {
    "attn.Wqkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "mlp.Wi": ["mlp.gate_proj", "mlp.up_proj"],
}


def modernbert(config) -> list[Rule]:
    layer = "model.layers.{n}"
    return [
        Rule("model.embeddings.tok_embeddings.weight", "model.embed_tokens.weight"),
        Rule("model.embeddings.norm.{p}", "model.embeddings.norm.{p}"),
        *layers("model.layers", "model.layers", LAYER),
        *(
            Rule(f"{layer}.{name}.{{p}}", [f"{layer}.{part}.{{p}}" for part in parts], Fused(len(parts)))
            for name, parts in FUSED.items()
        ),
        Rule("model.final_norm.{p}", "model.norm.{p}"),
        Rule("head.dense.{p}", "transform.dense.{p}"),
        Rule("head.norm.{p}", "transform.norm.{p}"),
        Rule("decoder.{p}", "lm_head.{p}"),
    ]


# A window is told by its whole width, even where no layer has one.


def one_side(width: int, layer_types: list[str]) -> tuple[int | None, list[str]]:
    return width // 2 if "sliding_attention" in layer_types else None, layer_types


def both_sides(window: int | None, layer_types: list[str]) -> tuple[int, list[str]]:
    return 128 if window is None else 2 * window, layer_types


MODERNBERT = Family(
    name="modernbert",
    config="ModernBertConfig",
    heads={"ModernBertModel": "TriuneModel", "ModernBertForMaskedLM": "TriuneForMaskedLM"},
    prefix="model.",
    base=BASE,
    fields=(
        *COMMON,
        *fields(
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            "max_position_embeddings",
            norm_eps="norm.eps",
            norm_bias="norm.bias",
            attention_dropout="attention_probs_dropout_prob",
            mlp_dropout="feed_forward.dropout",
            decoder_bias="lm_head.bias",
        ),
        Field(
            ("hidden_activation", "classifier_activation"),
            ("hidden_act", "lm_head.hidden_act"),
            lambda layers, head: (layers, None if head == layers else head),
            lambda layers, head: (layers, head or layers),
        ),
        Field(("local_attention", "layer_types"), ("sliding_window", "layer_types"), one_side, both_sides),
        Field("rope_parameters.full_attention.rope_theta", "position.theta"),
        Field("rope_parameters.sliding_attention.rope_theta", "position.local_theta"),
    ),
    rules=modernbert,
    only={
        **{"attention_bias": (False,), "mlp_bias": (False,), "embedding_dropout": (0.0,)},
        "rope_parameters.full_attention.rope_type": ("default",),
        "rope_parameters.sliding_attention.rope_type": ("default",),
    },
    silent=(
        *("initializer_cutoff_factor", "cls_token_id", "sep_token_id", "deterministic_flash_attn"),
        *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile", "repad_logits_with_grad"),
        *("classifier_pooling", "classifier_dropout", "classifier_bias"),
    ),
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
