"""DINOv2, with registers or without: layer scale, and a classifier that reads CLS and the mean of the patches."""

from triune.configuration.presets import VIT
from triune.conversion.families.vit import PICTURE, STACK, images
from triune.conversion.family import Family, Field, fields
from triune.conversion.rules import Fused, Rule, layers


LAYER = {
    **{f"attention.attention.{one}": f"self_attn.{one[0]}_proj" for one in ("query", "key", "value")},
    **{"attention.output.dense": "self_attn.o_proj", "norm1": "attn_norm", "norm2": "mlp_norm"},
    **{"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj", "mlp.weights_out": "mlp.down_proj"},
}
SCALES = {"layer_scale1.lambda1": "attn_residual.scale", "layer_scale2.lambda1": "mlp_residual.scale"}
MASKED = {"type": "patches", "mask_token": True}
GATED = ["model.layers.{n}.mlp.gate_proj.{p}", "model.layers.{n}.mlp.up_proj.{p}"]


def names(gated: bool) -> dict[str, str]:
    """Of the two kinds of feed-forward the tensors of one."""
    other = ("mlp.fc1", "mlp.fc2") if gated else ("mlp.weights_out",)
    return {name: own for name, own in LAYER.items() if name not in other}


# ---------------------------------------------------------------------------------------------------------------------
# The width inside a layer: a multiple of the width, of which a gate takes two thirds, rounded up to a multiple of 8


def narrowed(width: int) -> int:
    return (int(width * 2 / 3) + 7) // 8 * 8


def inside(width: int, ratio: int, gated: bool, activation: str) -> tuple[int, int, str, str]:
    whole = int(width * ratio)
    return (width, narrowed(whole), "gated", "silu") if gated else (width, whole, "plain", activation)


def multiple(width: int, size: int, kind: str, activation: str) -> tuple[int, int, bool, str]:
    """That which gives this size, or comes nearest."""
    gated = kind == "gated"
    found = min(range(1, 17), key=lambda ratio: abs(inside(width, ratio, gated, activation)[1] - size))
    return width, found, gated, "gelu" if gated else activation


WIDTH = Field(
    ("hidden_size", "mlp_ratio", "use_swiglu_ffn", "hidden_act"),
    ("hidden_size", "intermediate_size", "feed_forward.type", "hidden_act"),
    inside,
    multiple,
)


def family(name: str, stem: str, prefix: str, further: tuple[Rule, ...] = (), **of_its_kind) -> Family:
    def rules(config) -> list[Rule]:
        gated = config.feed_forward["type"] == "gated"
        scales = [
            Rule(f"{prefix}.encoder.layer.{{n}}.{there}", f"model.layers.{{n}}.{own}") for there, own in SCALES.items()
        ]
        return [
            *images(config, prefix),
            Rule(f"{prefix}.embeddings.mask_token", "model.embeddings.mask_token"),
            *layers(f"{prefix}.encoder.layer", "model.layers", names(gated)),
            *([Rule(f"{prefix}.encoder.layer.{{n}}.mlp.weights_in.{{p}}", GATED, Fused(2))] if gated else []),
            *scales,
            Rule(f"{prefix}.layernorm.{{p}}", "model.norm.{p}"),
            Rule("classifier.{p}", "classifier.{p}"),
            *further,
        ]

    return Family(
        name=name,
        config=f"{stem}Config",
        heads={f"{stem}Model": "TriuneModel", f"{stem}ForImageClassification": "TriuneForImageClassification"},
        prefix=f"{prefix}.",
        base={
            **VIT,
            "embedding": {"type": "patches", "mask_token": True},
            "residual": "layer_scale",
            "pooling": "cls",
        },
        of_head={"TriuneForImageClassification": {"pooling": "cls_and_mean"}},
        fields=(
            *STACK,
            *PICTURE,
            *fields(layerscale_value="residual.init"),
            WIDTH,
            *of_its_kind.pop("fields", ()),
        ),
        rules=rules,
        only={"apply_layernorm": (True,), "drop_path_rate": (0.0,)},
        silent=("out_features", "out_indices", "stage_names", "reshape_hidden_states"),
        **of_its_kind,
    )


DINOV2 = family("dinov2", "Dinov2", "dinov2", fields=fields(use_mask_token="embedding.mask_token"))
DINOV2_WITH_REGISTERS = family(
    "dinov2_with_registers",
    "Dinov2WithRegisters",
    "dinov2_with_registers",
    further=(Rule("dinov2_with_registers.embeddings.register_tokens", "model.embeddings.register_tokens"),),
    fields=fields(num_register_tokens="embedding.num_register_tokens"),
)
