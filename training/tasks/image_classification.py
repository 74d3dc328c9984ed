"""What an image shows, as ViT is trained: any images with a class for each, changed at random while training.

A training sample is resized as the saved image processor does it (or cut out at random), and carries the numbers of
its augmentation; `collate` then changes the whole batch at once. Evaluation calls the processor itself, so that who
loads the model folder gets the same numbers.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from triune.configuration.configuration_triune import TriuneConfig
from triune.modeling.modeling_triune import TriuneForImageClassification
from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.augmentation import Augment, Mix
from triune.training.data.baselines import classifier, majority_class, nearest_neighbours
from triune.training.data.image_sources import ImageSet, load_images
from triune.training.data.images import resized, with_channels
from triune.training.image_processor import (
    ENOUGH,
    build_processor,
    load_processor,
    measured,
    normalised,
    processed,
)
from triune.training.metrics import Records, classification_metrics, confusion
from triune.training.sampling import Key, generator, permutation
from triune.training.tasks.task import Batch, Example, Task


FOLDER_SIZE = 64  # what images of different sizes become, unless a preset or the recipe says otherwise
PATCHES = 7  # along a side, at least, where nobody says how large a patch is
QUICK = 1000  # images of an evaluation during training
NEIGHBOURS = (1, 3, 5)
BASELINE_SIDE = 32  # pixels: files are compared at this size
CHEAP = 250_000  # numbers in all training pixels: up to so many, scikit-learn's classifiers take a second or less
MIXING = 1  # what sets the random numbers of a batch apart from those of a sample
PREVIEWS, PREVIEW_SIDE, LONGEST_NAME = 4, 16, 12
SHOWN = 32  # images in a figure
ROLLED_OUT = 8  # images whose attention is drawn


class TrainingSample(NamedTuple):
    pixels: torch.Tensor  # uint8, at the size of the model
    label: int
    replaced: bool
    numbers: torch.Tensor  # of its augmentation
    key: Key


class HeldOutSample(NamedTuple):
    pixels: torch.Tensor  # uint8, of any size
    label: int
    replaced: bool


class TrainingImages(Dataset):
    def __init__(self, images: ImageSet, size: tuple[int, int], augment: Augment, seed: int):
        self.images, self.size, self.augment, self.seed = images, size, augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> TrainingSample:
        pixels, replaced = self.images[key.index]
        numbers = self.augment.draw(generator(self.seed, *key), len(pixels) * self.size[0] * self.size[1])
        fit = self.augment.crop(pixels, numbers, self.size) if self.augment.crops else resized(pixels, self.size)
        return TrainingSample(fit, int(self.images.labels[key.index]), replaced, numbers, key)


class HeldOutImages(Dataset):
    def __init__(self, images: ImageSet, places: Sequence[int]):
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> HeldOutSample:
        place = self.places[index]
        pixels, replaced = self.images[place]
        return HeldOutSample(pixels, int(self.images.labels[place]), replaced)


class ImageClassification(Task):
    """say what an image shows (ViT)"""

    name = "image_classification"
    head = TriuneForImageClassification
    unit = "images"
    lean: ClassVar[dict[str, bool]] = {"loss_only": True}
    best_metric = "accuracy"
    greater_is_better = True
    pictures: ClassVar[dict[str, str]] = {
        "held_out.png": "Held-out images, what they show, and what the model takes them for",
        "confusion_matrix.png": "What held-out images were taken for",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        self.seed = arguments.training.seed
        self.augment, self.mix = Augment.of(arguments.data), Mix.of(arguments.data)
        self.data = load_images(arguments.data)
        self.fingerprint = self.data.fingerprint
        self.names = self.data.names

    def faults(self) -> Iterator[str]:
        yield from self.data.train.faults()
        yield from self.data.validation.faults()

    def describe(self) -> list[str]:
        return [self.data.describe()]

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        """Classes, and the size of the images: a preset's own for files; else theirs, if they are small and alike.
        Grey ones are read as RGB, as transformers' pipeline gives them, unless the recipe says num_channels: 1."""
        numbered = dict(enumerate(self.names))
        labels = {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}
        return {"num_labels": len(numbered), **labels, **self.embedding_fields()}

    def embedding_fields(self) -> dict[str, Any]:
        named, shape = self.arguments.model.preset, self.data.shape
        if named and not self.data.bundled:
            return {}
        fits = shape is not None and max(shape[1:]) <= FOLDER_SIZE and patch_size(*shape[1:]) > 1
        height, width = shape[1:] if fits or self.data.bundled else (FOLDER_SIZE, FOLDER_SIZE)
        entry = {"image_size": height if height == width else [height, width], "num_channels": 3}
        if named:  # options of the preset's own entry
            return {"embedding": entry}
        return {"embedding": {"type": "patches", **entry, "patch_size": patch_size(height, width)}}

    def prepare(self, config: TriuneConfig) -> None:
        """Sizes come from the configuration; pixels are normalised as the model's own processor does, or by what is
        measured on the training images."""
        if config.num_labels != len(self.names):
            raise ValueError(f"num_labels={config.num_labels}, and the data has {len(self.names)} classes")
        entry = config.embedding
        channels, size = entry["num_channels"], entry["image_size"]
        if channels not in (1, 3):
            raise ValueError(f"embedding num_channels={channels}: images are read with 1 channel (grey) or 3 (RGB)")
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.prepared = self.data.prepared(self.size, channels)
        self.train = TrainingImages(self.prepared.train, self.size, self.augment, self.seed)
        saved = self.arguments.model.model_name_or_path
        self.processor = (load_processor(saved) if saved else None) or self.measured_processor()

    def measured_processor(self):
        images = self.prepared.train
        places = permutation(len(images), 0, 0)[:ENOUGH].tolist()  # the same in every run
        return build_processor(self.size, *measured(resized(images[place][0], self.size) for place in places))

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        images = self.prepared.validation
        count = len(images) if full else min(QUICK, len(images))
        return HeldOutImages(images, sorted(permutation(len(images), 0, 0)[:count].tolist()))

    def collate(self, samples: list) -> Batch:
        labels = torch.tensor([sample.label for sample in samples])
        if isinstance(samples[0], TrainingSample):
            images, labels = self.changed(samples, labels)
            batch = {"pixel_values": normalised(self.processor, images), "labels": labels}
        else:
            batch = {
                "pixel_values": processed(self.processor, [sample.pixels for sample in samples]),
                "labels": labels,
            }
        replaced = sum(sample.replaced for sample in samples)
        return {**batch, "replaced": replaced} if replaced else batch

    def changed(self, samples: list[TrainingSample], labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Floats between 0 and 1, and labels; soft ones where images are mixed."""
        images = torch.stack([sample.pixels for sample in samples]).float().div_(255)
        images = self.augment.batch(images, torch.stack([sample.numbers for sample in samples]))
        if not self.mix:
            return images, labels
        place = [number for sample in samples for number in sample.key]
        return self.mix(images, labels, len(self.names), generator(self.seed, MIXING, *place))

    # -- learning

    def count(self, batch: Batch) -> int:
        return len(batch["labels"]) if batch["labels"].is_floating_point() else super().count(batch)

    def units(self, batch: Batch) -> int:
        return len(batch["pixel_values"])

    def loss(self, model, batch: Batch, count: torch.Tensor | float) -> torch.Tensor:
        if not batch["labels"].is_floating_point():
            return super().loss(model, batch, count)
        logits = model(pixel_values=batch["pixel_values"], **self.lean).logits.float()
        smoothing = self.arguments.training.label_smoothing_factor
        return F.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=smoothing) / count

    # -- measuring

    def measure(self, records: Records) -> dict[str, float]:
        return classification_metrics(records, len(self.names))

    def baselines(self) -> dict[str, dict[str, float]]:
        """Of few images the best of several k-NN; of few and small ones scikit-learn's classifiers, if installed."""
        train, held_out = self.data.train, self.data.validation
        shares = (train.labels.bincount(minlength=len(self.names)) + 1).double()
        entropy = -(shares / shares.sum()).log()[held_out.labels].mean()
        accuracy = {"majority class": majority_class(train.labels, held_out.labels)}
        if len(train) + len(held_out) <= train.few:
            known, asked = train.gathered(BASELINE_SIDE), held_out.gathered(BASELINE_SIDE)
            ks = [k for k in NEIGHBOURS if k <= len(known.labels)]
            found = nearest_neighbours(known, asked, ks)
            best = max(ks, key=found.__getitem__)
            accuracy[f"{best}-NN"] = found[best]
            if known.pixels.numel() <= CHEAP and len(known.labels.unique()) > 1:
                accuracy |= sklearn_baselines(known, asked)
        return {"accuracy": accuracy, "loss": {"class frequencies": float(entropy)}}

    # -- showing

    @torch.no_grad()
    def answers(self, model, samples: list[HeldOutSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """The probability of the prediction, and the prediction."""
        pixel_values = processed(self.processor, [sample.pixels for sample in samples])
        device = next(model.parameters()).device
        return model(pixel_values=pixel_values.to(device)).logits.float().softmax(-1).cpu().max(-1)

    def some_held_out(self, count: int) -> list[HeldOutSample]:
        """The same every time; from one evaluation to the next, and from run to run."""
        dataset = self.evaluation(full=True)
        places = permutation(len(dataset), 0, 0)[:count].tolist()
        return [dataset[place] for place in places]

    def preview(self, model) -> list[str]:
        """A row of images in half blocks; below each its label, and `ok` or the prediction, with its probability."""
        samples = self.some_held_out(PREVIEWS)
        names = [figures.shorten(name, LONGEST_NAME) for name in self.names]
        labels = [names[sample.label] for sample in samples]
        guesses = [
            f"{'ok' if guess == sample.label else names[guess]} {chance:.0%}"
            for sample, chance, guess in zip(samples, *(part.tolist() for part in self.answers(model, samples)))
        ]
        rows = zip_longest(*(half_blocks(sample.pixels) for sample in samples), fillvalue="")
        width = max(PREVIEW_SIDE, max(map(len, names)) + len(" 100%")) + 2
        return ["".join(part.ljust(width) for part in row).rstrip() for row in [*rows, labels, guesses]]

    def examples(self) -> list[Example]:
        return [Example(sample.pixels, self.names[sample.label]) for sample in self.some_held_out(PREVIEWS)]

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        samples = self.some_held_out(SHOWN)
        chances, guesses = self.answers(model, samples)
        labels = [self.names[sample.label] for sample in samples]
        titles = [
            f"{label} > {self.names[guess]} {chance:.0%}"
            for label, guess, chance in zip(labels, guesses.tolist(), chances.tolist())
        ]
        wrong = {place for place, sample in enumerate(samples) if sample.label != guesses[place]}
        images = [resized(sample.pixels, self.size).float() / 255 for sample in samples]
        few = slice(0, ROLLED_OUT)
        pixels = self.collate(samples[few])["pixel_values"]
        drawn = [
            figures.confusion_matrix(confusion(records, len(self.names)), self.names, folder / "confusion_matrix.png"),
            figures.image_grid(images, titles, folder / "held_out.png", wrong),
            self.augmented_figure(folder / "training_images.png"),
            figures.patch_grid(images[0], model.config.embedding["patch_size"], folder / "patches.png"),
            figures.attention_rollout(model, pixels, images[few], folder / "attention_rollout.png"),
            figures.position_similarity(model, folder / "positions.png"),
        ]
        return [path for path in drawn if path is not None]

    def augmented_figure(self, path: Path) -> Path:
        """Training images as the model gets them in the first epoch."""
        places = permutation(len(self.train), self.seed, 0)[:SHOWN].tolist()
        samples = [self.train[Key(0, place)] for place in places]
        images, labels = self.changed(samples, torch.tensor([sample.label for sample in samples]))
        names = [title_of(label, self.names) for label in labels]
        return figures.image_grid(list(images), names, path, title="Training images, as the model gets them")


def title_of(label: torch.Tensor, names: Sequence[str]) -> str:
    """A class, or the shares of two."""
    if not label.is_floating_point():
        return names[int(label)]
    shares, classes = label.topk(min(2, len(names)))
    return " ".join(f"{names[place]} {share:.0%}" for share, place in zip(shares, classes.tolist()) if share > 0.005)


def patch_size(height: int, width: int) -> int:
    """The largest usual one that leaves PATCHES along each side; of smaller images 2, of odd ones 1."""
    fitting = [size for size in (16, 8, 4, 2) if not height % size and not width % size]
    return next((size for size in fitting if min(height, width) >= PATCHES * size), 2 if fitting else 1)


def sklearn_baselines(known, asked) -> dict[str, float]:
    try:
        return {name: classifier(name, known, asked) for name in ("logistic regression", "SVC")}
    except ModuleNotFoundError:
        return {}


def half_blocks(pixels: torch.Tensor) -> list[str]:
    """Two pixels a character, light or dark: above or below the middle between the two extremes of grey."""
    height, width = pixels.shape[1:]
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    size = (max(2, 2 * round(height * scale / 2)), max(1, round(width * scale)))
    grey = resized(with_channels(pixels, 1), size)[0].float()
    light = (grey > (grey.min() + grey.max()) / 2).long().view(-1, 2, size[1]).tolist()
    return ["".join(" ▄▀█"[2 * top + bottom] for top, bottom in zip(*pair)) for pair in light]
