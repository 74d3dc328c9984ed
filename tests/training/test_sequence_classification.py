"""Classification of text: samples and batches against the tokenizer, metrics against counts, a model that learns a
rule; the order by length against sorting; tokenizers loaded from folders as transformers saves them."""

import json

import numpy as np
import pandas
import pytest
import torch
from transformers import BertTokenizerFast

from triune.configuration import TriuneConfig
from triune.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from triune.training.data.labelled import load_labelled_text
from triune.training.data.lengths import length_grouped
from triune.training.metrics import record
from triune.training.sampling import Key
from triune.training.tasks.sequence_classification import (
    SequenceClassification,
    bag_of_words,
    text_baselines,
)
from triune.training.tokenizers import CLS, PAD, SEP, load_or_train_tokenizer, train_tokenizer


COLOURS = ["red", "green", "blue"]
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def rows(count):
    """Texts of different lengths, one word of which says the class."""
    random = np.random.default_rng(0)
    for row in range(count):
        filler = [f"w{number}" for number in random.integers(0, 20, random.integers(2, 30))]
        filler.insert(random.integers(len(filler)), COLOURS[row % 3])
        yield {"text": f"{' '.join(filler)} {row}", "label": ["warm", "calm", "cold"][row % 3]}


@pytest.fixture
def file(tmp_path):
    pandas.DataFrame(rows(240)).to_csv(tmp_path / "a.csv", index=False)
    return str(tmp_path / "a.csv")


def make(file, model=None, length=24, **flags):
    data = DataArguments(train_file=file, max_seq_length=length, validation_split_percentage=25, **flags)
    chosen = ModelArguments(**{"vocab_size": 200, **(model or {})})
    return SequenceClassification(Arguments(chosen, data, TrainingArguments()))


def build(task, **fields):
    model = task.head(TriuneConfig(**{**TINY, **task.config_fields(), **fields}))
    task.prepare(model.config)
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# The task


def test_samples_are_what_the_tokenizer_makes(file):
    """Each training text cut to its length, framed, with its label; lengths beside; the same for every epoch."""
    task = make(file)
    for index, text in enumerate(task.data.train_texts):
        ids, label = task.train[Key(3, index)]
        assert ids.tolist() == task.processor(text, truncation=True, max_length=24)["input_ids"]
        assert (int(ids[0]), int(ids[-1]), ids.dtype) == (CLS, SEP, torch.int64)
        assert len(ids) == task.train.lengths[index] <= 24 and label == task.data.train_labels[index]
    assert task.train.lengths.max() == 24 > task.train.lengths.min()


def test_a_batch_is_padded_to_its_longest(file):
    """Padding, mask and the count of tokens, against the samples."""
    task = make(file)
    samples = [task.train[Key(0, index)] for index in range(12)]
    batch = task.collate(samples)
    longest = max(len(sample.ids) for sample in samples)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (12, longest)
    for row, sample in enumerate(samples):
        assert batch["input_ids"][row, : len(sample.ids)].equal(sample.ids)
        assert (batch["input_ids"][row, len(sample.ids) :] == PAD).all()
        assert batch["attention_mask"][row].tolist() == [1] * len(sample.ids) + [0] * (longest - len(sample.ids))
    assert batch["labels"].tolist() == [sample.label for sample in samples]
    assert task.units(batch) == sum(len(sample.ids) for sample in samples) and task.count(batch) == 12


def test_padding_changes_nothing(file):
    """Logits of texts in one batch against those of each alone; the loss of a batch against the mean over texts."""
    task = make(file)
    model = build(task)
    samples = [task.train[Key(0, index)] for index in range(6)]
    together = task.collate(samples)
    logits = model(**together).logits
    alone = torch.cat([model(**task.collate([sample])).logits for sample in samples])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    loss = task.loss(model, together, 6)
    expected = torch.nn.functional.cross_entropy(alone, together["labels"])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_evaluation_takes_every_text_once(file, monkeypatch):
    """In the order of their lengths; a quick one takes some, the same every time."""
    task = make(file)
    full = task.evaluation(full=True)
    lengths = [len(full[index].ids) for index in range(len(full))]
    assert lengths == sorted(lengths) and sorted(full.places) == list(range(len(task.data.validation_texts)))
    assert torch.equal(torch.tensor([full[index].label for index in range(60)]).bincount(), torch.tensor([20] * 3))
    monkeypatch.setattr("triune.training.tasks.sequence_classification.QUICK", 10)
    quick = task.evaluation(full=False)
    assert len(set(quick.places)) == len(quick) == 10 and list(task.evaluation(full=False).places) == list(
        quick.places
    )


def test_the_configuration_follows_from_the_data(file):
    """Vocabulary, length, padding and classes, as the model then has them."""
    task = make(file)
    config = build(task).config
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (len(task.processor), 24, PAD)
    assert (config.num_labels, config.id2label) == (3, {0: "calm", 1: "cold", 2: "warm"})
    assert config.label2id == {"calm": 0, "cold": 1, "warm": 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_position_embeddings": 16}, "max_seq_length=24 is longer than the 16 positions of the model"),
        ({"vocab_size": 50}, r"vocab_size=50, and the tokenizer has \d+ tokens"),
        ({"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {}}, "num_labels=2, and the data has 3 classes"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(file, fields, message):
    """A saved model, or fields of a recipe, against the data."""
    task = make(file)
    with pytest.raises(ValueError, match=message):
        build(task, **fields)
    build(task, max_position_embeddings=16, position="rotary")  # which has no table to run out of


def test_a_model_learns_the_word_that_tells(file):
    """A tiny model, above the majority class of a third after eighty steps, and its preview says so."""
    task = make(file)
    model = build(task).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    before = task.preview(model.eval())
    for step in range(80):
        samples = [task.train[Key(0, (step * 24 + index) % len(task.train))] for index in range(24)]
        optimizer.zero_grad()
        task.loss(model, task.collate(samples), 24).backward()
        optimizer.step()
    held_out = task.evaluation(full=True)
    batch = task.collate([held_out[index] for index in range(len(held_out))])
    found = task.measure(record(model(**batch).logits, batch["labels"]))
    right = (model(**batch).logits.argmax(1) == batch["labels"]).double().mean()
    assert found["accuracy"] == pytest.approx(float(right)) and found["accuracy"] > 0.8
    assert found["macro_f1"] > 0.8 and set(found) == {"loss", "accuracy", "macro_f1"}
    after = task.preview(model)
    assert [line[:60] for line in before] == [line[:60] for line in after] and len(after) == 4
    assert sum("was" in line for line in before) > sum("was" in line for line in after)
    assert all(line[62:].split()[1].rstrip(",").endswith("%") for line in after)


def test_texts_without_a_token_are_refused(tmp_path, file):
    """A tokenizer that adds nothing, and a text of which it makes nothing."""
    tokenizer = train_tokenizer("characters", ["abc"], 20, 24)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.backend_tokenizer.normalizer = None
    task = make(file)
    task.processor = tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match=r"the tokenizer makes no token of the text ' '"):
        task.encoded(["a", " "], torch.tensor([0, 1]))


def test_figures_are_written(file, tmp_path):
    """A confusion matrix, where matplotlib is."""
    pytest.importorskip("matplotlib")
    task = make(file)
    records = record(torch.eye(3)[torch.tensor([0, 1, 2, 2])], torch.tensor([0, 1, 2, 1]))
    written = task.figures(build(task), records, tmp_path)
    assert [path.name for path in written] == ["confusion_matrix.png"] and written[0].stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------------------
# Baselines


def test_baselines(file):
    """The majority and the entropy by hand; a bag of words finds the word that tells."""
    data = load_labelled_text(DataArguments(train_file=file, validation_split_percentage=25))
    found = text_baselines(data)
    majority = data.train_labels.bincount().argmax()
    assert found["accuracy"]["majority class"] == pytest.approx(
        float((data.validation_labels == majority).double().mean())
    )
    assert found["loss"]["class frequencies"] == pytest.approx(np.log(3), abs=1e-3)
    pytest.importorskip("sklearn")
    assert found["accuracy"]["bag of words"] > 0.95 and found["macro_f1"]["bag of words"] > 0.95


def test_baselines_without_scikit_learn(file, monkeypatch):
    """What needs none stays."""
    data = load_labelled_text(DataArguments(train_file=file))
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    assert bag_of_words(data) == {} and set(text_baselines(data)) == {"accuracy", "loss"}


@pytest.mark.slow
def test_the_bundled_passages_can_be_told_apart():
    """Reference against library on pydocs: majority a half, a bag of words between 80 and 95 % (measured: 87.9 %)."""
    data = load_labelled_text(DataArguments(dataset_name="pydocs"))
    assert len(data.train_texts) > 2000 and len(data.validation_texts) > 200
    found = text_baselines(data)["accuracy"]
    assert found["majority class"] == 0.5 and 0.8 < found["bag of words"] < 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Order by length


LENGTHS = np.random.default_rng(1).lognormal(4, 0.7, 1003).astype(int) + 2


def padded(order, per_step, first=0):
    """Tokens of the whole steps when each is padded to its longest text."""
    steps = [LENGTHS[order[start : start + per_step]] for start in range(first, len(order) - per_step + 1, per_step)]
    return sum(len(step) * step.max() for step in steps) / sum(step.sum() for step in steps)


@pytest.mark.parametrize("per_step", [1, 7, 32, 500, 2000])
def test_an_order_by_length_is_a_permutation(per_step):
    """Every sample once, in every epoch; again the same, and another for another seed or epoch."""
    orders = [length_grouped(LENGTHS, per_step, seed, epoch) for seed in range(2) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1003))
    assert np.array_equal(orders[4], length_grouped(LENGTHS, per_step, 1, 1))
    assert len({tuple(order) for order in orders}) == 6


def test_an_order_by_length_saves_padding():
    """Steps of 16: a fifth of the padding of a random order, or less, and more than the sorted order, the least."""
    random = padded(np.random.default_rng(0).permutation(1003), 16) - 1
    grouped = padded(length_grouped(LENGTHS, 16, 0, 0), 16) - 1
    least = padded(np.argsort(LENGTHS), 16) - 1
    assert least < grouped < 0.2 * random


@pytest.mark.parametrize("epoch", [0, 1, 2, 9])
def test_groups_lie_where_the_steps_do(epoch):
    """An epoch of 1003 begins within a step of 16: its whole steps, counted from the beginning of the run."""
    order, first = length_grouped(LENGTHS, 16, 0, epoch), -epoch * 1003 % 16
    assert padded(order, 16, first) < padded(order, 16, (first + 8) % 16) - 0.2


def test_steps_come_in_random_order_and_have_other_members():
    """The lengths of successive steps hardly correlate, and few samples meet again in the next epoch."""
    orders = [
        length_grouped(LENGTHS, 16, 0, epoch)[(-epoch * 1003) % 16 :][:976].reshape(61, 16) for epoch in range(2)
    ]
    means = LENGTHS[orders[0]].mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.35
    met = {(a, b) for step in orders[0] for a in step for b in step if a < b}
    again = {(a, b) for step in orders[1] for a in step for b in step if a < b}
    assert len(met & again) < 0.3 * len(met)


def test_little_data_and_wrong_sizes():
    """Nothing, one sample, fewer than a step; a step of none."""
    assert length_grouped([], 4, 0, 0).tolist() == []
    assert length_grouped([5], 4, 0, 3).tolist() == [0]
    assert sorted(length_grouped([5, 6, 7], 4, 0, 1).tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="per_step=0 must be at least 1"):
        length_grouped([5], 0, 0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def test_a_tokenizer_is_trained_or_loaded(tmp_path):
    """Without a name trained on the texts; with one the same as saved, for the length of this run."""
    trained = load_or_train_tokenizer(ModelArguments(vocab_size=100), ["one two three"] * 5, 32)
    assert trained.get_vocab() == train_tokenizer("wordpiece", ["one two three"] * 5, 100, 32).get_vocab()
    trained.save_pretrained(tmp_path)
    for flag in ("tokenizer_name", "model_name_or_path"):
        loaded = load_or_train_tokenizer(ModelArguments(**{flag: str(tmp_path)}), [], 64)
        assert loaded("one three")["input_ids"] == trained("one three")["input_ids"]
        assert (loaded.model_max_length, loaded.pad_token_id) == (64, PAD)


def test_the_tokenizer_of_a_saved_model(tmp_path, monkeypatch):
    """A model folder, code included, with its tokenizer: nothing is asked on stdin; `tokenizer_name` comes first."""
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked"))
    trained = train_tokenizer("bpe", ["one two"], 300, 32)
    trained.save_pretrained(tmp_path / "model")
    SequenceClassification.head(TriuneConfig(**TINY, vocab_size=300)).save_pretrained(tmp_path / "model")
    assert any(path.suffix == ".py" for path in (tmp_path / "model").iterdir())
    loaded = load_or_train_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "model")), [], 32)
    assert loaded.get_vocab() == trained.get_vocab()
    other = train_tokenizer("characters", ["ab"], 20, 32)
    other.save_pretrained(tmp_path / "other")
    names = {"model_name_or_path": str(tmp_path / "model"), "tokenizer_name": str(tmp_path / "other")}
    assert load_or_train_tokenizer(ModelArguments(**names), [], 32).get_vocab() == other.get_vocab()


def test_a_tokenizer_of_transformers(tmp_path, file):
    """One of BERT's class, with other ids for its special tokens, is used as it is."""
    vocabulary = ["w", "##1", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", *COLOURS]
    (tmp_path / "bert").mkdir()
    BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)}).save_pretrained(
        tmp_path / "bert"
    )
    task = make(file, {"tokenizer_name": str(tmp_path / "bert")})
    assert task.config_fields()["pad_token_id"] == 4 and task.config_fields()["vocab_size"] == 10
    assert task.train[Key(0, 0)].ids[[0, -1]].tolist() == [5, 3]
    batch = task.collate([task.train[Key(0, index)] for index in range(8)])
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 4).all()


def test_tokenizers_that_cannot_be_used(tmp_path):
    """None there, a broken one, one without a pad token: the flag, and what to do."""
    with pytest.raises(ValueError, match=r"tokenizer_name='.*nowhere': no tokenizer can be loaded from there"):
        load_or_train_tokenizer(ModelArguments(tokenizer_name=str(tmp_path / "nowhere")), [], 32)
    with pytest.raises(ValueError, match=r"model_name_or_path='.*': no tokenizer can be loaded from there"):
        load_or_train_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)), [], 32)
    tokenizer = train_tokenizer("bpe", ["one two"], 300, 32)
    tokenizer.save_pretrained(tmp_path)
    page = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**page, "pad_token": None}))
    padded = load_or_train_tokenizer(ModelArguments(tokenizer_name=str(tmp_path)), [], 32)
    assert padded.pad_token == padded.eos_token == "[SEP]"  # as is done with GPT-2's, which has none
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**page, "pad_token": None, "eos_token": None}))
    with pytest.raises(ValueError, match=r"tokenizer_name='.*' has no pad token: load it, set tokenizer.pad_token"):
        load_or_train_tokenizer(ModelArguments(tokenizer_name=str(tmp_path)), [], 32)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"no tokenizer can be loaded from there"):
        load_or_train_tokenizer(ModelArguments(tokenizer_name=str(tmp_path)), [], 32)
