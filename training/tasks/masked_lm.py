"""Masked language modelling, as BERT is trained: some tokens are hidden, and the model names them."""

import math
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from triune.modeling.modeling_triune import TriuneForMaskedLM
from triune.training.arguments import Arguments
from triune.training.collators import IGNORED, Masking, labelled_batch
from triune.training.data.packing import Rows, ScoredRows
from triune.training.sampling import generator, uniforms
from triune.training.tasks.language import LanguageModeling
from triune.training.tasks.task import Batch, Example


PREVIEW_TOKENS = 40
PREVIEW_EVERY = 7  # of so many words in a preview one is hidden
QUICK = 512  # rows of a quick evaluation
EVAL_SEED = 0  # the masks of an evaluation are the same in every run


class HiddenTokens(NamedTuple):
    ids: torch.Tensor  # as the model reads them
    labels: torch.Tensor


class MaskedPasses(Dataset):
    """Every token is hidden and scored exactly once: a row is read several times, each time with another share of its
    tokens hidden. In the last pass some are hidden that were scored before, so that the share is always the same; a
    first pass over some of the rows is a quick sample."""

    def __init__(self, rows: ScoredRows, masking: Masking, full: bool):
        self.rows, self.masking = rows, masking
        self.passes = math.ceil(1 / masking.probability) if full else 1
        self.places = range(0, len(rows), 1 if full else max(1, len(rows) // QUICK))

    def __len__(self) -> int:
        return len(self.places) * self.passes

    def __getitem__(self, index: int) -> HiddenTokens:
        number, which = divmod(index, len(self.places))
        place = self.places[which]
        ids = self.rows[place].ids
        eligible = self.masking.ordinary[ids].nonzero().flatten()
        order = eligible[torch.randperm(len(eligible), generator=generator(EVAL_SEED, place))]
        share = math.ceil(self.masking.probability * len(order))
        scored = order[number * share : (number + 1) * share]
        hidden = torch.cat([scored, order[: share - len(scored)]]) if len(scored) else scored
        chosen = torch.zeros(len(ids), dtype=torch.bool).index_fill_(0, hidden, True)
        labels = torch.full_like(ids, IGNORED)
        labels[scored] = ids[scored]
        return HiddenTokens(self.masking.corrupt(ids, chosen, generator(EVAL_SEED, place, number)), labels)


class MaskedLanguageModeling(LanguageModeling):
    """fill in hidden tokens (BERT)"""

    name = "masked_lm"
    head = TriuneForMaskedLM
    tokenizer_kind = "wordpiece"

    def __init__(self, arguments: Arguments):
        self.words = arguments.data.whole_word_mask
        super().__init__(arguments)
        if self.processor.mask_token_id is None:
            raise ValueError(
                f"tokenizer_name={arguments.model.tokenizer_name!r} has no mask token, which masked_lm needs"
            )
        data = arguments.data
        self.masking = self.masking_of(data.mlm_probability)
        self.eval_masking = self.masking_of(data.eval_mlm_probability)

    def masking_of(self, probability: float) -> Masking:
        return Masking(probability, len(self.processor), mask_token=self.processor.mask_token_id, special=self.special)

    def evaluation(self, full: bool) -> Dataset:
        return MaskedPasses(self.scored, self.eval_masking, full)

    def packed_batch(self, rows: Rows) -> Batch:
        numbers = uniforms(self.arguments.training.seed, rows.keys, 3 * rows.ids.shape[1])
        read, labels = self.masking.rows(rows.ids, numbers, rows.words)
        return {**super().packed_batch(rows), "input_ids": read, "labels": labels}

    def scored_batch(self, rows: list[HiddenTokens]) -> Batch:
        return labelled_batch(rows, self.processor.pad_token_id)

    @torch.no_grad()
    def preview(self, model) -> list[str]:
        """Some words hidden, as the model fills them in: [right 87%], or [wrong 40%, was right]."""
        return [self.filled_in(model, ids[:PREVIEW_TOKENS]) for ids in self.preview_rows(self.scored)]

    def examples(self) -> list[Example]:
        """Passages with a word hidden: the longest that is one token, not among the first. There is room for the
        frame that the tokenizer puts around a text."""
        length = self.arguments.data.max_seq_length
        part = min(PREVIEW_TOKENS, 3 * length // 4)
        rows = (self.processor(one, add_special_tokens=False).input_ids[:part] for one in self.passages())
        found = (with_a_word_hidden(self.processor, torch.tensor(ids), self.special) for ids in rows)
        return [one for one in found if one is not None and len(self.processor(one.input).input_ids) <= length]

    def filled_in(self, model, ids: torch.Tensor) -> str:
        device = next(model.parameters()).device
        words = word_spans(self.processor, ids, self.special)
        asked = words[PREVIEW_EVERY // 2 :: PREVIEW_EVERY]
        read = ids.clone()
        for start, end in asked:
            read[start:end] = self.processor.mask_token_id
        chances = model(input_ids=read[None].to(device)).logits[0].float().softmax(-1).cpu()
        best, guess = chances.max(-1)
        parts, done = [], 0
        for start, end in asked:
            parts.append(self.processor.decode(ids[done:start], skip_special_tokens=True))
            said, right = (self.processor.decode(tokens[start:end]).strip() for tokens in (guess, ids))
            chance = float(best[start:end].prod())
            parts.append(f"[{said} {chance:.0%}]" if said == right else f"[{said} {chance:.0%}, was {right}]")
            done = end
        return " ".join(
            part.strip()
            for part in [*parts, self.processor.decode(ids[done:], skip_special_tokens=True)]
            if part.strip()
        )


def word_spans(tokenizer, ids: torch.Tensor, special: list[int]) -> list[tuple[int, int]]:
    """The tokens of each word, by what they look like: a space or BPE's Ġ begins one; where there is neither, every
    token does but WordPiece's ##."""
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    pieces = not any(token[:1] in ("Ġ", " ") for token in tokens)
    spans: list[list[int]] = []
    for place, token in enumerate(tokens):
        begins = not token.startswith("##") if pieces else not token[:1].isalpha()
        if begins or not spans:
            spans.append([place, place])
        spans[-1][1] = place + 1
    letters = ["".join(tokens[start:end]).strip("#Ġ ") for start, end in spans]
    return [
        (start, end)
        for (start, end), word in zip(spans, letters)
        if word.isalpha() and end - start <= 3 and not set(ids[start:end].tolist()) & set(special)
    ]


def with_a_word_hidden(tokenizer, ids: torch.Tensor, special: list[int]) -> Example | None:
    """The longest word that is one token, not among the first; None where there is none."""
    words = [span for span in word_spans(tokenizer, ids, special) if span[1] - span[0] == 1]
    later = [span for span in words if span[0] >= len(ids) // 4] or words
    if not later:
        return None
    start, end = max(later, key=lambda span: len(tokenizer.decode(ids[slice(*span)]).strip()))
    before, word, after = (
        tokenizer.decode(part, skip_special_tokens=True).strip() for part in (ids[:start], ids[start:end], ids[end:])
    )
    return Example(f"{before} {tokenizer.mask_token} {after}".strip(), word)
