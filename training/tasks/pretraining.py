"""BERT as it was published: hidden tokens are named, and of two texts it is said whether the second follows the first.

A sample is `[CLS] first [SEP] second [SEP]`, the two with segments 0 and 1. `[CLS]`, which is never hidden, has the
verdict as its label, so that a batch has one tensor of labels as everywhere. In the records of an evaluation the two
verdicts are two more classes behind the vocabulary.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from triune.configuration.configuration_triune import TriuneConfig
from triune.modeling.modeling_triune import TriuneForPreTraining
from triune.training.arguments import Arguments
from triune.training.collators import IGNORED, Masking, labelled_batch, pad
from triune.training.data.baselines import unigram
from triune.training.data.pairs import EVAL_SEED, HeldOutPairs, Pair, Texts, TrainingPairs, shared_words
from triune.training.data.text_sources import load_text
from triune.training.metrics import Records, language_metrics
from triune.training.sampling import Key, Plan, generator
from triune.training.tasks.masked_lm import with_a_word_hidden, word_spans
from triune.training.tasks.task import Batch, Example, Task
from triune.training.tokenizers import load_or_train_tokenizer


VERDICTS = ("follows", "strange")
MASKS = 1  # what sets the random numbers of the masks apart from those of the pair
QUICK, FULL = 256, 1000  # breaks of an evaluation at most, two pairs each
COMPARED = 2000  # training pairs that a baseline is tuned on
ENOUGH = 10_000_000  # training tokens whose frequencies are counted
PREVIEWS, SHOWN = 3, 18  # pairs, and tokens of each text


def with_segments(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that says of two texts which tokens are whose, also when it has been saved and loaded again."""
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    return tokenizer


class PreTraining(Task):
    """fill in hidden tokens, and say whether a text follows another (BERT)"""

    name = "pretraining"
    head = TriuneForPreTraining
    unit = "tokens"
    headline = "nsp_accuracy"

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        data, length = arguments.data, arguments.data.max_seq_length
        if data.streaming:
            raise ValueError("streaming: pretraining takes texts from all documents, and reads them before it begins")
        self.text = load_text(data)
        self.fingerprint = self.text.fingerprint
        texts = (document.text for document in self.text.train)
        self.processor = with_segments(load_or_train_tokenizer(arguments.model, texts, length))
        self.check_tokenizer()
        self.special = sorted(set(self.processor.all_special_ids))
        self.train = TrainingPairs(
            Texts(self.text.train, self.processor, length, "the training text"), arguments.training.seed
        )
        self.held_out = Texts(self.text.validation, self.processor, length, "the held-out text")
        self.masking, self.eval_masking = map(self.masking_of, (data.mlm_probability, data.eval_mlm_probability))
        self.per_step = arguments.training.per_device_train_batch_size * arguments.training.gradient_accumulation_steps
        self.vocab_size = len(self.processor)

    def check_tokenizer(self) -> None:
        for token in ("cls_token", "sep_token", "mask_token"):
            if getattr(self.processor, token) is None:
                raise ValueError(
                    f"tokenizer_name={self.arguments.model.tokenizer_name!r} has no {token}, which pretraining needs"
                )

    def masking_of(self, probability: float) -> Masking:
        return Masking(probability, len(self.processor), mask_token=self.processor.mask_token_id, special=self.special)

    def describe(self) -> list[str]:
        train, held_out = self.train.texts, self.held_out
        return [
            self.text.describe(),
            f"{len(self.processor):,} tokens in the vocabulary; {len(train.tokens):,} to train on in "
            f"{train.sentences:,} sentences, {len(self.train):,} pairs an epoch; held out {len(held_out.tokens):,} in "
            f"{held_out.sentences:,} sentences, {len(self.evaluation(True)):,} pairs; of all pairs half follow",
        ]

    def order(self, plan: Plan) -> Callable[[int, int, int], np.ndarray]:
        """The data set's own, which keeps together what belongs together. The loss of the verdicts is the mean over
        the pairs of a step, whose number is known from here on."""
        super().order(plan)  # refuses what cannot be
        self.per_step = plan.per_step
        return lambda count, seed, epoch: np.arange(count)

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        return {
            "vocab_size": len(self.processor),
            "max_position_embeddings": self.arguments.data.max_seq_length,
            **{name: getattr(self.processor, name) for name in names},
            "embedding": {"type_vocab_size": 2},
            "pooling": {"type": "cls", "dense": True},
            "lm_head": "transform",
        }

    def prepare(self, config: TriuneConfig) -> None:
        """The configuration may be a saved model's, or hold fields of the recipe's own."""
        length = self.arguments.data.max_seq_length
        if config.vocab_size < len(self.processor):
            raise ValueError(f"vocab_size={config.vocab_size}, and the tokenizer has {len(self.processor)} tokens")
        if config.position["type"] == "learned" and config.max_position_embeddings < length:
            raise ValueError(
                f"max_seq_length={length} is longer than the {config.max_position_embeddings} positions of the model"
            )
        if config.embedding["type_vocab_size"] == 1:
            raise ValueError("embedding type_vocab_size=1: two texts need two segments, or 0 for none")
        self.vocab_size = config.vocab_size

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        return HeldOutPairs(self.held_out, FULL if full else QUICK)

    def framed(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids as the tokenizer frames two texts, and their segments."""
        cls, sep = (torch.tensor([token]) for token in (self.processor.cls_token_id, self.processor.sep_token_id))
        ids = torch.cat([cls, pair.first, sep, pair.second, sep])
        return ids, (torch.arange(len(ids)) >= len(pair.first) + 2).long()

    def masked(self, pair: Pair, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if pair.held_out:
            return self.eval_masking(ids, generator(EVAL_SEED, MASKS, *pair.key))
        return self.masking(ids, generator(self.arguments.training.seed, MASKS, *pair.key))

    def collate(self, samples: list[Pair]) -> Batch:
        framed = [self.framed(pair) for pair in samples]
        rows = [self.masked(pair, ids) for pair, (ids, _) in zip(samples, framed)]
        batch = labelled_batch(rows, self.processor.pad_token_id)
        batch["labels"][:, 0] = torch.tensor([pair.label for pair in samples])
        return {**batch, "token_type_ids": pad([segments for _, segments in framed], 0)}

    def count(self, batch: Batch) -> int:
        """Hidden tokens."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def units(self, batch: Batch) -> int:
        """Without padding."""
        return int(batch["attention_mask"].sum())

    # -- learning

    def loss(self, model, batch: Batch, count: torch.Tensor | float) -> torch.Tensor:
        """The mean over all hidden tokens of the step, and that over all its pairs."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        smoothing = self.arguments.training.label_smoothing_factor
        how = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": smoothing}
        if smoothing:
            words, verdicts = model(**inputs).logits
            hidden = F.cross_entropy(words[:, 1:].flatten(0, 1).float(), labels[:, 1:].flatten(), **how) / count
        else:
            words = F.pad(labels[:, 1:], (1, 0), value=IGNORED)
            found = model(**inputs, labels=words, num_items_in_batch=count, loss_only=True)
            hidden, verdicts = found.loss, found.seq_relationship_logits
        return hidden + F.cross_entropy(verdicts.float(), labels[:, 0], **how) / self.per_step

    # -- measuring

    def pairs(self, logits: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor):
        """Hidden tokens, then verdicts: two classes behind the vocabulary. Neither can be taken for the other."""
        words, verdicts = logits
        hidden, judged = labels[:, 1:], labels[:, 0]
        counted = hidden != IGNORED
        known = judged != IGNORED
        size = words.shape[-1]
        rows = [
            F.pad(words[:, 1:][counted].float(), (0, len(VERDICTS)), value=-torch.inf),
            F.pad(verdicts[known].float(), (size, 0), value=-torch.inf),
        ]
        return torch.cat(rows), torch.cat([hidden[counted], judged[known] + size])

    def measure(self, records: Records) -> dict[str, float]:
        """`loss` is the sum of the two, as it is in training."""
        judged = records.label >= self.vocab_size
        hidden, verdicts = (language_metrics(records.take(kind)) for kind in (~judged, judged))
        return {
            "loss": hidden["loss"] + verdicts["loss"],
            "mlm_loss": hidden["loss"],
            "mlm_accuracy": hidden["accuracy"],
            "nsp_loss": verdicts["loss"],
            "nsp_accuracy": verdicts["accuracy"],
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        """What is reached without looking at any other token, by a coin, and by who looks for the same words in both
        texts."""
        held_out, train = self.held_out, self.train
        found = unigram(train.texts.tokens[:ENOUGH], held_out.tokens, len(self.processor))
        known = [train[Key(0, index)] for index in range(min(COMPARED, len(train)))]
        asked = HeldOutPairs(held_out, COMPARED)
        words = shared_words(known, [asked[index] for index in range(len(asked))], len(self.processor))
        return {
            "loss": {"unigram entropy + coin": found.entropy + math.log(2)},
            "mlm_loss": {"unigram entropy": found.entropy},
            "mlm_accuracy": {"most frequent token": found.top_share},
            "nsp_loss": {"coin": math.log(2)},
            "nsp_accuracy": {"coin": 0.5, "shared words": words},
        }

    # -- showing

    @torch.no_grad()
    def preview(self, model) -> list[str]:
        """The end of a text | the beginning of another with a word filled in: [right 87%], or [wrong 40%, was right];
        and the verdict."""
        asked = HeldOutPairs(self.held_out, PREVIEWS)
        return [self.answered(model, asked[2 * place + place % 2]) for place in range(len(asked) // 2)]

    def examples(self) -> list[Example]:
        """Pairs with a TAB between the texts, the longest word of the second one hidden; and what is true of them."""
        asked = HeldOutPairs(self.held_out, QUICK)
        found = (self.example(asked[2 * place + place % 2]) for place in range(len(asked) // 2))
        return list(islice((one for one in found if one is not None), PREVIEWS))

    def example(self, pair: Pair) -> Example | None:
        """None where a text is hardly words."""
        length = self.arguments.data.max_seq_length
        part = min(SHOWN, length // 3)  # of two texts, with room for their frame
        words = word_spans(self.processor, pair.first[-part:], self.special)
        hidden = with_a_word_hidden(self.processor, pair.second[:part], self.special)
        if len(words) < max(2, part // 4) or hidden is None:
            return None
        first = self.said(pair.first[-part:][words[1][0] :])  # the first may be the end of a word
        if len(self.processor(first, hidden.input).input_ids) > length:
            return None
        return Example(f"{first}\t{' '.join(hidden.input.split())}", f"{hidden.label}; {VERDICTS[pair.label]}")

    def answered(self, model, pair: Pair) -> str:
        device = next(model.parameters()).device
        ids, segments = self.framed(pair)
        start = len(pair.first) + 2  # of the second text
        spans = word_spans(self.processor, pair.second[:SHOWN], self.special)
        hidden = [slice(start + low, start + high) for low, high in spans[len(spans) // 2 :][:1]]
        read = ids.clone()
        for span in hidden:
            read[span] = self.processor.mask_token_id
        words, verdicts = model(input_ids=read[None].to(device), token_type_ids=segments[None].to(device)).logits
        chance, said = (float(one) for one in verdicts[0].float().softmax(-1).cpu().max(-1))
        verdict = f"{VERDICTS[int(said)]} {chance:.0%}"
        verdict += f", was {VERDICTS[pair.label]}" if said != pair.label else ""
        shown = self.filled(words[0].float().softmax(-1).cpu(), ids, start, hidden)
        return f"{self.said(pair.first[-SHOWN:])} | {shown} -> {verdict}"

    def filled(self, chances: torch.Tensor, ids: torch.Tensor, start: int, hidden: list[slice]) -> str:
        """The beginning of the second text, with what the model says in the place of what is hidden."""
        best, guess = chances.max(-1)
        end = min(start + SHOWN, len(ids) - 1)
        parts, done = [], start
        for span in hidden:
            said, right = self.said(guess[span]), self.said(ids[span])
            chance = float(best[span].prod())
            parts += [self.said(ids[done : span.start])]
            parts += [f"[{said} {chance:.0%}]" if said == right else f"[{said} {chance:.0%}, was {right}]"]
            done = span.stop
        return " ".join(part for part in [*parts, self.said(ids[done:end])] if part)

    def said(self, ids: torch.Tensor) -> str:
        return " ".join(self.processor.decode(ids, skip_special_tokens=True).split())
