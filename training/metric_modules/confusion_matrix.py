"""How often each class was taken for each other."""

import datasets
import evaluate
import numpy as np

from .in_memory import InMemory


DESCRIPTION = """
Confusion matrix: the entry in row i and column j counts the examples of class i that were predicted to be class j.
What is right stands on the diagonal; a row sums to the examples of a class, a column to the predictions of it.
"""

INPUTS = """
Args:
    predictions (list of int): predicted classes.
    references (list of int): the right classes.
    num_classes (int, optional): the size of the matrix; default: up to the highest class that occurs.

Returns:
    confusion_matrix (array of int, num_classes x num_classes).

Example:
    >>> metric = evaluate.load("confusion_matrix.py")
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 0, 1])["confusion_matrix"].tolist()
    [[1, 1], [0, 1]]
"""


class ConfusionMatrix(InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")}),
        )

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None
    ) -> dict[str, np.ndarray]:
        both = np.concatenate([predictions, references])
        size = num_classes or int(both.max()) + 1
        wrong = both[(both < 0) | (both >= size)]
        if len(wrong):
            raise ValueError(f"the class {wrong[0]} is not allowed: it must be from 0 to {size - 1}")
        counts = np.bincount(references * size + predictions, minlength=size * size)
        return {"confusion_matrix": counts.reshape(size, size)}
