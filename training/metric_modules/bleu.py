"""Corpus BLEU as sacreBLEU defines it, without needing it: 13a tokens, n-grams up to 4, exponential smoothing."""

import math
import re
import string
from collections import Counter

import datasets
import evaluate

from .in_memory import InMemory
from .texts import Texts


DESCRIPTION = """
BLEU: how many of the n-grams (n = 1 to 4) of the predictions stand in the references, as often at most as there, over
the whole corpus: 100 * brevity penalty * geometric mean of the four precisions. The brevity penalty is
exp(1 - references / predictions), in tokens, where the predictions are shorter. A precision of 0 of N n-grams counts
as 1 / (2^k N), the k-th time; n-grams longer than every prediction make the score 0. The same as sacreBLEU's
corpus_bleu with its defaults (signature tok:13a|smooth:exp|case:mixed), one or several references for each prediction.
"""

INPUTS = """
Args:
    predictions (list of str).
    references (list of str, or of lists of str): the right answers to each.
    lowercase (bool, optional): case does not count; default: False.
    tokenize (bool, optional): cut into tokens as 13a does; default: True. False: at spaces alone.

Returns:
    bleu (float), from 0 to 100; more is better. precisions (list of 4 float, in percent), brevity_penalty (float).

Example:
    >>> metric = evaluate.load("bleu.py")
    >>> metric.compute(predictions=["the cat sat on the mat"], references=["the cat sat on a mat"])["precisions"]
    [83.33333333333333, 60.0, 50.0, 33.333333333333336]
"""

CITATION = """
@inproceedings{post2018call,
  title={A Call for Clarity in Reporting {BLEU} Scores},
  author={Post, Matt},
  booktitle={Proceedings of the Third Conference on Machine Translation},
  pages={186--191},
  year={2018}
}
"""

LONGEST = 4
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in this order
MARKS = re.escape("".join(set(string.punctuation) - set("',-.")))  # these four may belong to a word
CUTS = (  # what is set apart, and how
    (re.compile(f"([{MARKS}])"), r" \1 "),
    (re.compile("([^0-9])([.,])"), r"\1 \2 "),  # a point or comma, unless between digits
    (re.compile("([.,])([^0-9])"), r" \1 \2"),
    (re.compile("([0-9])(-)"), r"\1 \2 "),  # a hyphen behind a digit
)


def tokens_13a(text: str) -> list[str]:
    """As mteval-v13a of NIST: 'Costs 1,000.5 (or so).' is Costs 1,000.5 ( or so ) ."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES.items():
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in CUTS:
        text = pattern.sub(spaced, text)
    return text.split()


def ngrams(tokens: list[str], n: int) -> Counter:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def nearest_length(length: int, lengths: list[int]) -> int:
    """Of the references' lengths, the shorter of two that are as near."""
    return min(lengths, key=lambda other: (abs(other - length), other))


class Bleu(Texts, InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], lowercase: bool = False, tokenize: bool = True
    ) -> dict:
        def cut(text: str) -> list[str]:
            text = text.rstrip().lower() if lowercase else text.rstrip()
            return tokens_13a(text) if tokenize else text.split()

        right, made, length, wanted = [0] * LONGEST, [0] * LONGEST, 0, 0
        for prediction, answers in zip(predictions, references):
            said, answers = cut(prediction), [cut(answer) for answer in answers]
            length += len(said)
            wanted += nearest_length(len(said), [len(answer) for answer in answers])
            for n in range(1, LONGEST + 1):
                own, best = ngrams(said, n), Counter()
                for answer in answers:
                    best |= ngrams(answer, n)
                right[n - 1] += (own & best).total()
                made[n - 1] += own.total()
        penalty = 1.0 if length >= wanted else math.exp(1 - wanted / length) if length else 0.0
        precisions = smoothed(right, made)
        return {"bleu": penalty * geometric_mean(precisions), "precisions": precisions, "brevity_penalty": penalty}


def smoothed(right: list[int], made: list[int]) -> list[float]:
    """In percent. Nothing right at all stays 0."""
    if not any(right):
        return [0.0] * len(right)
    halved, precisions = 1, []
    for hits, total in zip(right, made):
        halved *= 2 if total and not hits else 1
        precisions.append(100 * (hits or 1 / halved) / total if total else 0.0)
    return precisions


def geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0
