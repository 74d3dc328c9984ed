"""What the hidden patches of an image look like, as MAE is trained: any images, their classes unread.

Which patches are hidden follows from (seed, epoch, index) in training and from the index alone in an evaluation, so
that every run is asked the same. A label is a masked patch; the labels of a batch are its pixels, as the model is to
draw them, and IGNORED where a patch is visible.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.modeling.embeddings import patchify, unpatchify
from triune.modeling.modeling_triune_mae import TriuneForMaskedImageModeling, shuffled, target_pixels
from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.augmentation import Augment, Mix
from triune.training.collators import IGNORED
from triune.training.data.image_sources import load_images
from triune.training.data.images import resized
from triune.training.figures.reconstruction import reconstructions
from triune.training.image_processor import (
    ENOUGH,
    build_processor,
    denormalised,
    load_processor,
    measured,
    moments,
    normalised,
    processed,
)
from triune.training.metrics import Records, some
from triune.training.sampling import Key, generator, permutation
from triune.training.tasks.image_classification import (
    QUICK,
    HeldOutImages,
    HeldOutSample,
    TrainingImages,
    TrainingSample,
    half_blocks,
    patch_size,
)
from triune.training.tasks.task import Batch, Example, Task


FOLDER_SIZE = 64  # what images of different sizes become, unless the recipe says otherwise
MASKING, ASKING = 2, 3  # what sets the random numbers of masks apart from those of anything else
AT_ONCE = 64  # images of a baseline
PREVIEWS, SHOWN, EXAMPLES = 2, 12, 4  # images on the console, in the figure, and on the card


class Masked(NamedTuple):
    """An image, and what decides which of its patches are hidden."""

    image: TrainingSample | HeldOutSample
    noise: torch.Tensor


class MaskedImages(Dataset):
    """Key -> the same mask for the same place, always: `place` is what it is drawn from, before the sample's own."""

    def __init__(self, images: Dataset, patches: int, *place: int):
        self.images, self.patches, self.place = images, patches, place

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key | int) -> Masked:
        seed, *place = (*self.place, *np.atleast_1d(key).tolist())
        return Masked(self.images[key], torch.rand(self.patches, generator=generator(seed, *place)))


class MaskedImageModeling(Task):
    """draw what is hidden of an image (MAE)"""

    name = "masked_image_modeling"
    head = TriuneForMaskedImageModeling
    unit = "images"
    headline = "psnr"
    pictures: ClassVar[dict[str, str]] = {
        "reconstruction.png": "Held-out images, what the model saw of them, and what it made of that",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        if arguments.training.label_smoothing_factor or Mix.of(arguments.data):
            raise ValueError(
                f"label_smoothing_factor, mixup_alpha and cutmix_alpha are about classes: {self.name} has none"
            )
        self.seed = arguments.training.seed
        self.augment = Augment.of(arguments.data)
        self.data = load_images(arguments.data)
        self.fingerprint = self.data.fingerprint

    def faults(self) -> Iterator[str]:
        yield from self.data.train.faults()
        yield from self.data.validation.faults()

    def describe(self) -> list[str]:
        return [self.data.describe()]

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        """The size of the images, theirs if they are small and alike; read as RGB unless the recipe says otherwise."""
        shape = self.data.shape
        fits = shape is not None and max(shape[1:]) <= FOLDER_SIZE and patch_size(*shape[1:]) > 1
        height, width = shape[1:] if fits else (FOLDER_SIZE, FOLDER_SIZE)
        size = height if height == width else [height, width]
        return {"encoder": {"embedding": {"image_size": size, "patch_size": patch_size(height, width)}}}

    def prepare(self, config: TriuneMAEConfig) -> None:
        entry, self.config = config.encoder.embedding, config
        channels, size = entry["num_channels"], entry["image_size"]
        if channels not in (1, 3):
            raise ValueError(f"embedding num_channels={channels}: images are read with 1 channel (grey) or 3 (RGB)")
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.prepared = self.data.prepared(self.size, channels)
        images = TrainingImages(self.prepared.train, self.size, self.augment, self.seed)
        self.train = MaskedImages(images, config.num_patches, self.seed, MASKING)
        saved = self.arguments.model.model_name_or_path
        self.processor = (load_processor(saved) if saved else None) or self.measured_processor()
        self.headline = "loss" if self.scale() is None else "psnr"

    def measured_processor(self):
        """One deviation for all channels: an error then weighs the same in each, and is one of brightness."""
        images = self.prepared.train
        places = permutation(len(images), 0, 0)[:ENOUGH].tolist()  # the same in every run
        mean, deviation = measured(resized(images[place][0], self.size) for place in places)
        return build_processor(self.size, mean, [round(sum(deviation) / len(deviation), 4)] * len(deviation))

    def scale(self) -> float | None:
        """The brightness that an error of 1 stands for; None where it does not stand for one."""
        deviations = set(moments(self.processor)[1])
        return deviations.pop() if len(deviations) == 1 and not self.config.norm_pix_loss else None

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        images = self.prepared.validation
        count = len(images) if full else min(QUICK, len(images))
        held_out = HeldOutImages(images, sorted(permutation(len(images), 0, 0)[:count].tolist()))
        return MaskedImages(held_out, self.config.num_patches, 0, ASKING)

    def collate(self, samples: list[Masked]) -> Batch:
        noise = torch.stack([sample.noise for sample in samples])
        images = [sample.image for sample in samples]
        if isinstance(images[0], TrainingSample):
            pixels = torch.stack([image.pixels for image in images]).float() / 255
            numbers = torch.stack([image.numbers for image in images])
            pixel_values = normalised(self.processor, self.augment.batch(pixels, numbers))
        else:
            pixel_values = processed(self.processor, [image.pixels for image in images])
        _, mask, _ = shuffled(noise, self.config.num_visible)
        labels = target_pixels(pixel_values, self.patch, self.config.norm_pix_loss)
        labels[mask == 0] = IGNORED
        batch = {"pixel_values": pixel_values, "noise": noise, "labels": labels}
        replaced = sum(image.replaced for image in images)
        return {**batch, "replaced": replaced} if replaced else batch

    @property
    def patch(self) -> int:
        return self.config.encoder.embedding["patch_size"]

    # -- learning

    def count(self, batch: Batch) -> int:
        """Masked patches."""
        return int(counted(batch["labels"]).sum())

    def units(self, batch: Batch) -> int:
        return len(batch["pixel_values"])

    def loss(self, model, batch: Batch, count: torch.Tensor | float) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}  # the model has them in its pixels
        return model(**inputs, num_items_in_batch=count).loss

    # -- measuring

    def pairs(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each masked patch the squared error, in the form that records are made from: as the logits of two
        classes whose cross entropy it is."""
        masked = counted(labels)
        errors = (logits[masked].float() - labels[masked]).square().mean(-1)
        return as_logits(errors), torch.zeros(len(errors), dtype=torch.long, device=errors.device)

    def measure(self, records: Records) -> dict[str, float]:
        """Of all masked patches together, as the loss: the mean of their errors, in decibels below full brightness."""
        return self.metrics(float(some(records).loss.mean(dtype=np.float64)))

    def metrics(self, loss: float) -> dict[str, float]:
        scale = self.scale()
        return {"loss": loss, **({} if scale is None else {"psnr": decibels(loss * scale**2)})}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Every masked patch filled with one colour: the mean of what is visible of its image, or of what is hidden
        (with `norm_pix_loss` its own)."""
        dataset, errors = self.evaluation(full=True), []
        for first in range(0, len(dataset), AT_ONCE):
            places = range(first, min(first + AT_ONCE, len(dataset)))
            batch = self.collate([dataset[place] for place in places])
            masked = counted(batch["labels"])
            guess = 0.0 if self.config.norm_pix_loss else self.visible_colour(batch, masked)
            errors.append((batch["labels"] - guess).square().mean(-1)[masked])
        name = "each patch its mean" if self.config.norm_pix_loss else "mean of the visible"
        found = self.metrics(float(torch.cat(errors).double().mean()))
        return {metric: {name: value} for metric, value in found.items()}

    def visible_colour(self, batch: Batch, masked: torch.Tensor) -> torch.Tensor:
        """Of each image the mean of what is visible, channel by channel, as a patch: (batch, 1, pixels)."""
        pixels = self.patch**2
        levels = patchify(batch["pixel_values"].float(), self.patch).unflatten(-1, (-1, pixels)).mean(-1)
        visible = (~masked)[..., None]
        colour = (levels * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)
        return colour.repeat_interleave(pixels, dim=-1)

    # -- showing

    @torch.no_grad()
    def drawn(self, model, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of held-out images, the same every time: themselves, what is visible, what the model makes of it, all
        between 0 and 1; and which patches are masked."""
        dataset = self.evaluation(full=True)
        batch = self.collate([dataset[place] for place in permutation(len(dataset), 0, 0)[:count].tolist()])
        return redrawn(model, self.processor, batch["pixel_values"], batch["noise"])

    def quality(self, images: torch.Tensor, rebuilt: torch.Tensor, mask: torch.Tensor) -> list[float]:
        return quality(images, rebuilt, mask, self.patch)

    def preview(self, model) -> list[str]:
        """In half blocks: an image, what is visible of it (the rest dark), what the model makes of it."""
        *pictures, mask = self.drawn(model, PREVIEWS)
        quality = self.quality(pictures[0], pictures[2], mask)
        lines = []
        for place, decibel in enumerate(quality):
            parts = [half_blocks((part[place] * 255).round().to(torch.uint8)) for part in pictures]
            width = max(map(len, parts[0])) + 3
            lines += ["".join(part.ljust(width) for part in row).rstrip() for row in zip(*parts)]
            lines += [f"an image, its visible patches, the model's drawing: {decibel:.1f} dB"]
        return lines

    def examples(self) -> list[Example]:
        dataset = self.evaluation(full=True)
        return [Example(dataset[place].image.pixels) for place in permutation(len(dataset), 0, 0)[:EXAMPLES].tolist()]

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        images, visible, rebuilt, mask = self.drawn(model, SHOWN)
        notes = [f"{decibel:.1f} dB" for decibel in self.quality(images, rebuilt, mask)]
        triples = list(zip(images, visible, rebuilt))
        title = f"Held-out images, {float(mask.mean()):.0%} of each hidden and drawn again"
        return [reconstructions(triples, notes, folder / "reconstruction.png", title)]


def counted(labels: torch.Tensor) -> torch.Tensor:
    """(batch, patches): which are masked."""
    return labels[..., 0] != IGNORED


def as_logits(errors: torch.Tensor) -> torch.Tensor:
    """(n) -> (n, 2): logits whose cross entropy with class 0 is the given number, as they are log-probabilities."""
    return torch.stack([-errors, (-torch.expm1(-errors)).log()], dim=-1)


def redrawn(
    model: TriuneForMaskedImageModeling, processor, pixel_values: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, what is visible of them, what the model makes of it, between 0 and 1; and which patches are masked."""
    device = next(model.parameters()).device
    pixel_values, noise = pixel_values.to(device), noise.to(device)
    answer = model(pixel_values=pixel_values, noise=noise)
    whole = model.reconstruction(pixel_values, answer.logits, answer.mask)
    images, rebuilt = (denormalised(processor, pixels.float().cpu()) for pixels in (pixel_values, whole))
    mask = answer.mask.cpu()
    patches = patchify(images, model.patch_size)
    visible = unpatchify(patches * (1 - mask[..., None]), model.config.encoder.grid, model.patch_size)
    return images, visible, rebuilt, mask


def quality(images: torch.Tensor, rebuilt: torch.Tensor, mask: torch.Tensor, patch: int) -> list[float]:
    """PSNR of the masked patches of each image, which are between 0 and 1."""
    errors = patchify((images - rebuilt).square(), patch).mean(-1)
    return [decibels(float(error)) for error in (errors * mask).sum(-1) / mask.sum(-1)]


def decibels(error: float) -> float:
    """PSNR of a mean squared error, where the brightest is 1."""
    return -10 * math.log10(max(error, 1e-12))
