"""The class of a text or of an image, by the head that learned the classes."""

from collections.abc import Iterator

from triune.training.answering.way import (
    Answer,
    Saved,
    Way,
    answered_images,
    encoded,
    listed,
    ranked,
    show_image,
    text_batch,
)
from triune.training.figures import shorten


WIDTH = 60  # of a text that is shown beside its class


def classify_texts(saved: Saved, texts: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """Long texts are cut, as in training."""
    rows = encoded(saved, texts, truncate=True)
    logits = saved.model(**text_batch(saved, rows)).logits
    found = ranked(logits, saved.model.config.id2label, top_k)
    return ({"text": text, **answer} for text, answer in zip(texts, found))


def classify_images(saved: Saved, paths: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """What cannot be read is answered with an error."""
    names = saved.model.config.id2label
    return answered_images(
        saved, paths, lambda pixels, places: ranked(saved.model(pixel_values=pixels).logits, names, top_k)
    )


def show_text_class(answer: Answer, mask: str | None) -> str:
    return f"{shorten(' '.join(answer['text'].split()), WIDTH):{WIDTH}}  {listed(answer)}"


def show_image_class(answer: Answer, mask: str | None) -> str:
    return show_image(answer, "" if "error" in answer else listed(answer))


TEXTS = Way(classify_texts, show_text_class, {"top_k": 3}, '"A text."')
IMAGES = Way(classify_images, show_image_class, {"top_k": 3}, "image.png", reads="images")
