"""Accuracy and top-k accuracy, from the ranks of the right answers or from predictions and references."""

import datasets
import evaluate
import numpy as np

from .in_memory import InMemory


DESCRIPTION = """
Accuracy: the share of answers that are right. Top-k accuracy: the share of right answers among the k highest. Computed
from the rank of the right answer (0: it was the highest), or, in the configuration "predictions", from the highest
answer itself, which gives accuracy alone.
"""

INPUTS = {
    "ranks": """
Args:
    ranks (list of int): how many answers were higher than the right one.
    top_k (list of int): which accuracies are asked for; default: 1 and 5.

Returns:
    accuracy (float) for k = 1, top5_accuracy (float) for k = 5, and so on, from 0 to 1; more is better.

Example:
    >>> metric = evaluate.load("top_k_accuracy.py")
    >>> metric.compute(ranks=[0, 3, 0, 7])
    {'accuracy': 0.5, 'top5_accuracy': 0.75}
""",
    "predictions": """
Args:
    predictions (list of int): the highest answers.
    references (list of int): the right answers.

Returns:
    accuracy (float), from 0 to 1; more is better.

Example:
    >>> metric = evaluate.load("top_k_accuracy.py", "predictions")
    >>> metric.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
    {'accuracy': 0.75}
""",
}

COLUMNS = {"ranks": ("ranks",), "predictions": ("predictions", "references")}


class TopKAccuracy(InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        kind = "ranks" if self.config_name == "default" else self.config_name
        if kind not in COLUMNS:
            raise ValueError(f"config_name={kind!r} is not allowed: it must be one of {', '.join(COLUMNS)}")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS[kind],
            features=datasets.Features({name: datasets.Value("int64") for name in COLUMNS[kind]}),
        )

    def _compute(self, *, top_k: tuple[int, ...] | None = None, **columns: np.ndarray) -> dict[str, float]:
        if "ranks" in columns:
            return accuracies(columns["ranks"], (1, 5) if top_k is None else top_k)
        if top_k is not None:
            raise ValueError(f"top_k={top_k} needs ranks: a prediction does not tell what came second")
        return accuracies((columns["predictions"] != columns["references"]).astype(int), (1,))


def accuracies(ranks: np.ndarray, top_k: tuple[int, ...]) -> dict[str, float]:
    if min(top_k, default=0) < 1:
        raise ValueError(f"top_k={top_k} is not allowed: it must be one or several numbers, each 1 or more")
    if ranks.min() < 0:
        raise ValueError(f"the rank {ranks.min()} is not allowed: the highest answer has rank 0")
    names = {k: "accuracy" if k == 1 else f"top{k}_accuracy" for k in top_k}
    return {name: int(np.count_nonzero(ranks < k)) / len(ranks) for k, name in names.items()}
