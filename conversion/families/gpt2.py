"""GPT-2, whose matrices are stored the other way round, queries, keys and values in one."""

from triune.configuration.presets import GPT2 as BASE
from triune.conversion.family import COMMON, Family, Field, fields
from triune.conversion.rules import TURNED, Fused, Rule


SUMMARY = ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")  # of a head that is not here
PLAIN_CLASSIFIER = {"classifier": {"type": "linear", "bias": False}, "classifier_dropout": 0.0}
QKV = [f"model.layers.{{n}}.self_attn.{one}_proj.{{p}}" for one in "qkv"]


def gpt2(config) -> list[Rule]:
    return [
        Rule("transformer.wte.weight", "model.embed_tokens.weight"),
        Rule("transformer.wpe.weight", "model.positions.table.weight"),
        Rule("transformer.h.{n}.ln_1.{p}", "model.layers.{n}.attn_norm.{p}"),
        Rule("transformer.h.{n}.attn.c_attn.{p}", QKV, Fused(3, turned=True)),
        Rule("transformer.h.{n}.attn.c_proj.{p}", "model.layers.{n}.self_attn.o_proj.{p}", TURNED),
        Rule("transformer.h.{n}.ln_2.{p}", "model.layers.{n}.mlp_norm.{p}"),
        Rule("transformer.h.{n}.mlp.c_fc.{p}", "model.layers.{n}.mlp.up_proj.{p}", TURNED),
        Rule("transformer.h.{n}.mlp.c_proj.{p}", "model.layers.{n}.mlp.down_proj.{p}", TURNED),
        Rule("transformer.ln_f.{p}", "model.norm.{p}"),
        Rule("lm_head.weight", "lm_head.weight"),
        Rule("score.weight", "classifier.weight"),
    ]


def one_share(embedded: float, residual: float) -> float:
    if embedded != residual:
        raise ValueError(f"gpt2: embd_pdrop={embedded!r} is not converted: Triune has resid_pdrop, {residual!r}, only")
    return residual


GPT2 = Family(
    name="gpt2",
    config="GPT2Config",
    heads={
        "GPT2Model": "TriuneModel",
        "GPT2LMHeadModel": "TriuneForCausalLM",
        "GPT2ForSequenceClassification": "TriuneForSequenceClassification",
    },
    prefix="transformer.",
    base=BASE,
    of_head={"TriuneForSequenceClassification": PLAIN_CLASSIFIER},
    fields=(
        *COMMON,
        *fields(
            "vocab_size",
            n_positions="max_position_embeddings",
            n_embd="hidden_size",
            n_layer="num_hidden_layers",
            n_head="num_attention_heads",
            activation_function="hidden_act",
            attn_pdrop="attention_probs_dropout_prob",
            layer_norm_epsilon="norm.eps",
        ),
        Field("n_inner", "intermediate_size"),
        Field(("embd_pdrop", "resid_pdrop"), "hidden_dropout_prob", one_share, lambda share: (share, share)),
    ),
    rules=gpt2,
    only={
        **{"add_cross_attention": (False,), "scale_attn_weights": (True,), "reorder_and_upcast_attn": (False,)},
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    silent=tuple(f"summary_{name}" for name in SUMMARY),
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)
