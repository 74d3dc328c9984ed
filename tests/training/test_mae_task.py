"""The task of masked image modeling: masks, batches and records against numpy, baselines against a loop over pixels,
crops of photographs that share nothing, the pictures, and a short training."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.modeling import TriuneForMaskedImageModeling
from triune.modeling.embeddings import patchify
from triune.modeling.modeling_triune_mae import target_pixels
from triune.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from triune.training.collators import IGNORED
from triune.training.data import photos as photos_module
from triune.training.data.photos import BAND, PHOTOS, crops, photograph, photos
from triune.training.figures.reconstruction import draw_reconstructions, reconstructions
from triune.training.figures.style import style
from triune.training.metrics import record
from triune.training.sampling import Key
from triune.training.tasks.masked_image_modeling import MaskedImageModeling, as_logits, decibels


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KEYS = [Key(0, index) for index in range(16)]


def make(training=None, mask_ratio=0.75, norm_pix_loss=False, channels=3, **data):
    """A task on digits that is prepared, with a model."""
    data = {"dataset_name": "digits", **data}
    task = MaskedImageModeling(Arguments(ModelArguments(), DataArguments(**data), TrainingArguments(**training or {})))
    embedding = {**task.config_fields()["encoder"]["embedding"], "num_channels": channels}
    config = TriuneMAEConfig(
        encoder={**SIZES, "embedding": embedding},
        decoder={**SIZES, "num_hidden_layers": 1},
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
    )
    task.prepare(config)
    torch.manual_seed(0)
    return task, TriuneForMaskedImageModeling(config).eval()


# ---------------------------------------------------------------------------------------------------------------------
# The photographs


def test_photographs_are_half_their_size():
    """Each pixel against numpy's mean of four."""
    for name in PHOTOS:
        whole = load_sample_image(f"{name}.jpg").astype(np.float64)[:426]
        want = whole.reshape(213, 2, 320, 2, 3).mean((1, 3)).transpose(2, 0, 1)
        assert np.abs(photograph(name).numpy() - want).max() <= 0.5


def test_crops_cut_what_they_say():
    """Row by row, at every `step` pixels: against slices; and as many as fit."""
    photo = torch.arange(3 * 20 * 30).reshape(3, 20, 30)
    found = crops(photo, 8, 5)
    want = [photo[:, y : y + 8, x : x + 8] for y in (0, 5, 10) for x in (0, 5, 10, 15, 20)]
    assert torch.equal(found, torch.stack(want))


def test_no_pixel_is_on_both_sides(monkeypatch):
    """Of photographs whose pixels are half the numbers of their columns: crops to train on show none of the held-out
    band, held-out crops show nothing else."""
    columns = (torch.arange(320) // 2).to(torch.uint8).expand(3, 213, 320)
    monkeypatch.setattr(photos_module, "photograph", lambda name: columns)
    data = photos()
    assert data.validation.pixels.unique().tolist() == list(range(BAND[0] // 2, BAND[1] // 2))
    assert data.train.pixels.unique().tolist() == [*range(BAND[0] // 2), *range(BAND[1] // 2, 160)]


def test_photos_are_of_both():
    """As many crops of each as the step makes of its size, the last one where it should be; the same each time."""
    data = photos()
    assert data.names == PHOTOS and data.train.pixels.shape[1:] == (3, 32, 32)
    assert data.train.labels.bincount().tolist() == [46 * (38 + 13)] * 2
    assert data.validation.labels.bincount().tolist() == [13 * 3] * 2
    band = photograph("flower")[:, :, slice(*BAND)]
    assert torch.equal(data.validation.pixels[-1], band[:, 168:200, 28:60])
    assert data.fingerprint == photos().fingerprint


def test_refused_side():
    """A crop wider than the band that is held out."""
    with pytest.raises(ValueError, match="side=61 must lie between 1 and 60"):
        photos(61)


# ---------------------------------------------------------------------------------------------------------------------
# Masks and batches


def test_masks_belong_to_their_place():
    """Of training: to (seed, epoch, index), in any order of asking. Of an evaluation: to the index, for every seed."""
    (first, _), (again, _), (other, _) = make(), make(), make(training={"seed": 7})
    noise = {key: first.train[key].noise for key in (Key(0, 3), Key(0, 4), Key(1, 3))}
    for key in reversed(noise):
        assert torch.equal(again.train[key].noise, noise[key])
        assert not torch.equal(other.train[key].noise, noise[key])
    assert len({tuple(value.tolist()) for value in noise.values()}) == 3
    for place in (0, 5):
        asked = first.evaluation(full=True)[place].noise
        assert torch.equal(other.evaluation(full=True)[place].noise, asked)
        assert not torch.equal(first.evaluation(full=True)[place + 1].noise, asked)


@pytest.mark.parametrize("held_out", [False, True])
def test_batch(held_out):
    """Labels are the pixels of the patches that the model masks, and IGNORED elsewhere; 12 of 16 are masked."""
    task, model = make()
    dataset = task.evaluation(full=True) if held_out else task.train
    batch = task.collate([dataset[place] for place in (range(16) if held_out else KEYS)])
    mask = model(batch["pixel_values"], noise=batch["noise"]).mask[..., None].bool()
    want = torch.where(mask, patchify(batch["pixel_values"], 2), float(IGNORED))
    assert torch.equal(batch["labels"], want)
    assert task.count(batch) == 16 * 12 and task.units(batch) == 16
    mean, deviation = batch["pixel_values"].mean(), batch["pixel_values"].std()
    assert abs(float(mean)) < 0.2 and abs(float(deviation) - 1) < 0.2


def test_normalised_labels():
    """With norm_pix_loss labels are the model's own targets; there is no PSNR, and the loss is what is quoted."""
    task, _ = make(norm_pix_loss=True)
    batch = task.collate([task.train[key] for key in KEYS])
    want = target_pixels(batch["pixel_values"], 2, True)
    masked = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][masked], want[masked])
    assert (task.headline, list(task.baselines())) == ("loss", ["loss"]) and make()[0].headline == "psnr"


def test_loss_over_several_batches():
    """Two halves with the count of the whole add up to the whole, with its gradient."""
    task, model = make()
    samples = [task.train[key] for key in KEYS]
    whole = task.collate(samples)
    count = task.count(whole)
    task.loss(model, whole, count).backward()
    want = model.mask_token.grad.clone()
    model.zero_grad()
    parts = [task.loss(model, task.collate(part), count) for part in (samples[:5], samples[5:])]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), model(whole["pixel_values"], noise=whole["noise"]).loss)
    torch.testing.assert_close(model.mask_token.grad, want)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def test_errors_as_records():
    """Any error comes back from the logits made of it, from 0 to large, by torch's cross entropy."""
    errors = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 1.0, 20.0, 500.0])
    found = record(as_logits(errors), torch.zeros(7, dtype=torch.long)).loss
    np.testing.assert_allclose(found, errors.numpy(), rtol=1e-5, atol=1e-7)


def test_measures_against_numpy():
    """The loss is the model's; PSNR is that of brightnesses between 0 and 1 over all masked patches together."""
    task, model = make()
    batch = task.collate([task.evaluation(full=True)[place] for place in range(16)])
    with torch.no_grad():
        answer = model(batch["pixel_values"], noise=batch["noise"])
    found = task.measure(record(*task.pairs(answer.logits, batch["labels"])))
    assert found["loss"] == pytest.approx(answer.loss.item(), rel=1e-5)
    deviation = task.processor.image_std[0]
    assert set(task.processor.image_std) == {deviation}
    errors = ((answer.logits - patchify(batch["pixel_values"], 2)).numpy() * deviation) ** 2
    want = -10 * np.log10(errors[answer.mask.bool().numpy()].mean())
    assert found["psnr"] == pytest.approx(want, abs=1e-3)
    half = batch["labels"].clone()
    half[8:] = IGNORED  # samples that only fill up a batch
    assert len(task.pairs(answer.logits, half)[1]) == 8 * 12


def test_baseline_by_hand():
    """One image after another, pixel by pixel, in brightness: the mean of what is visible in place of the rest."""
    task, _ = make(max_eval_samples=9)
    errors = []
    for sample in (task.evaluation(full=True)[place] for place in range(9)):
        image = sample.image.pixels[0].numpy() / 255  # 8 x 8, grey: three channels that are alike
        order = np.argsort(sample.noise.numpy())
        seen = np.zeros((8, 8), bool)
        for patch in order[:4]:
            seen[patch // 4 * 2 : patch // 4 * 2 + 2, patch % 4 * 2 : patch % 4 * 2 + 2] = True
        errors.append(((image - image[seen].mean()) ** 2)[~seen])
    want = -10 * math.log10(np.concatenate(errors).mean())
    assert task.baselines()["psnr"]["mean of the visible"] == pytest.approx(want, abs=1e-2)


def test_it_learns_beyond_the_baseline():
    """40 steps on digits: held-out masked patches come out better than the mean of the visible ones."""
    task, model = make(channels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        batch = task.collate([task.train[Key(0, step * 20 + index)] for index in range(32)])
        optimizer.zero_grad()
        task.loss(model, batch, task.count(batch)).backward()
        optimizer.step()
    batch = task.collate([task.evaluation(full=True)[place] for place in range(200)])
    with torch.no_grad():
        answer = model(batch["pixel_values"], noise=batch["noise"])
    found = task.measure(record(*task.pairs(answer.logits, batch["labels"])))
    assert found["psnr"] > task.baselines()["psnr"]["mean of the visible"] + 1


# ---------------------------------------------------------------------------------------------------------------------
# Showing


def test_what_is_shown():
    """Visible patches are the image's own, hidden ones dark, drawn ones the model's; the number is their PSNR."""
    task, model = make()
    images, visible, drawn, mask = task.drawn(model, 3)
    hidden = mask[..., None].bool().expand(-1, -1, 12)
    parts = {"images": images, "visible": visible, "drawn": drawn}
    image, seen, made = (patchify(part, 2) for part in parts.values())
    assert torch.equal(seen[~hidden], image[~hidden]) and not seen[hidden].any()
    torch.testing.assert_close(made[~hidden], image[~hidden])
    want = [-10 * math.log10(((made - image) ** 2)[row][hidden[row]].mean()) for row in range(3)]
    assert task.quality(images, drawn, mask) == pytest.approx(want, abs=1e-3)


def test_preview_is_the_same_each_time():
    """Two images, each as three pictures of half blocks side by side."""
    task, model = make()
    lines = task.preview(model)
    assert lines == task.preview(model) and len(lines) == 2 * (4 + 1)
    assert all(set(line) <= set(" ▀▄█") for line in (*lines[:4], *lines[5:9]))
    assert lines[4].startswith("an image, its visible patches") and lines[4].endswith(" dB")


def test_figure(tmp_path):
    """A file with a triple for each image; nothing to show is no error, a missing note is."""
    task, model = make()
    paths = task.figures(model, None, tmp_path)
    assert [path.name for path in paths] == ["reconstruction.png"] and paths[0].stat().st_size > 10_000
    assert paths[0].name in task.pictures
    triple = (torch.rand(3, 4, 6), torch.rand(1, 4, 6), torch.rand(3, 4, 6))
    with style():
        drawn = draw_reconstructions([triple] * 3, ["a", "b", "c"], "title")
    assert len(drawn.axes[0].images) == 9 and [text.get_text() for text in drawn.axes[0].texts] == ["a", "b", "c"]
    assert reconstructions([], [], tmp_path / "none.png").is_file()
    with pytest.raises(ValueError, match="1 images and 0 notes"):
        reconstructions([triple], [], tmp_path / "none.png")


def test_decibels():
    """A tenth of full brightness off everywhere is 20 dB; no error at all is a number."""
    assert decibels(0.01) == pytest.approx(20) and decibels(0.0) == 120


REFUSED = {
    "smoothing": ({"training": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor, .* are about classes"),
    "mixing": ({"mixup_alpha": 0.2}, "mixup_alpha .* are about classes"),
    "channels": ({"channels": 2}, "num_channels=2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """What pixels have no use for."""
    options, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        make(**options)
