"""ViT and DeiT: a kernel over pixels is a linear map of patches, and a table of positions has no batch here."""

from math import prod

from triune.configuration.presets import VIT as BASE
from triune.conversion.families.bert import pooler
from triune.conversion.family import Family, fields
from triune.conversion.rules import Rule, Shaped, layers


LAYER = {
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "layernorm_before": "attn_norm",
    "layernorm_after": "mlp_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
}
STACK = fields(
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "initializer_range"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    layer_norm_eps="norm.eps",
    qkv_bias="attention.qkv_bias",
)
PICTURE = fields(
    image_size="embedding.image_size", patch_size="embedding.patch_size", num_channels="embedding.num_channels"
)


def kernel(config) -> Shaped:
    """A convolution whose kernel is a patch, as the linear map that it is."""
    patch, channels = config.embedding["patch_size"], config.embedding["num_channels"]
    shape = (config.hidden_size, channels, patch, patch)
    return Shaped(shape, (shape[0], prod(shape[1:])))


def table(config) -> Shaped:
    """A batch of one."""
    shape = (config.num_positions, config.hidden_size)
    return Shaped((1, *shape), shape)


def images(config, published: str, own: str = "model") -> list[Rule]:
    """What enters the first layer."""
    projection = "embeddings.patch_embeddings.projection"
    return [
        Rule(f"{published}.embeddings.cls_token", f"{own}.embeddings.cls_token"),
        Rule(f"{published}.embeddings.position_embeddings", f"{own}.positions.table.weight", table(config)),
        Rule(f"{published}.{projection}.weight", f"{own}.embed_tokens.projection.weight", kernel(config)),
        Rule(f"{published}.{projection}.bias", f"{own}.embed_tokens.projection.bias"),
    ]


def family(name: str, stem: str, prefix: str, base: dict, further: tuple[tuple[str, str], ...] = (), **of_its_kind):
    """`further`: tensors of its own, as (published, Triune's)."""

    def rules(config) -> list[Rule]:
        return [
            *images(config, prefix),
            *layers(f"{prefix}.encoder.layer", "model.layers", LAYER),
            Rule(f"{prefix}.layernorm.{{p}}", "model.norm.{p}"),
            Rule(f"{prefix}.pooler.dense.{{p}}", "model.pooler.dense.{p}"),
            Rule("classifier.{p}", "classifier.{p}"),
            *(Rule(*names) for names in further),
        ]

    return Family(
        name=name,
        config=f"{stem}Config",
        heads={f"{stem}Model": "TriuneModel", f"{stem}ForImageClassification": "TriuneForImageClassification"},
        prefix=f"{prefix}.",
        base={**base, "pooling": {"type": "cls"}},
        fields=(*STACK, *PICTURE, *fields("intermediate_size")),
        rules=rules,
        only={"pooler_act": ("tanh",)},
        silent=("pooler_output_size", "encoder_stride"),
        facts=pooler(prefix),
        **of_its_kind,
    )


VIT = family("vit", "ViT", "vit", BASE)
DEIT = family(
    "deit",
    "DeiT",
    "deit",
    {**BASE, "embedding": {"type": "patches", "distillation_token": True}},
    further=(("deit.embeddings.distillation_token", "model.embeddings.distillation_token"),),
    # of a model with a teacher, which has two classifiers, the one that reads CLS
    old=((r"^cls_classifier\.", "classifier."),),
)
