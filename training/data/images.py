"""Images that are trained on and images that are held out: one uint8 tensor each, with a class for every image."""

import hashlib
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
