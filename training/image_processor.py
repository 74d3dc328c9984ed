"""Pixels to what the model reads: a standard image processor of transformers, so that the saved folder is complete.

`AutoImageProcessor.from_pretrained(folder)` gives, for the same image, the numbers that evaluation used: evaluation
calls the processor itself. Training resizes as it does, changes the images, and then normalises with its numbers.

A model has three channels unless its recipe says `num_channels: 1`, for grey images alone. Such a model needs them
loaded with `Image.open(...).convert("L")`: no processor of transformers makes images grey by itself, nor does its
pipeline ("mean must have 3 elements").
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, ViTImageProcessorPil


ENOUGH = 1000  # images that mean and standard deviation are measured on


def measured(images: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the pixels of uint8 images, (channels, height, width), between
    0 and 1; to four places, as one would write them down."""
    count, total, squares = 0, 0.0, 0.0
    for image in images:
        levels = image.flatten(1).double() / 255
        count += levels.shape[1]
        total, squares = total + levels.sum(1), squares + levels.square().sum(1)
    if not count:
        raise ValueError("mean and standard deviation of no image")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation < 1e-4, 1.0, deviation)  # images of one colour
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in deviation.tolist()]


def build_processor(size: tuple[int, int], mean: Sequence[float], deviation: Sequence[float]) -> ViTImageProcessorPil:
    """Resize to (height, width), scale to 0 ... 1, normalise; as many channels as there are means."""
    return ViTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        image_mean=list(mean),
        image_std=list(deviation),
        do_convert_rgb=len(mean) == 3,
    )


def load_processor(model: str) -> Any | None:
    """The processor saved beside a model (a folder or a Hub id), if there is one."""
    try:
        return AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError):  # no such file, or one that is for something else
        return None


def processed(processor, images: list[torch.Tensor]) -> torch.Tensor:
    """uint8 images of any sizes -> pixel_values (batch, channels, height, width), as anyone who loads it gets them."""
    return processor(images=images, input_data_format="channels_first", return_tensors="pt")["pixel_values"]


def normalised(processor, images: torch.Tensor) -> torch.Tensor:
    """Floats between 0 and 1 at the size of the model -> pixel_values."""
    mean, deviation = (images.new_tensor(values).view(-1, 1, 1) for values in moments(processor))
    return images.sub(mean).div_(deviation)


def denormalised(processor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Back, to be looked at."""
    mean, deviation = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in moments(processor))
    return (pixel_values * deviation + mean).clamp(0, 1)


def moments(processor) -> tuple[Sequence[float], Sequence[float]]:
    return processor.image_mean, processor.image_std
