"""CLIP and SigLIP: a text tower and a vision tower, with the same names in both."""

from triune.configuration.configuration_triune_clip import CLIP_PRESETS, TriuneCLIPConfig
from triune.conversion.families.vit import PICTURE, kernel
from triune.conversion.family import Family, Field, fields, under
from triune.conversion.rules import Fused, Rule, Shaped, layers


LAYER = {
    **{f"self_attn.{one}_proj": f"self_attn.{one}_proj" for one in "qkv"},
    **{"self_attn.out_proj": "self_attn.o_proj", "layer_norm1": "attn_norm", "layer_norm2": "mlp_norm"},
    **{"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
}
STACK = fields(
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    layer_norm_eps="norm.eps",
    attention_dropout="attention_probs_dropout_prob",
)
# CLIP's first configurations say that a text ends with token 2. It does not: transformers then looks for the highest
# id, which is that of CLIP's end.
END = Field(
    ("vocab_size", "eos_token_id"),
    ("vocab_size", "eos_token_id"),
    lambda size, end: (size, size - 1 if end == 2 else end),
    lambda size, end: (size, end),
)
TEXT = (*STACK, *fields("max_position_embeddings", "pad_token_id", "bos_token_id"), END)
TOWERS = (*under("text_config.", "text", TEXT), *under("vision_config.", "vision", STACK + PICTURE))


def towers(config: TriuneCLIPConfig) -> list[Rule]:
    """What both models have."""
    vision = "vision_model.embeddings"
    return [
        Rule("text_model.embeddings.token_embedding.weight", "text_model.embed_tokens.weight"),
        Rule("text_model.embeddings.position_embedding.weight", "text_model.positions.table.weight"),
        Rule("text_model.final_layer_norm.{p}", "text_model.norm.{p}"),
        Rule(f"{vision}.patch_embedding.weight", "vision_model.embed_tokens.projection.weight", kernel(config.vision)),
        Rule(f"{vision}.patch_embedding.bias", "vision_model.embed_tokens.projection.bias"),
        Rule(f"{vision}.position_embedding.weight", "vision_model.positions.table.weight"),
        Rule("vision_model.post_layernorm.{p}", "vision_model.norm.{p}"),
        *layers("text_model.encoder.layers", "text_model.layers", LAYER),
        *layers("vision_model.encoder.layers", "vision_model.layers", LAYER),
    ]


def clip(config: TriuneCLIPConfig) -> list[Rule]:
    width = config.vision.hidden_size
    return [
        *towers(config),
        Rule(
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.cls_token",
            Shaped((width,), (1, 1, width)),
        ),
        Rule("vision_model.pre_layrnorm.{p}", "vision_model.embeddings.norm.{p}"),
        Rule("text_projection.weight", "text_projection.weight"),
        Rule("visual_projection.weight", "visual_projection.weight"),
        Rule("logit_scale", "logit_scale", Shaped((), (1,))),
    ]


CLIP = Family(
    name="clip",
    config="CLIPConfig",
    heads={"CLIPModel": "TriuneCLIPModel"},
    prefix="",
    base={tower: CLIP_PRESETS["clip-vit-b32"][tower] for tower in ("text", "vision")},
    fields=(*TOWERS, *fields("projection_dim", "logit_scale_init_value")),
    rules=clip,
    silent=("text_config.projection_dim", "vision_config.projection_dim"),
    kind=TriuneCLIPConfig,
)


def siglip(config: TriuneCLIPConfig) -> list[Rule]:
    """Images are pooled by a probe with attention of torch's own, which has the three maps in one."""
    head, own = "vision_model.head", "vision_head"
    fused = {kind: [f"{own}.attention.{one}_proj.{kind}" for one in "qkv"] for kind in ("weight", "bias")}
    return [
        *towers(config),
        Rule(f"{head}.probe", f"{own}.probe"),
        *(Rule(f"{head}.attention.in_proj_{kind}", parts, Fused(3)) for kind, parts in fused.items()),
        Rule(f"{head}.attention.out_proj.{{p}}", f"{own}.attention.o_proj.{{p}}"),
        Rule(f"{head}.layernorm.{{p}}", f"{own}.norm.{{p}}"),
        Rule(f"{head}.mlp.fc1.{{p}}", f"{own}.mlp.up_proj.{{p}}"),
        Rule(f"{head}.mlp.fc2.{{p}}", f"{own}.mlp.down_proj.{{p}}"),
        Rule("text_model.head.{p}", "text_projection.{p}"),
        Rule("logit_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias"),
    ]


SIGLIP_BASE = CLIP_PRESETS["siglip-b16"]

SIGLIP = Family(
    name="siglip",
    config="SiglipConfig",
    heads={"SiglipModel": "TriuneCLIPModel"},
    prefix="",
    base={name: value for name, value in SIGLIP_BASE.items() if name != "projection_dim"},
    fields=(*TOWERS, *fields(**{"vision_config.hidden_size": "projection_dim"})),
    rules=siglip,
    only={"vision_config.vision_use_head": (True,)},
    kind=TriuneCLIPConfig,
)
