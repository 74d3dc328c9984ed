"""The data sets that come with Triune and need no network: `pydocs`, `digits` and `letters`.

Each is a pure function of its arguments and of what is installed. Their `seed` is not the run's: several runs are
measured on the same text and the same images.
"""

import platform
import string
from collections.abc import Sequence
from functools import cache

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.data.images import ImageData, Images, image_data, stratified_folds
from triune.training.data.letters import FAMILIES, draw
from triune.training.data.python_docs import reference_topics, standard_library
from triune.training.data.text import TextData, split_documents, text_data


LETTERS = string.ascii_letters + string.digits


@cache
def pydocs(fraction: float = 0.1, seed: int = 0) -> TextData:
    """Python's reference documentation and the docstrings of its standard library, as installed here.

    Held out are whole topics and whole modules; figures are quoted for the topics, which are edited prose. It takes
    seconds to gather, and is kept in memory.
    """
    topics, modules = (split_documents(part, fraction, seed) for part in (reference_topics(), standard_library()))
    return text_data(
        train=topics[0] + modules[0],
        validation=topics[1] + modules[1],
        source=f"pydocs of Python {platform.python_version()}",
        headline=topics[1],
    )


def digits(fold: int = 0, folds: int = 5, seed: int = 0) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; one of several stratified folds is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModuleNotFoundError(
            'digits come with scikit-learn, which is not installed: pip install "triune[test]"'
        ) from error
    if not 0 <= fold < folds:
        raise ValueError(f"fold={fold} must lie between 0 and folds - 1 = {folds - 1}")
    data = load_digits()
    pixels = torch.from_numpy(data.images * (255 / 16)).round().to(torch.uint8)[:, None]
    images = Images(pixels, torch.from_numpy(data.target).long())
    held_out = stratified_folds(images.labels, folds, seed) == fold
    return image_data(
        train=images.take(~held_out),
        validation=images.take(held_out),
        names=[str(digit) for digit in range(10)],
        source=f"digits, fold {fold + 1} of {folds}",
    )


def letters(
    alphabet: str = string.ascii_uppercase,
    held_out: str | Sequence[str] = ("STIX", "Computer Modern"),
    per_font: int = 20,
    held_out_per_font: int = 8,
    seed: int = 0,
) -> ImageData:
    """Letters, 32 x 32; the families of fonts in `held_out` are never trained on.

    `alphabet` may be any Latin letters and digits; with small letters beside capitals some cannot be told apart by
    their shape alone (o and O, l and I), as images vary in size.
    """
    held_out = (held_out,) if isinstance(held_out, str) else tuple(held_out)
    check_letters(alphabet, held_out, {"per_font": per_font, "held_out_per_font": held_out_per_font})
    seen = [font for family in FAMILIES if family not in held_out for font in FAMILIES[family]]
    unseen = [font for family in FAMILIES if family in held_out for font in FAMILIES[family]]
    return image_data(
        train=draw(seen, alphabet, per_font, seed),
        validation=draw(unseen, alphabet, held_out_per_font, seed),
        names=list(alphabet),
        source=f"letters in {len(seen)} fonts, held out {' and '.join(held_out)} ({len(unseen)} fonts)",
    )


def check_letters(alphabet: str, held_out: Sequence[str], counts: dict[str, int]) -> None:
    if len(set(alphabet)) < max(2, len(alphabet)) or not set(alphabet) <= set(LETTERS):
        raise ValueError(f"alphabet={alphabet!r} must be two or more different characters of {LETTERS}")
    for family in held_out:
        if family not in FAMILIES:
            raise ValueError(f"held_out={family!r}: choose from {', '.join(FAMILIES)}{nearest(family, FAMILIES)}")
    if not 0 < len(set(held_out)) < len(FAMILIES):
        raise ValueError(f"held_out={held_out} must leave families to train on and to test on: {', '.join(FAMILIES)}")
    for field, count in counts.items():
        if count < 1:
            raise ValueError(f"{field}={count} must be at least 1")
