"""The models of the family: the backbone with a head for each task. This is the file that `auto_map` names.

Arguments, outputs and losses are Hugging Face's. Logits never pass through a softmax. `labels` of -100 are ignored.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithPast,
    ImageClassifierOutput,
    MaskedLMOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from triune.configuration.configuration_triune import TriuneConfig

from .decoding import can_decode, decode
from .heads import CLASSIFIERS, TRANSFORMS, NoPooler, Pooler, Softcap, keep_positions
from .losses import (
    IGNORED,
    asked,
    classification_loss,
    cross_entropy,
    lean_loss,
    next_token_loss,
    shifted,
    token_loss,
)
from .norms import NORMS
from .parts import build
from .selection import placed
from .transformer import Transformer, TriunePreTrainedModel


try:  # LoRA without naming its targets: PEFT keeps a table of them by model type
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
except ImportError:
    pass
else:
    for model_type in ("triune", "triune-seq2seq", "triune-mae", "triune-clip"):
        LORA_TARGETS.setdefault(model_type, ["q_proj", "v_proj"])


class TriuneModel(Transformer):
    """The backbone alone: hidden states of every token or patch, and one pooled vector.

    The heads take the same arguments, and `labels`.
    """

    def __init__(self, config: TriuneConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.pooler = build_pooler(config) if add_pooling_layer else NoPooler()
        self.is_causal = config.attention["type"] == "causal"
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        wanted: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """
        Args:
            input_ids: Token ids (batch, length), for a model of tokens.
            attention_mask: 1 for real tokens, 0 for padding (batch, length); or a finished mask with four dimensions.
            position_ids: Where each token stands; by default one after the other, behind what the cache has seen. Give
                them for left padding with absolute positions, as `generate` does, and restart them to pack sequences.
            past_key_values: A cache; its keys and values come before those of this call.
            inputs_embeds: Vectors (batch, length, hidden) instead of `input_ids` or `pixel_values`.
            use_cache: Return a cache, where attention is causal.
            token_type_ids: The segment of each token; ignored by a model without segments.
            pixel_values: Images (batch, channels, height, width), for a model of patches.
            interpolate_pos_encoding: Take images of another size than the model was built for.
            wanted: Whose hidden states are read, (batch, length) or one value for all, beside what is pooled. Those of
                others, and of padding, come back as zeros, where that saves work.
        """
        if use_cache and self.is_causal and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self.embed(
            input_ids,
            pixel_values,
            inputs_embeds,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            past_key_values=past_key_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        wanted = placed(wanted, hidden_states)
        if wanted is not None:
            wanted = wanted | self.pooler.reads(hidden_states, attention_mask)
        hidden_states = self.encode(
            hidden_states, attention_mask, position_ids, past_key_values, wanted=wanted, **kwargs
        )
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states, attention_mask),
            past_key_values=past_key_values,
        )


def build_pooler(config: TriuneConfig) -> Pooler:
    options = dict(config.pooling)
    sizes = (config.num_prefix_tokens, config.num_placed_tokens)
    return Pooler(config.hidden_size, options.pop("type"), *sizes, **options)


def build_lm_head(config: TriuneConfig) -> tuple[nn.Linear, nn.Module, nn.Module]:
    """The decoder, the transform in front of it, and what holds its logits within bounds: a part of its own, because
    resizing and quantisation put another linear map in the decoder's place."""
    entry, size = dict(config.lm_head), config.hidden_size
    decoder, cap = nn.Linear(size, config.vocab_size, bias=entry.pop("bias")), entry.pop("softcap")
    activation = entry.pop("hidden_act", None) or config.hidden_act
    transform = build(TRANSFORMS, entry, size, activation, build(NORMS, config.norm, size))
    return decoder, transform, nn.Identity() if cap is None else Softcap(cap)


def build_classifier(config: TriuneConfig, size: int) -> nn.Module:
    """Of vectors of this size."""
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    sizes = (size, config.num_labels)
    return build(CLASSIFIERS, config.classifier, *sizes, activation=config.hidden_act, dropout=dropout)


# ---------------------------------------------------------------------------------------------------------------------
# Language models


class TriuneLanguageModel(TriunePreTrainedModel):
    """What the language models share: the decoder, tied to the embeddings, and the transform in front of it."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' class fields
    _tp_plan = {"lm_head": "colwise_rep"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: TriuneConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.model = TriuneModel(config, add_pooling_layer)
        self.lm_head, self.transform, self.softcap = build_lm_head(config)

    def logits_of(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.softcap(self.lm_head(self.transform(hidden_states)))

    def answer(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None, loss_only: bool, **kwargs
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits and loss; with `loss_only` the loss alone, which takes less time and memory."""
        if loss_only:
            return None, self.lean_loss(hidden_states, labels, **kwargs)
        logits = self.logits_of(hidden_states)
        if labels is None:
            return logits, None
        return logits, self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)

    def lean_loss(self, hidden_states, labels, num_items_in_batch=None, **kwargs) -> torch.Tensor:
        parts = (self.transform, self.lm_head, self.softcap)
        return lean_loss(hidden_states, labels, *parts, num_items_in_batch)


class TriuneForMaskedLM(TriuneLanguageModel):
    """BERT's task: what stands under the mask."""

    def __init__(self, config: TriuneConfig):
        super().__init__(config)
        self.loss_function = token_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            wanted=asked(labels, loss_only),
            return_dict=True,
            **kwargs,
        )
        logits, loss = self.answer(outputs.last_hidden_state, labels, loss_only, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class TriuneForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: The sum of the losses whose labels are given.
        prediction_logits: Of what stands under the mask (batch, length, vocabulary).
        seq_relationship_logits: That the second text follows the first, and that it does not (batch, 2).
    """

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def logits(self) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """Of both tasks."""
        return self.prediction_logits, self.seq_relationship_logits


class TriuneForPreTraining(TriuneLanguageModel):
    """BERT's two tasks at once: what stands under the mask, and whether the second of two texts follows the first.

    `next_sentence_label` is 0 where it follows and 1 where it does not, as in BERT.
    """

    def __init__(self, config: TriuneConfig):
        super().__init__(config, add_pooling_layer=True)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.loss_function = token_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TriuneForPreTrainingOutput:
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            wanted=asked(labels, loss_only),
            return_dict=True,
            **kwargs,
        )
        logits, loss = self.answer(outputs.last_hidden_state, labels, loss_only, **kwargs)
        verdicts = self.seq_relationship(outputs.pooler_output)
        losses = [] if loss is None else [loss]
        if next_sentence_label is not None:
            losses.append(next_sentence_loss(verdicts, next_sentence_label, labels, **kwargs))
        return TriuneForPreTrainingOutput(
            loss=sum(losses) if losses else None,
            prediction_logits=logits,
            seq_relationship_logits=verdicts,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def next_sentence_loss(
    logits: torch.Tensor,
    next_sentence_label: torch.Tensor,
    labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> torch.Tensor:
    """The mean over the pairs. A trainer that adds up micro-batches counts masked tokens only: each micro-batch then
    has the share in this mean that it has of those."""
    if next_sentence_label.numel() != len(logits):
        raise ValueError(
            f"next_sentence_label must have shape (batch,) = ({len(logits)},), got {tuple(next_sentence_label.shape)}"
        )
    loss = cross_entropy(logits, next_sentence_label)
    if num_items_in_batch is None or labels is None:
        return loss
    return loss * (labels != IGNORED).sum() / num_items_in_batch


class TriuneForCausalLM(TriuneLanguageModel, GenerationMixin):
    """GPT's task: what comes next."""

    def __init__(self, config: TriuneConfig):
        super().__init__(config)
        self.loss_function = next_token_loss
        self.post_init()

    def lean_loss(self, hidden_states, labels, num_items_in_batch=None, shift_labels=None, **kwargs) -> torch.Tensor:
        return super().lean_loss(hidden_states, shifted(labels, shift_labels), num_items_in_batch)

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        """The loop of `generate` without beams: our own where it can, which gives the same tokens in less time."""
        if can_decode(self, input_ids, stopping_criteria, generation_config, synced_gpus, model_kwargs):
            cache = model_kwargs["past_key_values"]
            return decode(self, input_ids, logits_processor, stopping_criteria, generation_config, cache, streamer)
        given = {"synced_gpus": synced_gpus, "streamer": streamer, **model_kwargs}
        return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **given)

    def init_continuous_batching(self, *args, **kwargs):
        if self.config.adds_to_scores:
            raise ValueError("position 'relative' has no continuous batching (generate_batch): use generate")
        return super().init_continuous_batching(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """As `TriuneModel`, with `labels`. No cache is made beside them unless `use_cache` asks for one.
        `loss_only`: the loss alone, without the logits."""
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            token_type_ids=token_type_ids,
            wanted=asked(shifted(labels, kwargs.get("shift_labels")), loss_only),
            return_dict=True,
            **kwargs,
        )
        kept = keep_positions(outputs.last_hidden_state, logits_to_keep)
        logits, loss = self.answer(kept, labels, loss_only, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Classifiers


def pooled_alone(yes: bool) -> torch.Tensor | None:
    """As `wanted`: nothing beside what is pooled; or all."""
    return torch.zeros((), dtype=torch.bool) if yes else None


class TriuneForImageClassification(TriunePreTrainedModel):
    """ViT's task: what the picture shows."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: TriuneConfig):
        super().__init__(config)
        self.model = TriuneModel(config)
        self.classifier = build_classifier(config, config.pooled_size)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """As `TriuneModel`, with `labels`. `loss_only`: compute no hidden state that logits and loss do not read."""
        outputs = self.model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            wanted=pooled_alone(loss_only),
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, problem_type=self.config.problem_type, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TriuneForSequenceClassification(TriunePreTrainedModel):
    """One label, or one number, for a whole text. Without an attention mask the padding id tells where it ends."""

    def __init__(self, config: TriuneConfig):
        super().__init__(config)
        self.model = TriuneModel(config)
        self.classifier = build_classifier(config, config.pooled_size)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """As `TriuneModel`, with `labels`. `loss_only`: compute no hidden state that logits and loss do not read;
        for that the attention mask must be given."""
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            wanted=pooled_alone(loss_only and attention_mask is not None),
            return_dict=True,
            **kwargs,
        )
        pooled = outputs.pooler_output
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            pooled = self.model.pooler(outputs.last_hidden_state, (input_ids != self.config.pad_token_id).long())
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, problem_type=self.config.problem_type, **kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TriuneForTokenClassification(TriunePreTrainedModel):
    """A label for every token of a text."""

    def __init__(self, config: TriuneConfig):
        super().__init__(config)
        self.model = TriuneModel(config, add_pooling_layer=False)
        self.classifier = build_classifier(config, config.hidden_size)
        self.loss_function = token_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """As `TriuneModel`, with `labels`. `loss_only`: compute no hidden state that the loss does not read; the
        logits of the others mean nothing."""
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            wanted=asked(labels, loss_only),
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "TriuneForCausalLM",
    "TriuneForImageClassification",
    "TriuneForMaskedLM",
    "TriuneForPreTraining",
    "TriuneForSequenceClassification",
    "TriuneForTokenClassification",
    "TriuneModel",
]
