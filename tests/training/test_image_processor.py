"""The saved image processor against the pixels that evaluation uses, and its numbers against numpy's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from triune.training.data.bundled import digits, letters
from triune.training.data.images import as_image, as_tensor, decode, resized
from triune.training.image_processor import (
    build_processor,
    denormalised,
    load_processor,
    measured,
    normalised,
    processed,
)


def photos(count=6):
    """RGB, each of another odd size, larger and smaller than what is wanted."""
    random = np.random.default_rng(0)
    sizes = [(17 + 23 * index, 131 - 19 * index, 3) for index in range(count)]
    return [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


def saved(processor, folder):
    processor.save_pretrained(folder)
    return AutoImageProcessor.from_pretrained(folder)


def test_measured_numbers_are_numpys():
    """Mean and standard deviation of each channel over all pixels of images of different sizes, to four places."""
    images = [as_tensor(photo) for photo in photos()]
    pixels = np.concatenate([image.flatten(1).numpy() for image in images], 1) / 255
    mean, deviation = measured(images)
    assert mean == pytest.approx(pixels.mean(1), abs=6e-5)
    assert deviation == pytest.approx(pixels.std(1), abs=6e-5)
    assert all(value == round(value, 4) for value in mean + deviation)


def test_images_of_one_colour_are_not_divided_by_nothing():
    """A deviation of 0 becomes 1; no image is an error."""
    assert measured([torch.full((1, 4, 4), 51, dtype=torch.uint8)]) == ([0.2], [1.0])
    with pytest.raises(ValueError, match="of no image"):
        measured([])


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_grey_images_through_the_saved_processor(name, tmp_path):
    """What AutoImageProcessor gives for Pillow's grey images is, to the bit, what evaluation gives for tensors."""
    data = digits() if name == "digits" else letters(per_font=1, held_out_per_font=1)
    side = data.train.pixels.shape[-1]
    processor = build_processor((side, side), *measured(data.train.pixels))
    pixels = list(data.validation.pixels[:40])
    theirs = saved(processor, tmp_path)([as_image(image) for image in pixels], return_tensors="pt")["pixel_values"]
    ours = processed(processor, pixels)
    assert ours.shape == (40, 1, side, side) and ours.dtype == torch.float32
    assert torch.equal(ours, theirs)
    everything = processed(processor, list(data.train.pixels))
    assert everything.mean().item() == pytest.approx(0, abs=1e-3)
    assert everything.std().item() == pytest.approx(1, abs=1e-3)


def test_photos_through_the_saved_processor(tmp_path):
    """Odd sizes, RGB, grey and transparent, from files: the same, to the bit, and through a call for each alone."""
    files = []
    extra = [photos()[2].convert("L"), photos()[3].convert("RGBA"), photos()[4].convert("P")]
    extra[1].putalpha(100)
    for index, image in enumerate([*photos(), *extra]):
        files.append(tmp_path / f"{index}.png")
        image.save(files[-1])
    decoded = [decode(file.read_bytes(), 3) for file in files]
    processor = build_processor((48, 32), *measured(decoded))
    theirs = saved(processor, tmp_path / "model")
    ours = processed(processor, decoded)
    assert ours.shape == (9, 3, 48, 32)
    opened = [Image.open(file) for file in files]
    assert torch.equal(ours, theirs(opened, return_tensors="pt")["pixel_values"])
    assert torch.equal(ours[4], theirs(opened[4], return_tensors="pt")["pixel_values"][0])


def test_the_file_is_portable(tmp_path):
    """The name that every version of transformers knows, no path, and the numbers as they were given."""
    build_processor((8, 8), [0.3], [0.4]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "ViTImageProcessor"
    assert (written["image_mean"], written["image_std"], written["size"]) == ([0.3], [0.4], {"height": 8, "width": 8})
    assert not any("/" in str(value) for value in written.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_training_normalises_as_evaluation_does(channels):
    """Pixels that are only resized and normalised, by torch: the processor's, to 1e-6; and back to the pixels."""
    images = [as_tensor(photo.convert("L" if channels == 1 else "RGB")) for photo in photos()]
    processor = build_processor((24, 40), [0.31] * channels, [0.27] * channels)
    plain = torch.stack([resized(image, (24, 40)) for image in images]).float() / 255
    values = normalised(processor, plain)
    assert (values - processed(processor, images)).abs().max() < 1e-6
    assert torch.allclose(denormalised(processor, values), plain, atol=1e-6)


def test_a_colour_image_for_a_grey_model_is_refused():
    """transformers says what is wrong, as the docstring of the module says."""
    with pytest.raises(ValueError, match="mean must have 3 elements"):
        build_processor((8, 8), [0.5], [0.5])(photos()[0])


def test_a_saved_processor_is_found_again(tmp_path):
    """With its own numbers; a folder without one, and none at all, give none."""
    build_processor((8, 8), [0.3], [0.4]).save_pretrained(tmp_path / "with")
    assert load_processor(str(tmp_path / "with")).image_mean == (0.3,)
    (tmp_path / "without").mkdir()
    assert load_processor(str(tmp_path / "without")) is None
    assert load_processor(str(tmp_path / "nowhere")) is None
