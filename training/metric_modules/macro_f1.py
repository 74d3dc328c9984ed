"""Macro-averaged F1: every class counts the same, however rare. Equal to scikit-learn's, without needing it."""

import math

import datasets
import evaluate
import numpy as np

from .in_memory import InMemory


DESCRIPTION = """
F1 of a class: 2 * true positives / (predicted + actual), the harmonic mean of precision and recall. Macro-F1: its mean
over the classes that occur, among the predictions or the references. It is low where accuracy is high because rare
classes are never predicted. The same as scikit-learn's f1_score(average="macro", zero_division=0).
"""

INPUTS = """
Args:
    predictions (list of int): predicted classes.
    references (list of int): the right classes.

Returns:
    macro_f1 (float), from 0 to 1; more is better.

Example:
    >>> metric = evaluate.load("macro_f1.py")
    >>> metric.compute(predictions=[0, 0, 1, 1], references=[0, 0, 0, 1])
    {'macro_f1': 0.7333333333333334}
"""

CITATION = """
@article{opitz2019macro,
  title={Macro {F1} and Macro {F1}},
  author={Opitz, Juri and Burst, Sebastian},
  journal={arXiv preprint arXiv:1911.03347},
  year={2019}
}
"""


class MacroF1(InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        both = np.concatenate([predictions, references]) - min(predictions.min(), references.min())
        if both.max() > len(both):  # far apart: the table of counts would be larger than the data
            both = np.unique(both, return_inverse=True)[1]
        predicted, actual = np.split(both, 2)
        counts = np.bincount(both)
        right = np.bincount(actual[predicted == actual], minlength=len(counts))
        present = counts > 0
        return {"macro_f1": math.fsum(2 * right[present] / counts[present]) / int(present.sum())}
