"""Order, dealing and randomness of samples: counted, and compared across processes, accumulation and resumes."""

from collections import Counter

import pytest
import torch

from triune.training.sampling import Key, MicroBatches, Plan, generator, permutation, step_keys, uniforms


def test_an_epoch_holds_every_sample_once():
    """Over the steps of three epochs, each sample comes exactly once an epoch, in another order each time."""
    plan = Plan(samples=12, per_device=4)
    keys = [key for step in range(9) for key in step_keys(plan, 0, step)]
    for epoch in range(3):
        assert sorted(key.index for key in keys if key.epoch == epoch) == list(range(12))
    orders = [[key.index for key in keys if key.epoch == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_epochs_need_not_divide_into_steps():
    """Seven samples, three a step: a step that crosses the border takes the rest of one epoch and the start of the
    next, and no sample is lost."""
    plan = Plan(samples=7, per_device=3)
    keys = [key for step in range(7) for key in step_keys(plan, 1, step)]
    assert Counter(keys) == Counter(Key(epoch, index) for epoch in range(3) for index in range(7))


def test_a_step_larger_than_the_data():
    """A step of ten from four samples takes two and a half epochs."""
    keys = step_keys(Plan(samples=4, per_device=10), 0, 0)
    assert Counter(key.epoch for key in keys) == {0: 4, 1: 4, 2: 2}


@pytest.mark.parametrize(("per_device", "accumulation", "world"), [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4)])
def test_a_step_is_the_same_set_however_it_is_dealt(per_device, accumulation, world):
    """One process or four, one pass or four: the samples of each step are the same, and each is dealt once."""
    plan = Plan(samples=20, per_device=per_device, accumulation=accumulation, world=world)
    ranks = [list(MicroBatches(plan, 3, 0, 5, rank)) for rank in range(world)]
    for step in range(5):
        dealt = [
            key
            for batches in ranks
            for micro in batches[step * accumulation : (step + 1) * accumulation]
            for key in micro
        ]
        assert sorted(dealt) == sorted(step_keys(Plan(samples=20, per_device=8), 3, step))
        assert all(len(micro) == per_device for batches in ranks for micro in batches)


def test_a_resumed_order_is_the_rest_of_the_order():
    """Batches from step 4 on against the tail of those from step 0 on."""
    plan = Plan(samples=11, per_device=2, accumulation=2)
    assert list(MicroBatches(plan, 0, 4, 9)) == list(MicroBatches(plan, 0, 0, 9))[8:]
    assert len(MicroBatches(plan, 0, 4, 9)) == 10


def test_randomness_belongs_to_its_place():
    """Equal places give equal numbers; another seed, epoch or index gives others."""

    def draw(*place):
        return torch.rand(4, generator=generator(*place)).tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({tuple(draw(*place)) for place in [(0, 1, 2), (1, 1, 2), (0, 2, 1), (0, 1, 3), (0, 1)]}) == 5


def test_orders_are_fair():
    """Each sample comes first about equally often: a chi-square bound over 2,000 epochs of ten samples."""
    firsts = Counter(int(permutation(10, 0, epoch)[0]) for epoch in range(2000))
    assert sum((firsts[index] - 200) ** 2 / 200 for index in range(10)) < 30


def test_empty_data_is_refused():
    """No samples, one sentence."""
    with pytest.raises(ValueError, match="training set is empty"):
        MicroBatches(Plan(samples=0, per_device=1), 0, 0, 1)


def test_uniforms_belong_to_their_sample():
    """The same whatever stands beside it and however many are asked for; others elsewhere."""
    keys = [Key(0, 3), Key(2, 3), Key(0, 4), Key(3, 0)]
    together = uniforms(7, keys, 50)
    for place, key in enumerate(keys):
        assert torch.equal(uniforms(7, [key], 20)[0], together[place, :20])
    rows = [*together, *uniforms(8, keys, 50), *uniforms(7, [Key(3, 2)], 50)]
    assert len({tuple(row.tolist()) for row in rows}) == 9


def test_uniforms_are_uniform():
    """Of a million: each of a hundred parts has its share, neighbours in every direction are independent, and each
    number of one epoch is independent of the same one of the next."""
    numbers = torch.stack([uniforms(0, [Key(epoch, index) for index in range(1000)], 500) for epoch in range(2)])
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers, 100, 0, 1)
    expected = numbers.numel() / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi squared with 99 degrees: 1 in 10,000 is above
    centred = (numbers - 0.5) * 12**0.5
    for shift in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)):
        moved = centred.roll(shift, (0, 1, 2))
        assert abs((centred * moved).mean()) < 5 / numbers.numel() ** 0.5
