"""What the loss reads alone, against everything: the same loss, the same gradients, less work."""

import disturbed
import pytest
import torch
from disturbed import output_and_gradients

from triune.configuration import preset, seq2seq_preset
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForPreTraining,
    TriuneForSequenceClassification,
    TriuneForTokenClassification,
    TriuneModel,
)
from triune.modeling.losses import IGNORED
from triune.modeling.residuals import Residual
from triune.modeling.selection import Selection


SIZES = {**disturbed.SIZES, "num_hidden_layers": 3}
IMAGES = {key: value for key, value in SIZES.items() if key not in ("vocab_size", "max_position_embeddings")}
MODELS = {
    "masked": (TriuneForMaskedLM, preset("bert-base", **SIZES)),
    "masked, today's": (TriuneForMaskedLM, preset("modernbert-mini", **SIZES, sliding_window=3)),
    "both tasks": (TriuneForPreTraining, preset("bert-base", **SIZES)),
    "causal": (TriuneForCausalLM, preset("gpt2", **SIZES)),
    "causal, rotary": (TriuneForCausalLM, preset("llama-mini", **{**SIZES, "num_key_value_heads": 1})),
    "classes by CLS": (TriuneForSequenceClassification, preset("bert-base", **SIZES, num_labels=3)),
    "classes by the last": (TriuneForSequenceClassification, preset("gpt2", **SIZES, num_labels=3)),
    "classes by the mean": (
        TriuneForSequenceClassification,
        preset("bert-base", **SIZES, num_labels=3, pooling={"type": "mean"}),
    ),
    "classes of tokens": (TriuneForTokenClassification, preset("bert-base", **SIZES, num_labels=3)),
    "text to text": (
        TriuneForConditionalGeneration,
        seq2seq_preset("t5-small", stacks={name: value for name, value in SIZES.items() if "drop" not in name}),
    ),
    "images": (
        TriuneForImageClassification,
        preset("vit-mini", **IMAGES, num_labels=3, embedding={"image_size": 32, "patch_size": 8}),
    ),
}
OF_TEXTS = ("classes by CLS", "classes by the last", "classes by the mean")


def model_and_batch(name, padding):
    model = disturbed.disturbed(*MODELS[name])
    if name == "images":
        return model, {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 1])}
    ids = torch.randint(3, 60, (4, 12))
    mask = torch.arange(12) < torch.tensor([12, 3, 7, 1])[:, None]
    mask = {"right": mask, "left": mask.flip(1), "none": torch.ones_like(mask)}[padding]
    labels = ids % 3 if name == "classes of tokens" else ids
    batch = {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}
    batch["labels"] = torch.where((torch.rand(ids.shape) < 0.4) & mask, labels, IGNORED)
    first = mask & ~mask.roll(1, 1)  # would be told by padding, which sees nothing: kernels differ in what that gives
    batch["labels"][first] = IGNORED
    if name in OF_TEXTS:
        batch["labels"] = torch.tensor([0, 1, 2, 1])
    if name == "both tasks":
        batch["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    return model, batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_loss_and_gradients(name, padding, attention):
    model, batch = model_and_batch(name, padding)
    model.set_attn_implementation(attention)
    wanted, gradients = output_and_gradients(model, batch)
    found, own = output_and_gradients(model, batch, loss_only=True)
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-6, rtol=1e-6)
    assert own.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(own[key], gradient, atol=3e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["masked", "causal", "classes by CLS", "classes by the last", "images"])
def test_the_work_that_is_done(name):
    """Tokens that feed-forward layers see: the real ones, and in the last layer those that are asked."""
    model, batch = model_and_batch(name, "right")
    seen = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, given, output: seen.append(given[0].shape[:2].numel()))
    model(**batch, loss_only=True)
    if name == "images":
        assert seen == [4 * 17, 4 * 17, 4]
        return
    real = int(batch["attention_mask"].sum())
    asked = int((batch["labels"][:, 1:] if name == "causal" else batch["labels"]).ne(IGNORED).sum())
    assert seen == [real, real, 4 if name in OF_TEXTS else asked] and real < 48
    seen.clear()
    model(**batch)
    assert seen == [48, 48, 48]


@pytest.mark.parametrize("name", ["masked", "text to text", "images"])
def test_stochastic_depth_is_of_samples(name):
    """The branches that are left out are those of the same samples, however their tokens lie."""
    model, batch = model_and_batch(name, "right")
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout"):
            module.dropout = 0.0 if isinstance(module.dropout, float) else module.dropout
        if isinstance(module, Residual):
            module.drop_path = 0.5
    both = []
    for options in ({}, {"loss_only": True}):
        torch.manual_seed(3)
        both.append(output_and_gradients(model, batch, **options))
    (wanted, gradients), (found, own) = both
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-6, rtol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(own[key], gradient, atol=3e-6, rtol=1e-4, msg=key)
    torch.manual_seed(4)
    assert output_and_gradients(model, batch)[0].loss != wanted.loss


@pytest.mark.parametrize("name", ["masked", "causal"])
def test_with_checkpointing(name):
    model, batch = model_and_batch(name, "right")
    _, gradients = output_and_gradients(model, batch)
    model.train()
    model.gradient_checkpointing_enable()
    _, own = output_and_gradients(model, batch, loss_only=True)
    for key, gradient in gradients.items():
        torch.testing.assert_close(own[key], gradient, atol=3e-6, rtol=1e-4, msg=key)


def test_hidden_states_that_are_read():
    """They are what they are without; the others are zero. Whoever asks for all layers gets all tokens."""
    model, batch = model_and_batch("masked", "right")
    backbone, inputs = model.model, {key: batch[key] for key in ("input_ids", "attention_mask")}
    read = batch["labels"] != IGNORED
    every = backbone(**inputs, output_hidden_states=True)
    some = backbone(**inputs, wanted=read)
    torch.testing.assert_close(some.last_hidden_state[read], every.last_hidden_state[read])
    assert not some.last_hidden_state[~read].any() and every.last_hidden_state[~read].any()
    shown = backbone(**inputs, wanted=read, output_hidden_states=True)
    for own, wanted in zip(shown.hidden_states, every.hidden_states, strict=True):
        torch.testing.assert_close(own, wanted)


def test_what_is_pooled_is_read():
    model, batch = model_and_batch("classes by CLS", "right")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    some = model.model(**inputs, wanted=torch.zeros((), dtype=torch.bool))
    torch.testing.assert_close(some.pooler_output, model.model(**inputs).pooler_output)


def test_a_shape_that_does_not_fit():
    backbone = TriuneModel(preset("bert-base", **SIZES))
    with pytest.raises(ValueError, match=r"must have shape \(batch, length\) = \(2, 5\), got \(2, 4\)"):
        backbone(torch.ones(2, 5, dtype=torch.long), wanted=torch.ones(2, 4, dtype=torch.bool))


def test_there_and_back():
    """And the gradient of each way is the other way."""
    torch.manual_seed(0)
    selection = Selection(torch.rand(3, 5) < 0.5)
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    row = torch.randn(1, len(selection.places), 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(selection.pick(selection.spread(row)), row)
    assert torch.autograd.gradcheck(selection.pick, x) and torch.autograd.gradcheck(selection.spread, row)
