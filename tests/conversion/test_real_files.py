"""What published files have that files written today have not: fields of older versions, tensors of other heads,
buffers that were saved once. Each quirk is that of a real checkpoint, here on a random model of a few numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from script_loading import load_script

from triune import conversion
from triune.configuration import preset
from triune.conversion.checking import answer, random_inputs
from triune.conversion.files import Tensors
from triune.conversion.layouts import openai_clip
from triune.modeling import TriuneForMaskedLM


SCRIPT = load_script("benchmarks/conversion.py")


def told(folder, **fields):
    """A configuration that says otherwise; None: does not say."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def rewritten(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def alike(ours, theirs):
    inputs = random_inputs(ours.config)
    torch.testing.assert_close(answer(ours, inputs), answer(theirs, inputs), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations

FIELDS = {
    "BERT": ("bert-mlm", {"gradient_checkpointing": False, "directionality": "bidi", "pooler_num_fc_layers": 3}),
    "DistilBERT's waves": ("distilbert-mlm", {"sinusoidal_pos_embds": True, "tie_weights_": True, "qa_dropout": 0.3}),
    "DistilGPT-2": ("gpt2", {"n_ctx": 40, "summary_type": "last", "summary_first_dropout": 0.2, "pruned_heads": {}}),
    "GPT-2 without dropout": ("gpt2", {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}),
    "Llama 2 of 13B": ("llama", {"pretraining_tp": 2, "rope_scaling": None}),
    "Mistral v0.1": ("mistral", {"sliding_window": 5}),
    "ViT of patches of 32": ("vit", {"encoder_stride": 32}),
    "BART": ("bart", {"extra_pos_embeddings": 2, "normalize_before": False, "add_final_layer_norm": False}),
    "Marian": ("marian", {"static_position_embeddings": True, "normalize_embedding": False, "classif_dropout": 0.0}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_published_configurations(name, tmp_path):
    """Nothing is refused that computes the same: the answers, the generated tokens, and the way back."""
    case, fields = FIELDS[name]
    SCRIPT.write(case, tmp_path / "theirs")
    told(tmp_path / "theirs", **fields)
    theirs, ours = SCRIPT.published(case, tmp_path / "theirs"), conversion.load(tmp_path / "theirs")
    alike(ours, theirs)
    if theirs.can_generate():
        ids = random_inputs(ours.config)["input_ids"]
        for wanted, found in zip(SCRIPT.generated(theirs, ids), SCRIPT.generated(ours, ids)):
            assert torch.equal(wanted, found)
    conversion.save(ours, tmp_path / "back")
    found = SCRIPT.compared(tmp_path / "theirs", tmp_path / "back")
    assert found["keys_equal"] and found["bits_equal"]
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: again[name] for name in fields if fields[name] is not None}.items() <= fields.items()


def test_waves_of_distilbert_are_not_trained(tmp_path):
    SCRIPT.write("distilbert", tmp_path)
    told(tmp_path, sinusoidal_pos_embds=True)
    ours = conversion.load(tmp_path)
    assert ours.config.position["frozen"] and "positions.table.weight" in dict(ours.named_buffers())
    fresh = TriuneForMaskedLM(preset("bert-base", **SCRIPT.TEXT, position="rotary"))
    with pytest.raises(ValueError, match=r"this model is not one of distilbert: .*position="):
        conversion.save(fresh, tmp_path / "out", family="distilbert")


def test_a_window_of_mistral(tmp_path):
    """It is seen: without it the answers are others. Given back, it is there."""
    theirs = SCRIPT.write("mistral", tmp_path / "whole")
    told(tmp_path / "whole", sliding_window=5)
    ours = conversion.load(tmp_path / "whole")
    assert (ours.config.sliding_window, set(ours.config.layer_types)) == (5, {"sliding_attention"})
    inputs = random_inputs(ours.config)
    assert (answer(ours, inputs) - answer(theirs, inputs)).abs().max() > 0.01
    del ours.config.converted_from
    conversion.save(ours, tmp_path / "back", family="mistral")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["sliding_window"] == 5


def test_two_shares_of_dropout_are_refused(tmp_path):
    SCRIPT.write("gpt2", tmp_path)
    told(tmp_path, embd_pdrop=0.2)
    with pytest.raises(
        ValueError, match=r"gpt2: embd_pdrop=0\.2 is not converted: Triune has resid_pdrop, 0\.1, only"
    ):
        conversion.load(tmp_path)


def test_a_class_that_was_called_otherwise(tmp_path):
    """T5 with 3 billion weights; it is saved under today's name."""
    theirs = SCRIPT.write("t5", tmp_path / "theirs")
    told(tmp_path / "theirs", architectures=["T5WithLMHeadModel"])
    ours = conversion.load(tmp_path / "theirs")
    alike(ours, theirs)
    conversion.save(ours, tmp_path / "back")
    told(tmp_path / "theirs", architectures=["T5ForConditionalGeneration"])
    assert all(SCRIPT.compared(tmp_path / "theirs", tmp_path / "back").values())


def test_how_a_model_of_2020_generates(tmp_path):
    """Marian's beams, and its padding that must not be said, from its configuration."""
    SCRIPT.write("marian", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    told(tmp_path, num_beams=3, bad_words_ids=[[96], [5]], max_length=12, length_penalty=2.0)
    theirs, ours = SCRIPT.published("marian", tmp_path), conversion.load(tmp_path)
    assert ours.generation_config.to_diff_dict() == theirs.generation_config.to_diff_dict()
    assert ours.generation_config.num_beams == 3
    ids = random_inputs(ours.config)["input_ids"]
    assert torch.equal(ours.generate(ids), theirs.generate(ids))


def test_a_configuration_that_names_no_model(tmp_path):
    """Those of 2019, as Google's small BERTs have them to this day."""
    theirs = SCRIPT.write("bert-mlm", tmp_path)
    told(tmp_path, model_type=None, architectures=None)
    with pytest.raises(ValueError, match=r"holds no config\.json .*; config=\{'model_type': \.\.\.\} says what it is"):
        conversion.load(tmp_path)
    alike(conversion.load(tmp_path, config={"model_type": "bert", "architectures": ["BertForMaskedLM"]}), theirs)
    with pytest.raises(ValueError, match="there is no head for a checkpoint that names none"):
        conversion.load(tmp_path, config={"model_type": "bert"})


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


@pytest.mark.parametrize("older", [False, True])
def test_a_head_beside_its_own(older, tmp_path):
    """BERT's files say that they hold a masked language model, and hold what sentence pairs were told apart with too.
    The report names it; what nobody knows is still refused, and so is a matrix of the head that is not the table."""
    SCRIPT.write("bert-pretraining", tmp_path / "theirs")
    told(tmp_path / "theirs", architectures=["BertForMaskedLM"])
    if older:
        rewritten(tmp_path / "theirs", SCRIPT.bert_of_2018)
    theirs = SCRIPT.transformers.BertForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    ours, report = conversion.load(tmp_path / "theirs", output_loading_info=True)
    alike(ours, theirs)
    kinds = ("bias", "weight")
    assert report.left_out == [f"{one}.{kind}" for one in ("model.pooler.dense", "seq_relationship") for kind in kinds]
    assert not report.fresh
    conversion.save(ours, tmp_path / "back")
    _, loading = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wrong = {"bert.encoder.layer.0.gate": torch.ones(3), "cls.predictions.decoder.weight": torch.ones(97, 36)}
    rewritten(tmp_path / "theirs", lambda one: {**one, **wrong})
    with pytest.raises(ValueError, match=r"; unknown: bert\.encoder\.layer\.0\.gate; left over: lm_head\.weight$"):
        conversion.load(tmp_path / "theirs")


def test_a_pooler_beside_robertas_head(tmp_path):
    theirs = SCRIPT.write("roberta-mlm", tmp_path)
    pooler = {"roberta.pooler.dense.weight": torch.ones(36, 36), "roberta.pooler.dense.bias": torch.ones(36)}
    rewritten(tmp_path, lambda one: {**one, **pooler})
    ours, report = conversion.load(tmp_path, output_loading_info=True)
    alike(ours, theirs)
    assert report.left_out == ["model.pooler.dense.bias", "model.pooler.dense.weight"]


BUFFERS = {
    "DistilBERT": ("distilbert-mlm", {"distilbert.embeddings.position_ids": torch.arange(40)[None]}),
    "MiniLM, a backbone alone": ("bert", {"embeddings.position_ids": torch.arange(40)[None]}),
    "DistilGPT-2": ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
    "Llama of 2023": ("llama", {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(3)}),
    "SigLIP": ("siglip", {"text_model.embeddings.position_ids": torch.arange(20)[None]}),
    "T5 1.0": ("t5", {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 3)}),
    "BART-large, a backbone alone": (
        "bart-backbone",
        {"encoder.version": torch.ones(1), "decoder.version": torch.ones(1)},
    ),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_nobody_reads(name, tmp_path):
    case, more = BUFFERS[name]
    theirs = SCRIPT.write(case, tmp_path)
    rewritten(tmp_path, lambda one: {**one, **more})
    ours, report = conversion.load(tmp_path, output_loading_info=True)
    alike(ours, theirs)
    assert not report.left_out and not report.fresh


@pytest.mark.parametrize("case", ["bart", "marian"])
def test_a_head_without_its_bias(case, tmp_path):
    """It is zero for transformers, and not there for Triune; nor is it in what is saved again."""
    SCRIPT.write(case, tmp_path / "theirs")
    rewritten(tmp_path / "theirs", lambda one: {name: t for name, t in one.items() if name != "final_logits_bias"})
    ours = conversion.load(tmp_path / "theirs")
    assert ours.lm_head.bias is None
    alike(ours, SCRIPT.published(case, tmp_path / "theirs"))
    conversion.save(ours, tmp_path / "back")
    assert all(SCRIPT.compared(tmp_path / "theirs", tmp_path / "back").values())


def test_heads_of_the_largest_clip():
    """Of OpenCLIP's bigG, whose texts and images are both wider than any of OpenAI's: 20 heads and 16."""
    shapes = {"token_embedding.weight": (49408, 1280), "positional_embedding": (77, 1280)}
    shapes |= {"visual.conv1.weight": (1664, 3, 14, 14), "visual.positional_embedding": (257, 1664)}
    found = openai_clip(
        Tensors(
            {"text_projection": torch.empty(1280, 1280, device="meta")}
            | {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        )
    )
    assert [found[f"{tower}_config"]["num_attention_heads"] for tower in ("text", "vision")] == [20, 16]
