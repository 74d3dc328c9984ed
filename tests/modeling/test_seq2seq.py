"""Encoder and decoder: BART, Marian and T5 are computed as transformers computes them, with random weights copied by
name; generation, caches, ties, counts; saved folders read without Triune."""

import math
import re
from itertools import pairwise

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from test_parity import renamed
from test_remote_code import visit
from transformers.models.bart.modeling_bart import shift_tokens_right

from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune_seq2seq import SEQ2SEQ_PRESETS, TriuneSeq2SeqConfig, seq2seq_preset
from triune.modeling import TriuneForConditionalGeneration, TriuneSeq2SeqModel
from triune.modeling.modeling_triune_seq2seq import shift_right
from triune.modeling.transformer import Attention, CrossAttention, NoCrossBranch, TransformerLayer


# ---------------------------------------------------------------------------------------------------------------------
# Copying weights: (pattern of the reference's name, Triune's name). The tests' own: the library's conversion must not
# be checked with itself.

STACK, LAYER = r"model\.(encoder|decoder)", r"model\.(encoder|decoder)\.layers\.(\d+)"
OURS = r"model.\1.layers.\2"
MARIAN = [
    (r"model\.shared", None),
    (rf"{STACK}\.embed_tokens", r"model.\1.embed_tokens"),
    (rf"{STACK}\.embed_positions", None),  # computed
    (rf"{LAYER}\.self_attn\.([qkv]_proj)", rf"{OURS}.self_attn.\3"),
    (rf"{LAYER}\.self_attn\.out_proj", rf"{OURS}.self_attn.o_proj"),
    (rf"{LAYER}\.self_attn_layer_norm", rf"{OURS}.attn_norm"),
    (rf"{LAYER}\.encoder_attn\.([qkv]_proj)", rf"{OURS}.cross.attn.\3"),
    (rf"{LAYER}\.encoder_attn\.out_proj", rf"{OURS}.cross.attn.o_proj"),
    (rf"{LAYER}\.encoder_attn_layer_norm", rf"{OURS}.cross.norm"),
    (rf"{LAYER}\.fc1", rf"{OURS}.mlp.up_proj"),
    (rf"{LAYER}\.fc2", rf"{OURS}.mlp.down_proj"),
    (rf"{LAYER}\.final_layer_norm", rf"{OURS}.mlp_norm"),
    (r"lm_head", "lm_head"),
    (r"final_logits_bias", "lm_head.bias", lambda bias: {"": bias[0]}),
]
BART = [
    # BART reads position p in row p + 2; its first two rows come to lie behind the others
    (rf"{STACK}\.embed_positions", r"model.\1.positions.table", lambda table: {"": table.roll(-2, 0)}),
    (rf"{STACK}\.layernorm_embedding", r"model.\1.embeddings.norm"),
    (r"final_logits_bias", None),  # zeros
    *MARIAN,
]
BLOCK = r"(encoder|decoder)\.block\.(\d+)\.layer"
T5 = [
    (r"shared", None),
    (r"(encoder|decoder)\.embed_tokens", r"model.\1.embed_tokens"),
    (rf"{BLOCK}\.0\.SelfAttention\.relative_attention_bias", r"model.\1.positions.table"),
    (rf"{BLOCK}\.0\.SelfAttention\.([qkvo])", rf"{OURS}.self_attn.\3_proj"),
    (rf"{BLOCK}\.0\.layer_norm", rf"{OURS}.attn_norm"),
    (rf"{BLOCK}\.1\.EncDecAttention\.([qkvo])", rf"{OURS}.cross.attn.\3_proj"),
    (r"(decoder)\.block\.(\d+)\.layer\.1\.layer_norm", rf"{OURS}.cross.norm"),
    (rf"{BLOCK}\.[12]\.DenseReluDense\.wi_0", rf"{OURS}.mlp.gate_proj"),
    (rf"{BLOCK}\.[12]\.DenseReluDense\.wi(?:_1)?", rf"{OURS}.mlp.up_proj"),
    (rf"{BLOCK}\.[12]\.DenseReluDense\.wo", rf"{OURS}.mlp.down_proj"),
    (rf"{BLOCK}\.[12]\.layer_norm", rf"{OURS}.mlp_norm"),
    (r"(encoder|decoder)\.final_layer_norm", r"model.\1.norm"),
    (r"lm_head", "lm_head"),
]


WIDTHS = {  # large, so that a wrong constant shows, and values of the source most: random models else say the same
    r"(cross|encoder_attn|EncDecAttention).*\.(v|o|v_proj|o_proj|out_proj)\.": 3.0,
    r"Attention\.[qk]\.": 0.7,  # T5 does not scale the scores
    r"": 1.5,
}


def randomise(name, parameter):
    wide = next(width for pattern, width in WIDTHS.items() if re.search(pattern, name))
    parameter.normal_(std=0.3 if parameter.dim() == 1 else wide / parameter.shape[-1] ** 0.5)
    if "norm" in name and name.endswith("weight"):
        parameter.add_(1.0)


def copy_weights(reference, config, table):
    """Both with the same random weights, large enough for a wrong constant to show; every tensor accounted for."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.requires_grad:  # Marian's waves are a frozen table
                randomise(name, parameter)
    state = {}
    for name, weight in reference.state_dict().items():
        state |= renamed(table, name, weight.clone())
    model = TriuneForConditionalGeneration(config)
    model.load_state_dict(state, strict=True)
    return reference.eval(), model.eval()


VARIED = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5}  # random models say one word otherwise
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TINY = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BART_SIZES = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 61},
    **{"max_position_embeddings": 30, "dropout": 0.0, **IDS},
}


def both(layers=(2, 3), **stacks):
    return {
        "stacks": {**TINY, **NO_DROPOUT, **stacks},
        "encoder": {"num_hidden_layers": layers[0]},
        "decoder": {"num_hidden_layers": layers[1]},
        **IDS,
    }


def bart():
    reference = hf.BartForConditionalGeneration(hf.BartConfig(**BART_SIZES, bos_token_id=1))
    return copy_weights(reference, seq2seq_preset("bart-base", **both(max_position_embeddings=32)), BART)


def marian():
    reference = hf.MarianMTModel(
        hf.MarianConfig(**BART_SIZES, scale_embedding=True, activation_function="swish", bos_token_id=1)
    )
    with torch.no_grad():
        reference.final_logits_bias.normal_()
    return copy_weights(reference, seq2seq_preset("opus-mt", **both(max_position_embeddings=30)), MARIAN)


def marian_two_vocabularies():
    reference = hf.MarianMTModel(
        hf.MarianConfig(
            **{**BART_SIZES, "vocab_size": 45},
            scale_embedding=True,
            activation_function="swish",
            bos_token_id=1,
            decoder_vocab_size=61,
            share_encoder_decoder_embeddings=False,
        )
    )
    sizes = both(max_position_embeddings=30)
    sizes["encoder"]["vocab_size"] = 45
    return copy_weights(reference, seq2seq_preset("opus-mt", **sizes, share_embeddings=False), MARIAN)


T5_SIZES = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
T5_SIZES |= {"vocab_size": 61, "dropout_rate": 0.0, "relative_attention_num_buckets": 8, **IDS}
T5_SIZES |= {"relative_attention_max_distance": 20}
T5_STACKS = {"head_dim": 12, "position": {"num_buckets": 8, "max_distance": 20}, "feed_forward": {"dropout": 0.0}}


def t5():
    reference = hf.T5ForConditionalGeneration(hf.T5Config(**T5_SIZES))
    return copy_weights(reference, seq2seq_preset("t5-small", **both(layers=(3, 2), **T5_STACKS)), T5)


def t5_v1_1():
    """Its head is not tied: transformers' configuration ties it, and finds in the checkpoint that it is not."""
    config = hf.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    reference = hf.T5ForConditionalGeneration(config)
    reference.lm_head.weight = torch.nn.Parameter(reference.lm_head.weight.detach().clone())
    return copy_weights(reference, seq2seq_preset("t5-v1.1-small", **both(layers=(3, 2), **T5_STACKS)), T5)


PAIRS = {"bart": bart, "marian": marian, "marian-two": marian_two_vocabularies, "t5": t5, "t5-v1.1": t5_v1_1}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    return PAIRS[request.param]()


@pytest.fixture(scope="module")
def batch():
    """Three sources and targets of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 45, (3, 11), generator=generator)
    mask, labels = torch.ones_like(source), torch.randint(3, 61, (3, 9), generator=generator)
    mask[1, 7:] = 0
    labels[2, 5:] = -100
    return {"input_ids": source.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


def source_of(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def test_logits_and_loss_are_the_references(pair, batch):
    """Logits, encoder states and loss against transformers' own module, with padded sources and ignored labels."""
    reference, model = pair
    with torch.no_grad():
        theirs, ours = reference(**batch), model(**batch)
    assert theirs.logits.std() > 0.2
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-6)
    real = batch["attention_mask"].bool()
    states = ours.encoder_last_hidden_state[real], theirs.encoder_last_hidden_state[real]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-6)
    assert abs(ours.loss - theirs.loss) < 1e-5


def test_attention_weights_are_the_references(pair, batch):
    """Eager attention: the weights of all three kinds of attention, and the hidden states of every layer."""
    reference, model = pair
    for one in pair:
        one.set_attn_implementation("eager")
    with torch.no_grad():
        theirs, ours = (one(**batch, output_attentions=True, output_hidden_states=True) for one in (reference, model))
    for one in pair:
        one.set_attn_implementation("sdpa")
    for key in ("encoder_attentions", "decoder_attentions", "cross_attentions", "decoder_hidden_states"):
        assert len(ours[key]) == len(theirs[key]) >= 2
        for mine, other in zip(ours[key], theirs[key]):
            size = max(1.0, other.std().item())  # T5's residual stream is never normalised
            torch.testing.assert_close(mine, other, atol=1e-5 * size, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_generation_is_the_references(pair, batch, beams):
    """Greedy and beam search with scores: the same tokens, batch of three with padding."""
    asked = hf.GenerationConfig(**IDS, **VARIED, num_beams=beams, max_new_tokens=14, forced_eos_token_id=2)
    asked.update(return_dict_in_generate=True, output_scores=True)
    theirs, ours = (model.generate(**source_of(batch), generation_config=asked) for model in pair)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len({tuple(row.tolist()) for row in theirs.sequences}) == 3
    if beams > 1:
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-5, rtol=1e-5)


def test_left_padded_sources_are_the_references(batch):
    """T5 counts distances: a source with padding in front gives what the reference gives."""
    reference, model = t5()
    turned = {key: value.flip(1) for key, value in source_of(batch).items()} | {"labels": batch["labels"]}
    with torch.no_grad():
        torch.testing.assert_close(model(**turned).logits, reference(**turned).logits, atol=1e-5, rtol=1e-6)


def test_labels_are_shifted_as_bart_does():
    """`shift_right` against transformers' shift_tokens_right, ignored labels and single tokens included."""
    for labels in (torch.tensor([[5, 6, 7], [8, -100, -100]]), torch.tensor([[4]])):
        assert torch.equal(shift_right(labels, 2, 1), shift_tokens_right(labels, 1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Counts


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("t5-small", 60_506_624),
        ("t5-v1.1-small", 76_961_152),
        ("bart-base", 139_420_416),
        ("opus-mt", 74_410_496 - 2 * 512 * 512 + 58_101),  # no stored waves; the bias is a parameter, not a buffer
        ("scratch-seq2seq", 67_309_568),
    ],
)
def test_counts_are_the_published_ones(name, count):
    """Parameters to the digit."""
    with torch.device("meta"):
        model = TriuneForConditionalGeneration(seq2seq_preset(name))
    model.tie_weights()
    assert model.num_parameters() == count


# ---------------------------------------------------------------------------------------------------------------------
# Contract

SMALL = {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 64, "num_hidden_layers": 2}


def small(name, **overrides):
    stacks = {**SMALL, **NO_DROPOUT, "vocab_size": 61, "max_position_embeddings": 32}
    if "relative" in str(SEQ2SEQ_PRESETS[name]):
        stacks["feed_forward"] = {"dropout": 0.0}
    sizes = {"encoder": {"vocab_size": 45}, "decoder": {"vocab_size": 61}} if name == "scratch-seq2seq" else {}
    return seq2seq_preset(name, **{"stacks": stacks, **sizes, **IDS, **overrides})


def build(name, **overrides):
    torch.manual_seed(0)
    return TriuneForConditionalGeneration(small(name, **overrides))


every_preset = pytest.mark.parametrize("name", SEQ2SEQ_PRESETS)


@every_preset
def test_first_loss_and_gradients(name, batch):
    """The first loss is near a blind guess, and one backward pass leaves no parameter without a gradient."""
    model = build(name)
    output = model(**batch)
    assert output.logits.shape == (3, 9, 61) and output.past_key_values is None
    assert abs(output.loss.item() - math.log(61)) < 0.3
    output.loss.backward()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@torch.no_grad()
@every_preset
def test_evaluation_is_deterministic(name, batch):
    """Two passes in evaluation mode are bit-equal; dropout acts in training mode."""
    model = TriuneForConditionalGeneration(small(name, stacks={**SMALL, "vocab_size": 61}, encoder={}, decoder={}))
    model.config.encoder.hidden_dropout_prob = 0.2
    model = TriuneForConditionalGeneration(model.config).eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


TIES = [(share, tie) for share in (True, False) for tie in (True, False)]


@pytest.mark.parametrize(("share", "tie"), TIES)
def test_round_trip_and_ties(share, tie, batch, tmp_path):
    """Saved and loaded, nothing changes, for all four ways of sharing tables; a shared one is in the file once."""
    model = build("seq2seq-mini", share_embeddings=share, tie_word_embeddings=tie).eval()
    tables = {model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight, model.lm_head.weight}
    assert len(tables) == 1 + (not share) + (not tie)
    model.save_pretrained(tmp_path)
    loaded, report = TriuneForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(value.shape[0] == 61 for value in stored.values()) == len(tables)
    again = {loaded.model.encoder.embed_tokens.weight, loaded.model.decoder.embed_tokens.weight, loaded.lm_head.weight}
    assert len(again) == len(tables)
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)
    assert loaded.config.to_diff_dict().keys() == model.config.to_diff_dict().keys()
    assert (loaded.config.share_embeddings, loaded.config.tie_word_embeddings) == (share, tie)


def test_auto_classes_find_both_models(tmp_path, batch):
    """AutoConfig, AutoModel and AutoModelForSeq2SeqLM on one folder; the bare model returns the same states."""
    model = build("t5-mini").eval()
    model.save_pretrained(tmp_path)
    assert type(hf.AutoConfig.from_pretrained(tmp_path)) is TriuneSeq2SeqConfig
    assert type(hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is TriuneForConditionalGeneration
    bare = hf.AutoModel.from_pretrained(tmp_path).eval()
    assert type(bare) is TriuneSeq2SeqModel
    asked = {**source_of(batch), "decoder_input_ids": batch["input_ids"][:, :4]}
    assert torch.equal(model.lm_head(bare(**asked).last_hidden_state), model(**asked).logits)


def test_stacks_are_made_of_the_one_layer():
    """No second layer and no second kernel: both stacks hold the backbone's classes, only the decoder looks across,
    and a stack alone has nothing to look across with."""
    model = build("bart-base").model
    for stack, reads in ((model.encoder, False), (model.decoder, True)):
        for layer in stack.layers:
            assert type(layer) is TransformerLayer and type(layer.self_attn) is Attention
            assert (type(layer.cross) is not NoCrossBranch) is reads
    assert CrossAttention.attend is Attention.attend and CrossAttention.queries is Attention.queries
    assert not any("cross" in key for key in model.encoder.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# What may see what


@torch.no_grad()
@every_preset
def test_padding_future_and_source(name, batch):
    """Padding of the source changes nothing, a later target token nothing before it, the source everything."""
    model = build(name).eval()
    target = torch.randint(3, 45, (3, 6), generator=torch.Generator().manual_seed(2))
    base = model(**source_of(batch), decoder_input_ids=target).logits
    other = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    same = model(other, attention_mask=batch["attention_mask"], decoder_input_ids=target).logits
    torch.testing.assert_close(same, base, atol=1e-6, rtol=0)
    alone = model(batch["input_ids"][1:2, :7], decoder_input_ids=target[1:2]).logits
    torch.testing.assert_close(alone, base[1:2], atol=1e-5, rtol=0)
    later = target.clone()
    later[:, 4] = 9
    changed = model(**source_of(batch), decoder_input_ids=later).logits
    torch.testing.assert_close(changed[:, :4], base[:, :4], atol=1e-6, rtol=0)
    assert (changed[:, 4] - base[:, 4]).abs().max() > 1e-4
    source = batch["input_ids"].clone()
    source[:, 2] += 1
    moved = model(source, attention_mask=batch["attention_mask"], decoder_input_ids=target).logits
    assert (moved - base).abs().amax((1, 2)).min() > 5e-6


@torch.no_grad()
def test_left_padded_targets_with_their_positions(batch):
    """A prompt padded on the left equals the prompt alone, where its positions are given (learned positions)."""
    model = build("bart-base").eval()
    prompt = torch.tensor([[2, 5, 6]])
    alone = model(batch["input_ids"][:1], decoder_input_ids=prompt).logits
    padded = model(
        batch["input_ids"][:1],
        decoder_input_ids=torch.tensor([[0, 0, 2, 5, 6]]),
        decoder_attention_mask=torch.tensor([[0, 0, 1, 1, 1]]),
        decoder_position_ids=torch.tensor([[0, 0, 0, 1, 2]]),
    ).logits
    torch.testing.assert_close(padded[:, 2:], alone, atol=1e-5, rtol=0)


def test_encoder_of_another_width(batch):
    """Encoder and decoder of different widths, heads and norms: cross-attention reads the encoder's width."""
    config = TriuneSeq2SeqConfig(
        encoder={"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 45},
        decoder={**SMALL, "vocab_size": 61, "norm": "rmsnorm", "position": "rotary", "num_key_value_heads": 2},
        share_embeddings=False,
        **IDS,
    )
    model = TriuneForConditionalGeneration(config)
    assert model.model.decoder.layers[0].cross.attn.k_proj.weight.shape == (16, 32)
    model(**batch).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    model.eval()
    greedy = [model.generate(**source_of(batch), max_new_tokens=6, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*greedy)


# ---------------------------------------------------------------------------------------------------------------------
# Generation


def lively(preset):
    """With weights large enough that the answer depends on the source."""
    model = build(preset).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            randomise(name, parameter)
    return model


WAYS = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 10},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("name", ["bart-base", "opus-mt", "t5-small"])
@pytest.mark.parametrize("way", WAYS)
def test_cached_generation_equals_uncached(name, way, batch):
    """Every way of generating gives the same tokens with and without a cache, for padded sources; sources differ in
    what they give."""
    model, asked = lively(name), VARIED | WAYS[way]
    without = VARIED if way == "static" else asked
    made = []
    for options in ({**asked, "use_cache": True}, {**without, "use_cache": False}):
        torch.manual_seed(3)
        made.append(model.generate(**source_of(batch), max_new_tokens=10, **options))
    assert torch.equal(*made)
    assert len({tuple(row.tolist()) for row in made[0]}) == 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["bart-base", "opus-mt", "t5-small"])
def test_cached_logits_step_by_step(name, batch):
    """One token at a time with a cache gives the logits of the whole target, and a chunk of several tokens too."""
    model, target = lively(name), shift_right(batch["labels"].clamp(min=3), 2, 0)
    whole = model(**source_of(batch), decoder_input_ids=target).logits
    found, cache = [], None
    states = model.get_encoder()(**source_of(batch))
    for first, end in pairwise((0, 1, 2, 5, 9)):
        output = model(
            attention_mask=batch["attention_mask"],
            encoder_outputs=states,
            decoder_input_ids=target[:, first:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        found.append(output.logits)
    assert type(cache) is hf.EncoderDecoderCache and cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=2e-5, rtol=1e-5)


def test_source_is_read_once(batch):
    """While ten tokens are generated the encoder runs once, and each layer makes its keys of the source once."""
    model, calls = lively("bart-base"), []
    model.get_encoder().register_forward_hook(lambda *_: calls.append("encoder"))
    for layer in model.get_decoder().layers:
        layer.cross.attn.k_proj.register_forward_hook(lambda *_: calls.append("keys"))
    model.generate(**source_of(batch), max_new_tokens=10, min_new_tokens=10, num_beams=2)
    assert calls == ["encoder", "keys", "keys"]


@torch.no_grad()
def test_encoder_outputs_are_reused(batch):
    """What the encoder returned, as an output or as a tuple, stands for the source, in a call and in generation."""
    model = lively("t5-small")
    states = model.get_encoder()(**source_of(batch))
    asked = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    expected = model(**batch)
    for given in (states, (states.last_hidden_state,)):
        output = model(encoder_outputs=given, **asked)
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.encoder_last_hidden_state, states.last_hidden_state)
    made = model.generate(encoder_outputs=states, attention_mask=batch["attention_mask"], max_new_tokens=8)
    assert torch.equal(made, model.generate(**source_of(batch), max_new_tokens=8))


@torch.no_grad()
@pytest.mark.parametrize("name", ["bart-base", "t5-small"])
def test_kernels_agree(name, batch):
    """Fused and eager attention give the same logits; generation under eager the same tokens."""
    model = lively(name)
    fused, greedy = model(**batch).logits, model.generate(**source_of(batch), max_new_tokens=8)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, fused, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(**source_of(batch), max_new_tokens=8), greedy)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_keeps_the_gradients(reentrant, batch):
    """Recomputing layers, in both of torch's ways, gives the same gradients, those of the encoder included."""
    model, gradients = build("t5-small").train(), []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**batch, use_cache=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_resized_vocabulary(batch, tmp_path):
    """A shared vocabulary grows in both stacks, in the head and in the configuration, and survives saving."""
    model = build("t5-small")
    model.resize_token_embeddings(70)
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size) == (70, 70)
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight is model.model.encoder.embed_tokens.weight
    more = {**batch, "input_ids": batch["input_ids"] + 25}
    assert model(**more).logits.shape == (3, 9, 70)
    model.save_pretrained(tmp_path)
    loaded = TriuneForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.eval()(**more).logits, model.eval()(**more).logits)


@pytest.mark.slow
def test_learns_to_reverse():
    """400 steps on random sequences of ten letters: 99 % of new ones are reversed without a mistake (chance: 0)."""
    sizes = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 128}
    torch.manual_seed(0)
    model = TriuneForConditionalGeneration(seq2seq_preset("seq2seq-mini", stacks=sizes, eos_token_id=None))
    optimizer, generator = torch.optim.AdamW(model.parameters(), weight_decay=0.0), torch.Generator().manual_seed(1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / 400)
        source = torch.randint(3, 40, (32, 10), generator=generator)
        model(source, labels=source.flip(1)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    source = torch.randint(3, 40, (200, 10), generator=generator)
    found = model.eval().generate(source, max_new_tokens=10)[:, 1:]
    assert (found == source.flip(1)).all(1).float().mean() > 0.99


# ---------------------------------------------------------------------------------------------------------------------
# Without Triune


def load_and_generate(folder, inputs):
    """Runs in another process: both auto classes, logits and beam search."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    batch = load_file(inputs)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    bare = AutoModel.from_pretrained(folder, trust_remote_code=True)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, labels=labels).logits
    found = {"logits": logits, "beams": model.generate(**batch, num_beams=3, max_new_tokens=8).contiguous()}
    save_file(found, inputs + ".out")
    model.save_pretrained(inputs + ".again")
    return [type(model).__name__, type(bare).__name__]


def test_saved_folder_loads_without_triune(batch, tmp_path):
    """In a process where Triune cannot be imported, the saved folder gives the same logits to the bit, the same
    beams, and saves a folder that Triune reads."""
    model, threads = lively("t5-small"), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        logits = model(**batch).logits
    beams = model.generate(**source_of(batch), num_beams=3, max_new_tokens=8)
    torch.set_num_threads(threads)
    model.save_pretrained(tmp_path / "model")
    inputs = tmp_path / "inputs.safetensors"
    save_file({key: value.contiguous() for key, value in batch.items()}, inputs)
    result = visit(load_and_generate, tmp_path / "model", inputs, home=tmp_path / "home")
    assert result[0] == ["TriuneForConditionalGeneration", "TriuneSeq2SeqModel"]
    found = load_file(f"{inputs}.out")
    assert torch.equal(found["logits"], logits) and torch.equal(found["beams"], beams)
    again = TriuneForConditionalGeneration.from_pretrained(f"{inputs}.again").eval()
    assert torch.equal(again(**batch).logits, model(**batch).logits)


# ---------------------------------------------------------------------------------------------------------------------
# Messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": {"vocab_size": 99}}, "share_embeddings=True needs one vocab_size.*61.*99"),
        ({"decoder": {"attention": {"type": "bidirectional"}}}, "decoder of .* needs attention 'causal'"),
        ({"encoder": {"attention": {"type": "causal"}}}, "encoder of .* needs attention 'bidirectional'"),
        ({"decoder": {"sliding_window": 4}}, "decoder layer_types holds 'sliding_attention'"),
        ({"decoder_start_token_id": 61}, "decoder_start_token_id=61 is not an id.*0 to 60"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False"),
        ({"share_embedding": True}, "no field 'share_embedding'.*did you mean 'share_embeddings'"),
        ({"decoder": {"hidden_sizes": 8}}, "no field 'hidden_sizes'.*did you mean 'hidden_size'"),
    ],
)
def test_bad_configurations_are_named(changes, message):
    """Each message names the field, what it is and what is allowed."""
    with pytest.raises(ValueError, match=message):
        small("seq2seq-mini", **changes)


def test_bad_presets_are_named():
    """A preset that is not there, and the nearest one."""
    with pytest.raises(ValueError, match=r"no preset 't5-smal'.*did you mean 't5-small'"):
        seq2seq_preset("t5-smal")


def test_bad_calls_are_named(batch):
    """Inputs that cannot be: no target, a cache of the wrong kind, ids that labels need, a vocabulary of two."""
    model = build("scratch-seq2seq")
    with pytest.raises(ValueError, match="give decoder_input_ids, decoder_inputs_embeds or labels"):
        model(**source_of(batch))
    with pytest.raises(ValueError, match="must be an EncoderDecoderCache, got DynamicCache"):
        model(**batch, past_key_values=hf.DynamicCache())
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model(labels=batch["labels"])
    with pytest.raises(ValueError, match=r"labels must have shape"):
        model(**source_of(batch), decoder_input_ids=batch["labels"][:, :3].clamp(min=0), labels=batch["labels"])
    with pytest.raises(IndexError, match="token id 50, but the vocabulary has ids 0 to 44"):
        model(torch.full((1, 3), 50), labels=batch["labels"][:1])
    with pytest.raises(ValueError, match="a vocabulary each"):
        model.resize_token_embeddings(70)
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id, and the configuration's is None"):
        model(**batch)


def test_stacks_are_not_shared_between_models():
    """Two configurations made from one stack do not change each other."""
    stack = TriuneConfig(**SMALL, attention="causal", vocab_size=61)
    first, second = (TriuneSeq2SeqConfig(encoder={**SMALL, "vocab_size": 61}, decoder=stack) for _ in range(2))
    first.decoder.hidden_dropout_prob = 0.3
    assert (second.decoder.hidden_dropout_prob, stack.hidden_dropout_prob) == (0.0, 0.0)
