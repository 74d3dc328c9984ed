"""One text made from another, as encoder-decoders are trained: a translation, a summary, the name of a function.

Source and target are encoded once, and cut after max_seq_length and max_target_length tokens; one tokenizer, trained
on both, reads and writes. A batch is padded to its longest pair; labels are ignored where a target is padded.

Loss and accuracy are those of the target's tokens, its end among them, each from the right ones before it. In a full
evaluation the model also writes to `ASKED` held-out sources, greedily or with `num_beams`, and what it writes is
compared with the whole target: exact match, and BLEU and chrF where the targets are such that they tell something.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.modeling.modeling_triune_seq2seq import TriuneForConditionalGeneration, shift_right
from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.collators import IGNORED, pad, padded
from triune.training.data.baselines import unigram
from triune.training.data.lengths import Ragged, length_grouped
from triune.training.data.text_pairs import GUESSES, TextPair, load_paired_text
from triune.training.figures.cross_attention import cross_attention, cross_attention_maps
from triune.training.figures.observing import show_token
from triune.training.metrics import Records, Written, language_metrics, text_metrics
from triune.training.sampling import Key, Plan, permutation
from triune.training.tasks.task import Batch, Example, Task
from triune.training.tokenizers import load_or_train_tokenizer


QUICK = 500  # pairs of an evaluation during training
ASKED = 500  # sources that a full evaluation has the model write to
PREVIEWS, PREVIEW_WIDTH = 4, 100
DRAWN, DRAWN_TOKENS = 4, 40  # sources whose attention is drawn, and the most tokens of each


# ---------------------------------------------------------------------------------------------------------------------
# An encoder-decoder and its tokenizer


def start_of(tokenizer) -> int:
    """The token in front of every target: the one that begins a text, or as T5 has it padding."""
    return tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def check_tokenizer(tokenizer, name: str | None) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer_name={name!r} has no eos_token, which says that a target has ended")


def stacks(tokenizer, source_length: int, target_length: int) -> dict[str, Any]:
    """The fields of a configuration that follow from a tokenizer and two lengths."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    common = {name: getattr(tokenizer, name) for name in names}
    sizes = {"encoder": source_length, "decoder": target_length}
    return {
        **{
            stack: {"vocab_size": len(tokenizer), "max_position_embeddings": length, **common}
            for stack, length in sizes.items()
        },
        **common,
        "decoder_start_token_id": start_of(tokenizer),
    }


def check_stacks(config: TriuneSeq2SeqConfig, tokenizer, source_length: int, target_length: int) -> None:
    """The configuration may be a saved model's, or hold fields of the recipe's own."""
    for name, flag, length in (
        ("encoder", "max_seq_length", source_length),
        ("decoder", "max_target_length", target_length),
    ):
        stack = getattr(config, name)
        if stack.vocab_size < len(tokenizer):
            raise ValueError(
                f"vocabulary mismatch: {name} vocab_size={stack.vocab_size}, and the tokenizer has {len(tokenizer)} "
                "tokens"
            )
        if stack.position["type"] == "learned" and stack.max_position_embeddings < length:
            raise ValueError(
                f"{flag}={length} is longer than the {stack.max_position_embeddings} positions of the {name}"
            )


def to_target(labels: torch.Tensor, tokenizer) -> dict[str, torch.Tensor]:
    """What the decoder reads, and is to write."""
    return {"decoder_input_ids": shift_right(labels, start_of(tokenizer), tokenizer.pad_token_id), "labels": labels}


# ---------------------------------------------------------------------------------------------------------------------
# Samples


class EncodedPair(NamedTuple):
    source: torch.Tensor
    target: torch.Tensor
    place: int = -1  # among the held-out pairs, of one that the model writes to


class EncodedPairs:
    def __init__(self, pairs: Sequence[TextPair], tokenizer, source_length: int, target_length: int):
        sources, targets = zip(*pairs)
        read = tokenizer(list(sources), truncation=True, max_length=source_length, verbose=False)["input_ids"]
        whole = tokenizer(list(targets), add_special_tokens=False, verbose=False)["input_ids"]
        self.sources = Ragged(read)
        self.targets = Ragged([[*ids[: target_length - 1], tokenizer.eos_token_id] for ids in whole])
        self.lengths = self.sources.lengths + self.targets.lengths
        self.cut = sum(len(ids) >= target_length for ids in whole) / len(whole)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> EncodedPair:
        return EncodedPair(self.sources[place], self.targets[place])


class TrainingPairs(Dataset):
    def __init__(self, encoded: EncodedPairs):
        self.encoded, self.lengths = encoded, encoded.lengths

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: Key) -> EncodedPair:
        return self.encoded[key.index]


class HeldOutPairs(Dataset):
    """Some of the pairs, short ones first: a batch needs little padding."""

    def __init__(self, encoded: EncodedPairs, count: int, asked: bool = False):
        places = permutation(len(encoded), 0, 0)[:count]
        self.encoded, self.asked = encoded, asked
        self.places = places[np.argsort(encoded.lengths[places], kind="stable")].tolist()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> EncodedPair:
        place = self.places[index]
        return self.encoded[place]._replace(place=place if self.asked else -1)


# ---------------------------------------------------------------------------------------------------------------------


class Seq2Seq(Task):
    """make one text from another (encoder and decoder)"""

    name = "seq2seq"
    head = TriuneForConditionalGeneration
    unit = "tokens"
    lean: ClassVar[dict[str, bool]] = {"loss_only": True}
    headline = "exact_match"
    pictures: ClassVar[dict[str, str]] = {
        "cross_attention.png": "Where the model looks in held-out sources for each token that it writes",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        data = arguments.data
        self.length = data.max_seq_length
        self.target_length = data.max_target_length or data.max_seq_length
        self.data = load_paired_text(data)
        self.fingerprint, self.headline = self.data.fingerprint, self.data.metrics[-1]
        texts = (text for pair in self.data.train for text in pair)
        self.processor = load_or_train_tokenizer(arguments.model, texts, self.length, self.data.tokenizer)
        check_tokenizer(self.processor, arguments.model.tokenizer_name)
        self.train = TrainingPairs(self.encoded(self.data.train))
        self.held_out = self.encoded(self.data.validation)

    def encoded(self, pairs: Sequence[TextPair]) -> EncodedPairs:
        return EncodedPairs(pairs, self.processor, self.length, self.target_length)

    def describe(self) -> list[str]:
        encoded = self.train.encoded
        read, written = encoded.sources.lengths, encoded.targets.lengths
        return [
            self.data.describe(),
            f"{len(self.processor):,} tokens in the vocabulary; to train on {read.sum():,} to read, {read.mean():.0f} "
            f"in a source, and {written.sum():,} to write, {written.mean():.0f} in a target; "
            f"{(read == self.length).mean():.1%} of the sources fill max_seq_length={self.length} or are cut there, "
            f"{encoded.cut:.1%} of the targets are cut at max_target_length={self.target_length}",
        ]

    def order(self, plan: Plan) -> Callable[[int, int, int], np.ndarray]:
        if not self.arguments.data.group_by_length:
            return permutation
        return lambda count, seed, epoch: length_grouped(self.train.lengths, plan.per_step, seed, epoch)

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        return stacks(self.processor, self.length, self.target_length)

    def prepare(self, config: TriuneSeq2SeqConfig) -> None:
        check_stacks(config, self.processor, self.length, self.target_length)

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        return HeldOutPairs(self.held_out, len(self.held_out) if full else QUICK)

    def asked(self) -> Dataset:
        return HeldOutPairs(self.held_out, ASKED, asked=True)

    def collate(self, samples: list[EncodedPair]) -> Batch:
        labels = pad([sample.target for sample in samples], IGNORED)
        read = padded([sample.source for sample in samples], self.processor.pad_token_id)
        places = {"places": torch.tensor([sample.place for sample in samples])} if samples[0].place >= 0 else {}
        return {**read, **to_target(labels, self.processor), **places}

    def units(self, batch: Batch) -> int:
        """Without padding, read and written."""
        return int(batch["attention_mask"].sum()) + self.count(batch)

    # -- measuring

    def written(self, model, batch: Batch) -> list[Written]:
        # all processes take as many steps: a sharded model is gathered in each
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        said = self.write(model, batch, synced_gpus=together)
        counts = (batch["labels"] != IGNORED).any(1).tolist()
        right = [self.data.validation[place].target for place in batch["places"].tolist()]
        return [Written(text, in_a_line(answer)) for text, answer, counted in zip(said, right, counts) if counted]

    @torch.no_grad()
    def write(self, model, batch: Batch, **options) -> list[str]:
        """What the model makes of each source of a batch, in one line."""
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        beams = self.arguments.data.num_beams
        ids = model.generate(**inputs, max_new_tokens=self.target_length, num_beams=beams, do_sample=False, **options)
        return list(map(in_a_line, self.processor.batch_decode(ids, skip_special_tokens=True)))

    def measure(self, records: Records) -> dict[str, float]:
        found = language_metrics(records)
        if records.written:
            measured = match(*zip(*records.written))
            found |= {name: measured[name] for name in self.data.metrics}
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """What is reached without looking at any other token; and by answers that take no model."""
        known, asked = (side.targets.tokens for side in (self.train.encoded, self.held_out))
        found = unigram(known, asked, len(self.processor))
        pairs = [self.data.validation[place] for place in self.asked().places]
        right = [in_a_line(pair.target) for pair in pairs]
        reached = {}
        for name in self.data.guesses:
            guess = GUESSES[name](self.data.train)
            reached[name] = match([in_a_line(guess(pair)) for pair in pairs], right)
        return {
            "loss": {"unigram entropy": found.entropy},
            "accuracy": {"most frequent token": found.top_share},
            **{metric: {name: reached[name][metric] for name in reached} for metric in self.data.metrics},
        }

    # -- showing

    def some_held_out(self, count: int) -> list[int]:
        """The same every time."""
        return permutation(len(self.held_out), 0, 0)[:count].tolist()

    def preview(self, model) -> list[str]:
        """A source -> what the model makes of it [ok], or [was the target]."""
        places = self.some_held_out(PREVIEWS)
        said = self.write(model, self.collate([self.held_out[place] for place in places]))
        lines = []
        for place, text in zip(places, said):
            source, target = map(in_a_line, self.data.validation[place])
            verdict = "ok" if text == target else f"was {figures.shorten(target, PREVIEW_WIDTH)}"
            shown = (figures.shorten(one, PREVIEW_WIDTH) for one in (source, text))
            lines.append(f"{' -> '.join(shown)} [{verdict}]")
        return lines

    def examples(self) -> list[Example]:
        return [Example(*self.data.validation[place]) for place in self.whole_sources(self.length - 1)[:PREVIEWS]]

    def whole_sources(self, most: int) -> list[int]:
        """Held-out pairs whose source is not cut and has so many tokens at most, the same every time."""
        lengths = self.held_out.sources.lengths
        return [place for place in self.some_held_out(len(self.held_out)) if lengths[place] <= most]

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        chosen = self.whole_sources(min(DRAWN_TOKENS, self.length - 1))[:DRAWN]
        sources = [self.held_out[place].source for place in chosen]
        return [drawn_attention(model, self.processor, sources, self.target_length, folder / "cross_attention.png")]


# ---------------------------------------------------------------------------------------------------------------------
# Texts that were written


def in_a_line(text: str) -> str:
    """As texts are compared: how words are set apart does not count."""
    return " ".join(text.split())


def match(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    exact = sum(one == other for one, other in zip(said, right)) / len(right)
    return {"exact_match": exact, **text_metrics(list(said), list(right))}


def drawn_attention(model, tokenizer, sources: Sequence[torch.Tensor], most: int, path: Path) -> Path:
    """Where the model looks in each of these sources for what it writes to it."""
    maps, read, written = [], [], []
    for source in sources:
        with torch.no_grad():
            ids = model.generate(source[None].to(model.device), max_new_tokens=most, do_sample=False)[0].cpu()
        maps.append(cross_attention(model, source, ids[:-1]))  # each row writes the next token
        read.append([show_token(tokenizer, token) for token in source.tolist()])
        written.append([show_token(tokenizer, token) for token in ids[1:].tolist()])
    return cross_attention_maps(maps, read, written, path)
