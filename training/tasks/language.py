"""What masked and causal language models have in common: text, a tokenizer, packed rows, and rows that are scored."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.data.baselines import unigram
from triune.training.data.packing import PackedRows, Row, Rows, ScoredRows, StreamedRows, together_rows, token_stream
from triune.training.data.text import Document
from triune.training.data.text_sources import load_text, stream_text
from triune.training.metrics import Records, language_metrics
from triune.training.tasks.task import Batch, Task
from triune.training.tokenizers import load_or_train_tokenizer


FOR_TOKENIZER = 2000  # documents of a stream that a tokenizer is trained on, and token frequencies are counted in
ENOUGH = 10_000_000  # training tokens whose frequencies are counted
PREVIEWS = 3
ROLLED_OUT = 100  # characters whose attention is drawn
# A sentence of some length that begins a paragraph: what is shown to people should begin somewhere.
SENTENCE = re.compile(r"(?:\A|\n\s*\n)\s*([A-Z][^.!?*=]{60,300}[.!?])(?=\s)")


class LanguageModeling(Task):
    unit = "tokens"
    lean: ClassVar[dict[str, bool]] = {"loss_only": True}
    words = False  # whether the training rows tell words apart
    tokenizer_kind: ClassVar[str]  # of the tokenizer that is trained, unless another is named
    pictures: ClassVar[dict[str, str]] = {
        "surprisal.png": "How much each token of a held-out passage surprises the model",
        **Task.pictures,
    }
    closes: ClassVar[bool] = True  # whether it puts its last token behind a text by itself

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        data, seed, length = arguments.data, arguments.training.seed, arguments.data.max_seq_length
        self.text = stream_text(data) if data.streaming else load_text(data)
        self.fingerprint = self.text.fingerprint
        texts = (document.text for document in self.known_documents())
        self.processor = self.tokenizer(texts)
        row = self.row_length()
        if data.streaming:
            self.train = StreamedRows(self.text, self.processor, row, seed, self.words)
        else:
            self.train = PackedRows(token_stream(self.text.train, self.processor, self.words), row, seed)
        self.scored = ScoredRows(self.text.headline, self.processor, length, self.stride(length))
        self.special = sorted(set(self.processor.all_special_ids))

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        length = self.arguments.data.max_seq_length
        return load_or_train_tokenizer(self.arguments.model, texts, length, self.tokenizer_kind, self.closes)

    def row_length(self) -> int:
        """Tokens of a training row."""
        return self.arguments.data.max_seq_length

    def known_documents(self) -> Sequence[Document]:
        """Those of the training text that may be looked at before the first step."""
        return self.text.train if not self.arguments.data.streaming else self.first_documents

    @cached_property
    def first_documents(self) -> list[Document]:
        return list(islice(self.text.documents(), FOR_TOKENIZER))

    def stride(self, length: int) -> int:
        """How far one scored row stands from the next."""
        stride = self.arguments.data.eval_stride
        return length if stride is None else stride

    def describe(self) -> list[str]:
        held_out = self.held_out_tokens
        trained = "" if self.arguments.data.streaming else f"{len(self.train.stream):,} tokens to train on; "
        kind = type(self.processor.backend_tokenizer.model).__name__
        return [
            self.text.describe(),
            f"{len(self.processor):,} tokens in the vocabulary ({kind}); {trained}"
            f"held out {len(held_out):,}, {self.scored.characters / len(held_out):.2f} characters each, "
            "every one scored once",
        ]

    @cached_property
    def held_out_tokens(self) -> torch.Tensor:
        tokens = self.scored.tokens()
        return tokens[~torch.isin(tokens, torch.tensor(self.special))]

    def config_fields(self) -> dict:
        tokenizer, length = self.processor, self.arguments.data.max_seq_length
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        return {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": length,
            **{name: getattr(tokenizer, name) for name in names},
        }

    def prepare(self, config: PreTrainedConfig) -> None:
        """Packed rows need a kernel that keeps their documents apart: flash attention does so for one row only."""
        if str(config._attn_implementation).startswith("flash"):
            raise ValueError(
                f"attn_implementation={config._attn_implementation!r} does not keep the documents of packed rows "
                "apart: use sdpa or flex_attention"
            )
        if config.vocab_size < len(self.processor):
            raise ValueError(
                f"vocabulary mismatch: vocab_size={config.vocab_size}, and the tokenizer has "
                f"{len(self.processor)} tokens"
            )
        length = self.arguments.data.max_seq_length
        if config.position["type"] == "learned" and config.max_position_embeddings < length:
            raise ValueError(
                f"max_seq_length={length} is longer than the {config.max_position_embeddings} positions of the model"
            )

    def scored_batch(self, rows: list[Row]) -> Batch:
        raise NotImplementedError

    def collate(self, samples: Rows | list) -> Batch:
        if isinstance(samples, Rows):
            return self.packed_batch(samples)
        return self.packed_batch(together_rows(samples)) if isinstance(samples[0], Row) else self.scored_batch(samples)

    def packed_batch(self, rows: Rows) -> Batch:
        """Rows without padding; the positions keep their documents apart."""
        return {"input_ids": rows.ids, "position_ids": rows.positions}

    # -- measuring

    def known_tokens(self) -> torch.Tensor:
        """Of the training text, without special ones: those whose frequencies are counted."""
        if self.arguments.data.streaming:
            known = token_stream(self.known_documents(), self.processor).ids
        else:
            known = self.train.stream.ids[:ENOUGH]
        return known[~torch.isin(known, torch.tensor(self.special, dtype=known.dtype))]

    def measure(self, records: Records) -> dict[str, float]:
        return language_metrics(records)

    def baselines(self) -> dict[str, dict[str, float]]:
        """What is reached without looking at any other token."""
        found = unigram(self.known_tokens(), self.held_out_tokens, len(self.processor), self.scored.characters)
        return {
            "loss": {"unigram entropy": found.entropy},
            "bits_per_character": {"unigram entropy": found.bits_per_character},
            "accuracy": {"most frequent token": found.top_share},
        }

    # -- showing

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        """What surprises the model in a held-out passage, where its attention goes, what it makes of positions."""
        passage = self.passages()[0]
        drawn = [
            figures.surprisal(model, self.processor, passage, folder / "surprisal.png"),
            figures.attention_rollout_text(
                model, self.processor, passage[:ROLLED_OUT], folder / "attention_rollout.png"
            ),
            figures.position_similarity(model, folder / "positions.png"),
        ]
        return [path for path in drawn if path is not None]

    def preview_rows(self, dataset: Dataset) -> list[torch.Tensor]:
        """Some rows of what is held out, far apart, the same every time."""
        count = min(PREVIEWS, len(dataset))
        rows = [dataset[len(dataset) * (2 * place + 1) // (2 * count)].ids for place in range(count)]
        return [self.from_a_word(ids) for ids in rows]

    def passages(self) -> list[str]:
        """Sentences from held-out documents far apart, the same every time; where there are none, parts of rows."""
        sentences = [
            " ".join(one.split()) for document in self.text.headline for one in SENTENCE.findall(document.text)
        ]
        if not sentences:
            return [self.processor.decode(ids, skip_special_tokens=True) for ids in self.preview_rows(self.scored)]
        count = min(PREVIEWS, len(sentences))
        return [sentences[len(sentences) * (2 * place + 1) // (2 * count)] for place in range(count)]

    def from_a_word(self, ids: torch.Tensor) -> torch.Tensor:
        """Without the end of a word that WordPiece has cut, which could not be read."""
        tokens = self.processor.convert_ids_to_tokens(ids.tolist())
        start = next((place for place, token in enumerate(tokens) if not token.startswith("##")), 0)
        return ids[start:]
