"""ViT-MAE: two stacks of ViT's layers, with tables of waves that are in the file, and stay as they are."""

from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.configuration.presets import VIT
from triune.conversion.families.vit import LAYER, PICTURE, STACK, images, table
from triune.conversion.family import FROZEN, Fact, Family, fields, under
from triune.conversion.rules import Interleaved, Rule, layers


WAVES = {"type": "sinusoidal", "dimensions": 2, "layout": "concatenated", "base": 10000.0}
TABLES = {"encoder": "vit.embeddings.position_embeddings", "decoder": "decoder.decoder_pos_embed"}
SIZES = fields(*("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
SHARED = tuple(field for field in STACK if field not in SIZES)


def vit_mae(config: TriuneMAEConfig) -> list[Rule]:
    channels = config.encoder.embedding["num_channels"]
    return [
        *images(config.encoder, "vit"),
        *layers("vit.encoder.layer", "model.layers", LAYER),
        Rule("vit.layernorm.{p}", "model.norm.{p}"),
        Rule("decoder.decoder_embed.{p}", "decoder.embed_tokens.projection.{p}"),
        Rule("decoder.decoder_pos_embed", "decoder.positions.table.weight", table(config.decoder)),
        Rule("decoder.mask_token", "mask_token"),
        *layers("decoder.decoder_encoder.layer", "decoder.layers", LAYER),
        Rule("decoder.decoder_norm.{p}", "decoder.norm.{p}"),
        Rule("decoder.decoder_pred.{p}", "pixel_head.{p}", Interleaved(channels)),
    ]


VIT_MAE = Family(
    name="vit_mae",
    config="ViTMAEConfig",
    heads={"ViTMAEForPreTraining": "TriuneForMaskedImageModeling"},
    prefix="",
    base={"encoder": VIT, "decoder": {"norm": VIT["norm"]}},
    fields=(
        *under("", "encoder", (*SIZES, *SHARED, *PICTURE)),
        *under("decoder_", "decoder", SIZES),
        *under("", "decoder", SHARED),
        *fields("mask_ratio", "norm_pix_loss"),
    ),
    rules=vit_mae,
    old=((r"^decoder\.decoder_layers\.", "decoder.decoder_encoder.layer."),),
    kind=TriuneMAEConfig,
    facts=tuple(Fact(f"{stack}.position", tensor, FROZEN, WAVES) for stack, tensor in TABLES.items()),
    computed=("model.positions.table.weight", "decoder.positions.table.weight"),
)
