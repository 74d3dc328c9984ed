"""The baselines against values worked out by hand, and against scikit-learn's own."""

import math
import sys

import pytest
import torch

from triune.training.data.baselines import (
    classifier,
    image_baselines,
    majority_class,
    nearest_neighbours,
    unigram,
)
from triune.training.data.bundled import digits
from triune.training.data.images import Images, image_data


def line(*places):
    """Images of one pixel."""
    return torch.tensor(places, dtype=torch.uint8)[:, None, None, None]


@pytest.fixture(scope="module")
def folds():
    pytest.importorskip("sklearn")
    return [digits(fold) for fold in range(5)]


def test_unigram_by_hand():
    """Train 0 0 1 of four tokens: with one added each, 3/7, 2/7, 1/7, 1/7."""
    found = unigram([0, 0, 1], [0, 1, 1, 3], vocab_size=4, characters=10)
    nats = -(math.log(3 / 7) + 2 * math.log(2 / 7) + math.log(1 / 7))
    assert found.entropy == pytest.approx(nats / 4)
    assert found.bits_per_character == pytest.approx(nats / math.log(2) / 10)
    assert found.uniform == pytest.approx(math.log(4))
    assert found.top_share == 0.25
    assert found.describe() == (
        "unigram entropy 1.325 nats per token (0.764 bits per character), uniform 1.386; "
        "the most frequent token is 25.0%"
    )


def test_unigram_takes_any_tokens():
    """A list, an iterator and a batch of the same tokens; without characters no bits."""
    train, asked = [3, 1, 2, 1], [1, 2, 2, 0]
    plain = unigram(train, asked, 5)
    assert plain == unigram(iter(train), torch.tensor(asked).view(2, 2), 5)
    assert plain.bits_per_character is None
    assert "characters" not in plain.describe()


def test_unigram_is_the_entropy_of_a_known_source():
    """Many tokens from known probabilities: their entropy, and the share of the most probable."""
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    train, asked = torch.multinomial(probabilities, 100_000, replacement=True).split(50_000)
    found = unigram(train, asked, 4)
    assert found.entropy == pytest.approx(1.75 * math.log(2), abs=0.01)
    assert found.top_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("train", "asked", "message"),
    [
        ([], [1], "train is empty"),
        ([1], [], "held_out is empty"),
        ([1], [4], "held_out holds token ids from 4 to 4, outside 0 to vocab_size - 1 = 3"),
        ([-100, 1], [1], "train holds token ids from -100 to 1"),
    ],
)
def test_unigram_refuses(train, asked, message):
    """Nothing to count, and ids that are none."""
    with pytest.raises(ValueError, match=message):
        unigram(train, asked, 4)


def test_majority_class_by_hand():
    """The most frequent label of train, not of what is held out."""
    assert majority_class(torch.tensor([0, 2, 2, 1]), torch.tensor([2, 0, 0, 0])) == 0.25


def test_nearest_neighbours_by_hand():
    """Pixels 0 1 2 | 10 11: 2 is nearest to 3; with five neighbours the larger class wins everywhere."""
    train = Images(line(0, 1, 2, 10, 11), torch.tensor([0, 0, 0, 1, 1]))
    held_out = Images(line(3, 12, 200), torch.tensor([0, 1, 1]))
    assert nearest_neighbours(train, held_out) == {1: 1.0, 3: 1.0, 5: pytest.approx(1 / 3)}


def test_ties_go_to_the_smaller_label():
    """Two neighbours, one vote each."""
    train = Images(line(9, 12), torch.tensor([1, 0]))
    assert nearest_neighbours(train, Images(line(10), torch.tensor([0])), ks=(1, 2)) == {1: 0.0, 2: 1.0}


@pytest.mark.parametrize("ks", [(0, 1), (1, 3)])
def test_neighbours_must_exist(ks):
    """No neighbours, and more than there are images."""
    images = Images(line(9, 12), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"ks=.* must lie between 1 and the number of training images, 2"):
        nearest_neighbours(images, images, ks)


def test_nearest_neighbours_are_scikit_learns(folds):
    """Each k on each fold of digits, to the digit; about 98.6 % over the folds."""
    from sklearn.neighbors import KNeighborsClassifier

    threes = []
    for data in folds:
        found = nearest_neighbours(data.train, data.validation)
        for k, share in found.items():
            model = KNeighborsClassifier(k).fit(data.train.pixels.flatten(1), data.train.labels)
            assert share == pytest.approx(model.score(data.validation.pixels.flatten(1), data.validation.labels))
        threes.append(found[3])
    assert sum(threes) / 5 == pytest.approx(0.986, abs=0.003)


def test_classifiers_on_digits(folds):
    """Over the five folds: logistic regression between 95 and 97.5 %, SVC about 99.2 %."""
    means = {
        name: sum(classifier(name, data.train, data.validation) for data in folds) / 5
        for name in ("logistic regression", "SVC")
    }
    assert 0.95 < means["logistic regression"] < 0.975
    assert means["SVC"] == pytest.approx(0.992, abs=0.003)


def test_image_baselines_by_name(folds):
    """One table; the slow ones only when they are asked for."""
    assert list(image_baselines(folds[0])) == ["majority class", "1-NN", "3-NN", "5-NN"]
    found = image_baselines(folds[0], classifiers=("SVC",))
    assert list(found) == ["majority class", "1-NN", "3-NN", "5-NN", "SVC"]
    assert found["majority class"] == pytest.approx(0.1, abs=0.01)


def test_an_unknown_classifier(folds):
    """The nearest name is offered."""
    images = folds[0].train
    with pytest.raises(ValueError, match="name='SVM': choose from logistic regression, SVC; did you mean 'SVC'"):
        classifier("SVM", images, images)


def test_classifiers_without_scikit_learn(monkeypatch):
    """The message names the extra; what needs no scikit-learn still works."""
    images = Images(line(0, 1, 2, 10, 11), torch.tensor([0, 0, 0, 1, 1]))
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ModuleNotFoundError, match=r'SVC comes with scikit-learn.*pip install "triune\[test\]"'):
        classifier("SVC", images, images)
    assert image_baselines(image_data(images, images, "ab", "pixels"))["1-NN"] == 1
