"""What is hidden of an image is drawn: how near the drawing comes, and the image, what is seen of it and the drawing
as a picture.

Which patches are hidden follows from the seed and from the place of the image among the inputs.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from triune.training import figures
from triune.training.answering.way import Answer, Saved, Way, answered_images, show_image
from triune.training.figures.reconstruction import reconstructions
from triune.training.sampling import generator
from triune.training.tasks.masked_image_modeling import quality, redrawn


def draw(saved: Saved, paths: list[str], first: int, seed: int, output_dir: str | None) -> Iterator[Answer]:
    """The PSNR of the hidden patches; and in `output_dir`, where it is given, a PNG of each image. What cannot be read
    is answered with an error."""
    if output_dir and not figures.available():
        raise ValueError(f"output_dir={output_dir!r}: {figures.MISSING}")
    patches = saved.model.config.num_patches

    def answer(pixel_values: torch.Tensor, places: list[int]) -> Iterator[Answer]:
        noise = torch.stack([torch.rand(patches, generator=generator(seed, first + place)) for place in places])
        images, visible, rebuilt, mask = redrawn(saved.model, saved.images, pixel_values, noise)
        decibels = quality(images, rebuilt, mask, saved.model.patch_size)
        for place, psnr, *triple in zip(places, decibels, images, visible, rebuilt):
            found = {"psnr": psnr}
            if output_dir:
                path = Path(output_dir) / f"{first + place}-{Path(paths[place]).stem}.png"  # names may come again
                found["drawing"] = written(triple, psnr, path, Path(paths[place]).name)
            yield found

    return answered_images(saved, paths, answer)


def written(triple: list[torch.Tensor], psnr: float, path: Path, title: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(reconstructions([triple], [decibel(psnr)], path, title))


def decibel(psnr: float) -> str:
    return f"{psnr:.1f} dB"


def show_drawn(answer: Answer, mask: str | None) -> str:
    drawing = f"  {answer['drawing']}" if "drawing" in answer else ""
    return show_image(answer, "" if "error" in answer else decibel(answer["psnr"]) + drawing)


DRAW = Way(draw, show_drawn, {"seed": 0, "output_dir": None}, "image.png --output_dir drawings", reads="images")
