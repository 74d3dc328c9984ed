"""Crops of the two photographs that come with scikit-learn, a pagoda in China and a dahlia, at half their size.

Held out is a vertical band of each, right of the middle: what lies on both sides of it is trained on, and no pixel
is in both. Two photographs are little: what is held out shows whether a model fills in colours, edges and textures
that it knows, not whether it knows photographs.
"""

import torch

from triune.training.data.images import ImageData, Images, as_tensor, image_data


PHOTOS = ("china", "flower")
REDUCED = 2  # the photographs are 427 x 640, and sharp enough to lose every other pixel
BAND = (180, 240)  # columns that are held out, of 320: sky, lake and trees; petals and leaves
STEP, HELD_OUT_STEP = 4, 14  # pixels from one crop to the next, along rows and columns


def photograph(name: str) -> torch.Tensor:
    """uint8 (3, 213, 320), each pixel the mean of four."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ModuleNotFoundError(
            'photos come with scikit-learn, which is not installed: pip install "triune[test]"'
        ) from error
    pixels = as_tensor(load_sample_image(f"{name}.jpg"))
    height, width = (side // REDUCED for side in pixels.shape[1:])
    tiles = pixels[:, : height * REDUCED, : width * REDUCED].unflatten(2, (width, REDUCED))
    return tiles.unflatten(1, (height, REDUCED)).float().mean((2, 4)).round().to(torch.uint8)


def crops(photo: torch.Tensor, side: int, step: int) -> torch.Tensor:
    """Squares at every `step` pixels, row by row: (crops, channels, side, side)."""
    return photo.unfold(1, side, step).unfold(2, side, step).flatten(1, 2).transpose(0, 1).contiguous()


def photos(side: int = 32) -> ImageData:
    """Squares of both photographs, with the name of theirs as class."""
    narrowest = BAND[1] - BAND[0]
    if not 1 <= side <= narrowest:
        raise ValueError(f"side={side} must lie between 1 and {narrowest}, the width of what is held out")
    known, asked = [], []
    for photo in map(photograph, PHOTOS):
        beside = [crops(part, side, STEP) for part in (photo[:, :, : BAND[0]], photo[:, :, BAND[1] :])]
        known.append(torch.cat(beside))
        asked.append(crops(photo[:, :, slice(*BAND)], side, HELD_OUT_STEP))
    return image_data(
        train=labelled(known),
        validation=labelled(asked),
        names=PHOTOS,
        source=f"photos, crops of {len(PHOTOS)} photographs, held out a band of each",
    )


def labelled(parts: list[torch.Tensor]) -> Images:
    return Images(torch.cat(parts), torch.arange(len(parts)).repeat_interleave(torch.tensor(list(map(len, parts)))))
