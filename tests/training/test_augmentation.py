"""Augmentations against Pillow's operations of the same names, formulas, and counts over many draws."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from triune.training import augmentation
from triune.training.arguments import DataArguments
from triune.training.augmentation import (
    FIXED,
    OPERATIONS,
    Augment,
    Mix,
    crop_box,
    cutmix,
    erase,
    flip,
    mixup,
    rand_augment,
    random_resized_crop,
    rectangles,
    shift_and_affine,
    warp,
)
from triune.training.sampling import generator


def photo(height=48, width=40, channels=3, seed=0):
    """A smooth picture with levels from dark to light: uint8 (channels, height, width)."""
    random = np.random.default_rng(seed)
    small = random.integers(20, 230, (6, 5, channels), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(part).resize((width, height), 2)) for part in small.transpose(2, 0, 1)]
    return torch.from_numpy(np.stack(large))


def as_pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def levels(images):
    return (images * 255).round().to(torch.uint8)


def largest_difference(images, image):
    """In levels, of the only image of a batch and one of Pillow's."""
    return (images[0] * 255 - torch.from_numpy(np.array(image)).permute(2, 0, 1)).abs().max().item()


# ---------------------------------------------------------------------------------------------------------------------
# Where the pixels are


def test_a_move_by_whole_pixels_repeats_the_edge():
    """To the right by one, up by two, and not at all: slices of the padded picture."""
    image = torch.rand(1, 1, 5, 4)
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    assert torch.allclose(warp(image, right=1.0), padded[:, :, 2:7, 1:5], atol=1e-5)
    assert torch.allclose(warp(image, down=-2.0), padded[:, :, 4:9, 2:6], atol=1e-5)
    assert shift_and_affine(image, torch.rand(1, 5), 0, 0.0, 0.0) is image


@pytest.mark.parametrize(("height", "width"), [(33, 33), (24, 40)])
def test_warp_is_pillows_affine_map(height, width):
    """A turn, a zoom, shears and a move at once, of a picture that is not square: inside, Pillow's bilinear transform
    of the same map in floats."""
    random = np.random.default_rng(0)
    image = np.kron(random.random((height // 4 + 1, width // 4 + 1)), np.ones((4, 4)))[:height, :width]
    turn, zoom, lean_x, lean_y, right, down = 0.2, 1.3, 0.1, -0.05, 1.5, -2.25
    new = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / zoom
    matrix = new @ np.array([[1, lean_x], [lean_y, 1]])
    middle = np.array([width, height]) / 2
    offset = middle - matrix @ (middle + [right, down])
    row = (*matrix[0], offset[0], *matrix[1], offset[1])
    pil = Image.fromarray(image.astype(np.float32)).transform((width, height), Image.Transform.AFFINE, row, 2)
    # Pillow fills what lies outside; a picture of ones shows where that is
    ones = Image.fromarray(np.ones_like(image, dtype=np.float32))
    inside = np.asarray(ones.transform((width, height), Image.Transform.AFFINE, row, 2)) == 1
    ours = warp(torch.from_numpy(image).float()[None, None], turn, zoom, lean_x, lean_y, right, down)[0, 0].numpy()
    assert inside.mean() > 0.6
    assert np.abs(ours - np.asarray(pil))[inside].max() < 1e-3


def test_a_turn_is_counter_clockwise():
    """By 90 degrees: torch.rot90, which turns the same way."""
    image = torch.rand(1, 1, 8, 8)
    assert torch.allclose(warp(image, math.pi / 2), image.rot90(1, (2, 3)), atol=1e-5)


def test_moves_turns_and_zooms_are_uniform(monkeypatch):
    """Over 4000 images: within the limits, with the mean and spread of a uniform distribution."""
    seen = {}
    monkeypatch.setattr(
        augmentation, "warp", lambda images, turn, zoom, **moves: seen.update(turn=turn, zoom=zoom, **moves) or images
    )
    shift_and_affine(torch.rand(4000, 1, 2, 2), torch.rand(4000, 5), 3, 30.0, 0.2, 0.4)
    limits = {"turn": (0, math.radians(30)), "zoom": (1, 0.2), "right": (0, 3), "down": (0, 3), "lean_x": (0, 0.4)}
    for name, (middle, most) in limits.items():
        found = seen[name]
        assert (found - middle).abs().max() <= most * (1 + 1e-5)
        assert found.mean().item() == pytest.approx(middle, abs=0.05 * most)
        assert found.std().item() == pytest.approx(most / math.sqrt(3), rel=0.05)


def test_a_plain_picture_stays_plain():
    """What becomes free takes the colour of the edge."""
    plain = torch.full((5, 3, 9, 7), 0.3)
    assert torch.allclose(shift_and_affine(plain, torch.rand(5, 5), 3, 40, 0.3, 0.3), plain, atol=1e-6)


def test_flip_exchanges_left_and_right():
    """With certainty, never, and in about half of 400 images; the others stay."""
    images = torch.rand(400, 1, 2, 3)
    assert torch.equal(flip(images, torch.rand(400), 1.0), images[..., [2, 1, 0]])
    assert flip(images, torch.rand(400), 0.0) is images
    flipped = flip(images, torch.rand(400), 0.5)
    same = (flipped == images).flatten(1).all(1)
    assert 150 < same.sum() < 250
    assert torch.equal(flipped[~same], images[~same].flip(-1))


def test_crops_have_the_share_of_the_area():
    """Of 3000 boxes in a large image: areas uniform from 20 to 100 %, sides 3:4 to 4:3 of the image's, inside it, and
    as often near one edge as near the other."""
    boxes = np.array([crop_box(numbers, 1000, 2000, 0.2) for numbers in torch.rand(3000, 4)])
    top, left, tall, wide = boxes.T
    free = (tall < 1000) & (wide < 2000)  # the others were cut to fit
    area = tall * wide / 2e6
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= 1000).all() and (left + wide <= 2000).all()
    assert area.min() >= 0.19 and area.max() > 0.95
    small = area[free & (area < 0.7)]
    assert small.mean() == pytest.approx(0.45, abs=0.01)
    stretch = (wide[free] / 2) / tall[free]
    assert 0.745 < stretch.min() and stretch.max() < 1.34
    place = left[free] / (2000 - wide[free])
    assert place.mean() == pytest.approx(0.5, abs=0.02) and place.std() == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_a_crop_is_pillows_resized_box():
    """Reduced and enlarged, within one level; the whole image at its own size is the image."""
    pixels, numbers = photo(60, 50), torch.tensor([0.3, 0.7, 0.4, 0.9])
    top, left, tall, wide = crop_box(numbers, 60, 50, 0.2)
    for size in ((16, 20), (90, 80)):
        ours = random_resized_crop(pixels, numbers, 0.2, size)
        part = as_pil(pixels).crop((left, top, left + wide, top + tall)).resize(size[::-1], 2)
        assert largest_difference(ours[None] / 255, part) <= 1.01
    assert torch.equal(random_resized_crop(pixels, torch.tensor([1, 0.5, 0.3, 0.3]), 0.2, (60, 50)), pixels)


def test_rectangles_by_hand():
    """Half of the rows, a quarter of the columns, in the last place; and one pixel at the least, in the first."""
    found = rectangles(torch.tensor([[0.5, 0.25], [0.01, 0.01]]), torch.tensor([[0.999, 0.999], [0.0, 0.0]]), 4, 8)
    assert found.shape == (2, 1, 4, 8)
    assert found[0, 0].nonzero().tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]
    assert found[1, 0].nonzero().tolist() == [[0, 0]]


def test_erase_fills_one_rectangle_with_the_mean_colour():
    """What changed is a rectangle of a tenth to half of each side; about a third of the images if so asked."""
    images = torch.rand(300, 3, 20, 30)
    before = images.clone()
    out = erase(images, torch.rand(300, 5), 1.0)
    assert torch.equal(images, before)
    changed = (out != images).any(1)
    tall, wide = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(changed.sum((1, 2)), tall * wide)
    assert tall.min() == 2 and tall.max() <= 10 and wide.min() == 3 and wide.max() <= 15
    row, column = changed[7].nonzero()[0].tolist()
    assert torch.allclose(out[7, :, row, column], images[7].mean((1, 2)))
    assert erase(images, torch.rand(300, 5), 0.0) is images
    some = (erase(images, torch.rand(300, 5), 1 / 3) != images).flatten(1).any(1).sum()
    assert 70 < some < 130


# ---------------------------------------------------------------------------------------------------------------------
# What the pixels are


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 24)])
def test_an_amount_of_nothing_changes_nothing(operation, shape):
    """Each operation at 0 gives the image; at 1 and -1 another, between 0 and 1, of the same shape."""
    images = levels(torch.rand(4, *shape) * 0.5 + 0.2) / 255
    assert torch.allclose(operation(images, torch.zeros(4)), images, atol=1e-5)
    for amount in (1.0, -1.0):
        out = operation(images, torch.full((4,), amount))
        assert out.shape == images.shape and 0 <= out.min() and out.max() <= 1.0001
        assert not torch.allclose(out, images, atol=0.01)


@pytest.mark.parametrize("amount", [-0.7, 0.5, 1.0])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Sharpness"])
def test_enhancements_are_pillows(name, amount):
    """Within two levels, at three strengths (Pillow rounds in between)."""
    pixels = photo()
    ours = getattr(augmentation, name.lower())(pixels[None] / 255, torch.tensor([amount]))
    assert largest_difference(ours, getattr(ImageEnhance, name)(as_pil(pixels)).enhance(1 + 0.9 * amount)) < 2.01


@pytest.mark.parametrize(("amount", "bits"), [(0.25, 7), (0.5, 6), (-1.0, 4)])
def test_posterize_is_pillows(amount, bits):
    """To the digit."""
    pixels = photo()
    ours = augmentation.posterize(pixels[None] / 255, torch.tensor([amount]))
    assert largest_difference(ours, ImageOps.posterize(as_pil(pixels), bits)) < 1e-3


@pytest.mark.parametrize("amount", [0.25, -0.5])
def test_solarize_is_pillows(amount):
    """To the digit."""
    pixels = photo()
    ours = augmentation.solarize(pixels[None] / 255, torch.tensor([amount]))
    assert largest_difference(ours, ImageOps.solarize(as_pil(pixels), 256 * (1 - abs(amount)))) < 1e-3


def test_autocontrast_is_pillows():
    """Within a level; each channel for itself. A picture of one colour stays."""
    pixels = photo()
    ours = augmentation.autocontrast(pixels[None] / 255, torch.ones(1))
    assert largest_difference(ours, ImageOps.autocontrast(as_pil(pixels))) < 1.01
    plain = torch.full((1, 1, 5, 5), 0.4)
    assert torch.equal(augmentation.autocontrast(plain, torch.ones(1)), plain)


def test_equalize_is_pillows():
    """Within three levels on a large picture, where Pillow's whole numbers are fine enough; plain pictures stay."""
    pixels = photo(400, 500)
    ours = augmentation.equalize(pixels[None] / 255, torch.ones(1))
    assert largest_difference(ours, ImageOps.equalize(as_pil(pixels))) < 3.01
    plain = torch.full((1, 1, 5, 5), 0.4)
    assert torch.allclose(augmentation.equalize(plain, torch.ones(1)), plain)


def test_rand_augment_takes_every_operation_as_often(monkeypatch):
    """Two of them on each of 3000 images: stand-ins that count show each about 500 times, half of them to the left, at
    the magnitude that was asked for."""
    counts = torch.zeros(len(OPERATIONS), 2)

    def stand_in(index):
        def operation(images, amount):
            assert torch.allclose(amount.abs(), torch.tensor(0.4))
            counts[index] += torch.stack([(amount < 0).sum(), (amount > 0).sum()])
            return images

        return operation

    monkeypatch.setattr(augmentation, "OPERATIONS", tuple(map(stand_in, range(len(OPERATIONS)))))
    rand_augment(torch.rand(3000, 1, 1, 1), torch.rand(3000, 4), 0.4)
    assert counts.sum() == 6000
    assert counts.min() > 190 and counts.max() < 310


def test_rand_augment_by_hand():
    """One image, two operations named by its numbers, one after the other; a neighbour with others does not matter."""
    images = levels(torch.rand(2, 3, 16, 16)) / 255
    names = [operation.__name__ for operation in OPERATIONS]
    first, second = names.index("solarize"), names.index("translate_x")
    numbers = torch.tensor(
        [[(first + 0.5) / len(names), 0.9, (second + 0.5) / len(names), 0.1], [0.0, 0.0, 0.99, 0.99]]
    )
    by_hand = OPERATIONS[second](OPERATIONS[first](images[:1], torch.tensor([0.5])), torch.tensor([-0.5]))
    assert torch.allclose(rand_augment(images, numbers, 0.5)[:1], by_hand)


# ---------------------------------------------------------------------------------------------------------------------
# All of it

EVERYTHING = Augment(2, 15.0, 0.2, 0.3, 0.1, 0.5, 0.5, 2, 0.6, 0.5)


def test_nothing_chosen_is_the_identity():
    """A single image, and a batch."""
    image = torch.rand(3, 8, 6)
    assert Augment()(image, generator(0)) is image
    assert torch.equal(Augment().batch(image[None], torch.rand(1, FIXED)), image[None])
    assert not Augment().crops


def test_the_same_place_gives_the_same_image():
    """For floats and whole numbers; another epoch gives another, in the same type and shape."""
    for image in (torch.rand(3, 16, 12), photo(16, 12), photo(8, 8, 1)):
        first, again, later = (EVERYTHING(image, generator(0, *place)) for place in [(0, 7), (0, 7), (1, 7)])
        assert torch.equal(first, again) and not torch.equal(first, later)
        assert first.dtype == image.dtype and first.shape == image.shape
    small, large = EVERYTHING(photo(), generator(3)), EVERYTHING(photo() / 255, generator(3))
    assert (small - large * 255).abs().max() <= 0.51


def test_an_image_does_not_depend_on_its_batch():
    """Twelve images together, each by itself, and in the other order."""
    images = torch.rand(12, 3, 16, 12)
    numbers = torch.stack([EVERYTHING.draw(generator(0, 0, index), 3 * 16 * 12) for index in range(12)])
    together = EVERYTHING.batch(images, numbers)
    alone = torch.cat([EVERYTHING.batch(images[place : place + 1], numbers[place : place + 1]) for place in range(12)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(EVERYTHING.batch(images.flip(0), numbers.flip(0)).flip(0), together, atol=1e-6)


def test_one_choice_does_not_change_the_others():
    """With erasing switched on, images are shifted as before, except for the rectangle."""
    images = torch.rand(50, 1, 12, 12)
    plain, erasing = (Augment(shift=2, random_erasing=share) for share in (0.0, 1.0))
    numbers = torch.stack([plain.draw(generator(0, index)) for index in range(50)])
    changed = (plain.batch(images, numbers) != erasing.batch(images, numbers)).flatten(1).float().mean(1)
    assert 0 < changed.max() <= 0.25


def test_every_number_has_one_use():
    """Each place of an image's row is changed in turn: it shows in one augmentation at most, and all are used."""
    image, numbers = photo(24, 24), torch.full((FIXED,), 0.3)
    alone = [{"random_resized_crop": 0.3}, {"horizontal_flip": 0.5}, {"shift": 2}, {"rotate": 30.0}, {"rescale": 0.3}]
    alone.append({"shear": 0.3})
    alone = [Augment(**choice) for choice in [*alone, {"random_erasing": 0.5}]]

    def result(augment, numbers):
        part = augment.crop(image, numbers, (24, 24)) if augment.crops else image
        return augment.batch(part[None] / 255, numbers[None])

    uses = torch.zeros(FIXED, dtype=torch.long)
    for augment in alone:
        for place in range(FIXED):
            changed = numbers.clone()
            changed[place] = 0.8
            uses[place] += not torch.equal(result(augment, numbers), result(augment, changed))
    assert uses.tolist() == [1] * FIXED


def test_noise_is_normal():
    """A million pixels: mean 0 and the spread that is asked for, as much beyond two and three of it as scipy says;
    with it switched on, the rest is as before."""
    from scipy.stats import norm

    plain, noisy = (Augment(shift=2, noise=noise) for noise in (0.0, 0.1))
    images = torch.rand(100, 1, 100, 100)
    numbers = torch.stack([noisy.draw(generator(0, index), 100 * 100) for index in range(100)])
    added = noisy.batch(images, numbers) - plain.batch(images, numbers[:, :FIXED])
    assert added.mean().item() == pytest.approx(0, abs=1e-3)
    assert added.std().item() == pytest.approx(0.1, rel=0.01)
    for times in (2, 3):
        assert (added.abs() > 0.1 * times).float().mean().item() == pytest.approx(2 * norm.sf(times), rel=0.05)


def test_augment_and_mix_are_made_from_flags():
    """Every field of both is a flag with the same default, and the flags' values arrive."""
    assert Augment.of(DataArguments()) == Augment() and Mix.of(DataArguments()) == Mix()
    data = DataArguments(shift=3, random_erasing=0.25, cutmix_alpha=0.5)
    assert (Augment.of(data).shift, Augment.of(data).random_erasing, Mix.of(data).cutmix_alpha) == (3, 0.25, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("shift", -1, "0 or more"),
        ("rotate", 200.0, "between 0 and 180"),
        ("rescale", 1.0, "between 0 and 0.99"),
        ("random_resized_crop", 0.0, "between 0.01 and 1"),
        ("horizontal_flip", 1.5, "between 0 and 1"),
        ("rand_augment_magnitude", float("nan"), "between 0 and 1"),
    ],
)
def test_impossible_values_are_refused(field, value, allowed):
    """The flag, its value and what is allowed."""
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed: it must be {allowed}"):
        Augment.of(DataArguments(**{field: value}))


def test_impossible_mixing_is_refused():
    """The same for the flags of a batch."""
    with pytest.raises(ValueError, match=r"mixup_alpha=-0.1 is not allowed: it must be 0 or more"):
        Mix.of(DataArguments(mixup_alpha=-0.1))


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def test_mixup_by_hand():
    """A quarter of one image and three quarters of the other."""
    images, others = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    mixed, share = mixup(images, others, torch.tensor([0.25, 1.0]), generator(0))
    assert torch.allclose(mixed[0], 0.25 * images[0] + 0.75 * others[0])
    assert torch.allclose(mixed[1], images[1])
    assert share.tolist() == [0.25, 1.0]


def test_cutmix_counts_its_pixels():
    """Of white images with black rectangles the mean is the share; rectangles are about as large as was asked for."""
    asked = torch.rand(500)
    mixed, share = cutmix(torch.ones(500, 1, 32, 40), torch.zeros(500, 1, 32, 40), asked, generator(0))
    assert torch.allclose(mixed.mean((1, 2, 3)), share, atol=1e-6)
    assert (share - asked).abs().max() < 0.07
    rows = (mixed == 0).any(3).sum((1, 2)) * (mixed == 0).any(2).sum((1, 2))
    assert torch.equal(rows, (mixed == 0).sum((1, 2, 3)))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_a_beta_distribution(alpha):
    """Mean and variance of 20,000 of them: 1/2 and 1 / (4 (2 alpha + 1))."""
    shares = augmentation.beta(alpha, 20_000, generator(0))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("mix", [Mix(mixup_alpha=1.0), Mix(cutmix_alpha=1.0), Mix(0.5, 0.5)])
def test_soft_labels_say_what_is_in_the_image(mix):
    """Every image is filled with its own class: the mean of a mixed one is what its soft label expects. Labels sum to
    1, the generator decides, and both kinds come up where both are chosen."""
    labels = torch.arange(64) % 4
    images = (labels / 4).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    mixed, soft = mix(images, labels, 4, generator(0, 1))
    assert soft.shape == (64, 4) and torch.allclose(soft.sum(1), torch.ones(64))
    assert torch.allclose(mixed.mean((1, 2, 3)), soft @ (torch.arange(4) / 4), atol=1e-5)
    again, _ = mix(images, labels, 4, generator(0, 1))
    other, _ = mix(images, labels, 4, generator(0, 2))
    assert torch.equal(mixed, again) and not torch.equal(mixed, other)
    sharp = {bool(torch.isin(mix(images, labels, 4, generator(9, place))[0], images).all()) for place in range(20)}
    assert sharp == {bool(kind) for kind, alpha in ((1, mix.cutmix_alpha), (0, mix.mixup_alpha)) if alpha}


def test_no_mixing_is_false():
    """What the collator asks."""
    assert not Mix() and Mix(mixup_alpha=0.1) and Mix(cutmix_alpha=0.1)
