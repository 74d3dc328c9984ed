"""ViT: a kernel over pixels is a linear map of patches, and a table of positions has no batch here."""

from math import prod

from triune.configuration.presets import VIT as BASE
from triune.conversion.family import Family, fields
from triune.conversion.rules import Rule, Shaped


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


def kernel(config) -> Shaped:
    """A convolution whose kernel is a patch, as the linear map that it is."""
    patch, channels = config.embedding["patch_size"], config.embedding["num_channels"]
    shape = (config.hidden_size, channels, patch, patch)
    return Shaped(shape, (shape[0], prod(shape[1:])))


def vit(config) -> list[Rule]:
    table = (config.num_positions, config.hidden_size)
    return [
        Rule("vit.embeddings.cls_token", "model.embeddings.cls_token"),
        Rule("vit.embeddings.position_embeddings", "model.positions.table.weight", Shaped((1, *table), table)),
        Rule(
            "vit.embeddings.patch_embeddings.projection.weight", "model.embed_tokens.projection.weight", kernel(config)
        ),
        Rule("vit.embeddings.patch_embeddings.projection.bias", "model.embed_tokens.projection.bias"),
        *(
            Rule(f"vit.encoder.layer.{{n}}.{name}.{{p}}", f"model.layers.{{n}}.{own}.{{p}}")
            for name, own in LAYER.items()
        ),
        Rule("vit.layernorm.{p}", "model.norm.{p}"),
        Rule("vit.pooler.dense.{p}", "model.pooler.dense.{p}"),
        Rule("classifier.{p}", "classifier.{p}"),
    ]


VIT = Family(
    name="vit",
    config="ViTConfig",
    heads={"ViTModel": "TriuneModel", "ViTForImageClassification": "TriuneForImageClassification"},
    prefix="vit.",
    base=BASE,
    fields=fields(
        *(
            "initializer_range",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_act",
        ),
        *("hidden_dropout_prob", "attention_probs_dropout_prob"),
        layer_norm_eps="norm.eps",
        image_size="embedding.image_size",
        patch_size="embedding.patch_size",
        num_channels="embedding.num_channels",
        qkv_bias="attention.qkv_bias",
    ),
    rules=vit,
    only={"pooler_act": ("tanh",), "encoder_stride": (16,)},
    silent=("pooler_output_size",),
    of_head={"TriuneModel": {"pooling": {"type": "cls", "dense": True}}},
)
