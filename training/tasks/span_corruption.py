"""Span corruption, as T5 is trained: spans of a text are hidden behind sentinels, and the model writes what they were.

    source    Thank you <extra_id_0> me to your party <extra_id_1> [SEP]
    target    <extra_id_0> for inviting <extra_id_1> last week <extra_id_2> [SEP]

A row is a part of the text, packed as for other language models; as in T5 the documents in it see each other. It is as
long as it takes for its source to have max_seq_length tokens: all sources have one length, and all targets.

`loss` is that of the whole target, as in training; `word_loss` and `word_accuracy` are those of its words alone,
without sentinels and other special tokens. Those are compared with counting words: where a span ends is chance. To a
model the end of a span is often likelier than any one word, which then counts as wrong: accuracies are low.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.modeling.modeling_triune_seq2seq import TriuneForConditionalGeneration
from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.collators import SpanCorruption, padded
from triune.training.data.baselines import unigram
from triune.training.data.packing import PackedRows, Rows, token_stream
from triune.training.metrics import Records, language_metrics, some
from triune.training.sampling import Key, generator
from triune.training.tasks.language import LanguageModeling
from triune.training.tasks.seq2seq import check_stacks, check_tokenizer, drawn_attention, stacks, to_target
from triune.training.tasks.task import Batch, Example, Task
from triune.training.tokenizers import add_sentinels, sentinel_ids


QUICK = 64  # rows of a quick evaluation
PASSES = 4  # over the held-out rows in a full one
EVAL_SEED = 0  # what is hidden in an evaluation is the same in every run
PREVIEW_TOKENS = 40


class Corrupted(NamedTuple):
    source: torch.Tensor
    target: torch.Tensor


class HeldOutRows(Dataset):
    """Rows of the held-out text: each `PASSES` times, every time with other spans hidden; or once some far apart. What
    is hidden follows from the place alone."""

    def __init__(self, rows: PackedRows, corrupt: SpanCorruption, full: bool):
        self.rows, self.corrupt = rows, corrupt
        self.places = range(0, len(rows), 1 if full else max(1, len(rows) // QUICK))
        self.passes = PASSES if full else 1

    def __len__(self) -> int:
        return len(self.places) * self.passes

    def __getitem__(self, index: int) -> Corrupted:
        number, which = divmod(index, len(self.places))
        place = self.places[which]
        return Corrupted(*self.corrupt(self.rows[Key(0, place)].ids, generator(EVAL_SEED, place, number)))


class SpanCorruptionModeling(LanguageModeling):
    """write what hidden spans of a text were (T5)"""

    name = "span_corruption"
    head = TriuneForConditionalGeneration
    tokenizer_kind = "bpe"
    headline = "word_loss"
    pictures: ClassVar[dict[str, str]] = {
        "cross_attention.png": "Where the model looks in held-out passages for what is hidden in them",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        data = arguments.data
        if data.max_target_length is not None:
            raise ValueError(
                f"max_target_length={data.max_target_length}: targets of span_corruption are as long as follows from "
                "max_seq_length, mlm_probability and mean_noise_span_length"
            )
        self.corrupt, self.eval_corrupt = map(self.corruption, (data.mlm_probability, data.eval_mlm_probability))
        row = self.eval_corrupt.row_length(data.max_seq_length)
        self.held_out = PackedRows(token_stream(self.text.headline, self.processor), row, EVAL_SEED)
        self.target_length = max(
            self.corrupt.target_length(self.row_length()), self.eval_corrupt.target_length(self.held_out.length)
        )

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        tokenizer = super().tokenizer(texts)
        check_tokenizer(tokenizer, self.arguments.model.tokenizer_name)
        add_sentinels(tokenizer)
        return tokenizer

    def corruption(self, probability: float) -> SpanCorruption:
        mean_length = self.arguments.data.mean_noise_span_length
        return SpanCorruption(probability, mean_length, sentinel_ids(self.processor), self.processor.eos_token_id)

    def row_length(self) -> int:
        return self.corruption(self.arguments.data.mlm_probability).row_length(self.arguments.data.max_seq_length)

    def describe(self) -> list[str]:
        hidden, spans = self.corrupt.counts(self.row_length())
        trained = "" if self.arguments.data.streaming else f"{len(self.train.stream):,} tokens to train on; "
        return [
            self.text.describe(),
            f"{len(self.processor):,} tokens in the vocabulary, {len(self.corrupt.sentinels)} of them sentinels; "
            f"{trained}of {self.row_length()} in a row {hidden} are hidden in {spans} spans; held out "
            f"{len(self.held_out.stream):,} in {len(self.held_out)} rows",
        ]

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        return stacks(self.processor, self.arguments.data.max_seq_length, self.target_length)

    def prepare(self, config: TriuneSeq2SeqConfig) -> None:
        check_stacks(config, self.processor, self.arguments.data.max_seq_length, self.target_length)

    # -- batches

    def evaluation(self, full: bool) -> HeldOutRows:
        return HeldOutRows(self.held_out, self.eval_corrupt, full)

    def packed_batch(self, rows: Rows) -> Batch:
        seed = self.arguments.training.seed
        pairs = [self.corrupt(row.ids, generator(seed, *row.key)) for row in rows.each()]
        return self.scored_batch([Corrupted(*pair) for pair in pairs])

    def scored_batch(self, rows: list[Corrupted]) -> Batch:
        labels = torch.stack([row.target for row in rows])
        return {**padded([row.source for row in rows]), **to_target(labels, self.processor)}

    def units(self, batch: Batch) -> int:
        """Read and written."""
        return batch["input_ids"].numel() + self.count(batch)

    # -- measuring

    def measure(self, records: Records) -> dict[str, float]:
        words = ~torch.isin(torch.from_numpy(some(records).label), torch.tensor(self.special)).numpy()
        found = language_metrics(records.take(words))
        whole = language_metrics(records)
        return {"loss": whole["loss"], "word_loss": found["loss"], "word_accuracy": found["accuracy"]}

    @cached_property
    def held_out_words(self) -> torch.Tensor:
        """Those that a full evaluation hides."""
        rows = self.evaluation(full=True)
        targets = torch.cat([rows[index].target for index in range(len(rows))])
        return targets[~torch.isin(targets, torch.tensor(self.special))]

    def baselines(self) -> dict[str, dict[str, float]]:
        """What is reached by who knows how frequent each word is."""
        found = unigram(self.known_tokens(), self.held_out_words, len(self.processor))
        return {
            "word_loss": {"unigram entropy": found.entropy},
            "word_accuracy": {"most frequent token": found.top_share},
        }

    # -- showing

    def passage_rows(self) -> Iterator[tuple[torch.Tensor, Corrupted]]:
        """Held-out passages, and what the model reads and is to write of each; the same every time."""
        most = min(PREVIEW_TOKENS, 3 * self.arguments.data.max_seq_length // 4)  # with room for what frames a text
        for place, text in enumerate(self.passages()):
            ids = self.processor(text, add_special_tokens=False)["input_ids"][:most]
            if len(ids) > 1:
                row = torch.tensor(ids)
                yield row, Corrupted(*self.eval_corrupt(row, generator(EVAL_SEED, place)))

    def preview(self, model) -> list[str]:
        """A passage with what the model writes in the place of what is hidden: [right], or [wrong, was right]."""
        return [self.filled_in(model, row) for _, row in self.passage_rows()]

    @torch.no_grad()
    def filled_in(self, model, row: Corrupted) -> str:
        ids = model.generate(row.source[None].to(model.device), max_new_tokens=self.target_length, do_sample=False)
        said, right = (self.spans(tokens) for tokens in (ids[0].tolist(), row.target.tolist()))
        parts, text = [], []
        for token in row.source.tolist():
            if token not in right:
                text.append(token)
                continue
            guess, truth = (self.text_of(spans.get(token, [])) for spans in (said, right))
            parts += [self.text_of(text), f"[{guess}]" if guess == truth else f"[{guess}, was {truth}]"]
            text = []
        return " ".join(part for part in [*parts, self.text_of(text)] if part)

    def spans(self, target: list[int]) -> dict[int, list[int]]:
        """What stands behind each sentinel of a target; behind one that stands there twice, the first time."""
        found: dict[int, list[int]] = {}
        span: list[int] = []
        for token in target:
            if token in self.corrupt.sentinels:
                span = []
                found.setdefault(token, span)
            else:
                span.append(token)
        return found

    def text_of(self, ids: list[int]) -> str:
        return " ".join(self.processor.decode(ids, skip_special_tokens=True).split())

    def examples(self) -> list[Example]:
        """Passages with gaps, and what belongs into them."""
        decode, found = self.processor.decode, []
        for _, row in self.passage_rows():
            gaps = [self.text_of(span) for span in self.spans(row.target.tolist()).values()]
            found.append(Example(decode(row.source[:-1]), " / ".join(gap for gap in gaps if gap)))
        return found

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        sources = [row.source for _, row in self.passage_rows()]
        return [drawn_attention(model, self.processor, sources, self.target_length, folder / "cross_attention.png")]
