"""CLIP and SigLIP: a text tower and a vision tower whose vectors of a pair are to be near each other.

    TriuneCLIPConfig(text={"attention": "causal", ...}, vision={...})  # two stacks, any that read tokens and patches
    clip_preset("clip-vit-b32")                                        # as published
    clip_preset("clip-mini", text={"vocab_size": 64})                  # small, to train

What joins them: how a tower's states become one vector (the stack's own `pooling`, or SigLIP's attention with one
learned query), a linear map for each tower, a factor on the similarities and, for the sigmoid loss, an addend.
"""

import math
from typing import Any

from triune.configuration.configuration_composite import CompositeConfig, composite_preset
from triune.configuration.configuration_triune import (
    Head,
    Option,
    TriuneConfig,
    checked,
    integer,
    is_number,
    one_of,
    positive,
    strictly,
)


# Plain fields: what is allowed beyond the declared type.
CLIP_FIELDS: dict[str, Option] = {
    "projection_dim": integer(512, 1),
    "text_projection": one_of("linear", "affine", "none"),  # affine: with a bias
    "visual_projection": one_of("linear", "affine", "none"),
    "vision_pooling": one_of("stack", "attention"),
    "loss": one_of("softmax", "sigmoid"),
    "logit_scale_init_value": Option(math.log(1 / 0.07), "a number", is_number),
    "logit_bias_init_value": Option(-10.0, "a number", is_number),
    "max_logit_scale": positive(100.0),
    "initializer_range": positive(0.02),
}


@strictly
class TriuneCLIPConfig(CompositeConfig):
    r"""
    Two stacks that are trained on pairs of an image and a text.

    Args:
        text: The stack that reads the caption. With an `eos_token_id`, nothing behind the first one is pooled.
        vision: The stack that reads the image.
        projection_dim: The width in which the two meet.
        text_projection: The map into it: `"linear"`, `"affine"` (with a bias) or `"none"`.
        visual_projection: The same, of the vision tower.
        vision_pooling: `"stack"`: as the stack's own `pooling` says; `"attention"`: SigLIP's head.
        loss: `"softmax"`: which of all texts belongs to the image, and which image to the text (CLIP); `"sigmoid"`:
            of each image and each text, whether they belong together (SigLIP), with an addend to the logits.
        logit_scale_init_value: Logarithm of the factor on the similarities, at the start.
        logit_bias_init_value: The addend to the similarities, at the start.
        max_logit_scale: The factor never exceeds this.

    Example:

    ```python
    >>> from triune.configuration.configuration_triune_clip import TriuneCLIPConfig, clip_preset
    >>> config = clip_preset("clip-vit-b32")
    ```
    """

    model_type = "triune-clip"
    heads = {  # noqa: RUF012 - class fields of transformers
        "TriuneCLIPModel": Head("AutoModelForZeroShotImageClassification", {}, "zero-shot-image-classification")
    }
    auto_classes = {  # noqa: RUF012
        "AutoConfig": "configuration_triune_clip.TriuneCLIPConfig",
        "AutoModel": "modeling_triune_clip.TriuneCLIPModel",
        "AutoModelForZeroShotImageClassification": "modeling_triune_clip.TriuneCLIPModel",
    }
    sub_configs = {"text": TriuneConfig, "vision": TriuneConfig}  # noqa: RUF012
    fixed = {"text": {"embedding": "tokens"}, "vision": {"embedding": "patches"}}  # noqa: RUF012

    text: dict | TriuneConfig | None = None
    vision: dict | TriuneConfig | None = None
    projection_dim: int = 512
    text_projection: str = "linear"
    visual_projection: str = "linear"
    vision_pooling: str = "stack"
    loss: str = "softmax"
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    logit_bias_init_value: float | int = -10.0
    max_logit_scale: float | int = 100.0
    initializer_range: float | int = 0.02

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CLIP_FIELDS:
            checked(name, CLIP_FIELDS[name], value)
        super().__setattr__(name, value)

    @property
    def widths(self) -> dict[str, int]:
        """Of the vectors that are compared, by tower: what its map makes of the stack's width."""
        kinds = {"text": self.text_projection, "vision": self.visual_projection}
        own = {"text": self.text.hidden_size, "vision": self.vision.hidden_size}
        return {tower: own[tower] if kind == "none" else self.projection_dim for tower, kind in kinds.items()}

    def sizes(self) -> dict[str, int]:
        width = self.text.hidden_size + self.vision.hidden_size
        return {**super().sizes(), "hidden_size, projection_dim": width * self.projection_dim}

    def check(self) -> None:
        super().check()
        for name in self.sub_configs:
            pooling = getattr(self, name).pooling["type"]
            if pooling in ("patches", "cls_and_mean"):
                raise ValueError(
                    f"{name} pooling {pooling!r} is not allowed: a tower makes one vector here, as wide as its stack"
                )
        text, vision = self.widths["text"], self.widths["vision"]
        if text != vision:
            raise ValueError(
                f"the towers do not meet: text vectors have {text} numbers, image vectors {vision}; a projection of "
                f"'none' keeps the width of its stack, and projection_dim={self.projection_dim}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Presets

CLIP_TEXT = {"attention": "causal", "hidden_act": "quick_gelu"}
CLIP_PATCHES = {"type": "patches", "norm": "after", "bias": False}
SIGLIP_STACK = {"norm": {"type": "layernorm", "eps": 1e-6}, "hidden_act": "gelu_pytorch_tanh"}
MINI = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}

CLIP_PRESETS: dict[str, dict[str, Any]] = {
    "clip-vit-b32": {
        "text": {
            **CLIP_TEXT,
            **{"hidden_size": 512, "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77},
            **{"bos_token_id": 49406, "eos_token_id": 49407},
        },
        "vision": {"embedding": {**CLIP_PATCHES, "patch_size": 32}, "hidden_act": "quick_gelu"},
    },
    "siglip-b16": {
        "text": {
            **SIGLIP_STACK,
            **{"vocab_size": 32000, "max_position_embeddings": 64, "pooling": "last", "pad_token_id": 1},
        },
        "vision": {**SIGLIP_STACK, "embedding": {"type": "patches", "cls_token": False}},
        **{"projection_dim": 768, "text_projection": "affine", "visual_projection": "none"},
        **{"vision_pooling": "attention", "loss": "sigmoid", "logit_scale_init_value": math.log(10)},
    },
    "clip-mini": {
        "text": {**MINI, **CLIP_TEXT, "vocab_size": 2048, "max_position_embeddings": 32},
        "vision": {
            **MINI,
            "embedding": {**CLIP_PATCHES, "image_size": 32, "patch_size": 4},
            "hidden_act": "quick_gelu",
        },
        "projection_dim": 64,
    },
}


def clip_preset(name: str, **overrides) -> TriuneCLIPConfig:
    """The configuration of a preset. An override replaces a field; for a stack, a dict changes fields of the preset's
    own: `clip_preset("clip-mini", vision={"embedding": {"image_size": 64}}, loss="sigmoid")`."""
    return composite_preset(TriuneCLIPConfig, CLIP_PRESETS, name, overrides)


__all__ = ["TriuneCLIPConfig", "clip_preset"]
