"""Published checkpoints as Triune models and back: small random ones of transformers' own classes, with no weight that
is zero or one, written by transformers, converted, compared, and written again."""

import json
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from triune import conversion
from triune.configuration import TriuneConfig, clip_preset, preset, seq2seq_preset
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig
from triune.conversion.families import FAMILIES
from triune.conversion.rules import TURNED, Fused, Rolled, Rule, Shaped, plan
from triune.modeling import (
    TriuneCLIPModel,
    TriuneForCausalLM,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedLM,
)


SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 60}
TEXT = {**SIZES, "vocab_size": 97, "max_position_embeddings": 40}
IMAGE = {**SIZES, "image_size": 24, "patch_size": 8}
GROUPED = {**TEXT, "num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"dim": 36, "n_layers": 2, "n_heads": 3, "hidden_dim": 60, "vocab_size": 97, "max_position_embeddings": 40}
GPT2 = {"n_embd": 36, "n_layer": 2, "n_head": 3, "vocab_size": 97, "n_positions": 40, "eos_token_id": 2}
T5 = {
    "d_model": 36,
    "d_kv": 10,
    "d_ff": 60,
    "num_layers": 3,  # no fewer than the decoder has: transformers sizes its cache by them
    "num_decoder_layers": 2,
    "num_heads": 3,
    "vocab_size": 97,
}
T5 |= {"decoder_start_token_id": 0}
BART = {"d_model": 36, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 60, "decoder_ffn_dim": 44}
BART |= {"encoder_attention_heads": 3, "decoder_attention_heads": 6, "vocab_size": 97, "max_position_embeddings": 40}
MARIAN = {**BART, "decoder_vocab_size": 97, "pad_token_id": 96, "decoder_start_token_id": 96, "scale_embedding": True}
TOWERS = {"text_config": {**TEXT, "max_position_embeddings": 20, "eos_token_id": 96}, "vision_config": IMAGE}
SIGLIP = {**TOWERS, "text_config": {**TOWERS["text_config"], "projection_size": 36}}

CASES = {
    "bert": (hf.BertModel, hf.BertConfig(**TEXT)),
    "bert-mlm": (hf.BertForMaskedLM, hf.BertConfig(**TEXT, hidden_act="gelu_new", layer_norm_eps=1e-6)),
    "bert-pretraining": (hf.BertForPreTraining, hf.BertConfig(**TEXT, type_vocab_size=3)),
    "bert-classes": (hf.BertForSequenceClassification, hf.BertConfig(**TEXT, num_labels=4)),
    "bert-tokens": (hf.BertForTokenClassification, hf.BertConfig(**TEXT, num_labels=5)),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig(**TEXT, type_vocab_size=1)),
    "distilbert": (hf.DistilBertForMaskedLM, hf.DistilBertConfig(**DISTIL)),
    "modernbert": (hf.ModernBertForMaskedLM, hf.ModernBertConfig(**TEXT, pad_token_id=0, local_attention=8)),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(**GPT2, n_inner=50)),
    "gpt2-backbone": (hf.GPT2Model, hf.GPT2Config(**GPT2)),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED)),
    "llama-tied": (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig(**GROUPED, sliding_window=None)),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**GROUPED)),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED, head_dim=10)),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**IMAGE, num_labels=5)),
    "vit-backbone": (hf.ViTModel, hf.ViTConfig(**IMAGE, num_channels=1)),
    "clip": (hf.CLIPModel, hf.CLIPConfig(**TOWERS, projection_dim=16)),
    "siglip": (hf.SiglipModel, hf.SiglipConfig(**SIGLIP)),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5)),
    "t5-gated": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig(**BART)),
    "marian": (hf.MarianMTModel, hf.MarianConfig(**MARIAN, activation_function="swish")),
}
OUTPUTS = ("logits_per_image", "prediction_logits", "logits", "last_hidden_state")


def randomised(model):
    """Every tensor of the file, buffers with weights in them included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                shift = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.01
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + shift)
    return model.eval()


def saved(name, folder):
    """A published checkpoint; gives the class, and the model as transformers reads it."""
    kind, config = CASES[name]
    torch.manual_seed(0)
    model = kind(config)
    if name == "t5-gated":  # transformers' configuration ties the head, and finds in the checkpoint that it is not
        model.lm_head.weight = torch.nn.Parameter(torch.randn(97, 36))
    randomised(model).save_pretrained(folder)
    return kind.from_pretrained(folder).eval()


def inputs_of(name):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 95, (2, 9), generator=generator)
    if name in ("clip", "siglip"):
        ids[:, -1] = 96
        return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
    if name.startswith("vit"):
        channels = 1 if name == "vit-backbone" else 3
        return {"pixel_values": torch.randn(2, channels, 24, 24, generator=generator)}
    if name in ("t5", "t5-gated", "bart", "marian"):
        return {"input_ids": ids, "decoder_input_ids": ids[:, :7].flip(1)}
    return {"input_ids": ids}


def answer(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    output = next(found[name] for name in OUTPUTS if found.get(name) is not None)
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture(scope="module", params=CASES)
def converted(request, tmp_path_factory):
    """The name of a case, its folder, transformers' model, Triune's, and the report."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = saved(request.param, folder / "theirs")
    return request.param, folder, theirs, *conversion.load(folder / "theirs", output_loading_info=True)


# ---------------------------------------------------------------------------------------------------------------------
# There and back


def test_it_computes_the_same(converted):
    """Logits, or hidden states of a backbone, against transformers' own model of the same file."""
    name, _, theirs, ours, report = converted
    wanted, found = (answer(model, inputs_of(name)) for model in (theirs, ours))
    assert wanted.std() > 0.02
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not report.left_out and not report.fresh


def test_every_bit_comes_back(converted):
    """Saved as what it was: the keys, every tensor and every field of the configuration against the source's."""
    _, folder, _, ours, _ = converted
    conversion.save(ours, folder / "back")
    before, after = (load_file(folder / place / "model.safetensors") for place in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told, again = (json.loads((folder / place / "config.json").read_text()) for place in ("theirs", "back"))
    assert told == again


def test_a_triune_folder_remembers(converted, tmp_path):
    """Saved as a Triune model, loaded again and then given back: the same bits."""
    name, folder, _, ours, _ = converted
    ours.save_pretrained(tmp_path / "own")
    again = type(ours).from_pretrained(tmp_path / "own").eval()
    assert torch.equal(answer(again, inputs_of(name)), answer(ours, inputs_of(name)))
    conversion.save(again, tmp_path / "back")
    before, after = (load_file(place / "model.safetensors") for place in (folder / "theirs", tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "marian"])
def test_generation_is_the_same(name, tmp_path):
    """Greedy tokens and those of 3 beams against transformers'."""
    theirs = saved(name, tmp_path)
    ours = conversion.load(tmp_path)
    ids = inputs_of(name)["input_ids"]
    for beams in (1, 3):
        how = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(ours.generate(ids, **how), theirs.generate(ids, **how))


SCRATCH = {
    "bert": (TriuneForMaskedLM, preset("bert-base", **TEXT), hf.BertForMaskedLM),
    "gpt2": (TriuneForCausalLM, preset("gpt2", **TEXT), hf.GPT2LMHeadModel),
    "vit": (
        TriuneForImageClassification,
        preset("vit-b16", **SIZES, embedding={"image_size": 24, "patch_size": 8}, num_labels=3),
        hf.ViTForImageClassification,
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
    """Fresh, saved as the published model, read by transformers without code of ours: equal logits."""
    kind, config, theirs = SCRATCH[name]
    torch.manual_seed(0)
    ours = randomised(kind(config))
    conversion.save(ours, tmp_path / "out", family=name)
    inputs = inputs_of(name)
    found = answer(theirs.from_pretrained(tmp_path / "out").eval(), inputs)
    torch.testing.assert_close(found, answer(ours, inputs), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Old files, other heads


def rewritten(folder, change):
    """The tensors of a folder under other names."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_old_names_of_bert(tmp_path):
    """gamma and beta, positions as a buffer, the head's matrix and bias twice: as files of 2018 have them."""
    theirs = saved("bert-mlm", tmp_path)

    def older(tensors):
        table = tensors["bert.embeddings.word_embeddings.weight"]
        named = {
            re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)): one
            for name, one in tensors.items()
        }
        named["cls.predictions.decoder.weight"] = table.clone()
        named["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        named["bert.embeddings.position_ids"] = torch.arange(40)[None]
        return named

    rewritten(tmp_path, older)
    ours, report = conversion.load(tmp_path, output_loading_info=True)
    torch.testing.assert_close(answer(ours, inputs_of("bert-mlm")), answer(theirs, inputs_of("bert-mlm")))
    assert sorted(report.copies) == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]


def test_old_names_of_gpt2(tmp_path):
    """No prefix, masks as buffers, in a pickle: as the first files have it."""
    theirs = saved("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    older |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40).tril() for layer in range(2)}
    (tmp_path / "model.safetensors").unlink()
    torch.save(older, tmp_path / "pytorch_model.bin")
    ours = conversion.load(tmp_path)
    torch.testing.assert_close(answer(ours, inputs_of("gpt2")), answer(theirs, inputs_of("gpt2")))


def test_another_head(tmp_path):
    """A classifier on a masked language model: the backbone's bits, a fresh head, and a report of both."""
    saved("bert-mlm", tmp_path)
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


def broken(name, change):
    def one(folder):
        saved(name, folder)
        rewritten(folder, change)

    return one


def told(name, **fields):
    def one(folder):
        saved(name, folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return one


def cut_short(folder):
    saved("bert", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


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
    "window": (told("mistral", sliding_window=16), "sliding_window=16 is not converted"),
    "scaled rope": (
        told("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        "rope_parameters.rope_type='linear' is not converted",
    ),
    "attention by layer": (
        told("gpt2", scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx=True is not converted",
    ),
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

    saved("bert", tmp_path)
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
    saved("bert", tmp_path / "theirs")
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
    for name, (kind, config) in CASES.items():
        family = FAMILIES[config.model_type]
        head = family.heads[kind.__name__]
        rules = family.rules(family.to_own(config, head))
        for side in ("published", "own"):
            names = [one for rule in rules for one in getattr(rule, side)]
            assert len(names) == len(set(names)), (name, side)


def test_configurations_of_triune_are_no_published_ones():
    """Both kinds of configuration against families of the other."""
    with pytest.raises(ValueError, match="a configuration of model type 'triune' is none of clip"):
        FAMILIES["clip"].to_published(TriuneConfig(), "TriuneCLIPModel", None)
    with pytest.raises(ValueError, match="a configuration of model type 'triune-clip' is none of bert"):
        FAMILIES["bert"].to_published(TriuneCLIPConfig(), "TriuneForMaskedLM", None)
