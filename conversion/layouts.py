"""Files as their authors wrote them, read as today's layout of the same family: OpenAI's CLIP, Meta's MAE and DINO,
timm's ViT.

Such a file comes without a configuration, or with one of its own. What it is shows in the names of its tensors, how
large it is in their shapes; the rest is what the authors use everywhere, and `load(..., config=...)` says otherwise.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from triune.conversion.files import Tensors
from triune.conversion.rules import TURNED, Fused, Rule, Step, layers, plan


class Layout(NamedTuple):
    name: str
    marks: tuple[str, ...]  # tensors by which it is known
    content: Callable[[Tensors], dict[str, Any]]  # the configuration of today, from the shapes
    rules: list[Rule]  # to today's names
    ignored: tuple[str, ...] = ()  # sizes that are written down as tensors


def in_todays_layout(content: dict[str, Any], tensors: Tensors, source: str) -> tuple[dict[str, Any], Tensors]:
    """A configuration and tensors as transformers has them today; those that are so already are as they were."""
    if "model_type" in content:
        return content, tensors
    layout = next((one for one in LAYOUTS if all(name in tensors for name in one.marks)), None)
    if layout is None:
        raise ValueError(
            f"{source!r} holds no config.json that says what the model is, and its tensors are in no layout of "
            f"{', '.join(one.name for one in LAYOUTS)}; config={{'model_type': ...}} says what it is"
        )
    found = plan(layout.rules, [name for name in tensors if name not in layout.ignored])
    if found.unknown:
        raise ValueError(f"{source!r} looks like {layout.name}, and has more: {', '.join(found.unknown)}")
    return layout.content(tensors), Renamed(tensors, found.steps)


class Renamed(Tensors):
    """Tensors under the names that rules give them, made when they are asked for."""

    def __init__(self, tensors: Tensors, steps: Iterable[Step]):
        self.tensors, self.files = tensors, {target: step for step in steps for target in step.targets}

    def get(self, name: str) -> torch.Tensor:
        return dict(self.files[name].run(self.tensors.get))[name]


def count(tensors: Tensors, pattern: str) -> int:
    """Layers: as many as there are of a name with a number."""
    numbers = iter(range(1_000_000))
    return next(number for number in numbers if pattern.format(number) not in tensors)


def heads(width: int) -> int:
    """Of 64, as nearly everywhere; those of the largest ViTs are 16 whatever their width."""
    return 16 if width in (1280, 1408, 1664) else max(1, width // 64)


def square(tensors: Tensors, table: str, kernel: str, prefix: int = 1) -> dict[str, int]:
    """An image's sides and patches, from the table of positions and the kernel."""
    positions, (_, channels, _, patch) = tensors.get(table).shape[-2] - prefix, tensors.get(kernel).shape
    return {"image_size": round(positions**0.5) * patch, "patch_size": patch, "num_channels": channels}


# ---------------------------------------------------------------------------------------------------------------------
# OpenAI's CLIP


def qkv(published: str, today: Iterable[str]) -> Iterator[Rule]:
    """Queries, keys and values in one."""
    for kind in ("weight", "bias"):
        yield Rule(published.replace("*", kind), [f"{name}.{kind}" for name in today], Fused(3))


def resblocks(published: str, today: str) -> list[Rule]:
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    fused = [f"{today}.{{n}}.self_attn.{one}_proj" for one in "qkv"]
    return [*layers(published, today, names), *qkv(f"{published}.{{n}}.attn.in_proj_*", fused)]


def openai_clip(tensors: Tensors) -> dict[str, Any]:
    """Its activation is QuickGELU; of the vocabulary the last two begin and end a text. Heads for texts are always of
    64."""
    vocabulary, width = tensors.get("token_embedding.weight").shape
    vision_width = tensors.get("visual.conv1.weight").shape[0]
    text = {
        **{"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1},
        "max_position_embeddings": tensors.get("positional_embedding").shape[0],
        **stack(width, count(tensors, "transformer.resblocks.{}.ln_1.weight"), width // 64),
    }
    vision = {
        **square(tensors, "visual.positional_embedding", "visual.conv1.weight"),
        **stack(vision_width, count(tensors, "visual.transformer.resblocks.{}.ln_1.weight")),
    }
    projection = tensors.get("text_projection").shape[1]
    return {
        **{"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": projection},
        "text_config": {**text, "hidden_act": "quick_gelu", "projection_dim": projection},
        "vision_config": {**vision, "hidden_act": "quick_gelu", "projection_dim": projection},
    }


def stack(width: int, depth: int, heads_of: int | None = None) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
    return {**sizes, "num_attention_heads": heads_of or heads(width)}


VISION = "vision_model.embeddings"
OPENAI_CLIP = Layout(
    name="OpenAI's CLIP",
    marks=("visual.conv1.weight", "visual.class_embedding", "text_projection", "token_embedding.weight"),
    content=openai_clip,
    rules=[
        Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *resblocks("transformer.resblocks", "text_model.encoder.layers"),
        Rule("ln_final.{p}", "text_model.final_layer_norm.{p}"),
        Rule("text_projection", "text_projection.weight", TURNED),
        Rule("visual.conv1.weight", f"{VISION}.patch_embedding.weight"),
        Rule("visual.class_embedding", f"{VISION}.class_embedding"),
        Rule("visual.positional_embedding", f"{VISION}.position_embedding.weight"),
        Rule("visual.ln_pre.{p}", "vision_model.pre_layrnorm.{p}"),
        *resblocks("visual.transformer.resblocks", "vision_model.encoder.layers"),
        Rule("visual.ln_post.{p}", "vision_model.post_layernorm.{p}"),
        Rule("visual.proj", "visual_projection.weight", TURNED),
        Rule("logit_scale", "logit_scale"),
    ],
    ignored=("input_resolution", "context_length", "vocab_size"),
)

# ---------------------------------------------------------------------------------------------------------------------
# timm's ViT, from which Meta's DINO and MAE have their names


def blocks(published: str, today: str) -> list[Rule]:
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    fused = [f"{today}.{{n}}.attention.attention.{one}" for one in ("query", "key", "value")]
    return [*layers(published, today, names), *qkv(f"{published}.{{n}}.attn.qkv.*", fused)]


def encoder(tensors: Tensors) -> dict[str, Any]:
    width = tensors.get("cls_token").shape[-1]
    return {
        **stack(width, count(tensors, "blocks.{}.norm1.weight")),
        **square(tensors, "pos_embed", "patch_embed.proj.weight"),
        "intermediate_size": tensors.get("blocks.0.mlp.fc1.weight").shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "layer_norm_eps": 1e-6,
    }


def timm_vit(tensors: Tensors) -> dict[str, Any]:
    """With a head it is a classifier."""
    if "head.weight" not in tensors:
        return {"model_type": "vit", "architectures": ["ViTModel"], **encoder(tensors)}
    labels = {number: f"LABEL_{number}" for number in range(len(tensors.get("head.weight")))}
    return {
        **{"model_type": "vit", "architectures": ["ViTForImageClassification"], **encoder(tensors)},
        **{"id2label": labels, "label2id": {name: number for number, name in labels.items()}},
    }


def meta_mae(tensors: Tensors) -> dict[str, Any]:
    """Its decoder has 16 heads, whatever its width."""
    decoder = stack(tensors.get("mask_token").shape[-1], count(tensors, "decoder_blocks.{}.norm1.weight"), 16)
    decoder["intermediate_size"] = tensors.get("decoder_blocks.0.mlp.fc1.weight").shape[0]
    return {
        **{"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], **encoder(tensors)},
        **{f"decoder_{name}": value for name, value in decoder.items()},
    }


ENCODER = [
    Rule("cls_token", "vit.embeddings.cls_token"),
    Rule("pos_embed", "vit.embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "vit.embeddings.patch_embeddings.projection.{p}"),
    *blocks("blocks", "vit.encoder.layer"),
    Rule("norm.{p}", "vit.layernorm.{p}"),
]
META_MAE = Layout(
    name="Meta's MAE",
    marks=("cls_token", "patch_embed.proj.weight", "decoder_pos_embed", "mask_token"),
    content=meta_mae,
    rules=[
        *ENCODER,
        Rule("mask_token", "decoder.mask_token"),
        Rule("decoder_embed.{p}", "decoder.decoder_embed.{p}"),
        Rule("decoder_pos_embed", "decoder.decoder_pos_embed"),
        *blocks("decoder_blocks", "decoder.decoder_encoder.layer"),
        Rule("decoder_norm.{p}", "decoder.decoder_norm.{p}"),
        Rule("decoder_pred.{p}", "decoder.decoder_pred.{p}"),
    ],
)
TIMM_VIT = Layout(
    name="timm's ViT",
    marks=("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"),
    content=timm_vit,
    rules=[*ENCODER, Rule("head.{p}", "classifier.{p}")],
)
LAYOUTS = (OPENAI_CLIP, META_MAE, TIMM_VIT)  # the more particular first
