"""Causal language modelling, as GPT is trained: from what was read, the next token."""

import torch
from torch.utils.data import Dataset

from triune.modeling.modeling_triune import TriuneForCausalLM
from triune.training.collators import IGNORED, labelled_batch
from triune.training.data.packing import Rows, ScoredRow
from triune.training.memorisation import longest_copied_run
from triune.training.metrics import Records, language_metrics
from triune.training.sampling import generator
from triune.training.tasks.language import LanguageModeling
from triune.training.tasks.task import Batch, Example


PROMPT = 24  # tokens that a preview begins with
CONTINUATION = 48
BEGINNING = 6  # words of a passage
TOP_K, TEMPERATURE = 20, 0.8
QUICK = 64  # rows of a quick evaluation


class CausalLanguageModeling(LanguageModeling):
    """continue a text (GPT)"""

    name = "causal_lm"
    head = TriuneForCausalLM
    headline = "bits_per_character"
    tokenizer_kind = "bpe"
    closes = False  # a prompt goes on

    def stride(self, length: int) -> int:
        """By default half a row: a token that is scored has at least that much before it."""
        stride = self.arguments.data.eval_stride
        if stride == length:
            raise ValueError(
                f"eval_stride={stride} must be below max_seq_length={length}: no row predicts its first token"
            )
        return max(1, length // 2) if stride is None else stride

    def config_fields(self) -> dict:
        return {**super().config_fields(), "attention": "causal"}

    def evaluation(self, full: bool) -> Dataset:
        every = max(1, len(self.scored) // QUICK)
        return self.scored if full else torch.utils.data.Subset(self.scored, range(0, len(self.scored), every))

    def packed_batch(self, rows: Rows) -> Batch:
        batch = super().packed_batch(rows)
        # the first token of a document does not follow from the document before it
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["position_ids"] == 0, IGNORED)}

    def scored_batch(self, rows: list[ScoredRow]) -> Batch:
        labels = [row.ids.masked_fill(~row.scored, IGNORED) for row in rows]
        for label in labels:
            label[0] = IGNORED
        return labelled_batch(list(zip([row.ids for row in rows], labels)), self.processor.pad_token_id)

    def pairs(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().pairs(logits[:, :-1], labels[:, 1:])

    def measure(self, records: Records) -> dict[str, float]:
        """Bits per character: of the characters that the scored tokens make up, all of them in a full evaluation."""
        characters = self.scored.characters * len(records.label) / self.scored_labels
        return language_metrics(records, characters)

    @property
    def scored_labels(self) -> int:
        """Every token but the first of each document, which nothing predicts."""
        return sum(int(row.scored[1:].sum()) for row in self.scored.rows)

    @torch.no_grad()
    def preview(self, model) -> list[str]:
        """A beginning from the held-out text | how the model goes on (and how much of that it has read)."""
        device = next(model.parameters()).device
        length = min(PROMPT, max(1, self.arguments.data.max_seq_length // 2))
        prompts = [ids[:length] for ids in self.preview_rows(self.scored)]
        return [self.continued(model, prompt.to(device), place) for place, prompt in enumerate(prompts)]

    def examples(self) -> list[Example]:
        return [Example(" ".join(passage.split()[:BEGINNING])) for passage in self.passages()]

    def continued(self, model, prompt: torch.Tensor, place: int) -> str:
        random = generator(0, place)
        ids = prompt[None]
        room = model.config.max_position_embeddings - ids.shape[1]
        for _ in range(min(CONTINUATION, room)):
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu() / TEMPERATURE
            logits[self.special] = -torch.inf
            best = logits.topk(min(TOP_K, len(logits)))
            chosen = best.indices[torch.multinomial(best.values.softmax(-1), 1, generator=random)]
            ids = torch.cat([ids, chosen[None].to(ids.device)], dim=1)
        decode = self.processor.decode
        said = decode(ids[0], skip_special_tokens=True)
        given = decode(prompt, skip_special_tokens=True)
        copied = self.copied(ids[0, len(prompt) :].tolist())
        return f"{given.strip()} | {said[len(given) :].strip()}{copied}".replace("\n", " ⏎ ")

    def copied(self, written: list[int]) -> str:
        """How much of it was learnt by heart; of a stream nobody has all of the text."""
        if self.arguments.data.streaming:
            return ""
        run = longest_copied_run(written, self.train.stream.ids)
        return f" ({run} of {len(written)} tokens in a row stand in the training text)"
