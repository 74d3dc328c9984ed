"""What tests of several files here share."""

import sys
from pathlib import Path

import evaluate
import pytest


MODULES = Path(__file__).resolve().parents[2] / "training" / "metric_modules"


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """evaluate.load, with a cache for its copies of the code, and one for data that cannot be made."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "file" / "metrics")
        yield lambda name, *rest: evaluate.load(str(MODULES / f"{name}.py"), *rest)
