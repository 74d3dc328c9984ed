"""Encoder and decoder: one stack that reads a source, and one that writes a target and looks at what the first found.

    TriuneSeq2SeqConfig(encoder={...}, decoder={"attention": "causal", ...})   # any two stacks that read tokens
    seq2seq_preset("bart-base"), ("opus-mt"), ("t5-small"), ("t5-v1.1-small")  # as published
    seq2seq_preset("seq2seq-mini", stacks={"vocab_size": 8000})                # small, to train

What joins them: whether they share one vocabulary, whether the head is the decoder's embedding, and the tokens with
which a target begins and ends.
"""

from typing import Any

from triune.configuration.configuration_composite import CompositeConfig, changed_stack, preset_fields
from triune.configuration.configuration_triune import Head, TriuneConfig, strictly


@strictly
class TriuneSeq2SeqConfig(CompositeConfig):
    r"""
    Two stacks of tokens; each layer of the decoder has attention to the encoder's last hidden states.

    Args:
        encoder: The stack that reads the source: bidirectional.
        decoder: The stack that writes the target: causal. Its `lm_head` is the head's.
        share_embeddings: One table of embeddings for source and target. Set it to False for two vocabularies.
        tie_word_embeddings: The head is the decoder's table of embeddings.
        scale_decoder_outputs: Multiply what enters the head by hidden_size ** -0.5, as T5 1.0 does. From scratch a
            model learns faster without it.
        decoder_start_token_id: The token in front of every target.
        pad_token_id: The token that fills up shorter sources and targets.
        bos_token_id: The token with which a text begins, where there is one.
        eos_token_id: The token, or the tokens, after which generation stops.

    Example:

    ```python
    >>> from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig, seq2seq_preset
    >>> config = seq2seq_preset("t5-small", stacks={"num_hidden_layers": 2})
    ```
    """

    model_type = "triune-seq2seq"
    heads = {  # noqa: RUF012 - class fields of transformers
        "TriuneSeq2SeqModel": Head("AutoModel", {}),
        "TriuneForConditionalGeneration": Head(
            "AutoModelForSeq2SeqLM", {}
        ),  # transformers has no pipeline for it any more
    }
    auto_classes = {  # noqa: RUF012
        "AutoConfig": "configuration_triune_seq2seq.TriuneSeq2SeqConfig",
        "AutoModel": "modeling_triune_seq2seq.TriuneSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "modeling_triune_seq2seq.TriuneForConditionalGeneration",
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    sub_configs = {"encoder": TriuneConfig, "decoder": TriuneConfig}  # noqa: RUF012
    fixed = {  # noqa: RUF012
        "encoder": {"embedding": "tokens", "attention": "bidirectional"},
        "decoder": {"embedding": "tokens", "attention": "causal"},
    }

    encoder: dict | TriuneConfig | None = None
    decoder: dict | TriuneConfig | None = None
    share_embeddings: bool = True
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = False
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def initializer_range(self) -> float:
        """What is not a stack's starts as the decoder does."""
        return self.decoder.initializer_range

    def sizes(self) -> dict[str, int]:
        """Beside those of the stacks, the keys and values that the decoder makes of the encoder's states."""
        width = self.decoder.num_key_value_heads * self.decoder.head_dim * self.decoder.num_hidden_layers
        return {**super().sizes(), "encoder hidden_size, decoder head_dim": 2 * self.encoder.hidden_size * width}

    def check(self) -> None:
        super().check()
        self._check_tables()
        if not self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder=False is not allowed: these are an encoder and a decoder")
        if "sliding_attention" in self.decoder.layer_types:
            raise ValueError(
                "decoder layer_types holds 'sliding_attention', which generation's caches do not have beside "
                "attention to a source: use 'full_attention' (sliding_window=None)"
            )
        for field in ("decoder_start_token_id", "pad_token_id"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < self.decoder.vocab_size:
                raise ValueError(
                    f"{field}={value} is not an id of the target's vocabulary: 0 to {self.decoder.vocab_size - 1} "
                    f"(decoder vocab_size={self.decoder.vocab_size})"
                )

    def _check_tables(self) -> None:
        for field in ("vocab_size", "hidden_size"):
            source, target = getattr(self.encoder, field), getattr(self.decoder, field)
            if self.share_embeddings and source != target:
                raise ValueError(
                    f"share_embeddings=True needs one {field}, but the encoder has {source} and the decoder {target}: "
                    "give both the same, or set share_embeddings=False"
                )


# ---------------------------------------------------------------------------------------------------------------------
# Presets: `stacks` are the fields that encoder and decoder have in common

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
NO_BIAS = {"qkv_bias": False, "out_bias": False}

BART = {
    "stacks": {
        "embedding": {"type": "tokens", "norm": "after"},
        "norm_placement": "post",
        **{"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12},
        # 1,024 positions; the published table has two more rows, which no token reads
        **{"vocab_size": 50265, "max_position_embeddings": 1026},
        **DROPOUT,
    },
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
}
MARIAN = {
    "stacks": {
        "embedding": {"type": "tokens", "scale": True},
        "position": {"type": "sinusoidal", "layout": "concatenated"},
        "norm_placement": "post",
        "hidden_act": "silu",
        **{"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
        **{"vocab_size": 58101, "max_position_embeddings": 512, "hidden_dropout_prob": 0.1},
    },
    "decoder": {"lm_head": {"type": "plain", "bias": True}},
    **{"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100},
}
T5 = {
    "stacks": {
        "position": "relative",
        "norm": {"type": "rmsnorm", "eps": 1e-6},
        "attention": {**NO_BIAS, "scale": 1.0},
        "feed_forward": {"type": "plain", "bias": False, "dropout": 0.1},
        "hidden_act": "relu",
        **{"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 64},
        **{"intermediate_size": 2048, "vocab_size": 32128, "max_position_embeddings": 512},
        **DROPOUT,
    },
    "scale_decoder_outputs": True,
    **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
T5_V1_1 = {
    **T5,
    "stacks": {
        **T5["stacks"],
        "feed_forward": {"type": "gated", "bias": False, "dropout": 0.1},
        "hidden_act": "gelu_pytorch_tanh",
        **{"num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1024},
    },
    **{"scale_decoder_outputs": False, "tie_word_embeddings": False},
}
SEQ2SEQ_MINI = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}

SEQ2SEQ_PRESETS: dict[str, dict[str, Any]] = {
    "bart-base": BART,
    "opus-mt": MARIAN,
    "t5-small": T5,
    "t5-v1.1-small": T5_V1_1,
    # small ones, to train
    "seq2seq-mini": {
        "stacks": {**SEQ2SEQ_MINI, "vocab_size": 8000, "max_position_embeddings": 256},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    },
    "t5-mini": {
        **T5_V1_1,
        "stacks": {**T5_V1_1["stacks"], **SEQ2SEQ_MINI, "head_dim": 32, "intermediate_size": 320, "vocab_size": 8000},
        "tie_word_embeddings": True,
    },
    # the older system, as its author sized it; he had no head, and this one is the decoder's table
    "scratch-seq2seq": {
        "stacks": {
            **{"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 128},
            "final_norm": False,
            **DROPOUT,
        },
        "encoder": {"vocab_size": 20000},
        "decoder": {"vocab_size": 25000},
        "share_embeddings": False,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    },
}


def seq2seq_preset(name: str, **overrides) -> TriuneSeq2SeqConfig:
    """The configuration of a preset. An override replaces a field; `encoder` and `decoder` change fields of the
    preset's own stack, and `stacks` those of both: `seq2seq_preset("t5-small", stacks={"num_hidden_layers": 2})`."""
    fields = preset_fields(SEQ2SEQ_PRESETS, name)
    common, common_override = fields.pop("stacks"), overrides.pop("stacks", {})
    for stack, choices in TriuneSeq2SeqConfig.fixed.items():
        parts = (common, fields.pop(stack, {}), common_override, overrides.pop(stack, {}))
        fields[stack] = dict(choices)
        for part in parts:
            fields[stack] = changed_stack(fields[stack], part)
    return TriuneSeq2SeqConfig(**{**fields, **overrides})


__all__ = ["TriuneSeq2SeqConfig", "seq2seq_preset"]
