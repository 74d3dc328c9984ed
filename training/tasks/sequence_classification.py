"""Which class a text belongs to, as BERT is fine-tuned: any texts with a class for each.

Texts are encoded once, and cut after max_seq_length tokens. A batch is padded to its longest text; in evaluation texts
of like length stand in a batch, in training with `group_by_length`, for which `train.lengths` is there.
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from triune.configuration.configuration_triune import TriuneConfig
from triune.modeling.modeling_triune import TriuneForSequenceClassification
from triune.training import figures
from triune.training.arguments import Arguments
from triune.training.collators import padded
from triune.training.data.baselines import majority_class
from triune.training.data.labelled import LabelledText, load_labelled_text
from triune.training.data.lengths import Ragged, length_grouped
from triune.training.metrics import Records, classification_metrics, confusion
from triune.training.sampling import Key, Plan, permutation
from triune.training.tasks.task import Batch, Example, Task
from triune.training.tokenizers import load_or_train_tokenizer


QUICK = 1000  # texts of an evaluation during training
FEW = 50_000  # texts of which words are counted for a baseline, in seconds
PREVIEWS, PREVIEW_WIDTH = 4, 60
EXAMPLE = 300  # characters of a text that is shown to people


class LabelledTokens(NamedTuple):
    ids: torch.Tensor
    label: int


class EncodedTexts:
    """Tokens of each text, and its class."""

    def __init__(self, texts: Sequence[str], labels: torch.Tensor, tokenizer, length: int):
        self.tokens = Ragged(tokenizer(list(texts), truncation=True, max_length=length, verbose=False)["input_ids"])
        self.lengths, self.labels = self.tokens.lengths, labels
        if not self.lengths.all():
            empty = texts[int(self.lengths.argmin())]
            raise ValueError(f"the tokenizer makes no token of the text {empty!r:.60}, and adds none of its own")

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, place: int) -> LabelledTokens:
        return LabelledTokens(self.tokens[place], int(self.labels[place]))


class TrainingTexts(Dataset):
    def __init__(self, encoded: EncodedTexts):
        self.encoded, self.lengths = encoded, encoded.lengths

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: Key) -> LabelledTokens:
        return self.encoded.sample(key.index)


class HeldOutTexts(Dataset):
    """Some of the texts, short ones first: a batch needs little padding."""

    def __init__(self, encoded: EncodedTexts, places: np.ndarray):
        self.encoded = encoded
        self.places = places[np.argsort(encoded.lengths[places], kind="stable")]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LabelledTokens:
        return self.encoded.sample(self.places[index])


class SequenceClassification(Task):
    """say which class a text belongs to (BERT)"""

    name = "sequence_classification"
    head = TriuneForSequenceClassification
    unit = "tokens"
    lean: ClassVar[dict[str, bool]] = {"loss_only": True}
    best_metric = "accuracy"
    greater_is_better = True
    pictures: ClassVar[dict[str, str]] = {
        "confusion_matrix.png": "What held-out texts were taken for",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        length = arguments.data.max_seq_length
        self.data = load_labelled_text(arguments.data)
        self.fingerprint, self.names = self.data.fingerprint, self.data.names
        self.processor = load_or_train_tokenizer(arguments.model, self.data.train_texts, length)
        self.train = TrainingTexts(self.encoded(self.data.train_texts, self.data.train_labels))
        self.held_out = self.encoded(self.data.validation_texts, self.data.validation_labels)

    def encoded(self, texts: Sequence[str], labels: torch.Tensor) -> EncodedTexts:
        return EncodedTexts(texts, labels, self.processor, self.arguments.data.max_seq_length)

    def describe(self) -> list[str]:
        lengths, most = self.train.lengths, self.arguments.data.max_seq_length
        cut = float((lengths == most).mean())
        return [
            self.data.describe(),
            f"{len(self.processor):,} tokens in the vocabulary; {lengths.sum():,} to train on, {lengths.mean():.0f} "
            f"in a text, at most {lengths.max()}; {cut:.1%} of the texts fill max_seq_length={most} or are cut there",
        ]

    def order(self, plan: Plan) -> Callable[[int, int, int], np.ndarray]:
        if not self.arguments.data.group_by_length:
            return permutation
        return lambda count, seed, epoch: length_grouped(self.train.lengths, plan.per_step, seed, epoch)

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        numbered = dict(enumerate(self.names))
        return {
            "vocab_size": len(self.processor),
            "max_position_embeddings": self.arguments.data.max_seq_length,
            "pad_token_id": self.processor.pad_token_id,
            "num_labels": len(numbered),
            "id2label": numbered,
            "label2id": {name: number for number, name in numbered.items()},
        }

    def prepare(self, config: TriuneConfig) -> None:
        """The configuration may be a saved model's, or hold fields of the recipe's own."""
        length = self.arguments.data.max_seq_length
        if config.num_labels != len(self.names):
            raise ValueError(f"num_labels={config.num_labels}, and the data has {len(self.names)} classes")
        if config.vocab_size < len(self.processor):
            raise ValueError(f"vocab_size={config.vocab_size}, and the tokenizer has {len(self.processor)} tokens")
        if config.position["type"] == "learned" and config.max_position_embeddings < length:
            raise ValueError(
                f"max_seq_length={length} is longer than the {config.max_position_embeddings} positions of the model"
            )

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        count = len(self.held_out) if full else QUICK
        return HeldOutTexts(self.held_out, permutation(len(self.held_out), 0, 0)[:count])

    def collate(self, samples: list[LabelledTokens]) -> Batch:
        labels = torch.tensor([sample.label for sample in samples])
        return {**padded([sample.ids for sample in samples], self.processor.pad_token_id), "labels": labels}

    def units(self, batch: Batch) -> int:
        """Without padding."""
        return int(batch["attention_mask"].sum())

    # -- measuring

    def measure(self, records: Records) -> dict[str, float]:
        return classification_metrics(records, len(self.names))

    def baselines(self) -> dict[str, dict[str, float]]:
        return text_baselines(self.data)

    # -- showing

    def some_held_out(self, count: int) -> list[int]:
        """The same every time."""
        return permutation(len(self.held_out), 0, 0)[:count].tolist()

    @torch.no_grad()
    def answers(self, model, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The probability of the prediction, and the prediction."""
        batch = self.collate([self.held_out.sample(place) for place in places])
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        return model(**inputs).logits.float().softmax(-1).cpu().max(-1)

    def preview(self, model) -> list[str]:
        """The beginning of a text, and what it is taken for: `right 87%`, or `wrong 60%, was right`."""
        places = self.some_held_out(PREVIEWS)
        chances, guesses = self.answers(model, places)
        lines = []
        for place, chance, guess in zip(places, chances.tolist(), guesses.tolist()):
            text, label = self.data.validation_texts[place], int(self.data.validation_labels[place])
            said = f"{self.names[guess]} {chance:.0%}" + (f", was {self.names[label]}" if guess != label else "")
            lines.append(f"{figures.shorten(' '.join(text.split()), PREVIEW_WIDTH):{PREVIEW_WIDTH}}  {said}")
        return lines

    def examples(self) -> list[Example]:
        """Of long ones the beginning."""
        texts, labels = self.data.validation_texts, self.data.validation_labels
        return [
            Example(textwrap.shorten(texts[place], EXAMPLE, placeholder=""), self.names[int(labels[place])])
            for place in self.some_held_out(PREVIEWS)
        ]

    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        matrix = confusion(records, len(self.names))
        return [figures.confusion_matrix(matrix, self.names, folder / "confusion_matrix.png")]


# ---------------------------------------------------------------------------------------------------------------------
# Baselines


def text_baselines(data: LabelledText) -> dict[str, dict[str, float]]:
    """The most frequent class; the class frequencies; and words counted without their order, where scikit-learn is
    installed and the texts are not too many."""
    shares = (data.train_labels.bincount(minlength=len(data.names)) + 1).double()
    entropy = -(shares / shares.sum()).log()[data.validation_labels].mean()
    found = {
        "accuracy": {"majority class": majority_class(data.train_labels, data.validation_labels)},
        "loss": {"class frequencies": float(entropy)},
    }
    if len(data.train_texts) + len(data.validation_texts) <= FEW:
        for metric, value in bag_of_words(data).items():
            found.setdefault(metric, {})["bag of words"] = value
    return found


def bag_of_words(data: LabelledText) -> dict[str, float]:
    """Logistic regression on word counts (their logarithms, weighted by rarity), as scikit-learn has it; nothing is
    tuned on the held-out texts."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return {}
    counts = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")  # code and punctuation tell much
    model = make_pipeline(counts, LogisticRegression(C=10, max_iter=1000))
    if len(data.train_labels.unique()) < 2:
        return {}
    answers = model.fit(data.train_texts, data.train_labels.numpy()).predict(data.validation_texts)
    labels = data.validation_labels.numpy()
    return {
        "accuracy": float((answers == labels).mean()),
        "macro_f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
    }
