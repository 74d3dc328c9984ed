"""Which of some labels an image shows: each stands in a sentence, and the sentence that is nearest to the image wins.

No head learned these labels. With several templates the logits of a label are averaged, as `zero_shot_accuracy` of
training is measured; with one the answers are those of transformers' pipeline.
"""

from collections.abc import Iterator, Sequence

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.answering.classify import show_image_class
from triune.training.answering.way import (
    Answer,
    Saved,
    Way,
    answered_images,
    encoded,
    ranked,
    text_batch,
)


PLACE = "{}"  # of the label in a template
TEMPLATE = "a picture of {}"


def match(
    saved: Saved, paths: list[str], first: int, labels: Sequence[str], template: Sequence[str], top_k: int
) -> Iterator[Answer]:
    """What cannot be read is answered with an error. Long labels are cut, as captions are in training."""
    names = checked_labels(labels)
    read = text_batch(saved, encoded(saved, prompts(names, template), truncate=True))

    def answer(pixel_values: torch.Tensor, places: list[int]) -> Iterator[Answer]:
        logits = saved.model(pixel_values=pixel_values, **read).logits
        return ranked(logits.unflatten(1, (len(names), -1)).mean(-1), names, top_k)

    return answered_images(saved, paths, answer)


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Each once."""
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        given = f"labels={', '.join(names)!r}: one alone is always right; " if names else ""
        raise ValueError(f'{given}give what the image may show, at least two: --labels "red square, blue circle"')
    return names


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Of each label all templates, one after another."""
    for template in templates:
        if template.count(PLACE) != 1:
            raise ValueError(
                f"template={template!r} must have one {PLACE}, where the label stands{nearest(template, [TEMPLATE])}"
            )
    return [template.replace(PLACE, name) for name in names for template in templates]


MATCH = Way(
    match,
    show_image_class,
    {"labels": (), "template": (TEMPLATE,), "top_k": 3},
    'image.png --labels "red square, blue circle"',
    reads="images",
)
