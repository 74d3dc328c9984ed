"""What tests of several files here share."""

import sys
from pathlib import Path

import evaluate
import pytest
import torch
from accelerate_state import reset_accelerate


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


@pytest.fixture
def as_found():
    """What a run sets for the process is afterwards as it was: threads, kernels, accelerate's state."""
    threads, kernels = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    reset_accelerate()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(kernels)
