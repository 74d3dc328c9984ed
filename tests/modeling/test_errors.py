"""Bad input meets one clear sentence: what was wrong, what it was, what is allowed."""

import pytest
import torch

from triune.configuration import TriuneConfig, preset
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForSequenceClassification,
    TriuneForTokenClassification,
    TriuneModel,
)


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 8}
IMAGES = {"type": "patches", "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def causal():
    return TriuneForCausalLM(TriuneConfig(**TEXT, attention="causal")).eval()


@pytest.fixture(scope="module")
def masked():
    return TriuneForMaskedLM(TriuneConfig(**TEXT)).eval()


@pytest.fixture(scope="module")
def image():
    return TriuneForImageClassification(TriuneConfig(**SIZES, embedding=IMAGES, num_labels=3)).eval()


def ids(*shape):
    return torch.zeros(shape, dtype=torch.long)


def says(error, *phrases):
    """The message holds each phrase."""
    text = "".join(f"(?=[\\s\\S]*{phrase})" for phrase in phrases)
    return pytest.raises(error, match=text)


@pytest.mark.parametrize("wrong", [50, 9999, -1])
def test_token_id_out_of_range(masked, wrong):
    """The id, the vocabulary's range, and a guess at the cause."""
    with says(IndexError, f"token id {wrong}", "ids 0 to 49", "vocab_size=50", "tokenizer"):
        masked(torch.tensor([[1, wrong]]))


def test_sequence_longer_than_the_table(masked, causal):
    """The length, the table's length, and what to do; also when a cache carries it past the end."""
    with says(ValueError, "9 tokens", "8 learned positions", "max_position_embeddings", "rotary"):
        masked(ids(1, 9))
    full = causal(ids(1, 8), use_cache=True)
    with says(IndexError, "position 8", "8 learned positions"):
        causal(ids(1, 1), past_key_values=full.past_key_values)


def test_rotary_has_no_longest_sequence():
    """Positions that are computed take any length."""
    model = TriuneForMaskedLM(TriuneConfig(**TEXT, position="rotary")).eval()
    assert model(ids(1, 30)).logits.shape == (1, 30, 50)


def test_wrong_image(image):
    """Size, divisibility, channels and dimensions of an image, each by name; other sizes work when asked for."""
    with says(ValueError, "24x16 pixels", "built for 16x16", "interpolate_pos_encoding=True"):
        image(torch.zeros(1, 3, 24, 16))
    with says(ValueError, "18x16 pixels", "patches of 4"):
        image(torch.zeros(1, 3, 18, 16), interpolate_pos_encoding=True)
    with says(ValueError, "3, height, width", r"\(1, 1, 16, 16\)", "3 channel"):
        image(torch.zeros(1, 1, 16, 16))
    with says(ValueError, "pixel_values must have shape", r"\(3, 16, 16\)"):
        image(torch.zeros(3, 16, 16))
    assert image(torch.zeros(1, 3, 24, 16), interpolate_pos_encoding=True).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "position", ["none", "sinusoidal", {"type": "sinusoidal", "dimensions": 2}, "rotary", "relative"]
)
def test_computed_positions_take_other_image_sizes(position):
    """Every kind of position takes a larger image when asked."""
    config = TriuneConfig(**SIZES, embedding=IMAGES, position=position, num_labels=3)
    model = TriuneForImageClassification(config).eval()
    assert model(torch.zeros(1, 3, 24, 32), interpolate_pos_encoding=True).logits.isfinite().all()


def test_wrong_kind_of_input(masked, image):
    """Pixels for a text model, tokens for an image model, floats for ids, nothing, two things at once."""
    with says(ValueError, "input_ids must be integers", r"\(1, 3, 16, 16\)", "reads tokens"):
        masked.model(pixel_values=torch.zeros(1, 3, 16, 16))
    with says(ValueError, "input_ids must be integers", "float32"):
        masked(torch.zeros(1, 4))
    with says(ValueError, "input_ids must be integers", r"\(4,\)"):
        masked(ids(4))
    with says(ValueError, "reads images", "pixel_values"):
        image.model(input_ids=ids(1, 4))
    with says(ValueError, "exactly one of input_ids, pixel_values and inputs_embeds"):
        masked()
    with says(ValueError, "exactly one of input_ids, pixel_values and inputs_embeds"):
        masked(ids(1, 4), inputs_embeds=torch.zeros(1, 4, 32))
    with says(ValueError, "exactly one of"):
        image()


def test_labels_of_the_wrong_shape(masked, causal, image):
    """The expected shape by meaning and number, and the one given."""
    with says(ValueError, r"labels must have shape \(batch, length\) = \(2, 6\), got \(2, 5\)"):
        masked(ids(2, 6), labels=ids(2, 5))
    with says(ValueError, r"\(2, 6\), got \(12,\)"):
        causal(ids(2, 6), labels=ids(12))
    with says(ValueError, "logits_to_keep=0", r"\(2, 1\), got \(2, 6\)"):
        causal(ids(2, 6), labels=ids(2, 6), logits_to_keep=1)
    with says(ValueError, r"labels must have shape \(batch,\) = \(2,\), got \(2, 2\)"):
        image(torch.zeros(2, 3, 16, 16), labels=ids(2, 2))
    assert image(torch.zeros(2, 3, 16, 16), labels=ids(2, 1)).loss.isfinite()
    tagger = TriuneForTokenClassification(TriuneConfig(**TEXT))
    with says(ValueError, r"\(batch, length\) = \(2, 6\), got \(2,\)"):
        tagger(ids(2, 6), labels=ids(2))
    several = TriuneForSequenceClassification(TriuneConfig(**TEXT, num_labels=4))
    with says(ValueError, r"\(batch, num_labels\) = \(2, 4\), got \(2, 3\)"):
        several(ids(2, 6), labels=torch.zeros(2, 3))
    number = TriuneForSequenceClassification(TriuneConfig(**TEXT, num_labels=1))
    with says(ValueError, r"\(batch,\) = \(2,\), got \(3,\)"):
        number(ids(2, 6), labels=torch.zeros(3))
    several.config.problem_type = "single_label_classification"
    with says(ValueError, "single_label_classification must be integers", "float32"):
        several(ids(2, 6), labels=torch.zeros(2))


def test_unknown_problem_type():
    """A typo is refused when it is set, not trained with another loss."""
    config = TriuneConfig(**TEXT)
    with says(ValueError, "problem_type='regresion'", "'regression'"):
        config.problem_type = "regresion"


def test_segment_and_position_out_of_range():
    """The offending number and the range."""
    embedding = {"type": "tokens", "type_vocab_size": 2}
    model = TriuneForMaskedLM(TriuneConfig(**TEXT, embedding=embedding)).eval()
    for wrong in (2, -1):
        with says(IndexError, f"token_type_ids holds {wrong}", "0 to 1"):
            model(ids(1, 3), token_type_ids=torch.tensor([[0, 1, wrong]]))
    with says(IndexError, "position -1", "8 learned positions"):
        model(ids(1, 3), position_ids=torch.tensor([[0, -1, 2]]))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_classifier_without_a_mask_finds_the_padding(attention, side):
    """A padded text without an attention mask: the pooled token is a real one, told by the padding id."""
    config = TriuneConfig(
        **{**TEXT, "max_position_embeddings": 16}, attention=attention, pooling="last", pad_token_id=0
    )
    model = TriuneForSequenceClassification(config).eval()
    text, pads = torch.randint(1, 50, (1, 5)), ids(1, 3)
    padded = torch.cat([text, pads] if side == "right" else [pads, text], dim=1)
    hidden = model.model(padded).last_hidden_state
    last = hidden[:, 4] if side == "right" else hidden[:, -1]
    torch.testing.assert_close(model(padded).logits, model.classifier(last))


@pytest.mark.parametrize(
    ("head", "config", "needs", "has", "fitting"),
    [
        (
            TriuneForMaskedLM,
            {**TEXT, "attention": "causal"},
            "attention 'bidirectional'",
            "'causal'",
            "TriuneForCausalLM",
        ),
        (TriuneForCausalLM, TEXT, "attention 'causal'", "'bidirectional'", "TriuneForMaskedLM"),
        (TriuneForImageClassification, TEXT, "embedding 'patches'", "'tokens'", "TriuneForSequenceClassification"),
        (TriuneForMaskedLM, {**SIZES, "embedding": IMAGES}, "embedding 'tokens'", "'patches'", "TriuneForImageClass"),
        (
            TriuneForTokenClassification,
            {**SIZES, "embedding": IMAGES},
            "embedding 'tokens'",
            "'patches'",
            "TriuneModel",
        ),
    ],
)
def test_head_that_cannot_stand_on_this_backbone(head, config, needs, has, fitting):
    """The head, what it needs, what the configuration has, and the heads that fit."""
    with says(ValueError, head.__name__, needs, has, f"Heads that fit it: .*{fitting}"):
        head(TriuneConfig(**config))


def test_subclass_of_a_head_is_held_to_the_same():
    """A user's own subclass meets the same refusal."""

    class MyModel(TriuneForCausalLM):
        pass

    with says(ValueError, "TriuneForCausalLM needs attention 'causal'"):
        MyModel(preset("bert-mini", **TEXT))


def test_flash_attention_with_relative_positions():
    """Flash kernels take no addend to the scores: refused with the position's name."""
    config = TriuneConfig(**TEXT, position="relative", attn_implementation="flash_attention_2")
    with says(ValueError, "[Ff]lash"):
        TriuneModel(config)


def test_unknown_attention_implementation():
    """transformers' own message names the implementation."""
    with says(ValueError, "sdqa"):
        TriuneModel(TriuneConfig(**TEXT, attn_implementation="sdqa"))


def test_classes_of_tokens_read_tokens():
    """Whatever is pooled for others: a vector for each token, as wide as the stack."""
    config = TriuneConfig(**TEXT, pooling="cls_and_mean", num_labels=3)
    assert TriuneForTokenClassification(config)(ids(2, 5)).logits.shape == (2, 5, 3)
