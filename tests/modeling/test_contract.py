"""One contract for every preset and every head that fits it, at reduced width and depth."""

import math

import pytest
import torch

from triune import modeling
from triune.configuration import PRESETS, preset
from triune.configuration.configuration_triune import HEADS
from triune.modeling.feed_forward import FeedForward
from triune.modeling.transformer import Attention, TransformerLayer


SMALL = {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 64, "num_hidden_layers": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def small(name):
    fields = PRESETS[name]
    changes = {**SMALL, **NO_DROPOUT, "num_labels": 5}
    if "layer_types" in fields:
        changes["sliding_window"] = 3
    if "num_key_value_heads" in fields:
        changes["num_key_value_heads"] = 2
    if preset(name).embedding["type"] == "patches":
        return preset(name, **changes, embedding={"image_size": 16, "patch_size": 8})
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return preset(name, **changes, **special, vocab_size=89, max_position_embeddings=20)


def fits(name, head):
    config = preset(name)
    return all(getattr(config, axis)["type"] == choice for axis, choice in HEADS[head].needs.items())


PAIRS = [(name, head) for name in PRESETS for head in HEADS if fits(name, head)]
every_pair = pytest.mark.parametrize(("name", "head"), PAIRS)


def build(name, head):
    return getattr(modeling, head)(small(name))


def batch_for(model, labels=True):
    """A batch of three, with the labels that the head asks for and the loss of a blind guess."""
    config, head = model.config, type(model).__name__
    if config.embedding["type"] == "patches":
        batch = {"pixel_values": torch.randn(3, 3, 16, 16)}
    else:
        ids = torch.randint(0, 89, (3, 12))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not labels or head == "TriuneModel":
        return batch, None
    if head == "TriuneForPreTraining":
        asked = {"labels": torch.randint(0, 89, (3, 12)), "next_sentence_label": torch.randint(0, 2, (3,))}
        return {**batch, **asked}, math.log(89) + math.log(2)
    if head in ("TriuneForMaskedLM", "TriuneForCausalLM"):
        return {**batch, "labels": torch.randint(0, 89, (3, 12))}, math.log(89)
    shape = (3, 12) if head == "TriuneForTokenClassification" else (3,)
    return {**batch, "labels": torch.randint(0, 5, shape)}, math.log(5)


def logits_of(output):
    names = ("last_hidden_state", "prediction_logits", "logits")
    return next(getattr(output, name) for name in names if hasattr(output, name))


def test_presets_and_heads_are_all_here():
    """The number of pairs, so that none drops out unnoticed: 18 text presets x 4 heads, 7 image presets x 2,
    and pretraining for those that read both ways."""
    text = [name for name in PRESETS if preset(name).embedding["type"] == "tokens"]
    assert (len(text), len(PRESETS)) == (18, 25)
    both = [name for name in text if preset(name).attention["type"] == "bidirectional"]
    assert len(PAIRS) == 18 * 4 + 7 * 2 + len(both) and len(both) == 10
    assert set(HEADS) <= set(modeling.__all__)


@every_pair
def test_shapes_and_first_loss(name, head):
    """Shapes of the outputs, and a first loss within 0.3 of a blind guess."""
    model = build(name, head)
    batch, chance = batch_for(model)
    output = model(**batch)
    length = model.config.num_prefix_tokens + 4 if "pixel_values" in batch else 12
    shapes = {
        "TriuneModel": (3, length, 48),
        "TriuneForMaskedLM": (3, length, 89),
        "TriuneForPreTraining": (3, length, 89),
        "TriuneForCausalLM": (3, length, 89),
        "TriuneForTokenClassification": (3, length, 5),
    }
    assert logits_of(output).shape == shapes.get(head, (3, 5))
    assert chance is None or abs(output.loss.item() - chance) < 0.3


def value_of(output):
    """A number to learn by."""
    loss = getattr(output, "loss", None)
    return output.last_hidden_state.square().sum() + output.pooler_output.sum() if loss is None else loss


@every_pair
def test_every_parameter_gets_a_gradient(name, head):
    """One backward pass over the loss (for the bare model: over what it returns) leaves no parameter untouched; two,
    with a step between them, where branches start at zero."""
    model = build(name, head)
    batch, _ = batch_for(model)
    if model.config.embedding.get("type_vocab_size"):
        batch["token_type_ids"] = (batch["input_ids"] > 40).long()
    for _ in range(1 + model.config.residual["zero_init"]):
        model.zero_grad()
        value_of(model(**batch)).backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@torch.no_grad()
@every_pair
def test_evaluation_is_deterministic(name, head):
    """Two passes in evaluation mode are bit-equal, and dropout acts in training mode only."""
    model = getattr(modeling, head)(preset_with_dropout(name)).eval()
    batch, _ = batch_for(model, labels=False)
    assert torch.equal(logits_of(model(**batch)), logits_of(model(**batch)))
    model.train()
    assert not torch.equal(logits_of(model(**batch)), logits_of(model(**batch)))


def preset_with_dropout(name):
    config = small(name)
    config.hidden_dropout_prob = 0.2
    return config


@torch.no_grad()
@every_pair
def test_saved_and_loaded_model_is_the_same(name, head, tmp_path):
    """`save_pretrained`, then `from_pretrained`: equal outputs, equal configuration, nothing missing or unexpected."""
    model = build(name, head).eval()
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch, _ = batch_for(model, labels=False)
    assert torch.equal(logits_of(model(**batch)), logits_of(loaded(**batch)))
    ours, theirs = model.config.to_dict(), loaded.config.to_dict()
    for config in (ours, theirs):  # where it was loaded from, and what was saved
        for key in ("_name_or_path", "architectures", "dtype"):
            config.pop(key, None)
    assert ours == theirs


def test_bert_gpt_and_vit_are_the_same_classes():
    """The three famous models, by identity of the classes of their backbone, layers, attention and feed-forward."""
    bert = build("bert-base", "TriuneForMaskedLM").model
    gpt = build("gpt2", "TriuneForCausalLM").model
    vit = build("vit-b16", "TriuneForImageClassification").model
    for model in (bert, gpt, vit):
        assert type(model) is modeling.TriuneModel
        for layer in model.layers:
            assert type(layer) is TransformerLayer
            assert type(layer.self_attn) is Attention
            assert type(layer.mlp) is FeedForward
    # and with equal widths the stacks hold the same parameters, name by name
    stacks = [{key: p.shape for key, p in model.layers.named_parameters()} for model in (bert, gpt, vit)]
    assert stacks[0] == stacks[1] == stacks[2]


@pytest.mark.parametrize(
    ("source", "name", "head"),
    [
        ("TriuneForMaskedLM", "bert-base", "TriuneForSequenceClassification"),
        ("TriuneForMaskedLM", "modernbert-base", "TriuneForTokenClassification"),
        ("TriuneForMaskedLM", "bert-base", "TriuneModel"),
        ("TriuneForCausalLM", "gpt2", "TriuneForSequenceClassification"),
        ("TriuneForCausalLM", "smollm2-135m", "TriuneForTokenClassification"),
        ("TriuneForImageClassification", "vit-b16", "TriuneModel"),
        ("TriuneModel", "bert-base", "TriuneForMaskedLM"),
        ("TriuneModel", "gpt2", "TriuneForCausalLM"),
        ("TriuneModel", "vit-b16", "TriuneForImageClassification"),
    ],
)
def test_a_pretrained_backbone_gets_a_new_head(source, name, head, tmp_path):
    """Another head on a saved model: the backbone is the saved one, what is new is finite and starts as documented."""
    saved = build(name, source)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1)
    saved.save_pretrained(tmp_path)
    model, report = getattr(modeling, head).from_pretrained(tmp_path, output_loading_info=True)
    backbone = saved.base_model.state_dict()
    for key, value in model.base_model.state_dict().items():
        if f"model.{key}" not in report["missing_keys"] and key not in report["missing_keys"]:
            assert torch.equal(value, backbone[key]), key
    assert all(
        not key.startswith(("model.layers", "model.embed", "layers", "embed")) for key in report["missing_keys"]
    )
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
    for key in report["missing_keys"]:
        expected = documented_start(key, model.config)
        assert_start(key, model.state_dict()[key], expected)


def documented_start(name, config):
    """(mean, std) of a parameter, as the table of `_init_weights` has it."""
    if name.endswith("bias"):
        return 0.0, 0.0
    if "norm" in name:
        return 1.0, 0.0
    if name.endswith("residual.scale"):
        return config.residual["init"], 0.0
    ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
    if ends_branch and config.residual["zero_init"]:
        return 0.0, 0.0
    into_stream = ends_branch and config.norm_placement == "pre"
    return 0.0, config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if into_stream else 1.0)


def assert_start(name, value, expected):
    """Within five standard errors of the documented mean and spread."""
    mean, std = expected
    error = 5 * std / math.sqrt(value.numel()) + 1e-9
    assert value.isfinite().all(), name
    assert abs(value.mean().item() - mean) <= error, name
    assert abs(value.std(correction=0).item() - std) <= error, name


@pytest.mark.parametrize("name", PRESETS)
def test_start_is_as_documented(name):
    """Mean and spread of every parameter of every preset against the table of `_init_weights`."""
    changes = {"residual": "layer_scale"} if name == "vit-b16" else {}
    config = small(name)
    for field, value in changes.items():
        setattr(config, field, value)
    config.hidden_size, config.num_attention_heads, config.head_dim, config.num_key_value_heads = 96, 6, 16, 6
    for key, value in modeling.TriuneModel(config).named_parameters():
        assert_start(key, value.detach(), documented_start(key, config))


@pytest.mark.parametrize("name", PRESETS)
def test_named_layers_exist(name):
    """accelerate's FSDP2 refuses a model that names a class it does not have: each name is found in each preset."""
    model = build(name, "TriuneModel")
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}


def test_no_buffers_outside_the_checkpoint():
    """Non-persistent buffers come back as garbage from `from_pretrained`: no preset has a buffer of any kind."""
    for name in PRESETS:
        assert list(build(name, "TriuneModel").buffers()) == []
