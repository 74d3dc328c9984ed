"""What every test starts from: no network, one fixed seed; and what tests of several folders share."""

import os


# Before transformers is imported anywhere: it reads these at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from accelerate_state import reset_accelerate


transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def no_figures(monkeypatch):
    """Runs draw nothing, as without matplotlib."""
    monkeypatch.setattr("triune.training.figures.available", lambda: False)


@pytest.fixture
def as_found():
    """What a run sets for the process is afterwards as it was: threads, kernels, accelerate's state."""
    threads, kernels = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    reset_accelerate()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(kernels)
