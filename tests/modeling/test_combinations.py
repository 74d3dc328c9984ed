"""Every combination of position, norm, placement and feed-forward keeps the promises of a transformer.

5 positions x 2 norms x 2 placements x 2 feed-forwards = 40 language models, each causal and bidirectional, and
6 positions (two-dimensional sinusoids too) x 8 = 48 image models.
"""

import itertools
import math

import pytest
import torch

from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune import AXES
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM


VOCAB, LENGTH = 97, 10
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SIZES, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 24}
IMAGE = {**SIZES, "embedding": {"type": "patches", "image_size": 16, "patch_size": 4, "num_register_tokens": 2}}

BLOCKS = [
    {"norm": norm, "norm_placement": placement, "feed_forward": feed_forward}
    for norm, placement, feed_forward in itertools.product(AXES["norm"], ("pre", "post"), AXES["feed_forward"])
]
TEXT_COMBINATIONS = [{"position": position, **block} for position in AXES["position"] for block in BLOCKS]
GRID_POSITIONS = [*AXES["position"], {"type": "sinusoidal", "dimensions": 2}]
IMAGE_COMBINATIONS = [{"position": position, **block} for position in GRID_POSITIONS for block in BLOCKS]


def name(combination):
    return "-".join(value if isinstance(value, str) else "sinusoidal2d" for value in combination.values())


every_text_combination = pytest.mark.parametrize("combination", TEXT_COMBINATIONS, ids=name)
every_image_combination = pytest.mark.parametrize("combination", IMAGE_COMBINATIONS, ids=name)
both_directions = pytest.mark.parametrize("direction", ["causal", "bidirectional"])


def spread_out(model):
    """Weights large enough that a wrong mask or position shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def language_model(combination, direction, **more):
    heads = {"causal": TriuneForCausalLM, "bidirectional": TriuneForMaskedLM}
    return heads[direction](TriuneConfig(**TEXT, attention=direction, **combination, **more))


def image_model(combination):
    return TriuneForImageClassification(TriuneConfig(**IMAGE, **combination, num_labels=5))


def tokens(batch=2, length=LENGTH):
    return torch.randint(0, VOCAB, (batch, length))


def test_number_of_combinations():
    """The numbers in the docstring above, against the tables of the configuration."""
    assert (len(TEXT_COMBINATIONS), len(IMAGE_COMBINATIONS)) == (40, 48)


@torch.no_grad()
@every_text_combination
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_token_sees_the_future(combination, implementation):
    """Causal: changing token 6 leaves the logits before it unchanged, and changes those at and after it."""
    model = spread_out(language_model(combination, "causal")).eval()
    model.set_attn_implementation(implementation)
    ids = tokens()
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % VOCAB
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-6, rtol=0)
    assert ((before - after)[:, 6:].abs().amax(dim=(0, 2)) > 1e-4).all()


@torch.no_grad()
@every_text_combination
def test_every_token_sees_every_other(combination):
    """Bidirectional: changing token 6 changes the logits of every position."""
    model = spread_out(language_model(combination, "bidirectional")).eval()
    ids = tokens()
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % VOCAB
    difference = (model(ids).logits - model(changed).logits).abs()
    assert (difference.amax(dim=(0, 2)) > 1e-5).all()


@torch.no_grad()
@every_text_combination
@both_directions
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(combination, direction, side):
    """Logits of real tokens with four pads, on either side, against the same tokens without pads."""
    model = spread_out(language_model(combination, direction)).eval()
    ids, pads = tokens(), tokens(length=4)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pads)
    order = (lambda real, pad: [real, pad]) if side == "right" else (lambda real, pad: [pad, real])
    padded, mask = torch.cat(order(ids, pads), 1), torch.cat(order(ones, zeros), 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits
    real = logits[:, :LENGTH] if side == "right" else logits[:, 4:]
    torch.testing.assert_close(real, model(ids).logits, atol=2e-5, rtol=1e-5)


@every_text_combination
@both_directions
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_row_of_padding_stays_finite(combination, direction, implementation):
    """A sample whose mask is all zeros: finite logits and finite gradients, and the other sample is not touched."""
    model = language_model(combination, direction).eval()
    model.set_attn_implementation(implementation)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1] = 0
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], model(ids[:1]).logits, atol=1e-5, rtol=0)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@every_text_combination
@both_directions
def test_every_parameter_learns_and_the_loss_starts_at_chance(combination, direction):
    """One backward pass reaches every parameter; the first loss is within 0.3 of ln(vocabulary)."""
    model = language_model(combination, direction, embedding={"type": "tokens", "type_vocab_size": 2, "norm": "after"})
    ids = tokens(batch=8)
    loss = model(ids, labels=tokens(batch=8), token_type_ids=(ids > 40).long()).loss
    assert abs(loss.item() - math.log(VOCAB)) < 0.3
    loss.backward()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@torch.no_grad()
@every_text_combination
def test_cached_equals_uncached(combination):
    """Logits of a prompt and of three single tokens after it, with a cache, against one pass over all of it."""
    model = spread_out(language_model(combination, "causal")).eval()
    ids = tokens()
    whole = model(ids, use_cache=False).logits
    out = model(ids[:, :7], use_cache=True)
    steps = [out.logits]
    for place in range(7, LENGTH):
        out = model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=2e-5, rtol=1e-5)


@every_image_combination
def test_image_model_learns_and_starts_at_chance(combination):
    """One backward pass reaches every parameter; the first loss is within 0.3 of ln(classes)."""
    model = image_model(combination)
    loss = model(torch.randn(8, 3, 16, 16), labels=torch.arange(8) % 5).loss
    assert abs(loss.item() - math.log(5)) < 0.3
    loss.backward()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@torch.no_grad()
@every_image_combination
def test_image_model_knows_where_patches_are(combination):
    """Exchanging two patches changes the answer, except without positions, where it must not."""
    model = spread_out(image_model(combination)).eval()
    image = torch.randn(1, 3, 16, 16)
    exchanged = image.clone()
    exchanged[..., :4, :4], exchanged[..., 8:12, 4:8] = image[..., 8:12, 4:8], image[..., :4, :4]
    difference = (model(image).logits - model(exchanged).logits).abs().max()
    assert (difference < 1e-5) if combination["position"] == "none" else (difference > 1e-4)
