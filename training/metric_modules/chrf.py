"""chrF and chrF++ as sacreBLEU defines them, without needing it: F-score of the n-grams of characters."""

import string
from collections import Counter

import datasets
import evaluate

from .in_memory import InMemory
from .texts import Texts


DESCRIPTION = """
chrF: the n-grams of characters (n = 1 to 6, spaces left out) that a prediction shares with its reference. Precision
and recall of each n over the whole corpus, their mean over n, and from the two the F-score in which recall counts
beta = 2 times as much. With word_order=2 n-grams of words come in as well: chrF++. Of several references that counts
which suits a prediction best. The same as sacreBLEU's corpus_chrf with its defaults
(case:mixed|eff:yes|nc:6|nw:0|space:no).
"""

INPUTS = """
Args:
    predictions (list of str).
    references (list of str, or of lists of str): the right answers to each.
    word_order (int, optional): the longest n-grams of words; default: 0. 2: chrF++.
    lowercase (bool, optional): case does not count; default: False.

Returns:
    chrf (float), from 0 to 100; more is better.

Example:
    >>> metric = evaluate.load("chrf.py")
    >>> metric.compute(predictions=["ab"], references=["ac"])
    {'chrf': 25.0}
"""

CITATION = """
@inproceedings{popovic2015chrf,
  title={chr{F}: character n-gram {F}-score for automatic {MT} evaluation},
  author={Popovi{\\'c}, Maja},
  booktitle={Proceedings of the Tenth Workshop on Statistical Machine Translation},
  pages={392--395},
  year={2015}
}
"""

LONGEST, BETA = 6, 2
Counts = list[tuple[int, int, int]]  # for each n: n-grams of the prediction, of the reference, of both


def apart(word: str) -> list[str]:
    """One mark of punctuation is cut off, at the end before the beginning."""
    if len(word) > 1 and word[-1] in string.punctuation:
        return [word[:-1], word[-1]]
    if len(word) > 1 and word[0] in string.punctuation:
        return [word[0], word[1:]]
    return [word]


def grams(text: str, word_order: int) -> list[Counter]:
    """The n-grams of characters, one counter for each n, then those of words."""
    letters, words = "".join(text.split()), [part for word in text.split() for part in apart(word)]
    lengths = [(letters, n) for n in range(1, LONGEST + 1)] + [(words, n) for n in range(1, word_order + 1)]
    return [Counter(tuple(line[at : at + n]) for at in range(len(line) - n + 1)) for line, n in lengths]


def compare(prediction: list[Counter], reference: list[Counter]) -> Counts:
    """Of a reference that is too short for an n, the prediction's n-grams do not count either."""
    return [(own.total() if its else 0, its.total(), (own & its).total()) for own, its in zip(prediction, reference)]


def f_score(counts: Counts) -> float:
    """In percent. An n that one side is too short for is left out."""
    kept = [(both / own, both / its) for own, its, both in counts if own and its]
    if not kept:
        return 0.0
    precision, recall = (sum(column) / len(kept) for column in zip(*kept))
    if not precision + recall:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


class ChrF(Texts, InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], word_order: int = 0, lowercase: bool = False
    ) -> dict[str, float]:
        if word_order < 0:
            raise ValueError(f"word_order={word_order} is not allowed: it must be 0 or more (2: chrF++)")

        def cut(text: str) -> list[Counter]:
            return grams(text.lower() if lowercase else text, word_order)

        total = [(0, 0, 0)] * (LONGEST + word_order)
        for prediction, answers in zip(predictions, references):
            said = cut(prediction)
            best = max((compare(said, cut(answer)) for answer in answers), key=f_score)
            total = [tuple(map(sum, zip(one, other))) for one, other in zip(total, best)]
        return {"chrf": f_score(total)}
