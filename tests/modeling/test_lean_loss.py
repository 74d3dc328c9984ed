"""The loss without the logits, against the loss of all logits: the same number, the same gradients."""

import disturbed
import pytest
import torch
import torch.nn.functional as F
from disturbed import output_and_gradients

from triune.configuration import preset, seq2seq_preset
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForMaskedLM,
    TriuneForPreTraining,
    losses,
)
from triune.modeling.losses import IGNORED, LinearCrossEntropy


SIZES = {**disturbed.SIZES, "num_hidden_layers": 2}
HEADS = {
    "masked": (TriuneForMaskedLM, preset("bert-base", **SIZES)),
    "both tasks": (TriuneForPreTraining, preset("bert-base", **SIZES)),
    "causal": (TriuneForCausalLM, preset("gpt2", **SIZES)),
    "capped": (TriuneForCausalLM, preset("modern-mini", **SIZES, num_key_value_heads=1)),
    "untied, with a bias": (
        TriuneForCausalLM,
        preset("gpt2", **SIZES, tie_word_embeddings=False, lm_head={"bias": True, "softcap": 2.0}),
    ),
    "text to text": (
        TriuneForConditionalGeneration,
        seq2seq_preset("t5-small", stacks={name: value for name, value in SIZES.items() if "drop" not in name}),
    ),
}


def model_and_batch(name):
    model = disturbed.disturbed(*HEADS[name])
    ids = torch.randint(3, 60, (3, 12))
    labels = torch.where(torch.rand(ids.shape) < 0.4, ids, IGNORED)
    batch = {"input_ids": ids, "labels": labels}
    if name == "both tasks":
        batch["next_sentence_label"] = torch.tensor([0, 1, 1])
    return model, batch


@pytest.mark.parametrize("items", [None, 20], ids=["own count", "given count"])
@pytest.mark.parametrize("rows", [losses.ROWS, 5], ids=["at once", "in parts"])
@pytest.mark.parametrize("name", HEADS)
def test_equals_the_loss_of_all_logits(name, rows, items, monkeypatch):
    """Loss and every gradient; the logits are not there."""
    monkeypatch.setattr(losses, "ROWS", rows)
    model, batch = model_and_batch(name)
    given = {} if items is None else {"num_items_in_batch": items}
    wanted, gradients = output_and_gradients(model, batch, **given)
    found, own = output_and_gradients(model, batch, loss_only=True, **given)
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-6, rtol=1e-6)
    assert own.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(own[key], gradient, atol=2e-6, rtol=1e-4, msg=key)
    assert (found.prediction_logits if name == "both tasks" else found.logits) is None


def test_shifted_labels():
    """As a trainer that cuts sequences hands them over."""
    model, batch = model_and_batch("causal")
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    wanted = model(**batch).loss
    torch.testing.assert_close(model(**batch, shift_labels=shifted, loss_only=True).loss, wanted)


@pytest.mark.parametrize("name", HEADS)
def test_nothing_to_learn(name):
    """Where every label is ignored the loss is 0, and so are the gradients."""
    model, batch = model_and_batch(name)
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    batch.pop("next_sentence_label", None)
    output, gradients = output_and_gradients(model, batch, loss_only=True)
    assert output.loss == 0 and all(not gradient.any() for gradient in gradients.values())


def test_without_labels_it_is_refused():
    model, batch = model_and_batch("masked")
    with pytest.raises(ValueError, match="loss_only gives the loss alone, and needs labels"):
        model(batch["input_ids"], loss_only=True)
    with pytest.raises(ValueError, match=r"labels must have shape \(batch, length\)"):
        model(batch["input_ids"], labels=batch["labels"][:, :5], loss_only=True)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_derivatives(cap, bias, monkeypatch):
    """Against differences in float64."""
    monkeypatch.setattr(losses, "ROWS", 2)
    torch.manual_seed(0)
    x, weight, offset = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))
    )
    labels, share = torch.tensor([0, 6, 3, 3, 1]), torch.tensor(0.2, dtype=torch.float64)
    given = (x, weight, offset) if bias else (x, weight)
    assert torch.autograd.gradcheck(
        lambda x, weight, offset=None: LinearCrossEntropy.apply(x, weight, offset, labels, share, cap), given
    )


def test_in_bfloat16_it_is_as_near():
    """Under autocast, against float32: no further away than the loss of all logits is."""
    model, batch = model_and_batch("masked")
    _, exact = output_and_gradients(model, batch)
    errors = []
    for options in ({}, {"loss_only": True}):
        with torch.autocast("cpu", torch.bfloat16):
            _, gradients = output_and_gradients(model, batch, **options)
        errors.append(float(sum((gradients[key] - exact[key]).square().sum() for key in exact)) ** 0.5)
    assert 0 < errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("what", ["hook", "another map"])
def test_what_stands_before_the_decoder_is_asked(what):
    """A hook, or a map in the decoder's place as LoRA puts it there: the module itself is called."""
    model, batch = model_and_batch("masked")

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    if what == "hook":
        model.lm_head.register_forward_hook(lambda module, given, logits: 2 * logits)
    else:
        other = Doubled(32, 61)
        other.weight, other.bias = model.lm_head.weight, model.lm_head.bias
        model.lm_head = other
    torch.testing.assert_close(model(**batch, loss_only=True).loss, model(**batch).loss)
