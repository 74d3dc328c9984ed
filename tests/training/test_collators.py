"""Batches: rates of the masking counted over 1e5 tokens, padding against what it must be."""

import pytest
import torch

from triune.training.collators import IGNORED, Masking, labelled_batch
from triune.training.sampling import generator
from triune.training.tokenizers import MASK, PAD, SPECIAL


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_masking_rates(probability):
    """Of 1e5 tokens: the share chosen, and of these 80 % masked, 10 % random, 10 % kept, each within one percent."""
    ids = torch.randint(len(SPECIAL), 5000, (100_000,))
    read, labels = Masking(probability, vocab_size=5000)(ids, generator(0, 0, 0))
    chosen = labels != IGNORED
    assert chosen.float().mean().item() == pytest.approx(probability, abs=0.01)
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(read[~chosen], ids[~chosen])
    became_mask = (read == MASK)[chosen].float().mean().item()
    kept = (read == ids)[chosen].float().mean().item()
    assert became_mask == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1, abs=0.01)
    assert 1 - became_mask - kept == pytest.approx(0.1, abs=0.01)


def test_special_tokens_are_never_touched():
    """[CLS], [SEP] and padding are not chosen, and random tokens are never special."""
    ids = torch.tensor([2, 50, 51, 3, 0, 0] * 5000)
    read, labels = Masking(0.5, vocab_size=60)(ids, generator(0, 1))
    special = ids < len(SPECIAL)
    assert torch.equal(read[special], ids[special])
    assert (labels[special] == IGNORED).all()
    assert set(read[~special].unique().tolist()) <= {MASK, *range(len(SPECIAL), 60)}


def test_masks_change_with_the_epoch_and_not_with_the_rest():
    """The same place gives the same mask; another epoch another."""
    ids, masking = torch.arange(10, 60), Masking(0.3, vocab_size=100)
    first, again, later = (masking(ids, generator(0, *place))[1] for place in [(0, 7), (0, 7), (1, 7)])
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_whole_words_are_masked_together():
    """With word numbers, the tokens of a word are chosen all or none, at the same rate."""
    words = torch.arange(10_000).repeat_interleave(3)
    _, labels = Masking(0.2, vocab_size=90)(torch.randint(10, 90, (30_000,)), generator(3), words)
    chosen = (labels != IGNORED).view(-1, 3)
    assert torch.equal(chosen.any(1), chosen.all(1))
    assert chosen.float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
def test_impossible_rates_are_refused(probability):
    """The field and the value."""
    with pytest.raises(ValueError, match=f"mlm_probability={probability}"):
        Masking(probability, vocab_size=9)


def test_padding():
    """Shorter sequences are filled up, masked out, and not scored; a batch is as long as its longest sequence."""
    sequences = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    batch = labelled_batch([(ids, ids) for ids in sequences])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    pair = labelled_batch([(torch.tensor([MASK]), torch.tensor([9]))])
    assert pair["labels"].tolist() == [[9]]


def test_many_rows_at_once():
    """Shares as for single rows; words are chosen whole; a token is chosen by its own number alone."""
    masking = Masking(0.2, vocab_size=5000)
    ids = torch.randint(5, 5000, (40, 500), generator=generator(1))
    ids[:, ::50] = 2  # a special token: never chosen
    numbers = torch.rand(40, 1500, generator=generator(2))
    read, labels = masking.rows(ids, numbers)
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen]) and not chosen[ids == 2].any()
    assert abs(chosen.float().mean() - 0.2 * 0.98) < 0.01
    masked, kept = (read == MASK) & chosen, (read == ids) & chosen
    assert torch.equal(read[~chosen], ids[~chosen])
    assert abs(masked.sum() / chosen.sum() - 0.8) < 0.02 and abs(kept.sum() / chosen.sum() - 0.1) < 0.02
    one = masking.rows(ids[3:4], numbers[3:4])
    assert torch.equal(one[0], read[3:4]) and torch.equal(one[1], labels[3:4])
    words = (torch.arange(500) // 3 + 1).expand(40, -1)  # as rows count them: from 1
    whole = masking.rows(ids.clamp(min=10), numbers, words)[1] != IGNORED
    assert (whole[:, :498].view(40, -1, 3).float().std(-1) == 0).all() and 0.17 < whole.float().mean() < 0.23
