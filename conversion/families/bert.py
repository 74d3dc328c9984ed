"""BERT, and those that changed little of it: RoBERTa, DistilBERT."""

from triune.configuration.presets import BERT as BASE
from triune.conversion.family import COMMON, Fact, Family, Field, fields
from triune.conversion.rules import Rolled, Rule, layers


SIZES = COMMON + fields(
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "classifier_dropout"),
    type_vocab_size="embedding.type_vocab_size",
    layer_norm_eps="norm.eps",
)
# Where the head is not tied the file has its bias twice, and only one of them is read.
ONLY = {
    **{"is_decoder": (False,), "add_cross_attention": (False,), "position_embedding_type": ("absolute", None)},
    "tie_word_embeddings": (True,),
}
LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "attention.output.LayerNorm": "attn_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "mlp_norm",
}


def backbone(prefix: str) -> list[Rule]:
    return [
        Rule(f"{prefix}.embeddings.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule(f"{prefix}.embeddings.token_type_embeddings.weight", "model.embeddings.segments.weight"),
        Rule(f"{prefix}.embeddings.LayerNorm.{{p}}", "model.embeddings.norm.{p}"),
        *layers(f"{prefix}.encoder.layer", "model.layers", LAYER),
        Rule(f"{prefix}.pooler.dense.{{p}}", "model.pooler.dense.{p}"),
    ]


def pooler(prefix: str) -> tuple[Fact, ...]:
    """A backbone may have been saved without."""
    return (Fact("pooling.dense", f"{prefix}.pooler.dense.weight", True, False, heads=("TriuneModel",)),)


# Files of a masked language model may hold what sentence pairs were told apart with: BERT's own do.
POOLED = (r".+\.pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\.(weight|bias)")


def bert(config) -> list[Rule]:
    return [
        *backbone("bert"),
        Rule("bert.embeddings.position_embeddings.weight", "model.positions.table.weight"),
        Rule("cls.predictions.transform.dense.{p}", "transform.dense.{p}"),
        Rule("cls.predictions.transform.LayerNorm.{p}", "transform.norm.{p}"),
        Rule("cls.predictions.bias", "lm_head.bias"),
        Rule("cls.predictions.decoder.weight", "lm_head.weight"),
        Rule("cls.seq_relationship.{p}", "seq_relationship.{p}"),
        Rule("classifier.{p}", "classifier.{p}"),
    ]


BERT = Family(
    name="bert",
    config="BertConfig",
    heads={
        "BertModel": "TriuneModel",
        "BertForMaskedLM": "TriuneForMaskedLM",
        "BertForPreTraining": "TriuneForPreTraining",
        "BertForSequenceClassification": "TriuneForSequenceClassification",
        "BertForTokenClassification": "TriuneForTokenClassification",
    },
    prefix="bert.",
    base=BASE,
    fields=SIZES,
    rules=bert,
    only=ONLY,
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    beside=POOLED,
    facts=pooler("bert"),
    old=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
)


# RoBERTa counts positions from pad_token_id + 1 on: the rows before belong to no token, and go behind the others.


def roberta(config) -> list[Rule]:
    rows = 1 if config.pad_token_id is None else config.pad_token_id + 1
    return [
        *backbone("roberta"),
        Rule("roberta.embeddings.position_embeddings.weight", "model.positions.table.weight", Rolled(rows)),
        Rule("lm_head.dense.{p}", "transform.dense.{p}"),
        Rule("lm_head.layer_norm.{p}", "transform.norm.{p}"),
        Rule("lm_head.bias", "lm_head.bias"),
        Rule("lm_head.decoder.weight", "lm_head.weight"),
    ]


# Its head has one activation, whichever the layers have.
GELU_HEAD = Field(
    "hidden_act",
    ("hidden_act", "lm_head.hidden_act"),
    lambda layers: (layers, None if layers == "gelu" else "gelu"),
    lambda layers, head: layers,
)

ROBERTA = Family(
    name="roberta",
    config="RobertaConfig",
    heads={"RobertaModel": "TriuneModel", "RobertaForMaskedLM": "TriuneForMaskedLM"},
    prefix="roberta.",
    base=BASE,
    fields=(*SIZES, GELU_HEAD),
    rules=roberta,
    only=ONLY,
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    beside=POOLED,
    facts=pooler("roberta"),
    old=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
)


# DistilBERT has neither segments nor a pooler. Positions that are waves stand in the file, and are not trained.

DISTILBERT_LAYER = {
    "attention.q_lin": "self_attn.q_proj",
    "attention.k_lin": "self_attn.k_proj",
    "attention.v_lin": "self_attn.v_proj",
    "attention.out_lin": "self_attn.o_proj",
    "sa_layer_norm": "attn_norm",
    "ffn.lin1": "mlp.up_proj",
    "ffn.lin2": "mlp.down_proj",
    "output_layer_norm": "mlp_norm",
}


def distilbert(config) -> list[Rule]:
    return [
        Rule("distilbert.embeddings.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule("distilbert.embeddings.position_embeddings.weight", "model.positions.table.weight"),
        Rule("distilbert.embeddings.LayerNorm.{p}", "model.embeddings.norm.{p}"),
        *layers("distilbert.transformer.layer", "model.layers", DISTILBERT_LAYER),
        Rule("vocab_transform.{p}", "transform.dense.{p}"),
        Rule("vocab_layer_norm.{p}", "transform.norm.{p}"),
        Rule("vocab_projector.bias", "lm_head.bias"),
        Rule("vocab_projector.weight", "lm_head.weight"),
        Rule("classifier.{p}", "classifier.{p}"),
    ]


DISTILBERT = Family(
    name="distilbert",
    config="DistilBertConfig",
    heads={
        "DistilBertModel": "TriuneModel",
        "DistilBertForMaskedLM": "TriuneForMaskedLM",
        "DistilBertForTokenClassification": "TriuneForTokenClassification",
    },
    prefix="distilbert.",
    base={**BASE, "embedding": {"type": "tokens", "norm": "after"}, "pooling": "cls", "position": "learned"},
    fields=(
        *COMMON,
        *fields(
            "vocab_size",
            "max_position_embeddings",
            dim="hidden_size",
            n_layers="num_hidden_layers",
            n_heads="num_attention_heads",
            hidden_dim="intermediate_size",
            activation="hidden_act",
            dropout="hidden_dropout_prob",
            attention_dropout="attention_probs_dropout_prob",
        ),
        Field("seq_classif_dropout", "classifier_dropout", back=lambda share: 0.2 if share is None else share),
        Field("sinusoidal_pos_embds", "position.frozen", back=lambda frozen: frozen is True),
    ),
    rules=distilbert,
    silent=("qa_dropout",),
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    old=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
)
