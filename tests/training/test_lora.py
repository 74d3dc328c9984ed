"""LoRA: its count against a formula, merged against unmerged, the adapter's folder against PEFT, and runs with it."""

import json
import random
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import Killed, assert_same_run, killed_at, sharding
from two_processes import run_in_two

from triune.configuration import TriuneCLIPConfig, TriuneConfig
from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.modeling import (
    TriuneCLIPModel,
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedImageModeling,
    TriuneForSequenceClassification,
)
from triune.training import leaving, run
from triune.training.adapters import add_adapters, merge, save_adapter
from triune.training.arguments import parse


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16}
LLAMA = {"attention": "causal", "position": "rotary", "num_key_value_heads": 2, "feed_forward": "gated"}
MODELS = {
    "gpt": (TriuneForCausalLM, {**TEXT, "attention": "causal"}),
    "llama": (TriuneForCausalLM, {**TEXT, **LLAMA, "intermediate_size": 24}),
    "bert": (TriuneForSequenceClassification, {**TEXT, "num_labels": 3, "classifier": "mlp"}),
    "vit": (
        TriuneForImageClassification,
        {**SMALL, "embedding": {"type": "patches", "image_size": 8, "patch_size": 4}, "num_labels": 3},
    ),
}
IDS = torch.randint(0, 10, (2, 9), generator=torch.Generator().manual_seed(1))
HEAD = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")

pytestmark = pytest.mark.usefixtures("as_found", "no_figures")


def model_of(kind, **fields):
    head, config = MODELS[kind]
    return head(TriuneConfig(**config, **fields)).eval()


def settings(rank=2, alpha=None, dropout=0.0, targets=None):
    return SimpleNamespace(
        lora_rank=rank, lora_alpha=alpha, lora_dropout=dropout, lora_target_modules=targets, freeze=None
    )


def logits_of(model):
    inputs = torch.linspace(-2, 2, 384).view(2, 3, 8, 8) if model.main_input_name == "pixel_values" else IDS
    with torch.no_grad():
        return model(inputs).logits


@torch.no_grad()
def scatter(model):
    """What is trained is anything; so that a wrong scale or a lost matrix is seen."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.2)


def largest(one, other):
    return float(((one - other).abs().max() / other.abs().max()).detach())


# ---------------------------------------------------------------------------------------------------------------------
# The model


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_trained(kind):
    """q and v by default: as many as r (in + out) summed over both in every layer; the model is what it was."""
    model = model_of(kind)
    before, total, value_width = logits_of(model), model.num_parameters(), 8 if kind == "llama" else 16
    added = add_adapters(model, settings(rank=3))
    assert added.trained == 2 * (3 * (16 + 16) + 3 * (16 + value_width)) and added.total == total + added.trained
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_A." in name or ".lora_B." in name for name in trained) and len(trained) == 2 * 2 * 2
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    ("sizes", "rank", "trained"),
    [
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, 8, 788_482),
        ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}, 4, 148_994),
    ],
    ids=["large", "base"],
)
def test_what_older_systems_trained(sizes, rank, trained):
    """Their figures for DeBERTa-v3-large and -base, q and v and a classifier of two classes, to the digit, at their
    sizes: r (d + d) for each map, and the whole head."""
    with torch.device("meta"):
        model = TriuneForSequenceClassification(TriuneConfig(vocab_size=128_100, num_labels=2, **sizes))
        added = add_adapters(model, settings(rank=rank), ["classifier.weight", "classifier.bias"])
    width, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    assert added.trained == layers * 2 * rank * (width + width) + 2 * width + 2 == trained


def test_every_linear_map_of_the_layers():
    """`all-linear` against the sum over the seven maps of a Llama's layers; the tied decoder is not among them."""
    model = model_of("llama")
    added = add_adapters(model, settings(rank=2, targets="all-linear"))
    maps = [(16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16)]
    assert added.trained == 2 * sum(2 * (inside + outside) for inside, outside in maps)
    assert "lm_head" not in str(added)


def test_maps_by_name():
    """A part of a name chooses all that end in it, whole parts only: `0.self_attn.q_proj` is one map of two."""
    model = model_of("gpt")
    added = add_adapters(model, settings(targets="0.self_attn.q_proj, up_proj"))
    layers = "model.layers."
    assert added.maps == [f"{layers}0.self_attn.q_proj", f"{layers}0.mlp.up_proj", f"{layers}1.mlp.up_proj"]
    assert model.get_submodule(f"{layers}1.self_attn.q_proj").__class__ is torch.nn.Linear


@pytest.mark.parametrize("kind", MODELS)
def test_merged_equals_unmerged(kind):
    """Outputs within 1e-5, a weight against W + alpha / r B A, and nothing of PEFT is left."""
    model = model_of(kind)
    names, weight = set(model.state_dict()), model.model.layers[1].self_attn.v_proj.weight.detach().clone()
    plain = logits_of(model)
    add_adapters(model, settings(rank=2, alpha=5.0, targets="all-linear"))
    scatter(model)
    unmerged, layer = logits_of(model), model.model.layers[1].self_attn.v_proj
    expected = weight + 5.0 / 2 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    merge(model)
    assert set(model.state_dict()) == names
    assert largest(model.model.layers[1].self_attn.v_proj.weight, expected) < 1e-6
    assert largest(logits_of(model), unmerged) < 1e-5 < 1e-2 < largest(unmerged, plain)


# Models of several stacks: the names of attention's maps are the same in all of them.
NARROW = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16}
PATCHES = {"embedding": {"type": "patches", "image_size": 8, "patch_size": 4}}
PIXELS, NOISE = torch.linspace(-2, 2, 384).view(2, 3, 8, 8), torch.linspace(0, 1, 8).view(2, 4)
SEVERAL = {
    "seq2seq": (
        lambda: TriuneForConditionalGeneration(
            TriuneSeq2SeqConfig(encoder=NARROW, decoder=NARROW, pad_token_id=0, decoder_start_token_id=1)
        ),
        {"input_ids": IDS, "decoder_input_ids": IDS},
        2 * 3,  # the decoder's attention to the source too
    ),
    "mae": (
        lambda: TriuneForMaskedImageModeling(TriuneMAEConfig(encoder={**SMALL, **PATCHES}, decoder=SMALL)),
        {"pixel_values": PIXELS, "noise": NOISE},
        2 * 2,
    ),
    "clip": (
        lambda: TriuneCLIPModel(TriuneCLIPConfig(text=NARROW, vision={**SMALL, **PATCHES}, projection_dim=8)),
        {"input_ids": IDS, "pixel_values": PIXELS},
        2 * 2,
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_stacks(kind):
    """q and v of every stack, counted; nothing changes before a step; merged equals unmerged; and PEFT, which is not
    told the maps, finds the same ones by the type of the model."""
    build, batch, blocks = SEVERAL[kind]
    model = build().eval()
    with torch.no_grad():
        before = model(**batch).logits
        added = add_adapters(model, settings(rank=3, alpha=2.0))
        assert torch.equal(model(**batch).logits, before)
        assert len(added.maps) == 2 * blocks and added.trained == 2 * blocks * 3 * (16 + 16)
        scatter(model)
        unmerged = model(**batch).logits
        merge(model)
        assert largest(model(**batch).logits, unmerged) < 1e-5 < 1e-3 < largest(unmerged, before)
    theirs = peft.get_peft_model(build(), peft.LoraConfig(r=3))
    assert theirs.get_nb_trainable_parameters()[0] == added.trained


@pytest.mark.parametrize("kind", MODELS)
def test_the_adapter_is_peft_s(kind, tmp_path):
    """PeftModel.from_pretrained, given the model as it was, computes the same; what was fresh comes along."""
    fresh = {"bert": HEAD, "vit": ("classifier.weight", "classifier.bias")}.get(kind, ())
    base = model_of(kind)
    model = model_of(kind)
    model.load_state_dict(base.state_dict())
    added = add_adapters(model, settings(rank=2, alpha=3.0, targets="all-linear"), fresh)
    assert added.heads == (["classifier"] if fresh else [])
    scatter(model)
    save_adapter(model, tmp_path / "adapter", "me/base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    kept = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert sum(value.numel() for value in kept.values()) == added.trained
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base" and config["target_modules"] == sorted(
        config["target_modules"]
    )
    assert "base_model: me/base" in (tmp_path / "adapter/README.md").read_text()


def test_gradients_with_checkpointing():
    """Gradients of the matrices with activations computed twice, against kept ones."""
    found = []
    for twice in (False, True):
        torch.manual_seed(0)
        model = model_of("gpt").train()
        add_adapters(model, settings())
        scatter(model)
        if twice:
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert len(found[0]) == 8 and all(gradient.abs().max() > 0 for gradient in found[0])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found))


def test_maps_that_are_not_there():
    """The name, what is near, and what there is; a tied decoder cannot be merged and is not offered."""
    with pytest.raises(
        ValueError, match=r"no linear map 'q_prj' to adapt; did you mean 'q_proj'\?; there are down_proj"
    ):
        add_adapters(model_of("gpt"), settings(targets="v_proj,q_prj"))
    with pytest.raises(ValueError, match="no linear map 'lm_head'"):
        add_adapters(model_of("gpt"), settings(targets="lm_head"))
    assert add_adapters(model_of("gpt", tie_word_embeddings=False), settings(targets="lm_head")).maps == ["lm_head"]


def test_without_peft(monkeypatch):
    """PEFT is optional: the script shows an error that names the flag and the package."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="lora_rank=2 needs PEFT"):
        add_adapters(model_of("gpt"), settings())


REFUSED = {
    "lora_rank=4 needs model_name_or_path": ("--lora_rank", "4"),
    "lora_alpha=8.0 is not allowed without lora_rank": ("--lora_alpha", "8"),
    "lora_target_modules='o_proj' is not allowed without": ("--lora_target_modules", "o_proj"),
    "freeze='norm' is not allowed with lora_rank=4": ("--lora_rank=4", "--model_name_or_path=m", "--freeze=norm"),
    "lora_rank=0 is not allowed": ("--lora_rank", "0"),
    "lora_dropout=2.0 is not allowed": ("--lora_rank=4", "--model_name_or_path=m", "--lora_dropout=2"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_flags_that_do_not_fit(message):
    """Refused before any data is read."""
    with pytest.raises(ValueError, match=message):
        parse(list(REFUSED[message]))


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def arguments(data, folder, *flags, **others):
    given = {
        **{"output_dir": folder, "train_file": data, "validation_split_percentage": 20, "max_seq_length": 16},
        **{"max_steps": 8, "warmup_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        **{"logging_steps": 2, "eval_steps": 4, "save_steps": 3, "fast_fp32": "no", **others},
    }
    return parse([word for name, value in given.items() for word in (f"--{name}", str(value))] + list(flags))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Texts of two classes, and a language model of them."""
    folder = tmp_path_factory.mktemp("lora")
    draw, rows = random.Random(0), []
    for place in range(120):
        letters = ("abcd", "efgh")[place % 2]
        words = ["".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(draw.randint(3, 9))]
        rows.append({"text": " ".join(words), "label": letters})
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    config = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, position: rotary}"
    run.train(
        arguments(data, folder / "base", task="causal_lm", tokenizer_type="characters", config=config, max_steps=1)
    )
    return folder


LORA = {"lora_rank": 2, "lora_dropout": 0.2}


def test_a_run_leaves_both(base, tmp_path):
    """A classifier on a language model: the model folder against the base with the adapter, loaded by PEFT; what is
    not adapted is the base's to the bit; the parameters are those of an ordinary classifier."""
    source = base / "base/model"
    told = arguments(base / "data.jsonl", tmp_path, task="sequence_classification", model_name_or_path=source, **LORA)
    run.train(told)
    model = TriuneForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    start = TriuneForSequenceClassification.from_pretrained(source, num_labels=2)
    base_weights = start.state_dict()
    same = [name for name, value in model.state_dict().items() if torch.equal(value, base_weights[name])]
    learned = set(base_weights) - set(same)
    expected = {f"model.layers.{n}.self_attn.{kind}_proj.weight" for n in (0, 1) for kind in "qv"}
    assert learned == expected | {"classifier.weight", "classifier.bias"}
    loaded = peft.PeftModel.from_pretrained(start, tmp_path / "adapter").eval()
    assert largest(logits_of(loaded), logits_of(model)) < 1e-5
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parameters"] == model.num_parameters()
    assert (tmp_path / "model/README.md").is_file()


def test_an_interrupted_run_goes_on(base, tmp_path, monkeypatch):
    """Killed in two steps and started again, against left alone: curve, weights, moments and adapter, bit for bit,
    with dropout and averages."""
    flags = {"task": "causal_lm", "model_name_or_path": base / "base/model", "ema_decay": 0.9, **LORA}
    run.train(arguments(base / "data.jsonl", tmp_path / "straight", **flags))
    for step in (2, 5):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, step)
            run.train(arguments(base / "data.jsonl", tmp_path / "broken", **flags))
    run.train(arguments(base / "data.jsonl", tmp_path / "broken", **flags))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "straight/adapter" / file).read_bytes() == (tmp_path / "broken/adapter" / file).read_bytes()
    with pytest.raises(ValueError, match="lora_rank: 2 -> 4"):  # other matrices are another run
        run.train(arguments(base / "data.jsonl", tmp_path / "broken", **{**flags, "lora_rank": 4}))


def test_a_run_of_two_towers(tmp_path):
    """LoRA goes on from a saved CLIP: what has changed in the merged model against the maps that were named, and the
    adapter's names against those of both towers."""
    flags = {"task": "contrastive", "dataset_name": "shapes", "max_steps": 2, "warmup_steps": 0, "fast_fp32": "no"}
    flags |= {"max_train_samples": 64, "max_eval_samples": 16, "per_device_train_batch_size": 8}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {"text": small, "vision": {**small, "embedding": {"patch_size": 16}}, "projection_dim": 8}
    given = (
        {"config": json.dumps(towers), "output_dir": tmp_path / "base"},
        {"model_name_or_path": tmp_path / "base/model", "lora_rank": 2, "output_dir": tmp_path / "lora"},
    )
    for own in given:
        run.train(parse([word for name, value in {**flags, **own}.items() for word in (f"--{name}", str(value))]))
    before, after = (load_file(tmp_path / name / "model/model.safetensors") for name in ("base", "lora"))
    maps = {f"{tower}_model.layers.0.self_attn.{kind}_proj" for tower in ("text", "vision") for kind in "qv"}
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"{name}.weight" for name in maps
    }
    adapter = load_file(tmp_path / "lora/adapter/adapter_model.safetensors")
    assert {name.split(".lora_")[0] for name in adapter} == {f"base_model.model.{name}" for name in maps}


def test_a_checkpoint_has_what_is_trained(base, tmp_path):
    """Files of weights, averages and best weights against the names of what learns; and a base that has changed since
    is told, not trained on."""
    source = shutil.copytree(base / "base/model", tmp_path / "source")
    flags = {"task": "sequence_classification", "model_name_or_path": source, "ema_decay": 0.9, **LORA}
    told = arguments(base / "data.jsonl", tmp_path / "run", **flags)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 7)
        run.train(told)
    maps = [f"model.layers.{place}.self_attn.{kind}_proj" for place in (0, 1) for kind in "qv"]
    learned = {f"{name}.lora_{matrix}.default.weight" for name in maps for matrix in "AB"}
    learned |= {"classifier.weight", "classifier.bias"}
    files = [*(tmp_path / "run/checkpoints").rglob("model.safetensors"), *tmp_path.rglob("ema.safetensors")]
    assert len(files) >= 4 and all(set(load_file(file)) == learned for file in files)
    (source / "golden.safetensors").unlink()  # by which it would be told before
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="belongs to another base: model_name_or_path has other weights"):
        run.train(told)


def train_as(rank, data, folder, source, kind):
    leaving.figures.available = lambda: False
    if kind == "fsdp":
        run.make_accelerator = partial(sharding, run.make_accelerator)
    flags = {"task": "causal_lm", "model_name_or_path": source, "per_device_train_batch_size": 2}
    run.train(arguments(data, folder, **flags, lora_rank=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_equal_one(kind, base, tmp_path):
    """A step of 4 samples by one process, and dealt to two, copied or sharded: the same adapter and merged model."""
    source = base / "base/model"
    run.train(
        arguments(base / "data.jsonl", tmp_path / "one", task="causal_lm", model_name_or_path=source, lora_rank=2)
    )
    work = partial(train_as, data=base / "data.jsonl", folder=tmp_path / "two", source=source, kind=kind)
    run_in_two(work, tmp_path)
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert one.keys() == two.keys()
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
