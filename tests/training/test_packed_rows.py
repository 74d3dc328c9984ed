"""Rows of tokens against counts: every token once, documents apart, whatever the epoch and however they are dealt."""

from collections import Counter
from itertools import chain, islice

import pytest
import torch

from triune.training.data.packing import PackedRows, ScoredRows, StreamedRows, token_stream
from triune.training.data.text import Document
from triune.training.sampling import EvaluationBatches, Key, Plan, my_places, step_keys
from triune.training.tokenizers import CLS, SEP, train_tokenizer


TEXTS = [
    " ".join(f"word{letter}{number}" for number in range(size)) for letter, size in zip("abcde", (40, 3, 25, 1, 60))
]
DOCUMENTS = [Document(f"text {number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("wordpiece", TEXTS, vocab_size=80, max_length=32)


@pytest.fixture(scope="module")
def stream(tokenizer):
    return token_stream(DOCUMENTS, tokenizer, words=True)


def encoded(tokenizer):
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_stream_is_its_documents_end_to_end(tokenizer, stream):
    """Against the tokenizer's own output for each text: ids, where documents begin, where words begin."""
    own = encoded(tokenizer)
    assert stream.ids.tolist() == list(chain(*own))
    lengths = [len(ids) for ids in own]
    assert stream.begins.nonzero().flatten().tolist() == [sum(lengths[:count]) for count in range(len(own))]
    words = sum(len(text.split()) for text in TEXTS)
    assert int(stream.words.sum()) == words + 2 * len(TEXTS)  # a frame of two around each


def test_a_tokenizer_without_a_frame_is_given_one(tokenizer):
    """As GPT-2's: what its tokens for beginning and end are, stands around every document."""
    bare = train_tokenizer("bpe", TEXTS, vocab_size=300, max_length=32)
    bare.backend_tokenizer.post_processor = None
    bare.post_processor = None
    for tokenizer in (bare, train_tokenizer("bpe", TEXTS, vocab_size=300, max_length=32, closes=False)):
        stream = token_stream(DOCUMENTS[:2], tokenizer, words=True)
        plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS[:2]]
        assert stream.ids.tolist() == [CLS, *plain[0], SEP, CLS, *plain[1], SEP]
        assert len(stream.words) == len(stream.ids)
    assert tokenizer(TEXTS[0])["input_ids"] == [CLS, *plain[0]]


@pytest.mark.parametrize("length", [7, 16, 500])
def test_an_epoch_has_every_token_once(stream, length):
    """Counted: at most one row less one token is missing, and nothing is there more often than in the text."""
    rows = PackedRows(stream, length, seed=3)
    for epoch in range(3):
        seen = Counter(token for index in range(len(rows)) for token in rows[Key(epoch, index)].ids.tolist())
        missing = Counter(stream.ids.tolist()) - seen
        assert not seen - Counter(stream.ids.tolist())
        assert missing.total() == len(stream) % min(length, len(stream)) < length


def test_epochs_are_cut_at_different_places(stream):
    """The first rows of ten epochs, and the same row for the same key."""
    rows = PackedRows(stream, 16, seed=0)
    firsts = [rows[Key(epoch, 0)].ids.tolist() for epoch in range(10)]
    assert len({tuple(row) for row in firsts}) > 5
    assert rows[Key(4, 0)].ids.tolist() == firsts[4]


def test_positions_begin_again_with_each_document(stream):
    """Recomputed token by token from where documents begin."""
    rows = PackedRows(stream, 16, seed=1)
    for index in range(len(rows)):
        row = rows[Key(2, index)]
        expected, position = [], 0
        for place, token in enumerate(row.ids.tolist()):
            position = 0 if token == CLS or place == 0 else position + 1
            expected.append(position)
        assert row.positions.tolist() == expected
        assert (row.words.diff() >= 0).all()


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 1), (32, 5), (1000, 500)])
def test_every_token_is_scored_once(tokenizer, length, stride):
    """The scored tokens, in order, are the documents; a scored token has its context unless the document begins."""
    rows = ScoredRows(DOCUMENTS, tokenizer, length, stride)
    assert rows.tokens().tolist() == list(chain(*encoded(tokenizer)))
    assert rows.characters == sum(map(len, TEXTS))
    for ids, scored in rows.rows:
        first = int(scored.nonzero()[0])
        assert len(ids) <= length
        assert first == 0 or first >= length - stride
    assert sum(ids[0] == CLS for ids, _ in rows.rows) == len(TEXTS)


class Streamed:
    def documents(self, start=0):
        return iter(DOCUMENTS[start:])


def micro_batches(tokenizer, plan, first, last, rank):
    rows = StreamedRows(Streamed(), tokenizer, length=8, seed=5).dealt(plan, first, last, rank)
    return [[tuple(row.ids.tolist()) for row in micro] for micro in rows]


def test_a_stream_is_dealt_like_a_data_set(tokenizer):
    """The same rows in a step for one process, for two, and for two micro-batches; and from a later step on."""
    one = micro_batches(tokenizer, Plan(0, per_device=4), 0, 9, rank=0)
    two = [micro_batches(tokenizer, Plan(0, per_device=2, world=2), 0, 9, rank) for rank in (0, 1)]
    parts = micro_batches(tokenizer, Plan(0, per_device=2, accumulation=2), 0, 9, rank=0)
    assert len(one) == 9 and len(parts) == 18
    for step, rows in enumerate(one):
        assert sorted(rows) == sorted(two[0][step] + two[1][step]) == sorted(parts[2 * step] + parts[2 * step + 1])
    assert micro_batches(tokenizer, Plan(0, per_device=4), 6, 9, rank=0) == one[6:]


def test_a_stream_has_every_token_before_it_begins_again(tokenizer):
    """The rows of its first epoch, put in order, are the text, but for what fills no row."""
    rows = StreamedRows(Streamed(), tokenizer, length=8, seed=5)
    count = len(list(chain(*encoded(tokenizer)))) // 8
    found = sorted(islice(rows.shuffled(), count), key=lambda row: row.key)
    assert [row.key.epoch for row in found] == [0] * count
    assert torch.cat([row.ids for row in found]).tolist() == list(chain(*encoded(tokenizer)))[: count * 8]


def test_a_stream_that_fills_no_row_is_refused(tokenizer):
    """With the field and its value."""
    with pytest.raises(ValueError, match="max_seq_length=1000"):
        next(StreamedRows(Streamed(), tokenizer, length=1000, seed=5).shuffled())


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 7, 12, 13])
def test_an_evaluation_has_every_sample_once(samples, world):
    """Places below the end: each once over all processes; the same number of batches for each of them."""
    dealt = [list(EvaluationBatches(samples, 4, world, rank)) for rank in range(world)]
    places = sorted(place for batches in dealt for batch in batches for place in batch)
    assert [place for place in places if place < samples] == list(range(samples))
    assert len({tuple(map(len, batches)) for batches in dealt}) == 1
    assert all(len(EvaluationBatches(samples, 4, world, rank)) == len(dealt[rank]) for rank in range(world))


def test_places_are_the_samples_of_a_step():
    """However a step is dealt, each of its places belongs to one micro-batch of one process."""
    for plan in (Plan(50, 4), Plan(50, 2, world=2), Plan(50, 1, accumulation=2, world=2)):
        dealt = [place for rank in range(plan.world) for micro in my_places(plan, rank) for place in micro]
        assert sorted(dealt) == list(range(4))
        assert len(step_keys(plan, 0, 3)) == 4
