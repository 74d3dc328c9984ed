"""Span corruption: masks against T5's own function in numpy and against counts, sources and targets against the text
that they are made from, and a run from its beginning to its model folder."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate_state import reset_accelerate
from transformers import AutoTokenizer

from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.training import leaving, run
from triune.training.arguments import parse
from triune.training.collators import IGNORED, SpanCorruption
from triune.training.loading import evaluation_batches
from triune.training.metrics import concatenate, record
from triune.training.sampling import Key, generator
from triune.training.tasks import TASKS
from triune.training.tokenizers import SENTINELS, add_sentinels, sentinel_ids, train_tokenizer


SENTINEL_IDS = list(range(199, 99, -1))  # T5's order: the first is the highest
END = 1
LENGTH = 48
STACK = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2"
CONFIG = f"encoder: {{{STACK}}}\ndecoder: {{{STACK}}}"


def corruption(probability=0.15, mean_length=3.0):
    return SpanCorruption(probability, mean_length, SENTINEL_IDS, END)


def spans_of(hidden):
    """The lengths of runs, as (is it hidden, how long)."""
    values = hidden.tolist()
    cuts = [0, *(place for place in range(1, len(values)) if values[place] != values[place - 1]), len(values)]
    return [(values[start], end - start) for start, end in pairwise(cuts)]


def t5_lengths(length, density, mean):
    """Source and target of T5's preprocessing, from its formulas, with the paper's last sentinel."""
    noise = int(np.clip(np.round(length * density), 1, length - 1))
    spans = max(int(np.round(noise / mean)), 1)
    return length - noise + spans + 1, noise + spans + 2


# ---------------------------------------------------------------------------------------------------------------------
# Spans


@pytest.mark.parametrize(("probability", "mean_length"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.3, 1.0)])
def test_as_many_tokens_and_spans_as_t5_hides(probability, mean_length):
    """Lengths of source and target and the number of spans, against T5's formulas; the first span is kept, the last is
    hidden, and none is empty."""
    corrupt = corruption(probability, mean_length)
    for length in (20, 57, 128, 200):
        assert (corrupt.source_length(length), corrupt.target_length(length)) == t5_lengths(
            length, probability, mean_length
        )
        spans = spans_of(corrupt.hidden(length, generator(0, length)))
        lost = [size for is_hidden, size in spans if is_hidden]
        assert not spans[0][0] and spans[-1][0]
        assert len(lost) == max(1, round(round(length * probability) / mean_length))
        assert sum(lost) == round(length * probability)


def test_a_row_is_as_long_as_its_source_has_room():
    """`row_length` against a search over all lengths, for every number of tokens."""
    corrupt = corruption()
    for room in range(5, 150):
        length = corrupt.row_length(room)
        assert corrupt.source_length(length) == room
        assert max(other for other in range(2, 300) if corrupt.source_length(other) == room) == length


def test_every_way_of_cutting_is_as_likely():
    """5 hidden tokens in 2 spans have 4 ways, 7 kept ones in 2 spans 6: the 24 masks, counted over 4,800 draws,
    against a uniform distribution (chi-square of 23 degrees, 0.1 % level 49.7)."""
    corrupt = corruption(5 / 12, 2.5)
    counts = {}
    for place in range(4800):
        mask = tuple(corrupt.hidden(12, generator(1, place)).tolist())
        counts[mask] = counts.get(mask, 0) + 1
    assert len(counts) == math.comb(4, 1) * math.comb(6, 1)
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_the_share_at_each_place():
    """How often each place of a long row is hidden: about the density in the middle, never at the beginning, always at
    the end."""
    corrupt = corruption()
    masks = torch.stack([corrupt.hidden(100, generator(2, place)) for place in range(2000)]).float().mean(0)
    assert masks[0] == 0 and masks[-1] == 1
    assert masks[20:80].mean().item() == pytest.approx(0.14, abs=0.02)  # the last span is always at the end
    assert masks.mean().item() == pytest.approx(0.15)


def test_source_and_target_make_up_the_text():
    """Each sentinel of the source replaced by what stands behind it in the target, for 200 rows of all lengths: the
    row itself. Sentinels stand in T5's order, one more ends the target, and both end with the end token."""
    corrupt = corruption()
    for number in range(200):
        ids = torch.randint(2, 100, (5 + number,), generator=torch.Generator().manual_seed(number))
        source, target = (part.tolist() for part in corrupt(ids, generator(3, number)))
        spans = corrupt.counts(len(ids))[1]
        assert source[-1] == target[-1] == END and target[-2] == SENTINEL_IDS[spans]
        assert [token for token in source if token >= 100] == SENTINEL_IDS[:spans]
        assert [token for token in target if token >= 100] == SENTINEL_IDS[: spans + 1]
        behind, said = {}, None
        for token in target[:-2]:
            said = behind.setdefault(token, []) if token >= 100 else said
            said += [token] if token < 100 else []
        assert [one for token in source[:-1] for one in behind.get(token, [token])] == ids.tolist()


def test_too_many_spans_are_refused():
    """101 spans for 100 sentinels, and a rate that hides nothing or all."""
    with pytest.raises(ValueError, match="raise mean_noise_span_length"):
        corruption(0.15, 1.0).row_length(800)
    with pytest.raises(ValueError, match=r"mlm_probability=1\.0"):
        corruption(1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


def test_sentinels_are_those_of_t5(tmp_path):
    """Names and order as T5's tokenizer has them, also after saving; the space in front of one belongs to it; a
    tokenizer that has some is left as it is."""
    texts = ["thank you for inviting me to your party last week"] * 20
    tokenizer = train_tokenizer("bpe", texts, 300, 64)
    size = len(tokenizer)
    add_sentinels(tokenizer)
    add_sentinels(tokenizer)
    assert len(tokenizer) == size + SENTINELS
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert sentinel_ids(again) == list(range(size + SENTINELS - 1, size - 1, -1))
    assert set(sentinel_ids(again)) <= set(again.all_special_ids)
    ids = tokenizer("thank you for inviting me", add_special_tokens=False).input_ids
    gap = again("thank you <extra_id_0> inviting me", add_special_tokens=False).input_ids
    word = tokenizer(" for", add_special_tokens=False).input_ids
    place = gap.index(again.convert_tokens_to_ids("<extra_id_0>"))
    assert gap[:place] + word + gap[place + 1 :] == ids


# ---------------------------------------------------------------------------------------------------------------------
# The task


def text(number):
    return " ".join(f"Sentence {place} of text {number} is about {place * number % 7} things." for place in range(9))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    path.write_text("text\n" + "\n".join(f'"{text(number)}"' for number in range(40)))
    return str(path)


def make(file, *flags):
    words = ("--task", "span_corruption", "--train_file", file, "--max_seq_length", str(LENGTH))
    size = ("--vocab_size", "300", "--validation_split_percentage", "20", "--no_remove_shared_passages")
    return TASKS["span_corruption"](parse([*words, *size, *flags]))


@pytest.fixture(scope="module")
def task(file):
    return make(file)


@pytest.fixture(scope="module")
def model(task):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    fields = task.config_fields()
    stacks = {name: {**fields[name], **small} for name in ("encoder", "decoder")}
    config = TriuneSeq2SeqConfig(**{**fields, **stacks})
    task.prepare(config)
    return task.head(config).eval()


def test_batches_have_one_length(task):
    """Sources of max_seq_length tokens, targets of the length that follows, which the decoder reads moved by one."""
    batch = task.collate([task.train[Key(0, index)] for index in range(6)])
    assert batch["input_ids"].shape == (6, LENGTH) and batch["attention_mask"].all()
    hidden, spans = task.corrupt.counts(task.train.length)
    assert batch["labels"].shape == (6, hidden + spans + 2) == batch["decoder_input_ids"].shape
    assert (batch["decoder_input_ids"][:, 0] == task.processor.bos_token_id).all()
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1])
    assert task.count(batch) == batch["labels"].numel() and task.units(batch) == 6 * LENGTH + task.count(batch)


def test_what_is_hidden_follows_from_the_key(file, task):
    """The same row twice is the same, in another epoch and with another seed another; held-out rows do not ask the
    seed."""
    row = task.train[Key(0, 3)]
    same, later = (task.collate([row._replace(key=key)])["labels"] for key in (Key(0, 3), Key(1, 3)))
    assert torch.equal(same, task.collate([row])["labels"]) and not torch.equal(same, later)
    other = make(file, "--seed", "7")
    assert not torch.equal(other.collate([row])["labels"], same)
    held_out, again = task.evaluation(True), other.evaluation(True)
    assert len(held_out) > 3 and all(torch.equal(held_out[2][part], again[2][part]) for part in range(2))
    assert not torch.equal(held_out[0].target, held_out[len(held_out.places)].target)  # the next pass


def test_metrics_are_of_words(task, model):
    """`word_loss` and `word_accuracy` against torch on the labels that are no special tokens, `loss` on all of them;
    with rows that fill up a batch of three processes."""
    parts, words, hits, total, count = [], 0.0, 0, 0.0, 0
    dataset = task.evaluation(True)
    for rank in range(3):
        for batch in evaluation_batches(task, dataset, 5, 3, rank):
            labels = batch.pop("labels")
            logits = model(**batch).logits.detach()
            parts.append(record(*task.pairs(logits, labels)))
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            ordinary = ~torch.isin(labels, torch.tensor([*task.processor.all_special_ids, IGNORED])).flatten()
            words, count = words + float(losses[ordinary].sum()), count + int(ordinary.sum())
            hits += int((logits.argmax(-1).flatten() == labels.flatten())[ordinary].sum())
            total += float(losses.sum())
    found = task.measure(concatenate(parts))
    assert count == len(task.held_out_words)
    labels = len(dataset) * task.eval_corrupt.target_length(task.held_out.length)
    expected = {"loss": total / labels, "word_loss": words / count, "word_accuracy": hits / count}
    assert found == pytest.approx(expected, rel=1e-5)
    assert task.baselines()["word_loss"]["unigram entropy"] < math.log(len(task.processor))


def test_gaps_are_filled_in(task, model, monkeypatch):
    """The preview of a model that writes the target itself: the passage, each span in brackets; of one that writes
    nothing: what it was."""
    rows = list(task.passage_rows())
    answers = iter([row.target for _, row in rows])
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: next(answers)[None])
    for (ids, row), line in zip(rows, task.preview(model)):
        assert line.count("[") == task.eval_corrupt.counts(len(ids))[1] and "was" not in line
        assert line.replace("[", "").replace("]", "").split() == [
            piece for part in parts_of(task, row) for piece in part.split()
        ]
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: torch.tensor([[task.processor.eos_token_id]]))
    assert all("[, was " in line for line in task.preview(model))


def parts_of(task, row):
    """The text of each part between two brackets of a preview."""
    spans = task.spans(row.target.tolist())
    part = []
    for token in row.source.tolist():
        if token in task.corrupt.sentinels:
            yield from (task.processor.decode(part, skip_special_tokens=True), task.processor.decode(spans[token]))
            part = []
        else:
            part.append(token)
    yield task.processor.decode(part, skip_special_tokens=True)


def test_an_example_has_gaps(task):
    """What people are shown: sentinels where words are missing, and these words; put back they are the passage."""
    for example, passage in zip(task.examples(), task.passages()):
        whole = example.input
        for number, words in enumerate(example.label.split(" / ")):
            whole = whole.replace(f"<extra_id_{number}>", f" {words} ")
        assert "<extra_id_0>" in example.input
        assert passage.replace(" ", "").startswith(whole.replace(" ", ""))


def test_what_does_not_go_together_is_refused(file, task):
    """A length of targets, which follows; and a model whose vocabulary has no room for the sentinels."""
    with pytest.raises(ValueError, match="max_target_length=9"):
        make(file, "--max_target_length", "9")
    fields = task.config_fields()
    for name in ("encoder", "decoder"):
        fields[name]["vocab_size"] -= 1
    with pytest.raises(ValueError, match="vocabulary mismatch: encoder vocab_size"):
        task.prepare(TriuneSeq2SeqConfig(**fields))


def test_a_run_goes_on_as_if_nothing_had_been(file, tmp_path, monkeypatch, as_found, no_figures):
    """Six steps in one go against six that stop after the third and go on: losses and weights to the bit."""
    monkeypatch.setattr(leaving, "complete", lambda *_: None)

    def weights(folder, *flags):
        words = ("--task", "span_corruption", "--train_file", file, "--max_seq_length", str(LENGTH))
        size = ("--vocab_size", "300", "--no_remove_shared_passages", "--per_device_train_batch_size", "4")
        often = ("--max_steps", "6", "--save_steps", "3", "--eval_steps", "3", "--warmup_steps", "1")
        run.train(parse([*words, *size, *often, "--config", CONFIG, "--output_dir", str(folder), *flags]))
        reset_accelerate()
        return TASKS["span_corruption"].head.from_pretrained(folder / "model").state_dict()

    whole = weights(tmp_path / "whole")
    halfway = tmp_path / "whole" / "checkpoints" / "step-3"
    found = weights(tmp_path / "halves", "--resume_from_checkpoint", str(next(halfway.parent.glob("step-*3"))))
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
