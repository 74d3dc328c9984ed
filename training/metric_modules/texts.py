"""What the metrics of texts have in common: they compare written predictions with one reference each, or several."""

from itertools import chain
from typing import Any

import numpy as np


class Texts:
    """Stands before `InMemory` among the bases of a metric of predictions and references that are texts."""

    def add_batch(self, predictions: Any = None, references: Any = None) -> None:
        """Add texts, and to each of them the reference or the list of references."""
        said, answers = (
            as_list(predictions),
            [[one] if isinstance(one, str) else [*one] for one in as_list(references)],
        )
        if len(said) != len(answers):
            raise ValueError(
                f"{self.name} takes as many references as predictions, not {len(said)} predictions and "
                f"{len(answers)} references"
            )
        if not all(answers):
            raise ValueError("references must not be empty: each prediction needs one at least")
        for name, texts in (("predictions", said), ("references", [*chain(*answers)])):
            strange = [text for text in texts if not isinstance(text, str)]
            if strange:
                raise ValueError(f"{name} must be texts, and {strange[0]!r} is a {type(strange[0]).__name__}")
        self.batches.append({"predictions": as_objects(said), "references": as_objects(answers)})


def as_list(column: Any) -> list:
    if isinstance(column, str):
        raise ValueError(f"predictions and references must be lists of texts, not one text: {column!r:.60}")
    return [] if column is None else [*column]


def as_objects(things: list) -> np.ndarray:
    """An array of them as they are: lists of one length would become its second dimension."""
    array = np.empty(len(things), dtype=object)
    for place, thing in enumerate(things):
        array[place] = thing
    return array
