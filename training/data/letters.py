"""Letters drawn in the fonts that matplotlib carries: any number of images, and fonts that are never trained on.

A font is legible here if it draws every Latin letter as some other font does. matplotlib's other files draw symbols
(cmsy10, cmex10), a box for any letter (Last Resort) or nothing (STIX sizes); a test compares the glyphs.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

from triune.training.data.images import Images


# By design, not by file: DejaVu Sans Mono has the shapes of DejaVu Sans (their capitals correlate at 0.88).
FAMILIES: dict[str, tuple[str, ...]] = {
    "DejaVu Sans": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    "Computer Modern": ("cmr10", "cmb10", "cmti10", "cmmi10", "cmss10", "cmtt10"),
}
SIZE = 32  # pixels of an image's side
DETAIL = 2  # images are drawn so many times larger, and reduced
LETTER = 21  # pixels of the font size in an image: the widest letters just stay inside when they are moved
# How far an image may be from the plain letter; each amount is drawn uniformly.
RESIZE = 0.1  # larger or smaller by up to this share
SHIFT = 2.0  # pixels, each way
TURN = 8.0  # degrees, each way


def font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise ModuleNotFoundError(
            'letters are drawn in the fonts of matplotlib, which is not installed: pip install "triune[plots]"'
        ) from error
    return Path(matplotlib.get_data_path(), "fonts", "ttf")


def place_of(seed: int, font: str, letter: str, index: int) -> np.random.Generator:
    """The random numbers of one image."""
    return np.random.default_rng([seed, zlib.crc32(font.encode()), ord(letter), index])


def plain_letter(font: str, letter: str):
    """White on black, in the middle of a square that is large enough to be moved in."""
    from PIL import Image, ImageDraw, ImageFont

    side = SIZE * DETAIL
    typeface = ImageFont.truetype(font_folder() / f"{font}.ttf", LETTER * DETAIL)
    left, top, right, bottom = typeface.getbbox(letter, anchor="ls")
    image = Image.new("L", (side, side))
    middle = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(middle, letter, font=typeface, fill=255, anchor="ls")
    return image


def varied(image, random: np.random.Generator) -> np.ndarray:
    """Turned, resized and moved about the middle in one step: (SIZE, SIZE), uint8."""
    from PIL import Image

    size, right, down, turn = random.uniform(-1, 1, 4)
    scale, angle = 1 / (1 + size * RESIZE), np.radians(turn * TURN)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle = SIZE * DETAIL / 2
    x, y = (middle + amount * SHIFT * DETAIL for amount in (right, down))
    # PIL asks where in the old image each pixel of the new one comes from
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    moved = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(moved.reduce(DETAIL))


def draw(fonts: list[str], alphabet: str, per_font: int, seed: int) -> Images:
    """Every letter of the alphabet, `per_font` times in each font."""
    pixels, labels = [], []
    for font in fonts:
        for label, letter in enumerate(alphabet):
            plain = plain_letter(font, letter)
            places = (place_of(seed, font, letter, index) for index in range(per_font))
            pixels.extend(varied(plain, place) for place in places)
            labels.extend([label] * per_font)
    return Images(torch.from_numpy(np.stack(pixels))[:, None], torch.tensor(labels))
