"""CLIP and SigLIP: two stacks, one vector of each image and of each text, and how much they are alike.

Arguments and outputs are those of transformers' `CLIPModel`. In training with several processes every image is
compared with the texts of all of them, and every text with the images: the loss and the gradients are those of one
process with the whole batch. Logits never pass through a softmax or a sigmoid.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from triune.configuration.configuration_triune import TriuneConfig
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig

from .feed_forward import FEED_FORWARDS
from .losses import mean_over
from .modeling_triune import TriuneModel
from .norms import NORMS
from .parts import build
from .transformer import CrossAttention, TriunePreTrainedModel


# ---------------------------------------------------------------------------------------------------------------------
# All processes


class Gathered(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks. Backwards, each process gets what all of them ask of its
    own rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all processes, which must have equally many, and where this one's begin."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows, 0
    return Gathered.apply(rows), dist.get_rank() * len(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Losses: the share of this process's pairs, as the sum over them, divided by `num_items_in_batch` or their number.
# `compare(a, b)` gives logits (rows of a, rows of b); a pair has the same place in `images` and `texts`.


def softmax_loss(compare, images, texts, num_items_in_batch=None) -> torch.Tensor:
    """CLIP's: the right text among all texts, and the right image among all images; the mean of both."""
    total = 0.0
    for own, other in ((images, texts), (texts, images)):
        candidates, first = gathered(other)
        right = torch.arange(len(own), device=own.device) + first
        total = total + F.cross_entropy(compare(own, candidates), right, reduction="sum") / 2
    return mean_over(total, len(images), num_items_in_batch)


def sigmoid_loss(compare, images, texts, num_items_in_batch=None) -> torch.Tensor:
    """SigLIP's: of every text and every image, whether they are a pair."""
    candidates, first = gathered(images)
    logits = compare(texts, candidates)
    sign = torch.full_like(logits, -1.0)
    sign.diagonal(first).fill_(1.0)
    return mean_over(-F.logsigmoid(sign * logits).sum(), len(texts), num_items_in_batch)


CONTRASTIVE_LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}

# ---------------------------------------------------------------------------------------------------------------------
# Parts


class AttentionPooling(nn.Module):
    """SigLIP's head: a learned query looks at all states; feed-forward on what it found."""

    def __init__(self, config: TriuneConfig):
        super().__init__()
        size = config.hidden_size
        self.probe = nn.Parameter(torch.empty(1, 1, size))
        self.attention = CrossAttention(config, 0, source_size=size)
        self.norm = build(NORMS, config.norm, size)
        self.mlp = build(FEED_FORWARDS, config.feed_forward, size, config.intermediate_size, config.hidden_act)

    def forward(self, outputs) -> torch.Tensor:
        x = outputs.last_hidden_state
        found = self.attention(self.probe.to(x.dtype).expand(x.shape[0], -1, -1), x)[0][:, 0]
        return found + self.mlp(self.norm(found))


class StackPooling(nn.Module):
    """The stack's own."""

    def forward(self, outputs) -> torch.Tensor:
        return outputs.pooler_output


POOLED = {"stack": lambda config: StackPooling(), "attention": AttentionPooling}


def build_projection(kind: str, size: int, projection_dim: int) -> nn.Module:
    return nn.Identity() if kind == "none" else nn.Linear(size, projection_dim, bias=kind == "affine")


@dataclass
class TriuneCLIPOutput(CLIPOutput):
    """transformers' output of CLIP; `logits` are those of the images, as of a classifier whose classes are texts."""

    @property
    def logits(self) -> torch.Tensor | None:
        return self.logits_per_image


# ---------------------------------------------------------------------------------------------------------------------
# The model


class TriuneCLIPModel(TriunePreTrainedModel):
    """Which text belongs to which image."""

    config: TriuneCLIPConfig
    input_modalities = ("image", "text")

    def __init__(self, config: TriuneCLIPConfig):
        super().__init__(config)
        self.text_model = TriuneModel(config.text)
        self.vision_model = TriuneModel(config.vision, add_pooling_layer=config.vision_pooling == "stack")
        self.vision_head = POOLED[config.vision_pooling](config.vision)
        sizes = (config.text.hidden_size, config.vision.hidden_size)
        self.text_projection = build_projection(config.text_projection, sizes[0], config.projection_dim)
        self.visual_projection = build_projection(config.visual_projection, sizes[1], config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(1))  # one number; FSDP2 shards no parameter without dimensions
        self.logit_bias = nn.Parameter(torch.empty(1)) if config.loss == "sigmoid" else None
        self.loss_function = CONTRASTIVE_LOSSES[config.loss]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        | parameter                  | start                                         |
        |----------------------------|-----------------------------------------------|
        | weights of the projections | N(0, 1 / sqrt(width of the stack)), as CLIP's |
        | probe of the vision head   | N(0, initializer_range)                       |
        | logit scale and bias       | logit_scale_init_value, logit_bias_init_value |
        """
        super()._init_weights(module)
        if isinstance(module, TriuneCLIPModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            for bias in [] if module.logit_bias is None else [module.logit_bias]:
                init.constant_(bias, self.config.logit_bias_init_value)
        elif isinstance(module, AttentionPooling):
            init.normal_(module.probe, std=self.config.initializer_range)
        elif module in (self.text_projection, self.visual_projection) and isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    # -- one vector

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The text tower; `pooler_output` is the projected vector, not normalised."""
        outputs = self.text_model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        read = up_to_the_end(input_ids, attention_mask, self.config.text.eos_token_id)
        pooled = self.text_projection(self.text_model.pooler(outputs.last_hidden_state, read))
        return features(outputs, pooled)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The vision tower; `pooler_output` is the projected vector, not normalised."""
        outputs = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        return features(outputs, self.visual_projection(self.vision_head(outputs)))

    # -- pairs

    def compare(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Logits (rows of a, rows of b) of vectors of length 1, in float32."""
        scale = self.logit_scale.clamp(max=math.log(self.config.max_logit_scale)).exp()
        logits = (a @ b.t()).float() * scale.to(a.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(a.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        token_type_ids: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TriuneCLIPOutput:
        """
        Args:
            input_ids: Token ids of the texts (texts, length).
            pixel_values: Images (images, channels, height, width).
            attention_mask: 1 for real tokens, 0 for padding (texts, length).
            return_loss: Compute the loss: image i and text i are a pair, all others are not. Of several processes all
                must ask for it, with equally many pairs.
            num_items_in_batch: The pairs of a step in all processes, which replaces the number of pairs here.
        """
        kwargs |= {"return_dict": True}
        vision = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, position_ids, token_type_ids=token_type_ids, **kwargs)
        images, texts = (F.normalize(tower.pooler_output, dim=-1) for tower in (vision, text))
        logits_per_text = self.compare(texts, images.to(texts.device))
        loss = None
        if return_loss:
            check_pairs(images, texts)
            loss = self.loss_function(self.compare, images.to(texts.device), texts, num_items_in_batch)
        return TriuneCLIPOutput(
            loss=loss,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=texts,
            image_embeds=images,
            text_model_output=text,
            vision_model_output=vision,
        )


def features(outputs, pooled: torch.Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooled,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def up_to_the_end(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, eos_token_id: int | list[int] | None
) -> torch.Tensor | None:
    """The mask of the tokens up to and with the first end-of-text token, by which CLIP's texts are read: it also pads
    with that token. Without such a token the attention mask."""
    if eos_token_id is None:
        return attention_mask
    ends = torch.isin(input_ids, torch.as_tensor(eos_token_id, device=input_ids.device)).long()
    read = (ends.cumsum(-1) - ends == 0).long()
    return read if attention_mask is None else read * attention_mask.to(read.device)


def check_pairs(images: torch.Tensor, texts: torch.Tensor) -> None:
    if len(images) != len(texts):
        raise ValueError(
            f"return_loss=True needs a text for each image: got {len(images)} images (pixel_values) and {len(texts)} "
            "texts (input_ids)"
        )


__all__ = ["TriuneCLIPModel"]
