"""Encoder and decoder: two stacks of the one backbone, the second with attention to what the first returned.

Arguments, outputs, caches and losses are those of transformers' encoder-decoder models, and so is generation. Labels
are the target itself: the decoder reads them moved by one, behind `decoder_start_token_id`. Labels of -100 are
ignored, logits never pass through a softmax.
"""

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from triune.configuration.configuration_triune import TriuneConfig
from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig

from .heads import keep_positions
from .losses import IGNORED, asked, lean_loss, token_loss
from .modeling_triune import TriuneModel, build_lm_head
from .selection import placed
from .transformer import Attention, CrossAttention, Transformer, TransformerLayer, TriunePreTrainedModel


def shift_right(labels: torch.Tensor, start: int | None, pad: int | None) -> torch.Tensor:
    """What the decoder reads so that each place predicts its label: the labels one place later, padding where they
    are ignored."""
    for field, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
        if value is None:
            raise ValueError(
                f"labels become the decoder's input with {field}, and the configuration's is None: set it"
            )
    moved = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return moved.masked_fill(moved == IGNORED, pad)


class TriuneDecoder(Transformer):
    """The stack that writes. `encoder_hidden_states` are what each of its layers looks at."""

    _can_record_outputs = {  # noqa: RUF012 - transformers' class field
        "hidden_states": TransformerLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: TriuneConfig, source_size: int):
        super().__init__(config, source_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        wanted: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        if past_key_values is None and use_cache:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache())
        hidden_states = self.embed(
            input_ids, inputs_embeds=inputs_embeds, position_ids=position_ids, past_key_values=past_key_values
        )
        source_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        hidden_states = self.encode(
            hidden_states,
            attention_mask,
            position_ids,
            past_key_values,
            encoder_hidden_states,
            source_mask=source_mask,
            wanted=placed(wanted, hidden_states),
            **kwargs,
        )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


class TriuneSeq2SeqPreTrainedModel(TriunePreTrainedModel):
    """What the two share: the configuration, and tables of embeddings that are tied in two independent ways."""

    config: TriuneSeq2SeqConfig

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """transformers ties all or nothing; here `share_embeddings` and `tie_word_embeddings` are two decisions."""
        return super().get_expanded_tied_weights_keys(True) if all_submodels else dict(self._tied_weights_keys or {})

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        if not self.config.share_embeddings:
            raise ValueError(
                "share_embeddings=False: source and target have a vocabulary each, and resize_token_embeddings does "
                "not say which one is meant"
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        for stack in (self.get_encoder(), self.get_decoder()):
            stack.embed_tokens.num_embeddings = stack.config.vocab_size = embeddings.num_embeddings
        return embeddings


class TriuneSeq2SeqModel(TriuneSeq2SeqPreTrainedModel):
    """The two stacks: hidden states of the target's tokens."""

    def __init__(self, config: TriuneSeq2SeqConfig):
        super().__init__(config)
        self.encoder = TriuneModel(config.encoder, add_pooling_layer=False)
        self.decoder = TriuneDecoder(config.decoder, source_size=config.encoder.hidden_size)
        if config.share_embeddings:
            self._tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | dict | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        wanted: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """
        Args:
            input_ids: The source (batch, length).
            attention_mask: 1 for real tokens of the source, 0 for padding.
            decoder_input_ids: The target so far (batch, length), behind `decoder_start_token_id`; with a cache, what
                is new of it.
            decoder_attention_mask: The same of the target. Padding behind a target needs none: no real token sees it.
            decoder_position_ids: Where each token of the target stands; give them for a target padded on the left.
            encoder_outputs: What the encoder returned before: the source is not read again.
            past_key_values: An `EncoderDecoderCache`: keys and values of the target so far, and of the source.
            use_cache: Return such a cache.
            token_type_ids: The segments of the source; ignored by an encoder without segments.
            wanted: The tokens of the target whose hidden states are read. Those of others, and of padding in source
                and target, come back as zeros, where that saves work.
        """
        for flag in ("output_attentions", "output_hidden_states"):
            kwargs.setdefault(flag, getattr(self.config, flag))
        if past_key_values is not None and not hasattr(past_key_values, "cross_attention_cache"):
            raise ValueError(f"past_key_values must be an EncoderDecoderCache, got {type(past_key_values).__name__}")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                token_type_ids=token_type_ids,
                wanted=None if wanted is None else torch.ones((), dtype=torch.bool),
                return_dict=True,
                **kwargs,
            )
        decoded = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            wanted=wanted,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )


class TriuneForConditionalGeneration(TriuneSeq2SeqPreTrainedModel, GenerationMixin):
    """One text made from another: translation, summaries, T5's tasks."""

    _tp_plan = {"lm_head": "colwise_rep"}  # noqa: RUF012 - transformers' class fields
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: TriuneSeq2SeqConfig):
        super().__init__(config)
        self.model = TriuneSeq2SeqModel(config)
        self.lm_head, self.transform, self.softcap = build_lm_head(config.decoder)
        self.scale = config.decoder.hidden_size**-0.5 if config.scale_decoder_outputs else 1.0
        if config.tie_word_embeddings:
            table = "encoder" if config.share_embeddings else "decoder"
            self._tied_weights_keys = {"lm_head.weight": f"model.{table}.embed_tokens.weight"}
        self.loss_function = token_loss
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    def before(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the decoder of the head reads."""
        return self.transform(hidden_states) * self.scale

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | dict | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """As `TriuneSeq2SeqModel`, with `labels`: the target (batch, length). No cache is made beside them unless
        `use_cache` asks for one. `loss_only`: the loss alone, without the logits."""
        if labels is not None and use_cache is None:
            use_cache = False
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, decoder_inputs_embeds or labels: the decoder has no input")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_position_ids=decoder_position_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            token_type_ids=token_type_ids,
            wanted=asked(labels, loss_only),
            return_dict=True,
            **kwargs,
        )
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        if loss_only:
            loss = lean_loss(
                hidden_states, labels, self.before, self.lm_head, self.softcap, kwargs.get("num_items_in_batch")
            )
            return Seq2SeqLMOutput(loss=loss, **{k: v for k, v in outputs.items() if k in SHARED_OUTPUTS})
        logits = self.softcap(self.lm_head(self.before(hidden_states)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.decoder.vocab_size, **kwargs)
        return Seq2SeqLMOutput(loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k in SHARED_OUTPUTS})


SHARED_OUTPUTS = (
    *("past_key_values", "decoder_hidden_states", "decoder_attentions", "cross_attentions"),
    *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
)


__all__ = ["TriuneForConditionalGeneration", "TriuneSeq2SeqModel"]
