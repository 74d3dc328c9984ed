"""Images that are trained on and images that are held out: one uint8 tensor each, with a class for every image. And
what is done to single ones: from the bytes of a file to a tensor, from one number of channels or size to another.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class Images(NamedTuple):
    pixels: torch.Tensor  # uint8, (images, channels, height, width)
    labels: torch.Tensor  # int64, (images,)

    def take(self, indices: torch.Tensor) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageData:
    train: Images
    validation: Images
    names: tuple[str, ...]  # of the classes
    source: str
    fingerprint: str

    def describe(self) -> str:
        """One line for the console."""
        channels, height, width = self.train.pixels.shape[1:]
        return (
            f"{self.source}: {len(self.train.labels):,} images of {channels} x {height} x {width} in "
            f"{len(self.names)} classes; held out {len(self.validation.labels):,}; sha256 {self.fingerprint[:12]}"
        )


def fingerprint(*collections: Images, names: Sequence[str]) -> str:
    """SHA-256 over class names, sizes, pixels and labels, in order."""
    digest = hashlib.sha256(repr(tuple(names)).encode())
    for tensor in (tensor for images in collections for tensor in images):
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def image_data(train: Images, validation: Images, names: Sequence[str], source: str) -> ImageData:
    return ImageData(train, validation, tuple(names), source, fingerprint(train, validation, names=names))


def stratified_folds(labels: torch.Tensor, folds: int, seed: int) -> torch.Tensor:
    """The fold of each sample: dealt out class by class, in random order within a class, so that the folds of a class
    differ by at most one sample, and so do the folds altogether."""
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds={folds} must lie between 2 and the number of samples, {len(labels)}")
    drawn = np.random.default_rng(seed).permutation(len(labels))
    order = torch.from_numpy(np.lexsort((drawn, labels.numpy())))
    dealt = torch.empty(len(labels), dtype=torch.long)
    dealt[order] = torch.arange(len(labels)) % folds
    return dealt


# ---------------------------------------------------------------------------------------------------------------------
# One image: uint8, (channels, height, width)


DEEP = {"I", "I;16", "I;16B", "I;16L"}  # Pillow's modes for 16 bits, which its own conversions cut off at 255
CHANNELS = {1: "L", 3: "RGB"}


def opened(content: bytes):
    """The image in a file's bytes, its header read and nothing else. Raises whatever Pillow meets."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content))


def decode(content: bytes, channels: int) -> torch.Tensor:
    """The image in a file's bytes: upright, transparency on white, the first frame, in 1 channel (grey) or 3 (RGB)."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened(content))
    if image.mode in DEEP:
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return as_tensor(image.convert("RGB").convert(CHANNELS[channels]))


def as_tensor(image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def as_image(pixels: torch.Tensor):
    """uint8, of 1 or 3 channels -> Pillow's."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def with_channels(pixels: torch.Tensor, channels: int) -> torch.Tensor:
    if len(pixels) == channels:
        return pixels
    return as_tensor(as_image(pixels).convert(CHANNELS[channels]))


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """To (height, width), as the image processors of transformers do it."""
    from PIL import Image

    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    return as_tensor(as_image(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
