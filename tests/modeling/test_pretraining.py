"""BERT's two heads on one backbone: parity with transformers' BertForPreTraining, the published count, the contract of
a model of the family, and the folders it leaves to other heads and to people without Triune."""

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from test_parity import BERT, FF, TINY, copy_weights, text_batch
from test_remote_code import load_and_save, visit
from torch.nn.functional import cross_entropy

from triune.configuration import TriuneConfig, preset
from triune.modeling import (
    TriuneForMaskedLM,
    TriuneForPreTraining,
    TriuneForSequenceClassification,
    TriuneModel,
)


TABLE = [*BERT, (r"cls\.seq_relationship", "seq_relationship")]
SIZES = {**TINY, **FF, "max_position_embeddings": 40}


def pair():
    reference = hf.BertForPreTraining(hf.BertConfig(**SIZES))
    return copy_weights(reference, TriuneForPreTraining(preset("bert-base", **SIZES)), TABLE)


def batch_of(pairs=3):
    """Rows with padding, two segments, and the labels of both tasks."""
    ids, mask = text_batch(99)
    labels = ids.masked_fill((torch.rand(ids.shape) > 0.3) | (mask == 0), -100)
    segments = (torch.arange(ids.shape[1]) > 10).long().expand_as(ids)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, "labels": labels}
    return {**batch, "next_sentence_label": torch.tensor([0, 1, 1])[:pairs]}


def small(**fields):
    """Dropout off."""
    config = TriuneConfig(**{**SIZES, "embedding": {"type": "tokens", "type_vocab_size": 2}, **fields})
    return TriuneForPreTraining(config)


FULL = {"pooling": {"type": "cls", "dense": True}, "lm_head": "transform"}


# ---------------------------------------------------------------------------------------------------------------------
# Against transformers


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_bert_for_pretraining(implementation):
    """Both logits, the loss and the gradients of embeddings and verdict against BertForPreTraining, to 1e-5."""
    reference, model = pair()
    for one in (reference, model):
        one.set_attn_implementation(implementation)
    batch = batch_of()
    theirs, ours = reference(**batch), model(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours.prediction_logits[real], theirs.prediction_logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=0)
    assert theirs.prediction_logits.std() > 0.5 and theirs.seq_relationship_logits.std() > 0.5
    for output in (ours, theirs):
        output.loss.backward()
    gradients = [one.get_input_embeddings().weight.grad[1:] for one in (reference, model)]  # theirs leaves padding out
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.seq_relationship.weight.grad, reference.cls.seq_relationship.weight.grad)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{"pooling": {"dense": False}}, {"hidden_act": "gelu_pytorch_tanh"}, {"lm_head": {"type": "plain"}}]
)
def test_a_wrong_model_would_be_noticed(changes):
    """The negative control: one wrong choice moves one of the logits by more than five times what parity allows."""
    reference, model = pair()
    wrong = TriuneForPreTraining(preset("bert-base", **SIZES, **changes)).eval()
    wrong.load_state_dict(model.state_dict(), strict=False)
    batch = batch_of()
    theirs, ours = reference(**batch), wrong(**batch)
    real = batch["attention_mask"].bool()
    moved = (ours.prediction_logits - theirs.prediction_logits)[real].abs().max()
    assert max(moved, (ours.seq_relationship_logits - theirs.seq_relationship_logits).abs().max()) > 5e-5


def test_counts():
    """BERT-base against BertForPreTraining."""
    with torch.device("meta"):
        count = TriuneForPreTraining(preset("bert-base")).num_parameters()
        published = hf.BertForPreTraining(hf.BertConfig()).num_parameters()
    assert count == published == 110_106_428


# ---------------------------------------------------------------------------------------------------------------------
# The contract


def test_loss_is_the_sum_of_both():
    """Against torch's cross entropies; with the labels of one task that one alone; without labels none."""
    model, batch = small(**FULL).eval(), batch_of()
    output = model(**batch)
    masked = cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    verdict = cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    torch.testing.assert_close(output.loss, masked + verdict)
    assert output.logits[0] is output.prediction_logits and output.logits[1] is output.seq_relationship_logits
    for name, alone in (("labels", verdict), ("next_sentence_label", masked)):
        rest = {key: value for key, value in batch.items() if key != name}
        torch.testing.assert_close(model(**rest).loss, alone)
    inputs = {key: value for key, value in batch.items() if "label" not in key}
    assert model(**inputs).loss is None
    as_tuple = model(**batch, return_dict=False)
    assert [tuple(value.shape) for value in as_tuple[:3]] == [(), (3, 24, 99), (3, 2)]


def test_first_loss_is_chance():
    """A fresh model against ln V + ln 2."""
    torch.manual_seed(0)
    chance = torch.tensor(99.0).log() + torch.tensor(2.0).log()
    assert abs(small(**FULL)(**batch_of()).loss - chance) < 0.3


def test_unknown_verdicts_count_nothing():
    """A label of -100 against the loss without that row; where all are unknown the verdict adds 0."""
    model, batch = small(**FULL).eval(), batch_of()
    del batch["labels"]
    some = {**batch, "next_sentence_label": torch.tensor([-100, 1, 0])}
    two = {key: value[1:] for key, value in some.items()}
    torch.testing.assert_close(model(**some).loss, model(**two).loss)
    assert model(**{**batch, "next_sentence_label": torch.full((3,), -100)}).loss == 0


def test_micro_batches_add_up():
    """What a trainer adds up, told how many tokens are masked in all: that many shares of each mean."""
    model, batch = small(**FULL).eval(), batch_of()
    count = (batch["labels"] != -100).sum()
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 2), slice(2, 3))]
    total = sum(model(**part, num_items_in_batch=count).loss for part in parts)
    verdicts = [
        (part["labels"] != -100).sum()
        / count
        * cross_entropy(one.seq_relationship_logits, part["next_sentence_label"])
        for part in parts
        for one in [model(**part)]
    ]
    masked = model(**{key: value for key, value in batch.items() if key != "next_sentence_label"}).loss
    torch.testing.assert_close(total, masked + sum(verdicts))


@pytest.mark.parametrize(
    "fields", [FULL, {}, {"pooling": "mean", "position": "rotary", "norm": "rmsnorm", "feed_forward": "gated"}]
)
def test_contract(fields, tmp_path):
    """Every parameter gets a gradient, evaluation is deterministic, and a saved model answers the same, to the bit."""
    model, batch = small(**fields), batch_of()
    model(**batch).loss.backward()
    assert [key for key, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []
    model.eval().save_pretrained(tmp_path)
    again = TriuneForPreTraining.from_pretrained(tmp_path).eval()
    auto = hf.AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert type(auto) is TriuneForPreTraining
    for other in (model, again, auto):
        for mine, theirs in zip(model(**batch).logits, other(**batch).logits):
            assert (mine - theirs).abs().max() == 0


def test_bad_input_is_named():
    """Attention that is causal, and labels of a wrong shape."""
    with pytest.raises(ValueError, match="TriuneForPreTraining needs attention 'bidirectional'"):
        small(attention="causal")
    model, batch = small(), batch_of()
    with pytest.raises(ValueError, match=r"next_sentence_label must have shape \(batch,\) = \(3,\), got \(2,\)"):
        model(**{**batch, "next_sentence_label": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(ValueError, match="labels must have shape"):
        model(**{**batch, "labels": batch["labels"][:, 1:]})


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of its weights


def randomised(model):
    with torch.no_grad():
        for one in model.parameters():
            one.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def test_weights_go_to_other_heads(tmp_path):
    """Loaded as a classifier for fine-tuning the encoder and the pooler are the same and only the classifier starts
    fresh, also with two classes; as a masked language model nothing does, and the logits are equal."""
    model, batch = randomised(small(**FULL)), batch_of()
    inputs = {key: value for key, value in batch.items() if "label" not in key}
    model.save_pretrained(tmp_path)
    for labels in (2, 5):
        tuned, info = TriuneForSequenceClassification.from_pretrained(
            tmp_path, num_labels=labels, output_loading_info=True
        )
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not info["mismatched_keys"]
        ours, theirs = (one.eval().model(**inputs).pooler_output for one in (tuned, model))
        assert torch.equal(ours, theirs)
    masked, info = TriuneForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert torch.equal(masked.eval()(**inputs).logits, model(**inputs).prediction_logits)
    backbone = TriuneModel.from_pretrained(tmp_path).eval()
    assert torch.equal(backbone(**inputs).pooler_output, model.model(**inputs).pooler_output)


def as_other_heads(folder, inputs):
    """In a clean process: the exported folder as the heads it is fine-tuned and asked with."""
    import transformers
    from safetensors.torch import load_file

    batch = load_file(inputs)
    masked = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    return [type(masked).__name__, type(tuned).__name__, masked(**batch).logits.double().sum().item()]


def clean(cases, inputs, out, folder):
    return [load_and_save(cases, inputs, out), as_other_heads(folder, f"{inputs}/text.safetensors")]


@torch.no_grad()
def test_exported_folder_needs_no_triune(tmp_path):
    """In a process where Triune is not importable: the same logits through AutoModelForPreTraining, and from the
    folder that was saved there again; the same folder as other heads."""
    model = randomised(small(**FULL))
    inputs = {key: value.contiguous() for key, value in batch_of().items() if "label" not in key}
    save_file(inputs, tmp_path / "text.safetensors")
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]["AutoModelForPreTraining"] == (
        "modeling_triune.TriuneForPreTraining"
    )
    cases = {"pretraining": ("AutoModelForPreTraining", tmp_path / "model", "text")}
    calls = (load_and_save, as_other_heads)
    found = visit(clean, cases, tmp_path, tmp_path, tmp_path / "model", home=tmp_path / "home", calls=calls)
    loaded, others = found[0]
    assert loaded["pretraining"][0] == "TriuneForPreTraining" and "triune." not in loaded["pretraining"][1]
    expected = model(**inputs).prediction_logits
    torch.testing.assert_close(load_file(tmp_path / "outputs.safetensors")["pretraining"], expected, atol=1e-6, rtol=0)
    assert others[:2] == ["TriuneForMaskedLM", "TriuneForSequenceClassification"]
    assert others[2] == pytest.approx(expected.double().sum().item(), abs=1e-2)
    again = TriuneForPreTraining.from_pretrained(shutil.copytree(tmp_path / "pretraining", tmp_path / "again"))
    for mine, theirs in zip(model(**inputs).logits, again.eval()(**inputs).logits):
        assert torch.equal(mine, theirs)
