"""Training images changed at random, without torchvision: a whole batch at once, each image by its own numbers.

All that is random about an image is one row of uniform numbers, drawn from the generator of its place in the run
(`Augment.draw`). What happens then is a function of images and rows, so a batch takes one call of each operation. An
image's row has the same places for the same things whatever else is chosen: to switch one thing on leaves the others
as they were. `Mix` blends the images of a batch, and its generator follows from their keys.

Batches are floats between 0 and 1, (batch, channels, height, width); noise goes beyond. The operations of
`rand_augment` compute what Pillow's of the same names do, which is what their tests compare them with.

Sources: RandAugment, https://arxiv.org/abs/1909.13719; random erasing, https://arxiv.org/abs/1708.04896; mixup,
https://arxiv.org/abs/1710.09412; CutMix, https://arxiv.org/abs/1905.04899.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from triune.training.arguments import DataArguments


def per_image(values: torch.Tensor) -> torch.Tensor:
    """(batch,) -> (batch, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Where the pixels are


def warp(
    images: torch.Tensor, turn=0.0, zoom=1.0, lean_x=0.0, lean_y=0.0, right=0.0, down=0.0, mode: str = "bilinear"
) -> torch.Tensor:
    """Turned (radians, counter-clockwise), enlarged, sheared and moved (pixels) about the middle in one step; the edge
    is repeated into what becomes free. Each amount is a number or one for each image."""
    height, width = images.shape[2:]
    one = images.new_ones(len(images))
    turn, zoom, lean_x, lean_y, right, down = (one * amount for amount in (turn, zoom, lean_x, lean_y, right, down))
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    # where, in pixels from the middle of the old image, a pixel of the new one comes from
    xx, xy = cos - sin * lean_y, cos * lean_x - sin
    yx, yy = sin + cos * lean_y, sin * lean_x + cos
    x = torch.stack([xx, xy * height / width, -(xx * right + xy * down) * 2 / width], 1)
    y = torch.stack([yx * width / height, yy, -(yx * right + yy * down) * 2 / height], 1)
    grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def shift_and_affine(
    images: torch.Tensor, numbers: torch.Tensor, shift: float, rotate: float, rescale: float, shear: float = 0.0
) -> torch.Tensor:
    """Moved by up to `shift` pixels each way, turned by up to `rotate` degrees, enlarged or reduced by up to the share
    `rescale`, leaning by up to `shear`, each uniformly; five numbers an image. Bicubic: of 8 pixels a side, moved by
    half of one, linear weights would leave a blur."""
    if not (shift or rotate or rescale or shear):
        return images
    right, down, turn, grow, lean = (numbers * 2 - 1).unbind(1)
    moves = {"lean_x": shear * lean, "right": shift * right, "down": shift * down}
    return warp(images, math.radians(rotate) * turn, 1 + rescale * grow, **moves, mode="bicubic").clamp(0, 1)


def add_noise(images: torch.Tensor, numbers: torch.Tensor, spread: float) -> torch.Tensor:
    """Normal noise of a standard deviation; a number for each pixel."""
    if not spread:
        return images
    return images + spread * math.sqrt(2) * torch.erfinv((2 * numbers - 1).clamp(-1 + 1e-6, 1 - 1e-6)).view_as(images)


def flip(images: torch.Tensor, numbers: torch.Tensor, probability: float) -> torch.Tensor:
    """Left and right exchanged; one number an image."""
    if not probability:
        return images
    return torch.where(per_image(numbers < probability), images.flip(-1), images)


def crop_box(numbers: torch.Tensor, height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of `least` to all of the area, its sides 3:4 to 4:3 of the image's own."""
    area, ratio, top, left = numbers.tolist()
    area, stretch = least + (1 - least) * area, math.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
    tall = min(height, max(1, round(height * math.sqrt(area) / stretch)))
    wide = min(width, max(1, round(width * math.sqrt(area) * stretch)))
    return int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide


def random_resized_crop(
    pixels: torch.Tensor, numbers: torch.Tensor, least: float, size: tuple[int, int]
) -> torch.Tensor:
    """A random part of one image, uint8 (channels, height, width), at `size`: bilinear, every pixel counted."""
    top, left, tall, wide = crop_box(numbers, *pixels.shape[1:], least)
    part = pixels[None, :, top : top + tall, left : left + wide]
    return F.interpolate(part, size=size, mode="bilinear", antialias=True)[0]


def rectangles(sides: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A mask (batch, 1, height, width): `sides` (batch, 2) as shares of height and width, at least one pixel each, and
    `places` (batch, 2) as shares of the room that is left."""
    extent = sides.new_tensor([height, width])
    length = (sides * extent).floor().clamp(min=1)
    first = (places * (extent - length + 1)).floor()
    row, column = torch.arange(height), torch.arange(width)
    rows = (row >= first[:, :1]) & (row < first[:, :1] + length[:, :1])
    columns = (column >= first[:, 1:]) & (column < first[:, 1:] + length[:, 1:])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(images: torch.Tensor, numbers: torch.Tensor, probability: float) -> torch.Tensor:
    """With some probability a rectangle of a tenth to half of each side takes the mean colour; five numbers an image.
    What an object hides, not what a camera loses: so the mean and not black."""
    if not probability:
        return images
    inside = rectangles(0.1 + 0.4 * numbers[:, 1:3], numbers[:, 3:5], *images.shape[2:])
    inside = inside & per_image(numbers[:, 0] < probability)
    return torch.where(inside, images.mean((2, 3), keepdim=True), images)


# ---------------------------------------------------------------------------------------------------------------------
# What the pixels are: (images, amounts (batch,) between -1 and 1) -> images; an amount of 0 leaves an image as it is


def blend(plain: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`plain` at 0, the image at 1, and beyond it above."""
    return torch.lerp(plain, images, per_image(factor)).clamp(0, 1)


def grey(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def brightness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return blend(torch.zeros_like(images), images, 1 + 0.9 * amount)


def contrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return blend(grey(images).mean((2, 3), keepdim=True).expand_as(images), images, 1 + 0.9 * amount)


def sharpness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Against a smoothed image, whose border is not smoothed."""
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(F.pad(images, (1, 1, 1, 1)), kernel / 13, groups=channels)[:, :, 1:-1, 1:-1]
    return blend(smooth, images, 1 + 0.9 * amount)


def posterize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """8 bits for each pixel to 4."""
    step = 2 ** per_image((4 * amount.abs()).round())
    return ((images * 255).round() / step).floor() * step / 255


def solarize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Negative where it is brighter than a threshold."""
    bright = (images * 255).round() >= per_image((1 - amount.abs()) * 256)
    return torch.where(bright, 1 - images, images)


def autocontrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """From black to white in each channel, where it is not all alike."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)
    return blend(images, stretched, amount.abs())


def equalize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """All 256 levels of each channel equally frequent."""
    rows = (images * 255).round().long().flatten(2).flatten(0, 1)  # (batch * channels, pixels)
    counts = torch.zeros(len(rows), 256).scatter_add_(1, rows, torch.ones(rows.shape))
    below = counts.cumsum(1) - counts
    highest = below.gather(1, rows.amax(1, keepdim=True))  # pixels that are not of the highest level
    levels = (below / highest.clamp(min=1)).clamp(max=1)
    equal = torch.where(highest > 0, levels.gather(1, rows), images.flatten(2).flatten(0, 1)).view_as(images)
    return blend(images, equal, amount.abs())


def rotate(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return warp(images, turn=math.radians(30) * amount)


def shear_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return warp(images, lean_x=0.3 * amount)


def shear_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return warp(images, lean_y=0.3 * amount)


def translate_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return warp(images, right=0.45 * images.shape[3] * amount)


def translate_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return warp(images, down=0.45 * images.shape[2] * amount)


OPERATIONS: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    *(brightness, contrast, sharpness, posterize, solarize, autocontrast, equalize),
    *(rotate, shear_x, shear_y, translate_x, translate_y),
)


def rand_augment(images: torch.Tensor, numbers: torch.Tensor, magnitude: float) -> torch.Tensor:
    """One of OPERATIONS for each pair of numbers: which, and whether more or less, left or right."""
    for which, side in numbers.unflatten(1, (numbers.shape[1] // 2, 2)).permute(1, 2, 0):
        amount = torch.where(side < 0.5, -magnitude, magnitude)
        chosen = (which * len(OPERATIONS)).long()
        images = images.clone()
        for index in chosen.unique().tolist():
            mine = (chosen == index).nonzero().flatten()
            images[mine] = OPERATIONS[index](images[mine], amount[mine])
    return images


# ---------------------------------------------------------------------------------------------------------------------
# All of it


CROP, FLIP, MOVE, ERASE = slice(0, 4), 4, slice(5, 10), slice(10, 15)  # the places in an image's row of numbers
FIXED = 15  # those of rand_augment follow, two for each operation, and those of the noise, one for each pixel

LIMITS: dict[str, tuple[float, float]] = {
    "shift": (0, math.inf),
    "rotate": (0, 180),
    "rescale": (0, 0.99),
    "shear": (0, 10),
    "noise": (0, 10),
    "random_resized_crop": (0.01, 1),
    "horizontal_flip": (0, 1),
    "rand_augment": (0, math.inf),
    "rand_augment_magnitude": (0, 1),
    "random_erasing": (0, 1),
    "mixup_alpha": (0, math.inf),
    "cutmix_alpha": (0, math.inf),
}


class Validated:
    """A dataclass whose fields are flags with LIMITS."""

    def __post_init__(self):
        for field in fields(self):
            low, high = LIMITS[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                limit = f"between {low} and {high}" if high < math.inf else f"{low} or more"
                raise ValueError(f"{field.name}={value} is not allowed: it must be {limit}")

    @classmethod
    def of(cls, data: DataArguments):
        return cls(**{field.name: getattr(data, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Augment(Validated):
    """What is done to each training image by itself; the defaults do nothing."""

    shift: float = 0
    rotate: float = 0.0
    rescale: float = 0.0
    shear: float = 0.0
    noise: float = 0.0
    random_resized_crop: float = 1.0
    horizontal_flip: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: float = 0.5
    random_erasing: float = 0.0

    @property
    def before_noise(self) -> int:
        return FIXED + 2 * self.rand_augment

    def draw(self, generator: torch.Generator, pixels: int = 0) -> torch.Tensor:
        """The numbers of one image, of so many pixels when it is changed."""
        return torch.rand(self.before_noise + (pixels if self.noise else 0), generator=generator)

    def crop(self, pixels: torch.Tensor, numbers: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """One image of any size, uint8, and its numbers -> a part of it at `size`."""
        return random_resized_crop(pixels, numbers[CROP], self.random_resized_crop, size)

    @property
    def crops(self) -> bool:
        return self.random_resized_crop < 1

    def batch(self, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """What follows the crop: floats (batch, channels, height, width), and a row of numbers for each."""
        images = flip(images, numbers[:, FLIP], self.horizontal_flip)
        images = shift_and_affine(images, numbers[:, MOVE], self.shift, self.rotate, self.rescale, self.shear)
        images = rand_augment(images, numbers[:, FIXED : self.before_noise], self.rand_augment_magnitude)
        images = erase(images, numbers[:, ERASE], self.random_erasing)
        return add_noise(images, numbers[:, self.before_noise :], self.noise)

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One image, (channels, height, width), uint8 or floats between 0 and 1; the same comes out."""
        if self == Augment():
            return image
        numbers = self.draw(generator, image.numel())
        scale = 1 if image.is_floating_point() else 255
        pixels = (image * (255 / scale)).round().to(torch.uint8)
        image = self.crop(pixels, numbers, tuple(image.shape[1:])) * (scale / 255) if self.crops else image
        changed = self.batch(image[None].float() / scale, numbers[None])[0].clamp(0, 1) * scale
        return changed if scale == 1 else changed.round().to(torch.uint8)


@dataclass(frozen=True)
class Mix(Validated):
    """What is done to a batch: each image with another, and the shares of both as its label. The other is one of the
    same batch, which is why the size of a forward pass matters here."""

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.mixup_alpha or self.cutmix_alpha)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, classes: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels (batch,) -> images and soft labels (batch, classes)."""
        kinds = [(mixup, self.mixup_alpha), (cutmix, self.cutmix_alpha)]
        kinds = [(kind, alpha) for kind, alpha in kinds if alpha]
        kind, alpha = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        other = torch.randperm(len(images), generator=generator)
        images, share = kind(images, images[other], beta(alpha, len(images), generator), generator)
        soft = F.one_hot(labels, classes).float()
        return images, torch.lerp(soft[other], soft, share[:, None])


def beta(alpha: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Beta(alpha, alpha), which torch itself draws from the global state only."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def mixup(
    images: torch.Tensor, others: torch.Tensor, share: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images at once, and the share of the first."""
    return torch.lerp(others, images, per_image(share)), share


def cutmix(
    images: torch.Tensor, others: torch.Tensor, share: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rectangle of the other, of about 1 - share of the area, and the share of pixels that are left."""
    sides = (1 - share).sqrt()[:, None].expand(-1, 2)
    inside = rectangles(sides, torch.rand(len(images), 2, generator=generator), *images.shape[2:])
    return torch.where(inside, others, images), 1 - inside.float().mean((1, 2, 3))
