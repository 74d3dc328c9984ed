"""Masked autoencoders, on two of the stacks that everything else is made of.

    pixels -> patches -> the visible ones -> encoder -> their places again, mask tokens between -> decoder -> pixels

The encoder is `model`, as in every head, so that a classifier finds its weights under their names. Positions are
computed, not stored. Source: https://arxiv.org/abs/2111.06377 (the order of shuffled patches is transformers' too).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from triune.configuration.configuration_triune_mae import TriuneMAEConfig

from .embeddings import patchify, unpatchify
from .losses import mean_over
from .modeling_triune import TriuneModel
from .transformer import TriunePreTrainedModel


# ---------------------------------------------------------------------------------------------------------------------
# Patches: (batch, patches, ...)


def take(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(batch, patches, width) at (batch, kept) -> (batch, kept, width)."""
    return x.take_along_dim(places[..., None], dim=1)


def shuffled(noise: torch.Tensor, num_visible: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From a number for each patch: the places of the visible ones, those with the lowest; a mask in which they are 0
    and the others 1; and `ids_restore`, where each patch stands when the visible come first."""
    order = noise.argsort(dim=1)
    ids_restore = order.argsort(dim=1)
    return order[:, :num_visible], (ids_restore >= num_visible).to(noise.dtype), ids_restore


def moments(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the authors normalise by: mean and deviation of the pixels of each patch."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def target_pixels(pixel_values: torch.Tensor, patch_size: int, norm_pix_loss: bool) -> torch.Tensor:
    """What the decoder is to draw, patch by patch."""
    patches = patchify(pixel_values.float(), patch_size)
    if not norm_pix_loss:
        return patches
    mean, deviation = moments(patches)
    return (patches - mean) / deviation


def masked_pixel_loss(logits, target, mask, num_items_in_batch=None) -> torch.Tensor:
    """The mean squared error of the masked patches; an item is a masked patch."""
    errors = (logits.float() - target).square().mean(-1)
    return mean_over((errors * mask).sum(), mask.sum(), num_items_in_batch)


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass
class TriuneMAEOutput(ModelOutput):
    """
    loss: The mean squared error of the masked patches.
    logits: Pixels (batch, patches, channels * patch * patch), channels first; normalised with `norm_pix_loss`.
    mask: 1 for masked patches, 0 for visible ones (batch, patches).
    ids_restore: Where each patch stands when the visible ones come first (batch, patches).
    last_hidden_state, hidden_states, attentions: The encoder's, of CLS and register tokens and the visible patches.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TriuneMAEEncoder(TriuneModel):
    """The backbone on the patches that are left over."""

    def __init__(self, config: TriuneMAEConfig):
        super().__init__(config.encoder, add_pooling_layer=False)
        self.num_patches, self.num_visible = config.num_patches, config.num_visible

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TriuneMAEOutput:
        hidden_states = self.embed(pixel_values=pixel_values)
        shape = (len(hidden_states), self.num_patches)
        if noise is None:
            noise = torch.rand(shape, device=hidden_states.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape (batch, patches) = {shape}, got {tuple(noise.shape)}")
        ids_keep, mask, ids_restore = shuffled(noise.to(hidden_states.device), self.num_visible)
        prefix = hidden_states.shape[1] - self.num_patches  # CLS and registers
        visible = take(hidden_states[:, prefix:], ids_keep)
        hidden_states = self.encode(torch.cat([hidden_states[:, :prefix], visible], dim=1), **kwargs)
        return TriuneMAEOutput(last_hidden_state=hidden_states, mask=mask, ids_restore=ids_restore)


class TriuneForMaskedImageModeling(TriunePreTrainedModel):
    """MAE's task: what the hidden patches of a picture look like."""

    config: TriuneMAEConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: TriuneMAEConfig):
        super().__init__(config)
        entry = config.encoder.embedding
        self.patch_size, self.num_visible = entry["patch_size"], config.num_visible
        self.model = TriuneMAEEncoder(config)
        self.decoder = TriuneModel(config.decoder, add_pooling_layer=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder.hidden_size))
        self.pixel_head = nn.Linear(config.decoder.hidden_size, entry["num_channels"] * self.patch_size**2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The mask token N(0, initializer_range), as the tokens of `PatchInput`; the stacks have their own table."""
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        noise: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TriuneMAEOutput:
        """
        Args:
            pixel_values: Images (batch, channels, height, width), of the size that the model was built for.
            noise: A number for each patch (batch, patches): those with the lowest stay visible. Default: random ones.
            num_items_in_batch: The masked patches of all micro-batches of a step.
        """
        seen = self.model(pixel_values, noise=noise, return_dict=True, **kwargs)
        logits = self.pixel_head(self.draw(seen.last_hidden_state, seen.ids_restore))
        target = target_pixels(pixel_values, self.patch_size, self.config.norm_pix_loss)
        return TriuneMAEOutput(
            loss=masked_pixel_loss(logits, target.to(logits.device), seen.mask, num_items_in_batch),
            logits=logits,
            mask=seen.mask,
            ids_restore=seen.ids_restore,
            last_hidden_state=seen.last_hidden_state,
            hidden_states=seen.hidden_states,
            attentions=seen.attentions,
        )

    def draw(self, hidden_states: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of the encoder's answers, for every patch. Mask tokens stand where nothing was seen;
        CLS comes along, and registers, which have no position."""
        x = self.decoder.embed_tokens(hidden_states.mT[:, :, None])  # as an image of one row: its pixels are patches
        prefix, placed = x.shape[1] - self.num_visible, self.decoder.config.num_placed_tokens
        masks = self.mask_token.expand(len(x), ids_restore.shape[1] - self.num_visible, -1).to(x.dtype)
        patches = take(torch.cat([x[:, prefix:], masks], dim=1), ids_restore)
        whole = self.decoder.embed(inputs_embeds=torch.cat([x[:, :placed], patches], dim=1))
        x = torch.cat([whole[:, :placed], x[:, placed:prefix], whole[:, placed:]], dim=1)
        return self.decoder.encode(x)[:, prefix:]

    @torch.no_grad()
    def reconstruction(self, pixel_values: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The image with its masked patches as drawn, and all others as they are: pixel_values again. What was
        normalised gets the mean and deviation of the true patch back, as in the authors' pictures."""
        patches, drawn = patchify(pixel_values.float(), self.patch_size), logits.float()
        if self.config.norm_pix_loss:
            mean, deviation = moments(patches)
            drawn = drawn * deviation + mean
        seen = torch.where(mask[..., None].bool(), drawn, patches)
        return unpatchify(seen, self.config.encoder.grid, self.patch_size)


__all__ = ["TriuneForMaskedImageModeling"]
