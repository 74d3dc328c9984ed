"""Masked LM with next-sentence prediction: pairs against the documents they come from, batches against the tokenizer
and against counts, the loss and the metrics against torch and numpy, and a model that learns both."""

import math

import numpy as np
import pandas
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from triune.configuration import TriuneConfig
from triune.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from triune.training.data.pairs import FOLLOWS, STRANGE, HeldOutPairs, Texts, TrainingPairs, sentences, shared_words
from triune.training.data.text import Document
from triune.training.loading import evaluation_batches
from triune.training.metrics import concatenate, record
from triune.training.sampling import Key, Plan
from triune.training.tasks import TASKS
from triune.training.tasks.pretraining import PreTraining
from triune.training.tokenizers import CLS, MASK, PAD, SEP, SPECIAL, train_tokenizer


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LENGTH = 25


def document(number, count=8):
    """Sentences whose words say which document they are of, and at which place they stand."""
    return Document(f"d{number}", " ".join(f"W{number}x{place} of d{number} stands here." for place in range(count)))


DOCUMENTS = [document(number, 3 + number % 7) for number in range(30)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "a.csv"
    pandas.DataFrame([{"text": one.text} for one in DOCUMENTS]).to_csv(path, index=False)
    return str(path)


def make(file, model=None, training=None, **flags):
    data = DataArguments(**{"train_file": file, "max_seq_length": LENGTH, "validation_split_percentage": 25, **flags})
    chosen = ModelArguments(**{"vocab_size": 200, **(model or {})})
    return PreTraining(Arguments(chosen, data, TrainingArguments(**(training or {}))))


@pytest.fixture(scope="module")
def task(file):
    return make(file)


def build(task, **fields):
    model = task.head(TriuneConfig(**{**TINY, **task.config_fields(), **fields}))
    task.prepare(model.config)
    return model.eval()


class Words:
    """A tokenizer by spaces: `words` tells which word an id is."""

    def __init__(self):
        self.words = []

    def __call__(self, texts, **_):
        split = [text.split() for text in texts]
        self.words += [word for words in split for word in words if word not in self.words]
        return {"input_ids": [[self.words.index(word) for word in words] for words in split]}

    def read(self, ids):
        return [self.words[index] for index in ids.tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def test_sentences_are_the_text():
    """Joined again they are the text; cut behind full stops and at blank lines, at lines where there is neither."""
    text = 'One. Two! "Three?" he said\n\n  four\nstill four. Five'
    parts = sentences(text)
    assert "".join(parts) == text
    assert [part.strip() for part in parts] == ["One.", "Two!", '"Three?" he said', "four\nstill four.", "Five"]
    assert [part.strip() for part in sentences("a b\nc d\n e")] == ["a b", "c d", "e"]
    assert sentences("one text") == ["one text"] and sentences("  \n") == []


@pytest.mark.parametrize("length", [11, 25, 200])
def test_pairs_are_what_they_say(length):
    """Every pair against the text of its document: one that follows is a stretch of it across the end of a sentence;
    one that does not has its second text in another document, at the beginning of a sentence that is not its first."""
    words = Words()
    texts = Texts(DOCUMENTS, words, length, "train")
    pairs = TrainingPairs(texts, seed=0)
    assert len(texts) == sum(one.text.count(".") - 1 for one in DOCUMENTS) and len(pairs) == len(texts) // 2 * 4
    where = {
        one.text.split()[place]: (one, place) for one in DOCUMENTS for place in range(0, len(one.text.split()), 5)
    }
    for epoch, index in ((epoch, index) for epoch in (0, 1) for index in range(len(pairs))):
        pair = pairs[Key(epoch, index)]
        first, second = words.read(pair.first), words.read(pair.second)
        assert first[-1] == "here." and len(first) + len(second) + 3 <= length
        other, place = where[second[0]]
        assert place > 0 and other.text.split()[place : place + len(second)] == second
        own = next(one for one in DOCUMENTS if first[-3] in one.text.split())
        assert " ".join(first) in own.text
        assert (" ".join(first + second) in own.text) == (pair.label == FOLLOWS) == (other is own)
        assert len(second) == min(length - 3 - (length - 3) // 2, len(other.text.split()) - place)


def test_labels_are_balanced():
    """Half of every four follow, the other two have the same first texts, and the same second texts the other way
    round unless both are of one document; every break is there once in an epoch. Held out are both kinds of each."""
    texts = Texts(DOCUMENTS, Words(), LENGTH, "train")
    for key in ((0, 0), (0, 1), (1, 0)):
        pairs = [TrainingPairs(texts, key[0])[Key(key[1], index)] for index in range(len(texts) // 2 * 4)]
        crossed = 0
        for one, two, three, four in zip(*[iter(pairs)] * 4):
            assert [pair.label for pair in (one, two, three, four)] == [FOLLOWS, FOLLOWS, STRANGE, STRANGE]
            assert one.first.equal(three.first) and two.first.equal(four.first)
            crossed += one.second.equal(four.second) and two.second.equal(three.second)
        assert crossed > 0.8 * len(pairs) / 4
        follow = {tuple(pair.second.tolist()) for pair in pairs if pair.label == FOLLOWS}
        assert len(follow) == len(texts) // 2 * 2
    held_out = HeldOutPairs(texts)
    assert np.mean([held_out[index].label for index in range(len(held_out))]) == 0.5
    assert len(held_out) == 2 * len(texts) and len(HeldOutPairs(texts, 10)) == 20
    assert len(HeldOutPairs(texts, 10**6)) == 2 * len(texts)


def test_strange_texts_come_from_everywhere():
    """Drawn uniformly over the breaks of other documents: a count of many draws against its expectation, and never one
    of the own document."""
    texts = Texts(DOCUMENTS[:5], Words(), LENGTH, "train")
    random = torch.Generator().manual_seed(0)
    for place in (0, len(texts) - 1, len(texts) // 2):
        own = texts.starts == texts.starts[place]
        drawn = np.bincount([texts.elsewhere(place, random) for _ in range(4000)], minlength=len(texts))
        assert not drawn[own].any()
        expected = 4000 / (~own).sum()
        assert abs(drawn[~own] - expected).max() < 5 * math.sqrt(expected)


def test_pairs_are_a_function_of_seed_epoch_and_index():
    """Asked twice the same; another seed or another epoch gives other strange texts."""
    texts = Texts(DOCUMENTS, Words(), LENGTH, "train")

    def seconds(seed, epoch):
        pairs = [TrainingPairs(texts, seed)[Key(epoch, index)] for index in range(len(texts) // 2 * 4)]
        return [pair.second.tolist() for pair in pairs if pair.label == STRANGE]

    assert seconds(0, 0) == seconds(0, 0)
    assert seconds(0, 0) != seconds(0, 2) and seconds(0, 0) != seconds(2, 0)


def test_documents_that_give_no_pairs():
    """Two documents of two sentences are needed; one long one is cut up."""
    one = Document("a", "One sentence. Two sentences.")
    with pytest.raises(ValueError, match=r"the text: pretraining needs two documents of two sentences each.* 3 sent"):
        Texts([one, Document("b", "Only one.")], Words(), LENGTH, "the text")
    with pytest.raises(ValueError, match="max_seq_length=4"):
        Texts([one, one], Words(), 4, "the text")
    assert len(Texts([document(0, 100)], Words(), LENGTH, "the text")) > 50


def test_shared_words():
    """1.0 where two texts of a document always share a word and others never, and chance where they share nothing."""
    words = Words()
    train, held_out = (TrainingPairs(Texts(part, words, LENGTH, ""), 0) for part in (DOCUMENTS[:20], DOCUMENTS[20:]))
    known, asked = ([pairs[Key(0, index)] for index in range(len(pairs))] for pairs in (train, held_out))
    assert shared_words(known, asked, len(words.words)) == 1.0
    apart = [pair._replace(second=pair.second * 0 + len(words.words)) for pair in asked]
    assert abs(shared_words(apart, apart, len(words.words) + 1) - 0.5) < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def test_frame_is_the_tokenizers(file, tmp_path):
    """[CLS] a [SEP] b [SEP] with segments 0 and 1, against what the saved tokenizer makes of the two texts; there is
    room for both, so that no word is cut."""
    task = make(file, max_seq_length=500)
    task.processor.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for index in range(10):
        pair = task.train[Key(0, index)]
        expected = saved(*(task.processor.decode(ids) for ids in (pair.first, pair.second)))
        ids, segments = task.framed(pair)
        assert ids.tolist() == expected["input_ids"] and segments.tolist() == expected["token_type_ids"]


def test_batch(task):
    """Against the pairs: padding is masked out, [CLS] carries the verdict, special tokens and padding are never
    hidden, what is not hidden is read as it is."""
    pairs = [task.train[Key(epoch, index)] for epoch in (0, 1) for index in range(len(task.train))]
    batch = task.collate(pairs)
    special = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, pair in enumerate(pairs):
        ids, segments = task.framed(pair)
        size = len(ids)
        labels, read = batch["labels"][row], batch["input_ids"][row]
        assert int(labels[0]) == pair.label and read[0] == CLS
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (len(read) - size)
        assert (read[size:] == PAD).all() and batch["token_type_ids"][row, :size].equal(segments)
        hidden = labels[1:size] != -100
        assert labels[1:size][hidden].equal(ids[1:][hidden]) and read[1:size][~hidden].equal(ids[1:][~hidden])
        special[row] = torch.isin(torch.nn.functional.pad(ids, (0, len(read) - size)), torch.arange(len(SPECIAL)))
    chosen = batch["labels"][:, 1:] != -100
    assert not (chosen & special[:, 1:]).any() and (batch["labels"][:, 1:][special[:, 1:]] == -100).all()
    share = chosen.sum() / (~special[:, 1:]).sum()
    assert abs(share - 0.15) < 0.02
    assert abs((batch["input_ids"][:, 1:][chosen] == MASK).float().mean() - 0.8) < 0.06
    assert task.count(batch) == chosen.sum() and task.units(batch) == batch["attention_mask"].sum()
    assert (batch["input_ids"] == SEP).sum() == 2 * len(pairs)


def test_masks_are_drawn_anew_each_epoch(task):
    """The same sample of the same epoch is masked alike in any batch; of another epoch differently."""

    def hidden(epoch):
        return [task.collate([task.train[Key(epoch, index)]])["labels"][0, 1:] != -100 for index in range(20)]

    for ours, again in zip(hidden(0), hidden(0)):
        assert ours.equal(again)
    together = task.collate([task.train[Key(0, index)] for index in range(20)])["labels"][:, 1:] != -100
    for row, ours in zip(together, hidden(0)):
        assert row[: len(ours)].equal(ours)
    assert any(ours.shape != other.shape or not ours.equal(other) for ours, other in zip(hidden(0), hidden(2)))


def test_held_out_pairs_are_fixed(file, task):
    """The same pairs with the same masks whatever the seed of the run, from documents that are not trained on."""
    other = make(file, training={"seed": 5})
    for full in (True, False):
        ours, theirs = (one.collate([*map(one.evaluation(full).__getitem__, range(30))]) for one in (task, other))
        assert all(ours[name].equal(theirs[name]) for name in ours)
    names = [{one.name for one in part} for part in (task.text.train, task.text.validation)]
    assert not names[0] & names[1] and len(task.held_out) == sum(
        one.text.count(".") - 1 for one in task.text.validation
    )


# ---------------------------------------------------------------------------------------------------------------------
# Learning and measuring


def test_loss_is_the_mean_over_the_step(task):
    """The loss of a batch against the model's own; that of its parts, with the counts of the whole, adds up to it."""
    model = build(task)
    pairs = [task.train[Key(0, index)] for index in range(12)]
    task.order(Plan(samples=len(task.train), per_device=6, accumulation=2))
    whole = task.collate(pairs)
    count = task.count(whole)
    found = sum(task.loss(model, task.collate(part), count) for part in (pairs[:6], pairs[6:]))
    labels = whole.pop("labels")
    verdicts, hidden = labels[:, 0].clone(), labels.clone()
    hidden[:, 0] = -100
    torch.testing.assert_close(found, model(**whole, labels=hidden, next_sentence_label=verdicts).loss)
    assert abs(found.item() - math.log(len(task.processor)) - math.log(2)) < 0.3


def test_metrics(task):
    """Every number of an evaluation against torch on the same batch; the filled places of the last batch count
    nothing."""
    model = build(task)
    dataset = task.evaluation(full=True)
    batch = task.collate([dataset[index] for index in range(len(dataset))])
    labels = batch.pop("labels")
    with torch.no_grad():
        words, verdicts = model(**batch).logits
        parts = []
        for one in evaluation_batches(task, dataset, 16, world=3, rank=1):
            own = one.pop("labels")
            parts.append(record(*task.pairs(model(**one).logits, own)))
    hidden, chosen = labels[:, 1:], labels[:, 1:] != -100
    metrics = task.measure(record(*task.pairs((words, verdicts), labels)))
    mlm, nsp = cross_entropy(words[:, 1:][chosen], hidden[chosen]), cross_entropy(verdicts, labels[:, 0])
    expected = {
        "loss": mlm + nsp,
        "mlm_loss": mlm,
        "mlm_accuracy": (words[:, 1:].argmax(-1) == hidden)[chosen].float().mean(),
        "nsp_loss": nsp,
        "nsp_accuracy": (verdicts.argmax(-1) == labels[:, 0]).float().mean(),
    }
    assert metrics == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    rank = concatenate(parts)
    assert (rank.label >= task.vocab_size).sum() == len(range(1, len(dataset), 3))


def test_baselines(task):
    """Unigram entropy and the most frequent token against numpy on the sentences' tokens; a coin; and words that both
    texts have, which tell all here."""
    counts = np.bincount(task.train.texts.tokens.numpy(), minlength=len(task.processor))
    held_out = task.held_out.tokens.numpy()
    entropy = -np.log((counts + 1) / (counts + 1).sum())[held_out].mean()
    found = task.baselines()
    assert found["mlm_loss"]["unigram entropy"] == pytest.approx(entropy)
    assert found["mlm_accuracy"]["most frequent token"] == pytest.approx((held_out == counts.argmax()).mean())
    assert found["nsp_accuracy"]["coin"] == 0.5 and found["nsp_accuracy"]["shared words"] > 0.7
    assert found["nsp_loss"]["coin"] == math.log(2)
    assert found["loss"]["unigram entropy + coin"] == pytest.approx(entropy + math.log(2))


@pytest.mark.slow
def test_a_model_learns_both(tmp_path):
    """Documents of two kinds, each with its own words: after some steps hidden tokens are named better than by their
    frequencies, and verdicts on held-out pairs are right where the kinds differ, which makes 3 of 4."""
    torch.manual_seed(0)
    kinds = ("The sun gives day and light.", "A moon is in its dark night.")
    rows = [{"text": " ".join([kinds[number % 2]] * 9)} for number in range(40)]
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    task = make(str(tmp_path / "a.csv"), remove_shared_passages=False)
    model = build(task, position="none").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    task.order(Plan(samples=len(task.train), per_device=32))
    for step in range(90):
        batch = task.collate([task.train[Key(step, (32 * step + row) % len(task.train))] for row in range(32)])
        loss = task.loss(model, batch, task.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dataset = task.evaluation(full=True)
    batch = task.collate([dataset[index] for index in range(len(dataset))])
    labels = batch.pop("labels")
    with torch.no_grad():
        metrics = task.measure(record(*task.pairs(model.eval()(**batch).logits, labels)))
    assert 0.65 < metrics["nsp_accuracy"] < 0.85
    assert metrics["mlm_loss"] < task.baselines()["mlm_loss"]["unigram entropy"] - 0.3


def test_preview(task):
    """A line for each pair: a verdict, and a word filled in; the same every time."""
    model = build(task)
    lines = task.preview(model)
    assert len(lines) == 3 and lines == task.preview(model)
    for line in lines:
        assert line.count(" | ") == 1 and ("-> follows " in line or "-> strange " in line)
    assert any("%, was " in line.split(" -> ")[0] for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


def test_wrong_arguments_are_named(file, task, tmp_path):
    """A stream, a tokenizer without the tokens that are needed, models that do not fit."""
    assert TASKS["pretraining"] is PreTraining
    with pytest.raises(ValueError, match="streaming"):
        make(file, streaming=True)
    tokenizer = train_tokenizer("wordpiece", ["a text"], 64, LENGTH)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no mask_token, which pretraining needs"):
        make(file, model={"tokenizer_name": str(tmp_path)})
    with pytest.raises(ValueError, match="max_seq_length=25 is longer than the 9 positions"):
        build(task, max_position_embeddings=9)
    with pytest.raises(ValueError, match="vocab_size=50"):
        build(task, vocab_size=50)
    with pytest.raises(ValueError, match="two segments"):
        build(task, embedding={"type_vocab_size": 1})
    with pytest.raises(ValueError, match="mlm_probability=0"):
        make(file, mlm_probability=0.0)
