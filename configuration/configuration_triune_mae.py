"""Masked autoencoders: an encoder that sees a part of an image's patches, and a small decoder that draws the rest.

    TriuneMAEConfig(encoder={"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8})
    TriuneMAEConfig(encoder=preset("vit-b16"), mask_ratio=0.6, norm_pix_loss=True)
    mae_preset("mae-base")

The decoder reads the picture that the encoder's answers make: one pixel for each patch, with as many channels as the
encoder is wide. So its `embedding` follows from the encoder and is not given.

A classifier takes the encoder out of the saved folder by itself, because a stack finds its own entry in `config.json`:

    TriuneForImageClassification.from_pretrained("runs/mae/model", num_labels=10)

Source: https://arxiv.org/abs/2111.06377.
"""

from typing import Any, ClassVar

from triune.configuration.configuration_composite import CompositeConfig, composite_preset
from triune.configuration.configuration_triune import Head, TriuneConfig, is_number, strictly


WAVES = {"type": "sinusoidal", "dimensions": 2, "layout": "concatenated"}  # the authors' table
ADDED = ("sinusoidal", "learned")  # positions that a patch carries with it when others are dropped
DECODER = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 16}

HEADS: dict[str, Head] = {
    # transformers has its MAE under AutoModelForPreTraining; that it is found under both is in `auto_classes`
    "TriuneForMaskedImageModeling": Head("AutoModelForMaskedImageModeling", {}),  # and no pipeline
}
MODEL = "modeling_triune_mae.TriuneForMaskedImageModeling"


@strictly
class TriuneMAEConfig(CompositeConfig):
    r"""
    Args:
        encoder: The stack that sees the visible patches; a `TriuneConfig`, or a dict of its fields. Default: ViT-B.
        decoder: The stack that draws, without `embedding`. Default: 8 layers of 512.
        mask_ratio: The share of the patches that is hidden.
        norm_pix_loss: Whether the pixels of each patch are normalised before they are compared.
    """

    model_type = "triune-mae"
    heads = HEADS
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_triune_mae.TriuneMAEConfig",
        "AutoModelForMaskedImageModeling": MODEL,
        "AutoModelForPreTraining": MODEL,
    }
    # transformers reads the last stack of its own type in a file, where keys are sorted: `encoder` stays behind
    # `decoder`, so that a classifier of one stack finds it.
    sub_configs: ClassVar[dict[str, type]] = {"encoder": TriuneConfig, "decoder": TriuneConfig}
    fixed: ClassVar[dict[str, dict[str, str]]] = {
        stack: {"embedding": "patches", "attention": "bidirectional"} for stack in ("encoder", "decoder")
    }

    encoder: dict | TriuneConfig | None = None
    decoder: dict | TriuneConfig | None = None
    mask_ratio: float | int = 0.75
    norm_pix_loss: bool = False

    def _stack(self, name: str, given: Any, from_user: bool) -> TriuneConfig:
        """A dict of fields, with what a MAE has where it says nothing; options of its `embedding` need no type."""
        if given is None or isinstance(given, dict):
            given = given or {}
            entry = given.get("embedding", {})
            entry = entry if isinstance(entry, dict) else {"type": entry}
            own = {"embedding": {"type": "patches"}} if name == "encoder" else self._decoder_defaults()
            given = {"position": WAVES, **own, **given, "embedding": {**own["embedding"], **entry}}
        return super()._stack(name, given, from_user)

    def _decoder_defaults(self) -> dict[str, Any]:
        return {**DECODER, "embedding": self.decoder_embedding}

    # -- what follows from the stacks --------------------------------------------------------------------------------

    @property
    def decoder_embedding(self) -> dict[str, Any]:
        """The encoder's answers as a picture: rows and columns of patches, a channel for each of its dimensions."""
        grid, channels = list(self.encoder.grid), self.encoder.hidden_size
        return {
            "type": "patches",
            "image_size": grid,
            "patch_size": 1,
            "num_channels": channels,
            "cls_token": False,
            "num_given_tokens": self.encoder.num_placed_tokens,  # the encoder's come along
        }

    @property
    def num_patches(self) -> int:
        rows, columns = self.encoder.grid
        return rows * columns

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees, rounded down; 100 patches less 90 % are 10, whatever binary fractions say."""
        return int(self.num_patches * (1 - self.mask_ratio) + 1e-6)

    @property
    def initializer_range(self) -> float:
        """Of what belongs to neither stack."""
        return self.decoder.initializer_range

    def get_text_config(self, decoder=None, encoder=None):
        """transformers takes a field named `decoder` for a language model."""
        return self

    def check(self) -> None:
        super().check()
        for name in self.sub_configs:
            self._check_dropping(name, getattr(self, name))
        for key, needed in self.decoder_embedding.items():
            found = self.decoder.embedding[key]
            if (list(found) if key == "image_size" and not isinstance(found, int) else found) != needed:
                raise ValueError(
                    f"decoder embedding[{key!r}]={found!r} contradicts the encoder, from which it follows "
                    f"({needed!r}): leave the decoder's embedding out"
                )
        share = is_number(self.mask_ratio) and 0 < self.mask_ratio < 1
        if not share or not 0 < self.num_visible < self.num_patches:
            raise ValueError(
                f"mask_ratio={self.mask_ratio!r} is not allowed: it must be between 0 and 1, and leave at least one "
                f"of {self.num_patches} patches visible and one masked"
            )

    def _check_dropping(self, name: str, stack: TriuneConfig) -> None:
        """Where a patch stands must not depend on how many others are there."""
        if stack.position["type"] not in ADDED:
            raise ValueError(
                f"{name} position {stack.position['type']!r} is not allowed: patches are left out, so it must be one "
                f"that is added to each of them: {', '.join(ADDED)}"
            )
        if set(stack.layer_types) != {"full_attention"}:
            raise ValueError(
                f"{name} has sliding_window={stack.sliding_window}, which means nothing where patches are left out"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Presets

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "embedding": {"patch_size": 14}}
EPS = {"norm": {"type": "layernorm", "eps": 1e-6}}

MAE_PRESETS: dict[str, dict[str, Any]] = {
    "mae-base": {"encoder": EPS, "decoder": EPS},
    "mae-large": {"encoder": {**LARGE, **EPS}, "decoder": EPS},
    "mae-huge": {"encoder": {**HUGE, **EPS}, "decoder": EPS},
    # a small one, to train
    "mae-mini": {
        "encoder": {
            **{"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4},
            "embedding": {"type": "patches", "image_size": 32, "patch_size": 4, "cls_token": False},
        },
        "decoder": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
    # the older system, as its author sized it
    "scratch-mae": {
        "encoder": {
            **{"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8},
            "embedding": {"type": "patches", "cls_token": False},
        },
        "decoder": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8},
    },
}


def mae_preset(name: str, **overrides) -> TriuneMAEConfig:
    """The configuration of a preset. An override replaces a field; for a stack, a dict changes fields of the preset's
    own: `mae_preset("mae-mini", encoder={"embedding": {"image_size": 64}}, mask_ratio=0.5)`."""
    return composite_preset(TriuneMAEConfig, MAE_PRESETS, name, overrides)


__all__ = ["TriuneMAEConfig", "mae_preset"]
