"""A text is continued: drawn token by token, or always the likeliest.

What a text is continued with depends on the seed and on its place among the inputs, not on what stands in its batch:
each input has random numbers of its own. A text may go on for longer than the model reads at once; the model then
forgets all but the last half of what it has read.
"""

from collections.abc import Iterator

import torch
from transformers import LogitsProcessor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from triune.training.answering.way import Answer, Saved, Way, pad_id, text_batch
from triune.training.data.packing import frame_of
from triune.training.sampling import generator


class Drawn(LogitsProcessor):
    """Chance for a choice of the highest score: with Gumbel noise the highest is a draw from the softmax. Each row has
    numbers of its own, which `generate` with its one global generator has not."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=own, dtype=torch.float64) for own in self.generators]
        )
        noise = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
        return scores.float() + noise.to(scores.device, torch.float32)


class Draft:
    """A text that is being continued."""

    def __init__(self, prompt: list[int], seed: int, place: int):
        self.prompt, self.said = prompt, []
        self.ended = False
        self.read = prompt  # what the model sees of it
        self.random = generator(seed, place)

    def room(self, length: int, most: int) -> int:
        """How many tokens may be added before it has to be cut, or is done."""
        if len(self.read) >= length:
            self.read = self.read[-max(1, length // 2) :]
        return min(length - len(self.read), most - len(self.said))

    def add(self, tokens: list[int], end: int | None) -> None:
        self.ended = end in tokens
        new = tokens[: tokens.index(end)] if self.ended else tokens
        self.said, self.read = self.said + new, self.read + new


def choices(temperature: float, top_k: int, top_p: float) -> list[LogitsProcessor]:
    """Temperature 0 takes the likeliest token, always."""
    if not temperature:
        return []
    return [TemperatureLogitsWarper(float(temperature)), TopKLogitsWarper(top_k), TopPLogitsWarper(float(top_p))]


def go_on(
    saved: Saved,
    texts: list[str],
    first: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Iterator[Answer]:
    """What comes after each text, until the model ends it or there are `max_new_tokens`."""
    tokenizer = saved.tokenizer
    before = [token for token in frame_of(tokenizer)[0] if token is not None]
    tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    drafts = [Draft(before + ids, seed, first + place) for place, ids in enumerate(tokens)]
    if not all(draft.prompt for draft in drafts):
        raise ValueError("an empty text: this tokenizer has no token to begin with, so give a word")
    warpers = choices(temperature, top_k, top_p)
    while unfinished := [draft for draft in drafts if not draft.ended and len(draft.said) < max_new_tokens]:
        extend(saved, unfinished, max_new_tokens, warpers)
    for text, draft in zip(texts, drafts):
        given = tokenizer.decode(draft.prompt, skip_special_tokens=True)
        whole = tokenizer.decode(draft.prompt + draft.said, skip_special_tokens=True)
        yield {"text": text, "continuation": whole[len(given) :], "tokens": len(draft.said), "ended": draft.ended}


def extend(saved: Saved, drafts: list[Draft], most: int, warpers: list[LogitsProcessor]) -> None:
    """All of them by as many tokens as the fullest has room for."""
    end = saved.tokenizer.eos_token_id
    room = min(draft.room(saved.length, most) for draft in drafts)
    batch = text_batch(saved, [torch.tensor(draft.read) for draft in drafts], left=True)
    drawn = [*warpers, Drawn([draft.random for draft in drafts])] if warpers else []
    never = sorted(set(saved.tokenizer.all_special_ids) - {end})
    new = saved.model.generate(
        **batch,
        max_new_tokens=room,
        do_sample=False,
        logits_processor=drawn,
        suppress_tokens=never or None,
        eos_token_id=end,
        pad_token_id=pad_id(saved),
    )[:, batch["input_ids"].shape[1] :]
    for draft, tokens in zip(drafts, new.tolist()):
        draft.add(tokens, end)


def show_continued(answer: Answer, mask: str | None) -> str:
    return harmless(answer["text"] + answer["continuation"])


def harmless(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


# nanoGPT's habit: a continuation is drawn, at temperature 0.8, from the 200 likeliest tokens
DRAWN = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 200, "top_p": 1.0, "seed": 0}
CONTINUE = Way(go_on, show_continued, DRAWN, '"The beginning of a text"', "---")
