"""Surprisal: how many bits each token of a text costs a language model, and what it expected instead.

A causal model reads each token from those before it; a masked one from all others, masked one at a time (pseudo
log-likelihood, https://arxiv.org/abs/1910.14659).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from triune.training.figures.observing import Reading, observed, read, show_token
from triune.training.figures.style import (
    BLUE,
    FAINT,
    GREY,
    HEADING,
    INK,
    MARGIN,
    ORANGE,
    WIDTH,
    colour_bar,
    empty_figure,
    new_figure,
    save,
    shades,
    sheet,
)


class Surprise(NamedTuple):
    bits: np.ndarray  # of each token; not a number where none was asked for
    guesses: np.ndarray  # the id that was thought likeliest


def causal_logits(model, reading: Reading, mask_token: int | None) -> torch.Tensor:
    """Each token from those before it; of the first one nothing is known."""
    logits = model(input_ids=reading.ids.to(model.device)).logits[0]
    return torch.cat([torch.full_like(logits[:1], math.nan), logits[:-1]])


def masked_logits(model, reading: Reading, mask_token: int | None) -> torch.Tensor:
    """Each token from all others, masked one at a time."""
    length = reading.ids.shape[1]
    rows = reading.ids.repeat(length, 1)
    rows.fill_diagonal_(mask_token)
    parts = []
    for places in torch.arange(length).split(32):  # of a batch's logits only those of the masked places are kept
        logits = model(input_ids=rows[places].to(model.device)).logits
        parts.append(logits[range(len(places)), places])
    return torch.cat(parts)


LOGITS = {"causal": causal_logits, "bidirectional": masked_logits}


def surprise_of(model, reading: Reading, mask_token: int | None = None) -> Surprise:
    """-log2 of the probability that the model gave to each token."""
    with observed(model):
        logits = LOGITS[model.config.attention["type"]](model, reading, mask_token).float().cpu()
    bits = -logits.log_softmax(-1).gather(1, reading.ids.T)[:, 0].numpy() / math.log(2)
    return Surprise(np.where(reading.special, math.nan, bits), logits.argmax(-1).numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Words on lines


def flow(widths: Sequence[float], breaks: Sequence[bool], most: float) -> list[tuple[int, float]]:
    """Line and place of each word of a text, with a new line where one is full, and after a break."""
    places, line, left = [], 0, 0.0
    for width, broken in zip(widths, breaks):
        if left and left + width > most:
            line, left = line + 1, 0.0
        places.append((line, left))
        line, left = (line + 1, 0.0) if broken else (line, left + width)
    return places


EXPECTED_FROM = {"causal": "the tokens before it", "bidirectional": "all others, masked one at a time"}


def draw_surprisal(tokens: list[str], bits: np.ndarray, guesses: list[str], vocab_size: int, kind: str):
    """`guesses`: what is written below each token; empty for nothing."""
    scored = np.isfinite(bits)
    if not scored.any():
        return empty_figure("Surprisal")
    letter, small, high = 0.1, 0.066, 0.5  # widths of a letter, height of a line
    shown = [token if token.strip() else "·" * max(len(token), 1) for token in tokens]
    widths = [max(len(token) * letter, len(guess) * small) + 0.08 for token, guess in zip(shown, guesses)]
    places = flow(widths, ["↵" in token for token in tokens], WIDTH - 2 * MARGIN)
    lines = places[-1][0] + 1
    most = math.log2(vocab_size)
    title = f"Surprisal: {bits[scored].mean():.2f} bits a token, where a blind guess costs {most:.2f}"
    note = f"each token from {EXPECTED_FROM[kind]}; small: what the model expected instead"
    figure = new_figure(WIDTH, HEADING + lines * high + 0.55, title, note)
    axes = sheet(figure)
    colours = shades("white", "#FBD9B8", ORANGE)
    text = {"fontfamily": "DejaVu Sans Mono", "va": "center"}
    for token, bit, guess, width, (line, left) in zip(shown, bits, guesses, widths, places):
        left, top, known = MARGIN + left, HEADING + line * high, bool(np.isfinite(bit))
        colour = colours(min(bit / most, 1.0)) if known else FAINT
        axes.fill_between((left, left + width - 0.03), top, top + 0.25, color=colour, linewidth=0)
        axes.text(left + 0.025, top + 0.125, token, fontsize=11.5, color=INK if known else GREY, **text)
        axes.text(left + 0.025, top + 0.335, guess, fontsize=7.6, color=BLUE, **text)
    top = figure.get_size_inches()[1] - 0.35
    colour_bar(axes, MARGIN + 0.6, top, colours, ("0", f"{most:.0f} bits and more"), "")
    return figure


def surprisal(model, tokenizer, text: str, path: str | Path) -> Path:
    """A text whose tokens are coloured by how much they surprised a language model, with its own guess below."""
    reading = read(model, tokenizer, text)
    kind = model.config.attention["type"]
    nothing = Surprise(np.empty(0), np.empty(0))
    bits, guesses = surprise_of(model, reading, tokenizer.mask_token_id) if reading.tokens else nothing
    told = [
        show_token(tokenizer, int(guess)) if math.isfinite(bit) and guess != token else ""
        for bit, guess, token in zip(bits, guesses, reading.ids[0])
    ]
    return save(path, draw_surprisal, reading.tokens, bits, told, model.config.vocab_size, kind)
