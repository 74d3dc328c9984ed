"""What the ways share: a saved model with its processor, tokens in batches, classes with their shares."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from triune.configuration import stack_reading
from triune.training.collators import pad
from triune.training.data.image_sources import reason
from triune.training.data.images import decode
from triune.training.figures import shorten
from triune.training.image_processor import processed


Answer = dict[str, Any]  # what can be written as JSON


class Saved(NamedTuple):
    """A model with what turns inputs into tensors: a tokenizer, an image processor, or both in one."""

    task: str
    model: PreTrainedModel
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def images(self) -> Any:
        return getattr(self.processor, "image_processor", self.processor)

    @property
    def length(self) -> int:
        """The most tokens that it reads at once."""
        return stack_reading(self.model.config, "tokens").max_position_embeddings


class Way(NamedTuple):
    """How a task answers."""

    answer: Callable[..., Iterator[Answer]]
    show: Callable[[Answer, str | None], str]  # the answer and the mask token
    options: dict[str, Any]  # with their defaults
    example: str  # of what stands behind the model on a command line
    between: str = ""  # a line between two answers, where one may have several paragraphs
    reads: str = "texts"  # or images


# ---------------------------------------------------------------------------------------------------------------------
# Texts and tokens


def encoded(saved: Saved, texts: list[str], truncate: bool) -> list[torch.Tensor]:
    """The tokens of each text, in the tokenizer's own frame."""
    rows = saved.tokenizer(texts, truncation=truncate, max_length=saved.length if truncate else None, verbose=False)
    return [torch.tensor(ids, dtype=torch.long) for ids in rows["input_ids"]]


def text_batch(saved: Saved, rows: list[torch.Tensor], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of tokens padded to the longest, on the right unless `left`."""
    ones = [torch.ones_like(ids) for ids in rows]
    if left:
        ids, mask = (
            pad([row.flip(0) for row in part], value).flip(1) for part, value in ((rows, pad_id(saved)), (ones, 0))
        )
    else:
        ids, mask = pad(rows, pad_id(saved)), pad(ones, 0)
    return {"input_ids": ids.to(saved.model.device), "attention_mask": mask.to(saved.model.device)}


def pad_id(saved: Saved) -> int:
    return saved.tokenizer.pad_token_id


def check_length(text: str, ids: torch.Tensor, saved: Saved) -> None:
    if len(ids) > saved.length:
        raise ValueError(f"{shorten(text, 60)!r} has {len(ids)} tokens, and the model reads {saved.length} at once")


# ---------------------------------------------------------------------------------------------------------------------
# Images


def look(path: str, channels: int) -> torch.Tensor | str:
    """The pixels of a file, or why there are none."""
    try:
        return decode(Path(path).read_bytes(), channels)
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        return reason(error)


def answered_images(
    saved: Saved, paths: list[str], answer: Callable[[torch.Tensor, list[int]], Iterator[Answer]]
) -> Iterator[Answer]:
    """What `answer` makes of the pixel_values of the images that can be read, given with their places among the
    paths; what cannot be read is answered with an error."""
    channels = stack_reading(saved.model.config, "patches").embedding["num_channels"]
    looks = [look(path, channels) for path in paths]
    places = [place for place, seen in enumerate(looks) if torch.is_tensor(seen)]
    found = iter(())
    if places:
        pixel_values = processed(saved.images, [looks[place] for place in places])
        found = answer(pixel_values.to(saved.model.device, saved.model.dtype), places)
    for path, seen in zip(paths, looks):
        yield {"image": path, **(next(found) if torch.is_tensor(seen) else {"error": seen})}


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def ranked(logits: torch.Tensor, names: dict[int, str] | list[str], top_k: int) -> Iterator[Answer]:
    """Of each row the likeliest classes, by their names."""
    best = logits.float().softmax(-1).cpu().topk(min(top_k, logits.shape[-1]))
    for numbers, scores in zip(best.indices.tolist(), best.values.tolist()):
        top = [{"label": names[number], "score": score} for number, score in zip(numbers, scores)]
        yield {**top[0], "top": top}


def percent(score: float) -> str:
    return f"{score:.1%}"


def listed(answer: Answer) -> str:
    return ", ".join(f"{one['label']} {percent(one['score'])}" for one in answer["top"])


def show_image(answer: Answer, said: str) -> str:
    return f"{answer['image']}  {answer.get('error', said)}"
