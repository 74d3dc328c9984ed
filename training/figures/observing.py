"""A model that is looked at: without dropout and gradients, and a text as it reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch


MOST_TOKENS = 96  # of a text that is drawn


@contextmanager
def observed(model, kernel: str | None = None) -> Iterator[None]:
    """A model without dropout and gradients, with another attention kernel if one is named; then as it was."""
    before, modes = model.config._attn_implementation, {module: module.training for module in model.modules()}
    model.eval()
    try:
        model.set_attn_implementation(kernel or before)
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)
        for module, mode in modes.items():
            module.training = mode


class Reading(NamedTuple):
    """A text as a model reads it."""

    ids: torch.Tensor  # (1, length)
    special: np.ndarray  # which tokens frame the text
    tokens: list[str]  # to be shown


def show_token(tokenizer, index: int) -> str:
    """A token by itself; what cannot be seen has a sign. A model may have more ids than its tokenizer has tokens."""
    text = tokenizer.decode([index]) or tokenizer.convert_ids_to_tokens(index) or f"#{index}"
    return text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵")


def read(model, tokenizer, text: str) -> Reading:
    most = min(MOST_TOKENS, model.config.num_positions)
    ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    special = np.isin(ids, tokenizer.all_special_ids)
    return Reading(torch.tensor([ids]).long(), special, [show_token(tokenizer, index) for index in ids])
