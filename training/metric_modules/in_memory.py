"""What our metrics have in common: they keep their numbers as arrays, and write nothing to disk.

`evaluate.Metric` makes a folder in a cache for each metric that is built, also for one kept in memory; it looks at
numbers one by one, 2 s for two columns of a million; and it hands float64 to the metric as float32. So the storage is
replaced here; the rest (loading, description, combining with others) is evaluate's.

This is a mix-in and not a metric: `evaluate.load` takes the first metric that it finds in a file for the one to load.
"""

from typing import Any

import numpy as np


class InMemory:
    """Stands before `evaluate.Metric` among the bases of a metric whose features are columns of numbers."""

    def __init__(self, *args, num_process: int = 1, keep_in_memory: bool = True, **kwargs):
        if num_process != 1:
            raise ValueError(
                f"num_process={num_process} is not allowed: gather the numbers of all processes, then compute once"
            )
        super().__init__(*args, keep_in_memory=True, **kwargs)
        self.batches: list[dict[str, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self.batches)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # evaluate's makes the folder

    def add(self, **numbers: Any) -> None:
        """Add one entry: prediction=..., reference=..., or what else the features are."""
        plural = {name.removesuffix("s"): name for name in self.features}
        self.add_batch(**{plural.get(name, name): [number] for name, number in numbers.items()})

    def add_batch(self, **columns: Any) -> None:
        """Add a column of numbers (list, array or tensor) for each of the features."""
        given = {name: column for name, column in columns.items() if column is not None}
        if given.keys() != self.features.keys():
            raise ValueError(
                f"{self.name} takes {' and '.join(self.features)}, not {' and '.join(given) or 'nothing'}"
            )
        batch = {name: as_array(name, column, self.features[name].dtype) for name, column in given.items()}
        lengths = {name: len(column) for name, column in batch.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{self.name} takes columns of one length, not "
                + " and ".join(f"{length} {name}" for name, length in lengths.items())
            )
        self.batches.append(batch)

    def compute(self, **arguments: Any) -> dict[str, Any]:
        """Compute from what was added before and what is given here, then forget it."""
        columns = {name: arguments.pop(name, None) for name in self.features}
        if any(column is not None for column in columns.values()):
            self.add_batch(**columns)
        batches, self.batches = self.batches, []
        if not any(len(column) for batch in batches for column in batch.values()):
            raise ValueError(f"{self.name} has nothing to measure: no {' and no '.join(self.features)}")
        inputs = {name: np.concatenate([batch[name] for batch in batches]) for name in self.features}
        return self._compute(**inputs, **given_only(arguments))


def given_only(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def as_array(name: str, column: Any, dtype: str) -> np.ndarray:
    """The column in the type of its feature, refused if that changes a number."""
    array = np.asarray(column)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be a column of numbers, not {array.dtype} of shape {array.shape}")
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype)
    changed = (converted != array) & ~np.isnan(converted)
    if changed.any():
        raise ValueError(f"{name} must be {dtype}, and {array[changed][0]} is not")
    return converted
