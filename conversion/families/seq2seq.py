"""T5, BART and Marian: two stacks with a table of embeddings between them."""

import copy

from triune.configuration.configuration_triune_seq2seq import (
    BART as BART_BASE,
)
from triune.configuration.configuration_triune_seq2seq import (
    MARIAN as MARIAN_BASE,
)
from triune.configuration.configuration_triune_seq2seq import (
    T5 as T5_BASE,
)
from triune.configuration.configuration_triune_seq2seq import (
    TriuneSeq2SeqConfig,
)
from triune.conversion.family import FROZEN, Fact, Family, Field, fields, under
from triune.conversion.rules import SAME, Rolled, Rule, Same, Shaped, layers


STACKS = ("encoder", "decoder")
ENDS = fields("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def spread(preset: dict, **further) -> dict:
    """A preset with what its stacks have in common in each of them; sizes and ends are a checkpoint's own."""
    common = copy.deepcopy(preset["stacks"])
    attention = common.pop("attention", {})
    sides = {"encoder": "bidirectional", "decoder": "causal"}
    stacks = {
        stack: {**copy.deepcopy(common), "attention": {**attention, "type": side}, **preset.get(stack, {})}
        for stack, side in sides.items()
    }
    return {**stacks, **further}


def both(*pairs: Field) -> tuple[Field, ...]:
    """What is one field in the published configuration, and one of each stack here."""
    return tuple(field for stack in STACKS for field in under("", stack, pairs))


def per_stack(**names: str) -> tuple[Field, ...]:
    """Fields of one stack each, named after it: encoder_layers."""
    return tuple(
        Field(f"{stack}_{published}", f"{stack}.{own}") for stack in STACKS for published, own in names.items()
    )


HEADS = {"Model": "TriuneSeq2SeqModel", "ForConditionalGeneration": "TriuneForConditionalGeneration"}

# ---------------------------------------------------------------------------------------------------------------------
# T5, whose kind of feed-forward and activation are one word

T5_LAYER = {  # number of the sublayer in encoder and decoder -> its parts
    "layer.0": {**{f"SelfAttention.{one}": f"self_attn.{one}_proj" for one in "qkvo"}, "layer_norm": "attn_norm"},
    "layer.1": {**{f"EncDecAttention.{one}": f"cross.attn.{one}_proj" for one in "qkvo"}, "layer_norm": "cross.norm"},
}
T5_FORWARD = {"wi": "mlp.up_proj", "wi_0": "mlp.gate_proj", "wi_1": "mlp.up_proj", "wo": "mlp.down_proj"}


def t5(config: TriuneSeq2SeqConfig) -> list[Rule]:
    gated = config.encoder.feed_forward["type"] == "gated"
    rules = [Rule("shared.weight", "model.encoder.embed_tokens.weight"), Rule("lm_head.weight", "lm_head.weight")]
    for stack, forward in (("encoder", "layer.1"), ("decoder", "layer.2")):
        parts = {f"layer.0.{name}": there for name, there in T5_LAYER["layer.0"].items()}
        if stack == "decoder":
            parts |= {f"layer.1.{name}": there for name, there in T5_LAYER["layer.1"].items()}
        parts |= {
            f"{forward}.DenseReluDense.{name}": there
            for name, there in T5_FORWARD.items()
            if name == "wo" or gated == (name != "wi")
        }
        parts |= {f"{forward}.layer_norm": "mlp_norm"}
        rules += layers(f"{stack}.block", f"model.{stack}.layers", parts)
        rules += [
            Rule(
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"model.{stack}.positions.table.weight",
            ),
            Rule(f"{stack}.final_layer_norm.weight", f"model.{stack}.norm.weight"),
        ]
    return rules


def kind_and_activation(word: str) -> tuple[str, str]:
    kind, _, activation = word.rpartition("-")
    return kind or "plain", {"gated-gelu": "gelu_new"}.get(word, activation)


def in_a_word(kind: str, activation: str) -> str:
    return {("gated", "gelu_new"): "gated-gelu"}.get((kind, activation), f"{kind}-{activation}".removeprefix("plain-"))


T5 = Family(
    name="t5",
    config="T5Config",
    heads={f"T5{name}": head for name, head in HEADS.items()},
    former={"T5WithLMHeadModel": "T5ForConditionalGeneration"},
    prefix="",
    base={**spread(T5_BASE), "share_embeddings": True},
    fields=(
        *ENDS,
        *both(
            *fields(
                *("vocab_size",),
                d_model="hidden_size",
                d_kv="head_dim",
                d_ff="intermediate_size",
                num_heads="num_attention_heads",
                relative_attention_num_buckets="position.num_buckets",
                relative_attention_max_distance="position.max_distance",
                layer_norm_epsilon="norm.eps",
            ),
            Field(
                "dropout_rate",
                ("hidden_dropout_prob", "attention_probs_dropout_prob", "feed_forward.dropout"),
                lambda share: (share, share, share),
                lambda share, attention, forward: share,
            ),
            Field("feed_forward_proj", ("feed_forward.type", "hidden_act"), kind_and_activation, in_a_word),
        ),
        Field("num_layers", "encoder.num_hidden_layers"),
        Field("num_decoder_layers", "decoder.num_hidden_layers"),
        Field("scale_decoder_outputs", "scale_decoder_outputs"),
    ),
    rules=t5,
    silent=("dense_act_fn", "is_gated_act", "tie_word_embeddings", "is_decoder", "classifier_dropout", "n_positions"),
    copies={
        **{f"{stack}.embed_tokens.weight": "shared.weight" for stack in STACKS},
        "lm_head.weight": "shared.weight",
    },
    buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    kind=TriuneSeq2SeqConfig,
    facts=(Fact("tie_word_embeddings", "lm_head.weight", False, True),),
)

# ---------------------------------------------------------------------------------------------------------------------
# BART and Marian, with the same layers

LAYER = {
    **{f"self_attn.{one}_proj": f"self_attn.{one}_proj" for one in "qkv"},
    **{"self_attn.out_proj": "self_attn.o_proj", "self_attn_layer_norm": "attn_norm"},
    **{f"encoder_attn.{one}_proj": f"cross.attn.{one}_proj" for one in "qkv"},
    **{"encoder_attn.out_proj": "cross.attn.o_proj", "encoder_attn_layer_norm": "cross.norm"},
    **{"fc1": "mlp.up_proj", "fc2": "mlp.down_proj", "final_layer_norm": "mlp_norm"},
}
SIZES = (
    *ENDS,
    *per_stack(layers="num_hidden_layers", ffn_dim="intermediate_size", attention_heads="num_attention_heads"),
    *both(
        *fields(
            d_model="hidden_size",
            activation_function="hidden_act",
            dropout="hidden_dropout_prob",
            attention_dropout="attention_probs_dropout_prob",
            activation_dropout="feed_forward.dropout",
            scale_embedding="embedding.scale",
            init_std="initializer_range",
        )
    ),
    Field("tie_word_embeddings", "tie_word_embeddings"),
)
QUIET = ("forced_eos_token_id", "forced_bos_token_id", "is_decoder", "classifier_dropout", "num_hidden_layers")


def bart_like(config: TriuneSeq2SeqConfig, positions: Same = SAME) -> list[Rule]:
    """The bias of the head is a buffer there, a row for each batch."""
    encoder = {name: own for name, own in LAYER.items() if not name.startswith("encoder_attn")}
    vocabulary = config.decoder.vocab_size
    table = "model.shared.weight" if config.share_embeddings else "model.encoder.embed_tokens.weight"
    return [
        Rule(table, "model.encoder.embed_tokens.weight"),
        Rule("model.decoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        *layers("model.encoder.layers", "model.encoder.layers", encoder),
        *layers("model.decoder.layers", "model.decoder.layers", LAYER),
        *(
            Rule(f"model.{stack}.embed_positions.weight", f"model.{stack}.positions.table.weight", positions)
            for stack in STACKS
        ),
        Rule("lm_head.weight", "lm_head.weight"),
        Rule("final_logits_bias", "lm_head.bias", Shaped((1, vocabulary), (vocabulary,))),
    ]


def bart(config: TriuneSeq2SeqConfig) -> list[Rule]:
    """Position p stands in row p + 2: the two rows that no token reads come to lie behind the others."""
    return [
        *bart_like(config, Rolled(2)),
        *(
            Rule(f"model.{stack}.layernorm_embedding.{{p}}", f"model.{stack}.embeddings.norm.{{p}}")
            for stack in STACKS
        ),
    ]


SHARED = {f"model.{stack}.embed_tokens.weight": "model.shared.weight" for stack in STACKS}
# Files that fairseq's were made of hold the version of each stack. The bias of the head is zero where a file has none.
VERSIONS = (r"model\.(encoder|decoder)\.version",)
BIAS = Fact("decoder.lm_head.bias", "final_logits_bias", True, False, heads=("TriuneForConditionalGeneration",))

BART = Family(
    name="bart",
    config="BartConfig",
    heads={f"Bart{name}": head for name, head in HEADS.items()},
    prefix="model.",
    base={**spread({**BART_BASE, "decoder": {"lm_head": {"type": "plain", "bias": True}}}), "share_embeddings": True},
    fields=(
        *SIZES,
        *both(
            Field("vocab_size", "vocab_size"),
            Field("max_position_embeddings", "max_position_embeddings", lambda rows: rows + 2, lambda rows: rows - 2),
        ),
    ),
    rules=bart,
    only={"encoder_layerdrop": (0.0,), "decoder_layerdrop": (0.0,)},
    silent=QUIET,
    copies={**SHARED, "lm_head.weight": "model.shared.weight"},
    buffers=VERSIONS,
    kind=TriuneSeq2SeqConfig,
    facts=(BIAS,),
)

# Marian's positions are waves, which most files hold all the same.
WAVES = {"type": "sinusoidal", "dimensions": 1, "layout": "concatenated", "base": 10000.0}

MARIAN = Family(
    name="marian",
    config="MarianConfig",
    heads={"MarianModel": "TriuneSeq2SeqModel", "MarianMTModel": "TriuneForConditionalGeneration"},
    prefix="model.",
    base=spread(MARIAN_BASE),
    fields=(
        *SIZES,
        Field("vocab_size", "encoder.vocab_size"),
        Field("decoder_vocab_size", "decoder.vocab_size"),
        Field("share_encoder_decoder_embeddings", "share_embeddings"),
        *both(Field("max_position_embeddings", "max_position_embeddings")),
    ),
    rules=bart_like,
    only={"encoder_layerdrop": (0.0,), "decoder_layerdrop": (0.0,)},
    silent=QUIET,
    copies={**SHARED, "lm_head.weight": "model.shared.weight"},
    kind=TriuneSeq2SeqConfig,
    facts=(
        BIAS,
        *(Fact(f"{stack}.position", f"model.{stack}.embed_positions.weight", FROZEN, WAVES) for stack in STACKS),
    ),
)
