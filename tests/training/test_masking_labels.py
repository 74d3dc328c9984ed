"""What is asked of a masked language model: labels follow from the hidden tokens alone, and hiding can be all there
is."""

import pytest
import torch

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForMaskedLM
from triune.training.collators import IGNORED, Masking
from triune.training.sampling import generator
from triune.training.tokenizers import MASK, SPECIAL


VOCAB = 90


def test_a_token_that_is_not_asked_for_has_no_part_in_the_loss():
    """Two texts that agree at the chosen places only: the same labels, and so the same loss of the same input; a text
    that differs at one chosen place has another. No label is beyond the vocabulary."""
    torch.manual_seed(0)
    model = TriuneForMaskedLM(
        TriuneConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    masking, text = Masking(0.3, VOCAB), torch.randint(len(SPECIAL), VOCAB, (60,))
    read, labels = masking(text, generator(0))
    chosen = labels != IGNORED
    other = torch.where(chosen, text, (text - len(SPECIAL) + 1) % (VOCAB - len(SPECIAL)) + len(SPECIAL))
    first = int(chosen.nonzero()[0])
    wrong = text.index_fill(0, torch.tensor([first]), 50 if text[first] != 50 else 51)
    asked = [masking(one, generator(0))[1] for one in (text, other, wrong)]
    losses = [model(read[None], labels=one[None]).loss.item() for one in asked]
    assert not torch.equal(text, other) and torch.equal(asked[0], asked[1])
    assert losses[0] == losses[1] != losses[2]
    assert len(SPECIAL) <= labels[chosen].min() and labels[chosen].max() < VOCAB


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_all_that_are_chosen_can_be_hidden(probability):
    """With `masked=1`: every chosen token is [MASK], every other one as it was; and as many are chosen."""
    text = torch.randint(len(SPECIAL), VOCAB, (100_000,))
    read, labels = Masking(probability, VOCAB, masked=1.0, random=0.0)(text, generator(1))
    chosen = labels != IGNORED
    assert (read[chosen] == MASK).all() and torch.equal(read[~chosen], text[~chosen])
    assert chosen.float().mean().item() == pytest.approx(probability, abs=0.01)
