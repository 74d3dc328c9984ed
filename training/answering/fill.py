"""Hidden words are filled in; a model that was trained on pairs says also whether the second text follows the first.

Two texts are given with a TAB between them, and only to such a model.
"""

from collections.abc import Iterator

import torch

from triune.training.answering.way import (
    Answer,
    Saved,
    Way,
    check_length,
    encoded,
    percent,
    ranked,
    text_batch,
)
from triune.training.collators import pad
from triune.training.figures import shorten
from triune.training.tasks.pretraining import VERDICTS


BETWEEN = "\t"  # two texts


def fill(saved: Saved, texts: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """For each mask the likeliest tokens, each mask by itself; and the text with the first of each."""
    check_mask_token(saved)
    rows = encoded(saved, texts, truncate=False)
    for text, ids in zip(texts, rows):
        check_masked(text, ids, saved)
        check_length(text, ids, saved)
    logits = saved.model(**text_batch(saved, rows)).logits
    return ({"text": text, **filled(saved, ids, own, top_k)} for text, ids, own in zip(texts, rows, logits))


def filled(saved: Saved, ids: torch.Tensor, logits: torch.Tensor, top_k: int) -> Answer:
    """Of one text, whose logits may have padding behind them."""
    places = (ids == saved.tokenizer.mask_token_id).nonzero().flatten()
    chances = logits[places.to(logits.device)].float().softmax(-1).cpu()
    found = chances.topk(min(top_k, chances.shape[-1]))
    masks = [
        [{"token_str": saved.tokenizer.decode([token]), "score": score} for token, score in zip(*pair)]
        for pair in zip(found.indices.tolist(), found.values.tolist())
    ]
    whole = ids.index_put((places,), found.indices[:, 0])
    return {"filled": saved.tokenizer.decode(whole, skip_special_tokens=True), "masks": masks}


def check_mask_token(saved: Saved) -> None:
    if saved.tokenizer.mask_token_id is None:
        raise ValueError("the tokenizer of this model has no mask token: it does not say what to fill in")


def check_masked(text: str, ids: torch.Tensor, saved: Saved, more: str = "") -> None:
    token = saved.tokenizer.mask_token
    if not (ids == saved.tokenizer.mask_token_id).any():
        raise ValueError(
            f"nothing to fill in: {shorten(text, 60)!r} has no {token}, which stands for a hidden word{more}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def fill_and_judge(saved: Saved, texts: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """Each line is a text with hidden words, or two texts with a TAB between them, with hidden words or without."""
    check_mask_token(saved)
    rows = [framed(saved, text) for text in texts]
    for text, (ids, _) in zip(texts, rows):
        if BETWEEN not in text:
            check_masked(text, ids, saved, "; or give two texts with a TAB between them")
        check_length(text, ids, saved)
    batch = text_batch(saved, [ids for ids, _ in rows])
    segments = pad([segments for _, segments in rows], 0).to(saved.model.device)
    words, verdicts = saved.model(**batch, token_type_ids=segments).logits
    for text, (ids, _), own, verdict in zip(texts, rows, words, ranked(verdicts, VERDICTS, len(VERDICTS))):
        judged = {"verdict": {"label": verdict["label"], "score": verdict["score"]}} if BETWEEN in text else {}
        yield {"text": text, **filled(saved, ids, own, top_k), **judged}


def framed(saved: Saved, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of one text or of two in the tokenizer's own frame, and their segments."""
    parts = text.split(BETWEEN)
    if len(parts) > 2 or not all(part.strip() for part in parts):
        raise ValueError(
            f"{shorten(text.replace(BETWEEN, '<TAB>'), 60)!r}: give a text, or two with one TAB between them"
        )
    row = saved.tokenizer(*parts, return_token_type_ids=True, verbose=False)
    return torch.tensor(row["input_ids"]), torch.tensor(row["token_type_ids"])


# ---------------------------------------------------------------------------------------------------------------------


def show_filled(answer: Answer, mask: str | None) -> str:
    """The text with its gaps filled; below it, for each, what else might stand there."""
    best = [f"[{choices[0]['token_str'].strip()}]" for choices in answer["masks"]]
    pieces = answer["text"].split(mask)
    text = "".join(piece + word for piece, word in zip(pieces, [*best, ""]))
    lists = [
        ", ".join(f"{one['token_str'].strip()} {percent(one['score'])}" for one in own) for own in answer["masks"]
    ]
    return "\n  ".join([text, *lists])


def show_judged(answer: Answer, mask: str | None) -> str:
    text, *lists = show_filled(answer, mask).replace(BETWEEN, " | ").split("\n")
    said = [f"  {answer['verdict']['label']} {percent(answer['verdict']['score'])}"] if "verdict" in answer else []
    return "\n".join([text, *said, *lists])


FILL = Way(fill, show_filled, {"top_k": 5}, '"A text with a MASK in it."')
PAIRS = Way(fill_and_judge, show_judged, {"top_k": 5}, "$'A text with a MASK in it.\\tAnother text.'")
