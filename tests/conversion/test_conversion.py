"""Published checkpoints as Triune models and back: small random ones of transformers' own classes, with no weight that
is zero or one, written by transformers, converted, compared, and written again (benchmarks/conversion.py)."""

import contextlib
import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from script_loading import load_script

from triune import conversion
from triune.configuration import TriuneConfig, clip_preset, mae_preset, preset, seq2seq_preset
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig
from triune.conversion.checking import answer, random_inputs
from triune.conversion.families import FAMILIES
from triune.conversion.rules import TURNED, Fused, Rolled, Rule, Shaped, plan
from triune.modeling import (
    TriuneCLIPModel,
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedImageModeling,
    TriuneForMaskedLM,
)


SCRIPT = load_script("benchmarks/conversion.py")
ORIGINALS, SIZES, TEXT = SCRIPT.ORIGINALS, SCRIPT.SIZES, SCRIPT.TEXT
TINY = 1e-5  # of answers around 1


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("name", ORIGINALS)
def test_there_and_back(name, tmp_path):
    """Against transformers' own model of the same file: what is computed and generated. Against the file itself: the
    keys, every bit and every field of the configuration. In bfloat16 the two may round differently, and err alike:
    both against the original in float32."""
    row = SCRIPT.measured(name, tmp_path)
    assert row["largest"] > 0.1 and row["float32"] <= TINY * max(1.0, row["largest"])
    assert row["bfloat16_error"] <= 2 * row["bfloat16_error_of_original"] + 0.01 * row["largest"]
    assert row.get("tokens_equal", True)
    assert row["keys_equal"] and row["bits_equal"] and row["config_equal"]


@pytest.mark.parametrize("name", SCRIPT.OLDER)
def test_older_layouts(name, tmp_path):
    """Read as the authors wrote them, and saved as today's layout: every bit of the file that transformers writes."""
    row = SCRIPT.measured_older(name, tmp_path)
    assert row["float32"] <= TINY * max(1.0, row["largest"])
    assert row["keys_equal"] and row["bits_equal"]


def test_every_family_and_head_has_a_case():
    """Each pair of a family's table stands among the originals."""
    cases = {(SCRIPT.config_of(one).model_type, one.model) for one in ORIGINALS.values()}
    missing = {
        (name, model)
        for name, family in FAMILIES.items()
        for model in family.heads
        if (name, model) not in cases and name not in ("mistral", "qwen2", "qwen3", "dinov2_with_registers")
    }
    assert not missing  # the four of Llama's and DINOv2's shape share their tables


@pytest.mark.parametrize("name", ["bert-mlm", "gpt2", "dinov2", "vit-mae", "clip", "t5-gated", "marian-backbone"])
def test_a_triune_folder_remembers(name, tmp_path):
    """Saved as a Triune model, loaded again and then given back: the same answers, the same bits; tables that are
    fixed stay fixed."""
    SCRIPT.write(name, tmp_path / "theirs")
    ours = conversion.load(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "own")
    again = type(ours).from_pretrained(tmp_path / "own").eval()
    inputs = random_inputs(ours.config)
    assert torch.equal(answer(again, inputs), answer(ours, inputs))
    fixed = [dict(model.named_buffers()).keys() & model.state_dict().keys() for model in (ours, again)]
    assert fixed[0] == fixed[1] and bool(fixed[0]) == (name in ("vit-mae", "marian-backbone", "dinov2"))
    conversion.save(again, tmp_path / "back")
    assert all(SCRIPT.compared(tmp_path / "theirs", tmp_path / "back").values())


def test_what_lies_beside_comes_along(tmp_path):
    """The tokenizer of the source, and nothing from the folder that Python runs in."""
    SCRIPT.write("gpt2", tmp_path / "theirs")
    (tmp_path / "theirs" / "merges.txt").write_text("#version: 0.2\n")
    conversion.save(conversion.load(tmp_path / "theirs"), tmp_path / "back")
    assert (tmp_path / "back" / "merges.txt").is_file()
    fresh = TriuneForCausalLM(preset("gpt2", **TEXT))
    with contextlib.chdir(tmp_path / "theirs"):
        conversion.save(fresh, tmp_path / "fresh", family="gpt2")
    assert not (tmp_path / "fresh" / "merges.txt").exists()


SCRATCH = {
    "bert": (TriuneForMaskedLM, preset("bert-base", **TEXT), hf.BertForMaskedLM),
    "gpt2": (TriuneForCausalLM, preset("gpt2", **TEXT), hf.GPT2LMHeadModel),
    "vit": (
        TriuneForImageClassification,
        preset("vit-b16", **SIZES, embedding={"image_size": 24, "patch_size": 8}, num_labels=3),
        hf.ViTForImageClassification,
    ),
    "vit_mae": (
        TriuneForMaskedImageModeling,
        mae_preset(
            "mae-base",
            encoder={**SIZES, "embedding": {"image_size": 24, "patch_size": 8}},
            decoder={**SIZES, "hidden_size": 24},
        ),
        hf.ViTMAEForPreTraining,
    ),
    "marian": (
        TriuneForConditionalGeneration,
        seq2seq_preset(
            "opus-mt",
            stacks={**SIZES, "vocab_size": 97, "max_position_embeddings": 40},
            pad_token_id=96,
            decoder_start_token_id=96,
        ),
        hf.MarianMTModel,
    ),
    "clip": (
        TriuneCLIPModel,
        clip_preset(
            "clip-vit-b32",
            text={**TEXT, "eos_token_id": 96, "bos_token_id": 1, "pad_token_id": 0},
            vision={**SIZES, "embedding": {"image_size": 24, "patch_size": 8}},
            projection_dim=16,
        ),
        hf.CLIPModel,
    ),
    "t5": (
        TriuneForConditionalGeneration,
        seq2seq_preset("t5-small", stacks={**SIZES, "vocab_size": 97, "head_dim": 12}),
        hf.T5ForConditionalGeneration,
    ),
}


@pytest.mark.parametrize("name", SCRATCH)
def test_a_model_that_was_trained_here(name, tmp_path):
    """Fresh, saved as the published model, read by transformers without code of ours: equal logits, and nothing that
    starts at random."""
    kind, config, theirs = SCRATCH[name]
    torch.manual_seed(0)
    ours = SCRIPT.randomised(kind(config))
    conversion.save(ours, tmp_path / "out", family=name)
    stock, loading = theirs.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = random_inputs(config)
    torch.testing.assert_close(answer(stock.eval(), inputs), answer(ours, inputs), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Other heads


def rewritten(folder, change):
    """The tensors of a folder under other names."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_another_head(tmp_path):
    """A classifier on a masked language model: the backbone's bits, a fresh head, and a report of both."""
    SCRIPT.write("bert-mlm", tmp_path)
    ours, report = conversion.load(tmp_path, head="TriuneForTokenClassification", output_loading_info=True)
    source = load_file(tmp_path / "model.safetensors")
    assert torch.equal(ours.model.embed_tokens.weight, source["bert.embeddings.word_embeddings.weight"])
    assert report.fresh == ["classifier.bias", "classifier.weight"]
    assert report.left_out == [
        "lm_head.bias",
        *(f"transform.{one}" for one in ("dense.bias", "dense.weight", "norm.bias", "norm.weight")),
    ]
    assert 0 < ours.classifier.weight.std() < 0.05 and not ours.classifier.bias.any()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_the_teachers_classifier_is_left_out(tmp_path):
    """A DeiT with two classifiers has no head here; under the one for images it keeps the one that reads CLS."""
    config = hf.DeiTConfig(**SCRIPT.IMAGE, num_labels=5)
    theirs = SCRIPT.randomised(hf.DeiTForImageClassificationWithTeacher(config))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="deit: there is no head for DeiTForImageClassificationWithTeacher"):
        conversion.load(tmp_path)
    ours, report = conversion.load(tmp_path, head="TriuneForImageClassification", output_loading_info=True)
    assert report.left_out == ["distillation_classifier.bias", "distillation_classifier.weight"] and not report.fresh
    inputs = random_inputs(ours.config)
    wanted = theirs(**inputs).cls_logits
    torch.testing.assert_close(answer(ours, inputs), wanted, atol=1e-5, rtol=1e-5)


def test_other_classes(tmp_path):
    """Under a head that is asked for, a classifier of another size starts fresh; the backbone must fit."""
    SCRIPT.write("vit", tmp_path)
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    wanted = {"head": "TriuneForImageClassification", "config": labels, "output_loading_info": True}
    ours, report = conversion.load(tmp_path, **wanted)
    assert report.fresh == ["classifier.bias", "classifier.weight"] and ours.config.num_labels == 2
    assert 0 < ours.classifier.weight.std() < 0.05 and not ours.classifier.bias.any()
    with pytest.raises(ValueError, match=r"of another shape: classifier\.bias \(5,\) and not \(2,\)"):
        conversion.load(tmp_path, config=labels)


@pytest.mark.parametrize("key", ["vision_model.encoder.layers.1.mlp.fc2.bias", "logit_scale"])
def test_a_head_that_is_asked_for_hides_no_damage(key, tmp_path):
    """The checkpoint's own head by its name, as training asks for it: what is missing or of another size in a tower is
    an error, and never starts at random."""
    SCRIPT.write("clip", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rewritten(tmp_path, without(key))
    with pytest.raises(ValueError, match="the checkpoint as TriuneCLIPModel does not fit; missing: "):
        conversion.load(tmp_path, head="TriuneCLIPModel")
    if key != "logit_scale":
        rewritten(tmp_path, lambda one: {**tensors, key: torch.ones(7)})
        with pytest.raises(
            ValueError, match=r"of another shape: vision_model\.layers\.1\.mlp\.down_proj\.bias \(7,\)"
        ):
            conversion.load(tmp_path, head="TriuneCLIPModel")


def test_a_saved_folder_names_no_place(tmp_path):
    """Where a model was loaded from stays here: a published configuration would tell a machine's folders."""
    SCRIPT.write("bert", tmp_path / "theirs")
    conversion.load(tmp_path / "theirs").save_pretrained(tmp_path / "own")
    assert str(tmp_path) not in (tmp_path / "own" / "config.json").read_text()


def test_mixed_types_become_the_widest(tmp_path):
    """OpenAI's files have matrices in float16 and norms in float32."""
    SCRIPT.write("clip", tmp_path)
    rewritten(tmp_path, lambda one: {key: t.half() if t.dim() > 1 else t for key, t in one.items()})
    assert {one.dtype for one in conversion.load(tmp_path).parameters()} == {torch.float32}
    assert {one.dtype for one in conversion.load(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def broken(name, change):
    def one(folder):
        SCRIPT.write(name, folder)
        rewritten(folder, change)

    return one


def told(name, **fields):
    def one(folder):
        SCRIPT.write(name, folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return one


def cut_short(folder):
    SCRIPT.write("bert", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def in_no_layout(folder):
    SCRIPT.write("bert", folder)
    (folder / "config.json").unlink()


def more_than_timm(folder):
    SCRIPT.write("vit", folder)
    rewritten(folder, lambda one: {**SCRIPT.timm_vit(one), "blocks.0.ls1.gamma": torch.ones(36)})
    (folder / "config.json").unlink()


def less_than_openai(folder):
    SCRIPT.write("clip", folder)
    rewritten(folder, lambda one: without("ln_final.bias")(SCRIPT.openai_clip(one)))
    (folder / "config.json").unlink()


def without(name):
    return lambda tensors: {key: one for key, one in tensors.items() if key != name}


REFUSED = {
    "missing": (
        broken("bert-mlm", without("bert.encoder.layer.1.output.dense.bias")),
        r"missing: model\.layers\.1\.mlp\.down_proj\.bias",
    ),
    "extra": (
        broken("gpt2", lambda one: {**one, "transformer.h.0.gate": torch.ones(3)}),
        "unknown: transformer.h.0.gate",
    ),
    "shape": (
        broken("vit", lambda one: {**one, "vit.layernorm.bias": torch.ones(7)}),
        r"of another shape: model\.norm\.bias \(7,\) and not \(36,\)",
    ),
    "not tied": (
        broken("bert-mlm", lambda one: {**one, "cls.predictions.decoder.weight": torch.ones(97, 36)}),
        r"left over: lm_head\.weight",
    ),
    "cut short": (cut_short, "model.safetensors cannot be read"),
    "activation": (told("bert", hidden_act="snake"), "hidden_act='snake' is not allowed"),
    "positions": (
        told("bert", position_embedding_type="relative_key"),
        "bert: position_embedding_type='relative_key' is not converted: Triune has 'absolute' or None only",
    ),
    "untied": (told("bert-mlm", tie_word_embeddings=False), "tie_word_embeddings=False is not converted"),
    "decoder": (told("bert", is_decoder=True), "is_decoder=True is not converted"),
    "window": (told("qwen2", use_sliding_window=True), "use_sliding_window=True is not converted"),
    "scaled rope": (
        told("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        "rope_parameters.rope_type='linear' is not converted",
    ),
    "attention by layer": (
        told("gpt2", scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx=True is not converted",
    ),
    "no layout": (in_no_layout, "holds no config.json that says what the model is, and its tensors are in no layout"),
    "more than timm": (more_than_timm, r"looks like timm's ViT, and has more: blocks\.0\.ls1\.gamma"),
    "less than OpenAI": (less_than_openai, r"missing: text_model\.norm\.bias"),
    "random depth": (told("dinov2", drop_path_rate=0.1), "dinov2: drop_path_rate=0.1 is not converted"),
    "another kind": (told("bert", model_type="mamba"), "model_type 'mamba', which is not converted"),
    "another head": (told("bert", architectures=["BertForQuestionAnswering"]), "no head for BertForQuestionAnswering"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name, tmp_path):
    """Damaged files, and what Triune has no words for: one sentence, with the field or the tensor."""
    damage, says = REFUSED[name]
    damage(tmp_path)
    with pytest.raises(ValueError, match=says):
        conversion.load(tmp_path)


def test_a_pickle_with_code_is_not_run(tmp_path):
    """A file that would write another one when it is unpickled."""

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    SCRIPT.write("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        conversion.load(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_what_no_family_has_is_named(tmp_path):
    """Models of Triune that are no BERT and no GPT-2: the options in the way; nothing is written."""
    model = TriuneForMaskedLM(preset("bert-base", **TEXT, position="rotary", hidden_act="relu"))
    with pytest.raises(ValueError, match="this model is not one of bert: position="):
        conversion.save(model, tmp_path / "out", family="bert")
    with pytest.raises(ValueError, match=r"this model is not one of gpt2: .*attention="):
        conversion.save(model, tmp_path / "out", family="gpt2")
    with pytest.raises(ValueError, match="say family=, one of bert"):
        conversion.save(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"family='brt' is not there; .*did you mean 'bert'"):
        conversion.save(model, tmp_path / "out", family="brt")
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    """What was there stays."""
    SCRIPT.write("bert", tmp_path / "theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        conversion.save(conversion.load(tmp_path / "theirs"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------------------------------------------------------------
# Rules


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (TURNED, [(3, 5)]),
        (TURNED, [(5,)]),
        (Fused(3), [(9, 4)]),
        (Fused(3, turned=True), [(4, 9)]),
        (Fused(2, turned=True), [(8,)]),
        (Shaped((2, 3, 4), (2, 12)), [(2, 3, 4)]),
        (Shaped((), (1,)), [()]),
        (Rolled(2), [(5, 3)]),
    ],
)
def test_changes_lose_nothing(change, shapes):
    """There and back against what it was, to the bit."""
    tensors = [torch.randn(shape) for shape in shapes]
    again = change.back(change.there(tensors))
    assert all(torch.equal(one, other) for one, other in zip(again, tensors)) and len(again) == len(tensors)


def test_plans_take_each_name_once():
    """A rule of three takes them only together; what no rule knows is told."""
    rules = [Rule("h.{n}.qkv.{p}", [f"layers.{{n}}.{one}.{{p}}" for one in "qkv"], Fused(3)), Rule("out", "head")]
    found = plan(rules, ["h.0.qkv.weight", "h.11.qkv.bias", "out", "h.x.qkv.weight"])
    assert found.targets == {
        *(f"layers.0.{one}.weight" for one in "qkv"),
        *(f"layers.11.{one}.bias" for one in "qkv"),
        "head",
    }
    assert found.unknown == ["h.x.qkv.weight"]
    back = plan(rules, ["layers.0.q.weight", "layers.0.k.weight", "head"], back=True)
    assert back.targets == {"out"} and back.unknown == ["layers.0.q.weight", "layers.0.k.weight"]


def test_no_rule_stands_in_the_way_of_another():
    """Of each family every name that a rule makes is made by that rule alone, in both directions."""
    for name, original in ORIGINALS.items():
        config = SCRIPT.config_of(original)
        family = FAMILIES[config.model_type]
        rules = family.rules(family.to_own(config, family.heads[original.model], lambda fact: False))
        for side in ("published", "own"):
            names = [one for rule in rules for one in getattr(rule, side)]
            assert len(names) == len(set(names)), (name, side)


def test_configurations_of_triune_are_no_published_ones():
    """Both kinds of configuration against families of the other."""
    with pytest.raises(ValueError, match="a configuration of model type 'triune' is none of clip"):
        FAMILIES["clip"].to_published(TriuneConfig(), "TriuneCLIPModel", None)
    with pytest.raises(ValueError, match="a configuration of model type 'triune-clip' is none of bert"):
        FAMILIES["bert"].to_published(TriuneCLIPConfig(), "TriuneForMaskedLM", None)
