"""Batches: rates of the masking counted over 1e5 tokens, padding against what it must be, pictures against their
definitions."""

import pytest
import torch

from triune.training.collators import IGNORED, Masking, affine, causal_batch, erase, flip, masked_batch, shift
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
    batch = causal_batch([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    pair = masked_batch([(torch.tensor([MASK]), torch.tensor([9]))])
    assert pair["labels"].tolist() == [[9]]


def test_shift_moves_and_repeats_the_edge():
    """Every possible shift of a picture by one pixel comes up, and each is the picture moved."""
    image = torch.arange(16.0).view(1, 4, 4)
    padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    allowed = {tuple(padded[0, y : y + 4, x : x + 4].flatten().tolist()) for y in range(3) for x in range(3)}
    seen = {tuple(shift(image, generator(0, index), 1).flatten().tolist()) for index in range(200)}
    assert seen == allowed
    assert torch.equal(shift(image, generator(0), 0), image)


def test_affine_keeps_a_plain_picture_and_stays_near_the_rest():
    """A constant picture is untouched; a turn by at most nothing is the identity."""
    assert torch.allclose(affine(torch.full((1, 8, 8), 0.3), generator(0), 20, 0.2, 0.1), torch.tensor(0.3))
    image = torch.rand(1, 8, 8)
    assert torch.equal(affine(image, generator(0), 0, 0), image)
    assert not torch.allclose(affine(image, generator(0), 20, 0.2), image)


def test_erase_blanks_one_rectangle():
    """What changed is a rectangle filled with the mean; the original is not written to."""
    image = torch.rand(1, 12, 10)
    before = image.clone()
    out = erase(image, generator(5), 1.0)
    assert torch.equal(image, before)
    changed = (out != image)[0]
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    box = out[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert torch.allclose(box, image.mean())
    assert torch.equal(erase(image, generator(5), 0.0), image)


def test_flip_exchanges_left_and_right():
    """With certainty, never, and half of the time."""
    image = torch.rand(1, 2, 3)
    assert torch.equal(flip(image, generator(0), 1.0), image[..., [2, 1, 0]])
    assert torch.equal(flip(image, generator(0), 0.0), image)
    flips = sum(not torch.equal(flip(image, generator(0, index), 0.5), image) for index in range(400))
    assert 150 < flips < 250
