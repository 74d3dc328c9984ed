"""`TriuneConfig`: defaults, derived fields, validation when made and when set, reading and writing."""

import copy
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, BertConfig

from triune.configuration import PRESETS, TriuneConfig, preset
from triune.configuration.configuration_triune import AXES, FIELDS
from triune.modeling import TriuneForMaskedLM


def message(make):
    """What a refusal says: a ValueError, or for a value of the wrong type the error of Hugging Face's dataclasses."""
    with pytest.raises((ValueError, StrictDataclassFieldValidationError)) as caught:
        make()
    return str(caught.value)


def test_three_models_one_field_apart():
    """The defaults are an encoder; one field makes it a language model, another an image model."""
    assert TriuneConfig().attention["type"] == "bidirectional"
    assert TriuneConfig(attention="causal").pooling["type"] == "last"
    assert TriuneConfig(embedding="patches").grid == (14, 14)


def test_entries_are_completed():
    """A name, or a dict with some options, becomes the full entry with every default."""
    assert TriuneConfig(position="rotary").position == {"type": "rotary", "theta": 10000.0, "local_theta": None}
    config = TriuneConfig(norm={"type": "layernorm", "eps": 1e-12})
    assert config.norm == {"type": "layernorm", "eps": 1e-12, "bias": True}
    config.norm = "rmsnorm"
    assert config.norm == {"type": "rmsnorm", "eps": 1e-6}


def test_derived_fields():
    """What is left out follows from the sizes that were given, not from the default sizes."""
    config = TriuneConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=3)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (16, 4, 256)
    assert config.layer_types == ["full_attention"] * 3
    assert config.final_norm is True
    assert TriuneConfig(norm_placement="post").final_norm is False
    assert TriuneConfig(sliding_window=4, num_hidden_layers=2).layer_types == ["sliding_attention"] * 2
    assert TriuneConfig(embedding={"type": "patches", "cls_token": False}).pooling["type"] == "mean"


def test_positions_of_an_image():
    """Rows and columns of patches, for a square and an oblong image, with and without CLS."""
    oblong = {"type": "patches", "image_size": [32, 64], "patch_size": 8}
    assert TriuneConfig(embedding=oblong).grid == (4, 8)
    assert TriuneConfig(embedding=oblong).num_positions == 33
    assert TriuneConfig(embedding={**oblong, "cls_token": False}).num_positions == 32


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_independent(name):
    """Each preset makes a valid configuration, and changing it does not change the preset."""
    config = preset(name)
    config.embedding["norm"] = "changed"
    config.layer_types.append("changed")
    assert preset(name).embedding["norm"] != "changed"
    assert "changed" not in preset(name).layer_types


def test_preset_overrides_merge_options():
    """A dict without a type changes options of the preset's own choice; with one it replaces the entry."""
    assert preset("vit-mini", embedding={"image_size": 64}).embedding["patch_size"] == 4
    assert preset("bert-mini", embedding={"type": "tokens"}).embedding["norm"] == "none"
    assert preset("gpt2-mini", position={"type": "rotary", "theta": 5.0}).position["theta"] == 5.0
    assert preset("modernbert-mini", num_hidden_layers=4).layer_types.count("full_attention") == 2
    assert preset("gpt2-mini", norm={"eps": 0.5}).norm == {"type": "layernorm", "eps": 0.5, "bias": True}
    assert "did you mean 'bert-mini'?" in message(lambda: preset("bert-minni"))


# ---------------------------------------------------------------------------------------------------------------------
# Refusals: (keywords, what the message must hold)

REFUSED = {
    "unknown choice": (
        {"position": "rotery"},
        "position needs a type that is one of 'learned', 'none', 'sinusoidal', 'rotary', 'relative', got 'rotery'; "
        "did you mean 'rotary'?",
    ),
    "unknown option": (
        {"position": {"type": "rotary", "tetha": 1.0}},
        "position 'rotary' has no option 'tehta'; its options: 'theta', 'local_theta'".replace("tehta", "tetha"),
    ),
    "option out of range": (
        {"norm": {"type": "layernorm", "eps": -1.0}},
        "norm['eps']=-1.0 is not allowed: it must be a number above 0",
    ),
    "options of another choice": ({"position": {"theta": 1.0}}, "position 'learned' has no option 'theta'"),
    "type that is no name": ({"position": {"type": ["rotary"]}}, "position needs a type that is one of"),
    "size out of range": (
        {"hidden_size": 0},
        "hidden_size=0 is not allowed: it must be an integer from 1 to 536,870,911",
    ),
    "optional size out of range": ({"head_dim": 0}, "head_dim=0 is not allowed: it must be None or an integer of at"),
    "window that no layer has": (
        {"num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window": 4},
        "sliding_window=4, but no layer",
    ),
    "odd buckets for two directions": (
        {"position": {"type": "relative", "num_buckets": 5}},
        "num_buckets=5 between two directions: it must be even",
    ),
    "distances that all have a bucket": (
        {"position": {"type": "relative", "max_distance": 8}},
        "max_distance must be above 8",
    ),
    "the same, one direction": (
        {"position": {"type": "relative", "max_distance": 16}, "attention": "causal"},
        "max_distance must be above 16",
    ),
    "wrong type": ({"hidden_size": "768"}, "hidden_size"),
    "probability": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5 is not allowed"),
    "unknown activation": ({"hidden_act": "gelo"}, "hidden_act='gelo' is not allowed: it must be one of elu, gelu"),
    "cap of nothing": (
        {"lm_head": {"type": "plain", "softcap": 0}},
        "lm_head['softcap']=0 is not allowed: it must be None or a number above 0",
    ),
    "zero start": ({"residual": {"type": "plain", "zero_init": 1}}, "residual['zero_init']=1 is not allowed"),
    "unknown placement": ({"norm_placement": "middle"}, "it must be 'pre' or 'post'"),
    "heads do not divide the width": (
        {"hidden_size": 100, "num_attention_heads": 12},
        "hidden_size=100 is not divisible by num_attention_heads=12",
    ),
    "key-value heads do not divide the heads": (
        {"num_attention_heads": 12, "num_key_value_heads": 5},
        "num_attention_heads=12 is not divisible by num_key_value_heads=5",
    ),
    "odd rotary head": ({"position": "rotary", "head_dim": 15}, "head_dim=15 must be even"),
    "sliding without a window": (
        {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
        "needs a sliding_window; it is None",
    ),
    "unknown layer type": ({"num_hidden_layers": 1, "layer_types": ["conv"]}, "layer_types may hold"),
    "layer types do not fit": ({"num_hidden_layers": 3, "layer_types": ["full_attention"]}, "num_hidden_layers"),
    "image does not divide": (
        {"embedding": {"type": "patches", "image_size": 225}},
        "image_size=225 is not divisible by patch_size=16",
    ),
    "two-dimensional text": (
        {"position": {"type": "sinusoidal", "dimensions": 2}},
        "dimensions=2 needs embedding 'patches', got 'tokens'",
    ),
    "length of an image": (
        {"embedding": "patches", "max_position_embeddings": 100},
        "max_position_embeddings=100 contradicts the 197 positions of this image",
    ),
    "pooling without its token": (
        {"embedding": {"type": "patches", "cls_token": False}, "pooling": "cls"},
        "pooling 'cls' needs a CLS token",
    ),
    "pooling of patches without patches": ({"pooling": "patches"}, "pooling 'patches' needs embedding 'patches'"),
    "pooling without registers": ({"embedding": "patches", "pooling": "registers"}, "num_register_tokens above 0"),
    "first token of causal attention": (
        {"attention": "causal", "pooling": "cls"},
        "use 'last' or 'mean'",
    ),
    "moved norm in a post-norm stack": (
        {"embedding": {"type": "tokens", "norm": "first"}, "norm_placement": "post"},
        "it needs norm_placement 'pre'",
    ),
    "unknown key": ({"num_hiden_layers": 4}, "TriuneConfig has no field 'num_hiden_layers'; did you mean 'num_hidden"),
    "generation parameter": ({"temperature": 0.7}, "TriuneConfig has no field 'temperature'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    """Each impossible value or pair, with a message that names the field, the value and what is allowed."""
    keywords, expected = REFUSED[case]
    assert expected in message(lambda: TriuneConfig(**keywords))


@pytest.mark.parametrize(
    ("field", "value"),
    [("position", "rotery"), ("hidden_act", "gelo"), ("hidden_size", -3), ("norm", {"type": "layernorm", "x": 1})],
)
def test_values_are_checked_when_set(field, value):
    """An assignment is checked as the constructor is, and leaves the configuration as it was."""
    config = TriuneConfig()
    before = copy.deepcopy(getattr(config, field))
    assert field in message(lambda: setattr(config, field, value))
    assert getattr(config, field) == before


def test_pairs_are_checked_when_a_model_is_built():
    """Fields set one by one, or an entry changed in place, are checked together before any weight is made."""
    from triune.modeling import TriuneModel

    config = TriuneConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    config.num_key_value_heads = 3
    assert "num_key_value_heads=3" in message(lambda: TriuneModel(config))
    config.num_key_value_heads = 4
    config.position["typo"] = 1
    assert "no option 'typo'" in message(lambda: TriuneModel(config))
    config.position = {"type": "rotary"}
    config.position["type"] = "sinusoidal"
    assert "position 'sinusoidal' has no option" in message(lambda: TriuneModel(config))
    config.position, config.pooling = "learned", None
    config.norm["type"] = "rmsnorm"
    config.norm.pop("bias")
    assert type(TriuneModel(config).norm).__name__ == "RMSNorm"  # and the pooling is derived again


def test_every_field_is_documented_or_plain():
    """Every axis and every field with a rule is a field of the class."""
    fields = set(TriuneConfig.__dataclass_fields__)
    assert set(AXES) <= fields and set(FIELDS) <= fields


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def test_round_trip(tmp_path):
    """Saved and loaded configurations are equal, for every preset."""
    for name in PRESETS:
        preset(name).save_pretrained(tmp_path / name)
        loaded = TriuneConfig.from_pretrained(tmp_path / name)
        for field in TriuneConfig.__dataclass_fields__:
            if field != "transformers_version":
                assert getattr(loaded, field) == getattr(preset(name), field), (name, field)


def test_overrides_when_loading(tmp_path):
    """Fields given to from_pretrained change the loaded ones, options of an axis keep the others."""
    preset("vit-mini").save_pretrained(tmp_path)
    config = TriuneConfig.from_pretrained(tmp_path, embedding={"image_size": 64}, hidden_dropout_prob=0.3)
    assert (config.embedding["image_size"], config.embedding["patch_size"]) == (64, 4)
    assert (config.hidden_dropout_prob, config.num_positions) == (0.3, 257)


def test_saved_file_says_everything(tmp_path):
    """config.json holds every field, defaults too: a later version with other defaults reads the same model."""
    TriuneConfig(attention="causal").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    own = set(TriuneConfig.__annotations__)
    assert own - {"keys_to_ignore_at_inference"} <= set(written)


def test_unknown_keys_of_a_file_are_kept(tmp_path):
    """What transformers, PEFT, a quantiser or a later version wrote survives loading and saving."""
    preset("gpt2-mini").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    foreign = {"some_future_field": [1, {"a": 2}], "task_specific_params": {"x": 1}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **foreign}))
    config = TriuneConfig.from_pretrained(tmp_path)
    assert config.some_future_field == [1, {"a": 2}]
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: again[key] for key in foreign} == foreign
    assert copy.deepcopy(config).some_future_field == [1, {"a": 2}]


def test_a_file_cannot_choose_code(tmp_path):
    """An attention implementation that names a Hub repository is refused in a file, plain, private or nested."""
    preset("gpt2-mini").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    clean = json.loads(file.read_text())
    hostile = [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "someone/kernel:fast"}},
        {"text_config": {"attn_implementation": "someone/kernel@main"}},
        {"experts_implementation": "someone/kernel"},
    ]
    for keys in hostile:
        file.write_text(json.dumps({**clean, **keys}))
        for read in (TriuneConfig.from_pretrained, AutoConfig.from_pretrained):
            assert "would download and run code" in message(lambda read=read: read(tmp_path))
    file.write_text(json.dumps({**clean, "attn_implementation": "eager"}))
    assert TriuneConfig.from_pretrained(tmp_path)._attn_implementation == "eager"


def test_caller_may_choose_code(tmp_path):
    """The same name as the caller's explicit argument is the caller's choice."""
    preset("gpt2-mini").save_pretrained(tmp_path)
    config = TriuneConfig.from_pretrained(tmp_path, attn_implementation="someone/kernel")
    assert config._attn_implementation == "someone/kernel"


def test_other_families_are_not_read_as_triune(tmp_path):
    """A checkpoint of another model_type is refused by name, not read with random weights."""
    BertConfig().save_pretrained(tmp_path)
    for read in (TriuneConfig.from_pretrained, TriuneForMaskedLM.from_pretrained):
        assert "model_type 'bert'" in message(lambda read=read: read(tmp_path))


def test_a_key_of_a_file_cannot_replace_a_method(tmp_path):
    """A key named like a method, a property or a private field of transformers is left out."""
    preset("gpt2-mini").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    hostile = {"check": 1, "grid": [9, 9], "num_positions": 3, "save_pretrained": "x", "_auto_class": "AutoConfig"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **hostile}))
    config = TriuneConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_triune.py").exists()
    assert config.num_positions == 512


def test_export_refuses_a_file(tmp_path):
    """A path that is a file gives a clear error and writes nothing."""
    (tmp_path / "taken").write_text("x")
    with pytest.raises((NotADirectoryError, AssertionError), match="taken"):
        TriuneConfig().save_pretrained(tmp_path / "taken")
