"""The task of image classification: samples and batches against their parts, losses against torch, baselines against
scikit-learn, and a short training from a folder of files."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from triune.configuration import TriuneConfig, preset
from triune.modeling import TriuneForImageClassification
from triune.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from triune.training.augmentation import Augment
from triune.training.metrics import record
from triune.training.sampling import Key, MicroBatches, Plan, generator
from triune.training.tasks.image_classification import ImageClassification, half_blocks, patch_size


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
AUGMENTED = {"shift": 1, "rotate": 10.0, "rand_augment": 1, "random_erasing": 0.5, "random_resized_crop": 0.6}


def arguments(model=None, training=None, **data):
    data = data if data.keys() & {"train_dir", "train_file"} else {"dataset_name": "digits", **data}
    return Arguments(ModelArguments(**model or {}), DataArguments(**data), TrainingArguments(**training or {}))


def make(model=None, training=None, config=None, **data):
    """A task that is prepared, with its configuration."""
    task = ImageClassification(arguments(model, training, **data))
    fields = task.config_fields()
    entry = {**fields.pop("embedding"), **(config or {})}
    made = TriuneConfig(**SMALL, **fields, embedding=entry)
    task.prepare(made)
    return task, made


@pytest.fixture
def shapes(tmp_path):
    """Two classes of files of different sizes: bright above, or bright below; with noise."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("above", "below")):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for index in range(30):
            height, width = random.integers(18, 40, 2)
            pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
            half = slice(0, height // 2) if label == 0 else slice(height // 2, None)
            pixels[half] += 130
            Image.fromarray(pixels).save(tmp_path / "shapes" / name / f"{index:02}.jpg", quality=95)
    return tmp_path / "shapes"


def first_keys(count, epoch=0):
    return [Key(epoch, index) for index in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# The model's configuration


def test_the_data_decides_classes_and_sizes():
    """Digits: ten classes by name, 8 x 8, patches of two; a model of it takes a batch. Grey images are read as RGB,
    three times the same: what a pipeline hands to the saved processor."""
    task, config = make()
    assert (config.num_labels, config.id2label[3], config.label2id["7"]) == (10, "3", 7)
    assert (config.embedding["image_size"], config.embedding["num_channels"]) == (8, 3)
    assert config.grid == (4, 4)
    batch = task.collate([task.train[key] for key in first_keys(5)])
    assert batch["pixel_values"].shape == (5, 3, 8, 8) and batch["labels"].dtype == torch.int64
    assert torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 2])
    assert "replaced" not in batch
    assert TriuneForImageClassification(config)(**batch).logits.shape == (5, 10)


def test_a_preset_keeps_its_own_options():
    """Bundled images change its size only."""
    task = ImageClassification(arguments(model={"preset": "vit-mini"}))
    config = preset("vit-mini", **task.config_fields())
    task.prepare(config)
    assert (config.embedding["image_size"], config.embedding["patch_size"], config.hidden_size) == (8, 4, 256)
    assert task.collate([task.train[Key(0, 0)]])["pixel_values"].shape == (1, 3, 8, 8)


def test_files_become_what_the_model_takes(shapes):
    """Of different sizes: 64 x 64 in colour by default, a preset's size with one, the recipe's in any case; a pair of
    sides and grey too."""
    task, config = make(train_dir=str(shapes))
    assert (config.embedding["image_size"], config.embedding["patch_size"], config.grid) == (64, 8, (8, 8))
    assert task.collate([task.train[Key(0, 0)]])["pixel_values"].shape == (1, 3, 64, 64)
    assert (
        "embedding"
        not in ImageClassification(arguments(model={"preset": "vit-mini"}, train_dir=str(shapes))).config_fields()
    )
    task, _ = make(train_dir=str(shapes), config={"image_size": [24, 16], "patch_size": 8, "num_channels": 1})
    for dataset, place in ((task.train, Key(0, 0)), (task.evaluation(True), 0)):
        assert task.collate([dataset[place]])["pixel_values"].shape == (1, 1, 24, 16)


def test_small_files_of_one_size_keep_it(tmp_path):
    """28 x 28, as many old sets are: patches of four."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(4):
            pixels = np.random.default_rng(index + 10 * ord(name)).integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    _, config = make(train_dir=str(tmp_path))
    assert (config.embedding["image_size"], config.embedding["num_channels"], config.grid) == (28, 3, (7, 7))


@pytest.mark.parametrize(
    ("side", "patch"), [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((64, 64), 8), ((224, 224), 16), ((9, 9), 1)]
)
def test_patches_by_default(side, patch):
    """The largest that leaves seven along a side; two in small images."""
    assert patch_size(*side) == patch


def test_configurations_that_do_not_fit():
    """The number of classes, and of channels."""
    task, config = make()
    with pytest.raises(ValueError, match="num_labels=3, and the data has 10 classes"):
        task.prepare(TriuneConfig(**SMALL, embedding=config.embedding, num_labels=3))
    with pytest.raises(ValueError, match=r"num_channels=4: images are read with 1 channel \(grey\) or 3 \(RGB\)"):
        make(config={"num_channels": 4})


# ---------------------------------------------------------------------------------------------------------------------
# Samples and batches


def test_evaluation_is_what_the_saved_processor_gives(tmp_path, shapes):
    """Files of odd sizes: Pillow opens them, AutoImageProcessor reads the saved folder, and the pixels are equal to
    the bit. Every held-out image is there once."""
    task, _ = make(train_dir=str(shapes), config={"image_size": 20, "patch_size": 4}, validation_split_percentage=20.0)
    task.processor.save_pretrained(tmp_path / "model")
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "model")
    dataset = task.evaluation(True)
    batch = task.collate([dataset[index] for index in range(len(dataset))])
    contents = task.data.validation.contents
    images = [Image.open(shapes / contents.where(place)) for place in range(len(contents))]
    assert len(dataset) == len(images) == 12
    assert torch.equal(batch["pixel_values"], theirs(images, return_tensors="pt")["pixel_values"])
    assert torch.equal(batch["labels"], task.data.validation.labels)


def test_without_augmentation_training_sees_the_same_pixels(shapes):
    """The held-out images, read as training images: to 1e-6."""
    task, _ = make(train_dir=str(shapes), config={"image_size": 20, "patch_size": 4})
    held_out = task.evaluation(True)
    expected = task.collate([held_out[index] for index in range(len(held_out))])["pixel_values"]
    task.train.images = task.prepared.validation
    found = task.collate([task.train[Key(0, index)] for index in range(len(held_out))])["pixel_values"]
    assert (found - expected).abs().max() < 1e-6


def test_the_pixels_are_normalised_by_what_was_measured():
    """All training images together have mean 0 and deviation 1."""
    task, _ = make()
    pixels = task.collate([task.train[key] for key in first_keys(1437)])["pixel_values"]
    assert pixels.mean().item() == pytest.approx(0, abs=0.02)
    assert pixels.std().item() == pytest.approx(1, abs=0.02)


def test_a_saved_model_keeps_its_processor(tmp_path):
    """Going on from a model folder, the numbers are its own and not measured anew."""
    first, config = make()
    TriuneForImageClassification(config).save_pretrained(tmp_path)
    first.processor.image_mean = (0.5,)
    first.processor.save_pretrained(tmp_path)
    second, _ = make(model={"model_name_or_path": str(tmp_path)})
    assert second.processor.image_mean == (0.5,) != make()[0].processor.image_mean


def test_a_sample_is_augmented_by_its_own_numbers():
    """A batch of three is the augmentation of each alone, with the generator of (seed, epoch, index)."""
    task, _ = make(training={"seed": 5}, shift=1, rotate=10.0)
    batch = task.collate([task.train[Key(2, index)] for index in (4, 9, 700)])
    augment = Augment(shift=1, rotate=10.0)
    (mean, *_), (deviation, *_) = task.processor.image_mean, task.processor.image_std
    for place, index in enumerate((4, 9, 700)):
        image = augment(task.data.train[index][0] / 255, generator(5, 2, index))
        assert torch.allclose(batch["pixel_values"][place], (image - mean) / deviation, atol=1e-5)


def test_the_same_for_any_number_of_workers(shapes):
    """Two epochs of a folder with everything switched on, by 0 and 2 workers: the same batches to the bit; the second
    epoch is another."""
    mixed = {**AUGMENTED, "cutmix_alpha": 1.0, "mixup_alpha": 0.2, "horizontal_flip": 0.5}
    task, _ = make(train_dir=str(shapes), config={"image_size": 16, "patch_size": 4}, **mixed)
    plan = Plan(samples=len(task.train), per_device=16)

    def batches(workers):
        sampler = MicroBatches(plan, 0, 0, 2 * len(task.train) // 16)
        return list(DataLoader(task.train, batch_sampler=sampler, collate_fn=task.collate, num_workers=workers))

    alone, together = batches(0), batches(2)
    assert len(alone) == len(together) == 7
    for first, second in zip(alone, together):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])
    again, later = (task.collate([task.train[key] for key in first_keys(4, epoch)]) for epoch in (0, 1))
    assert not torch.equal(again["pixel_values"], later["pixel_values"])


def test_replaced_images_travel_with_the_batch(shapes):
    """One broken file of three in a batch, trained on and evaluated: an int to pop."""
    task, _ = make(train_dir=str(shapes), validation_split_percentage=20.0, config={"image_size": 16, "patch_size": 4})
    task.prepared.train.contents.paths[1] = "no.jpg"
    (shapes / "no.jpg").write_bytes(b"none")
    assert task.collate([task.train[key] for key in first_keys(3)]).pop("replaced") == 1
    task.prepared.validation.contents.paths[1] = "no.jpg"
    dataset = task.evaluation(True)
    assert task.collate([dataset[index] for index in range(3)]).pop("replaced") == 1


def test_evaluations_during_training_are_quick(monkeypatch):
    """A sample of the held-out images, the same each time, from all of them; all in a full one."""
    monkeypatch.setattr("triune.training.tasks.image_classification.QUICK", 100)
    task, _ = make()
    quick, full = task.evaluation(False), task.evaluation(True)
    assert (len(quick), len(full)) == (100, 360)
    assert list(quick.places) == list(task.evaluation(False).places)
    assert max(quick.places) > 300 and list(full.places) == list(range(360))


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 1.0}])
def test_losses_are_torchs(mixing, smoothing):
    """Hard and soft labels, with and without label smoothing: cross entropy, its sum divided by the given count; the
    count is the batch's."""
    task, config = make(training={"label_smoothing_factor": smoothing}, **mixing)
    model = TriuneForImageClassification(config).eval()
    batch = task.collate([task.train[key] for key in first_keys(12)])
    assert batch["labels"].is_floating_point() == bool(mixing)
    assert task.count(batch) == task.units(batch) == 12
    logits = model(pixel_values=batch["pixel_values"]).logits
    mean = F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
    assert task.loss(model, batch, 12).item() == pytest.approx(mean.item(), rel=1e-5)
    assert task.loss(model, batch, 48).item() == pytest.approx(mean.item() / 4, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_of_one_class_are_hard_labels(smoothing):
    """The same loss for integers and for ones and zeros."""
    task, config = make(training={"label_smoothing_factor": smoothing})
    model = TriuneForImageClassification(config).eval()
    batch = task.collate([task.train[key] for key in first_keys(12)])
    soft = {**batch, "labels": F.one_hot(batch["labels"], 10).float()}
    assert task.loss(model, soft, 12).item() == pytest.approx(task.loss(model, batch, 12).item(), rel=1e-6)


def test_answers_stand_beside_labels():
    """A label for each row of logits; metrics of a perfect model and of one that always says 3."""
    task, _ = make()
    held_out = task.evaluation(True)
    labels = torch.tensor([held_out[index].label for index in range(len(held_out))])
    perfect = task.measure(record(*task.pairs(20 * F.one_hot(labels, 10).float(), labels)))
    assert perfect["accuracy"] == perfect["top5_accuracy"] == perfect["macro_f1"] == 1
    same = task.measure(record(*task.pairs(torch.eye(10)[3].expand(360, 10), labels)))
    assert same["accuracy"] == pytest.approx((labels == 3).double().mean().item())


# ---------------------------------------------------------------------------------------------------------------------
# Baselines


def test_baselines_of_digits():
    """The best k-NN by name and the classifiers, against scikit-learn on the same fold; the entropy of the classes."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    task, _ = make(fold=2)
    found = task.baselines()
    (known, answers), (asked, labels) = (
        (side.images.pixels.flatten(1).numpy(), side.labels.numpy())
        for side in (task.data.train, task.data.validation)
    )
    best = {f"{k}-NN": neighbors.KNeighborsClassifier(k).fit(known, answers).score(asked, labels) for k in (1, 3, 5)}
    names = list(found["accuracy"])
    assert names[0] == "majority class" and names[2:] == ["logistic regression", "SVC"]
    assert found["accuracy"][names[1]] == pytest.approx(best[names[1]]) == pytest.approx(max(best.values()))
    assert 0.97 < found["accuracy"]["SVC"] <= 1
    assert found["loss"]["class frequencies"] == pytest.approx(math.log(10), abs=0.01)


def test_baselines_of_files_and_of_many_images(shapes, monkeypatch):
    """Bright above or below is easy for k-NN; more images than are gone through have the cheap ones only."""
    task, _ = make(train_dir=str(shapes), validation_split_percentage=30.0)
    found = task.baselines()
    assert max(found["accuracy"].values()) == 1
    monkeypatch.setattr(type(task.data.train), "few", 10)
    assert list(task.baselines()["accuracy"]) == ["majority class"]
    assert set(task.baselines()) == {"accuracy", "loss"}


def test_baselines_of_very_few_images(shapes):
    """Two images to train on and two held out: neighbours that there are not are not asked."""
    task, _ = make(
        train_dir=str(shapes), validation_split_percentage=50.0, max_train_samples=2, max_eval_samples=2, shift=1
    )
    found = task.baselines()["accuracy"]
    assert "1-NN" in found and "5-NN" not in found
    assert (
        len(task.collate([task.train[Key(epoch, index)] for epoch in range(3) for index in range(2)])["labels"]) == 6
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def test_half_blocks_by_hand():
    """Two rows a line; light is above the middle of the extremes."""
    pixels = torch.tensor([[[0, 200, 0, 255], [0, 0, 200, 255]]], dtype=torch.uint8)
    assert half_blocks(pixels) == [" ▀▄█"]
    large = half_blocks(torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8))
    assert len(large) == 5 and {len(row) for row in large} == {16}


def test_previews_are_the_same_examples(shapes):
    """Four images, their labels and the prediction with its probability, within 80 columns; the model stays in its
    mode; two calls are equal."""
    task, config = make(train_dir=str(shapes), validation_split_percentage=30.0)
    torch.manual_seed(1)
    model = TriuneForImageClassification(config).eval()
    lines = task.preview(model)
    assert lines == task.preview(model)
    assert max(map(len, lines)) <= 80
    labels = [task.names[sample.label] for sample in task.some_held_out(4)]
    assert lines[-2].split() == labels
    assert lines[-1].count("%") == 4 and set("".join(lines[:-2])) <= set(" ▄▀█")
    guesses = model(task.collate(task.some_held_out(4))["pixel_values"]).logits.argmax(-1).tolist()
    expected = ["ok" if task.names[guess] == label else task.names[guess] for guess, label in zip(guesses, labels)]
    assert lines[-1].split()[::2] == expected


def test_figures_are_written(tmp_path):
    """PNG files, with the right matrix, wrong answers marked, and mixed labels as they are."""
    pytest.importorskip("matplotlib")
    task, config = make(mixup_alpha=1.0)
    model = TriuneForImageClassification(config).eval()
    held_out = task.evaluation(True)
    batch = task.collate([held_out[index] for index in range(50)])
    records = record(*task.pairs(model(pixel_values=batch["pixel_values"]).logits, batch["labels"]))
    files = task.figures(model, records, tmp_path)
    names = ["attention_rollout", "confusion_matrix", "held_out", "patches", "positions", "training_images"]
    assert sorted(file.stem for file in files) == names
    assert all(Image.open(file).width > 500 for file in files)


# ---------------------------------------------------------------------------------------------------------------------
# Learning


def test_a_folder_is_learned(shapes):
    """Sixty steps from files with augmentation: all held-out images right, from about half."""
    task, config = make(
        train_dir=str(shapes), validation_split_percentage=20.0, config={"image_size": 16, "patch_size": 4}, shift=2
    )
    torch.manual_seed(0)
    model = TriuneForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    sampler = MicroBatches(Plan(len(task.train), 16), 0, 0, 60)
    for batch in DataLoader(task.train, batch_sampler=sampler, collate_fn=task.collate):
        task.loss(model, batch, task.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = task.evaluation(True)
    batch = task.collate([held_out[index] for index in range(len(held_out))])
    with torch.no_grad():
        logits = model.eval()(pixel_values=batch["pixel_values"]).logits
    assert task.measure(record(*task.pairs(logits, batch["labels"])))["accuracy"] == 1
