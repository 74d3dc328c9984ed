"""What a number has to be compared with: what counting tokens reaches on text, and old methods on images.

Pure functions of tokens and images. Nothing is tuned on the held-out data: k-NN is given for each k, the other two
have the settings in `CLASSIFIERS`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.data.images import ImageData, Images


NEIGHBOURS = (1, 3, 5)


# ---------------------------------------------------------------------------------------------------------------------
# Text


class UnigramBaseline(NamedTuple):
    """What is reached on held-out tokens without looking at any other token."""

    entropy: float  # nats per token, with the frequencies in train plus one
    uniform: float  # nats per token, all tokens alike
    top_share: float  # accuracy of always guessing the most frequent token of train
    bits_per_character: float | None  # the entropy again, where the number of characters is known

    def describe(self) -> str:
        bits = "" if self.bits_per_character is None else f" ({self.bits_per_character:.3f} bits per character)"
        return (
            f"unigram entropy {self.entropy:.3f} nats per token{bits}, uniform {self.uniform:.3f}; "
            f"the most frequent token is {self.top_share:.1%}"
        )


def token_counts(tokens: torch.Tensor | Iterable[int], vocab_size: int, field: str) -> torch.Tensor:
    tokens = torch.as_tensor(tokens if torch.is_tensor(tokens) else list(tokens), dtype=torch.long).flatten()
    if not len(tokens):
        raise ValueError(f"{field} is empty: a baseline needs at least one token")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ValueError(
            f"{field} holds token ids from {int(tokens.min())} to {int(tokens.max())}, outside 0 to "
            f"vocab_size - 1 = {vocab_size - 1}"
        )
    return torch.bincount(tokens, minlength=vocab_size)


def bits_per_character(nats_per_token: float, tokens: int, characters: int) -> float:
    return nats_per_token * tokens / characters / math.log(2)


def unigram(
    train: torch.Tensor | Iterable[int],
    held_out: torch.Tensor | Iterable[int],
    vocab_size: int,
    characters: int | None = None,
) -> UnigramBaseline:
    """Token ids, without padding; `characters` are those of the held-out text."""
    known, asked = (token_counts(ids, vocab_size, field) for ids, field in ((train, "train"), (held_out, "held_out")))
    smoothed = (known + 1).double()
    information = smoothed.sum().log() - smoothed.log()
    entropy = float((asked * information).sum() / asked.sum())
    return UnigramBaseline(
        entropy=entropy,
        uniform=math.log(vocab_size),
        top_share=float(asked[known.argmax()] / asked.sum()),
        bits_per_character=None if characters is None else bits_per_character(entropy, int(asked.sum()), characters),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Images


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    return float((answers == labels).double().mean())


def majority_class(train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Accuracy of always answering the most frequent label of train."""
    return accuracy(train.bincount().argmax(), held_out)


def flat(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1).float() / 255


def nearest_neighbours(train: Images, held_out: Images, ks: Sequence[int] = NEIGHBOURS) -> dict[int, float]:
    """Accuracy for each k: Euclidean distance of pixels, one vote each, ties to the smaller label (scikit-learn's)."""
    if not 1 <= min(ks) <= max(ks) <= len(train.labels):
        raise ValueError(f"ks={tuple(ks)} must lie between 1 and the number of training images, {len(train.labels)}")
    known, classes = flat(train.pixels), int(train.labels.max()) + 1
    chunks = flat(held_out.pixels).split(512)  # bounds the memory of the distances
    closest = torch.cat([torch.cdist(chunk, known).topk(max(ks), largest=False).indices for chunk in chunks])
    votes = torch.nn.functional.one_hot(train.labels[closest], classes)  # (held out, neighbours, classes)
    return {k: accuracy(votes[:, :k].sum(dim=1).argmax(dim=1), held_out.labels) for k in ks}


def logistic_regression():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def support_vectors():
    from sklearn.svm import SVC

    return SVC(C=10)  # the stronger baseline: on five folds of digits 99.2 %, with the default of 1 98.8 %


CLASSIFIERS: dict[str, Callable] = {"logistic regression": logistic_regression, "SVC": support_vectors}


def classifier(name: str, train: Images, held_out: Images) -> float:
    """Accuracy of one of CLASSIFIERS, from scikit-learn, on pixels between 0 and 1."""
    if name not in CLASSIFIERS:
        raise ValueError(f"name={name!r}: choose from {', '.join(CLASSIFIERS)}{nearest(name, CLASSIFIERS)}")
    try:
        model = CLASSIFIERS[name]()
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{name} comes with scikit-learn, which is not installed: pip install "triune[test]"'
        ) from error
    model.fit(flat(train.pixels).numpy(), train.labels.numpy())
    return accuracy(torch.from_numpy(model.predict(flat(held_out.pixels).numpy())), held_out.labels)


def image_baselines(data: ImageData, classifiers: Sequence[str] = ()) -> dict[str, float]:
    """Accuracies on what is held out, by name; `classifiers` (of CLASSIFIERS) take seconds to minutes."""
    return {
        "majority class": majority_class(data.train.labels, data.validation.labels),
        **{f"{k}-NN": share for k, share in nearest_neighbours(data.train, data.validation).items()},
        **{name: classifier(name, data.train, data.validation) for name in classifiers},
    }
