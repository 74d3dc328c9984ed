"""Whether two models compute the same: random inputs that fit a Triune model, and the numbers to compare."""

from typing import Any

import torch
from transformers import PreTrainedModel

from triune.configuration import stack_reading
from triune.configuration.configuration_triune import FamilyConfig
from triune.modeling.embeddings import unpatchify


Inputs = dict[str, torch.Tensor]
OUTPUTS = ("logits_per_image", "prediction_logits", "logits", "last_hidden_state")


def random_inputs(config: FamilyConfig, batch: int = 2, length: int = 16) -> Inputs:
    """Those of transformers' model too: ids without padding, pixels, the noise by which a MAE hides patches."""
    generator, found = torch.Generator().manual_seed(0), {}
    texts, images = (stack_reading(config, kind) for kind in ("tokens", "patches"))
    if texts:
        size = (batch, min(length, texts.max_position_embeddings))
        found["input_ids"] = torch.randint(3, texts.vocab_size, size, generator=generator)
        if images:
            found["input_ids"][:, -1] = texts.vocab_size - 1  # where CLIP's texts end
    if images:
        rows, columns = images.grid
        patch, channels = images.embedding["patch_size"], images.embedding["num_channels"]
        found["pixel_values"] = torch.randn((batch, channels, rows * patch, columns * patch), generator=generator)
        if config.model_type == "triune-mae":
            found["noise"] = torch.rand((batch, rows * columns), generator=generator)
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = found["input_ids"].flip(1) % config.decoder.vocab_size
    return found


@torch.no_grad()
def answer(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """The logits, or the hidden states of a backbone, in float32. Of a MAE the pixels: transformers has the numbers of
    a patch in another order."""
    pictures = {name: one.to(model.dtype) for name, one in inputs.items() if name == "pixel_values"}
    found = model(**{**inputs, **pictures})
    if "noise" in inputs:
        return pixels(model, found.logits).float()
    output = next(found[name] for name in OUTPUTS if found.get(name) is not None)
    return (output[0] if isinstance(output, tuple) else output).float()


def pixels(model: Any, logits: torch.Tensor) -> torch.Tensor:
    if hasattr(model, "unpatchify"):  # transformers'
        return model.unpatchify(logits)
    return unpatchify(logits, model.config.encoder.grid, model.patch_size)
