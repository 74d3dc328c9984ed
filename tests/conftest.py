"""What every test starts from: no network, one fixed seed; and what tests of several folders share."""

import os


# Before transformers is imported anywhere: it reads these at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers


transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def no_figures(monkeypatch):
    """Runs draw nothing, as without matplotlib."""
    monkeypatch.setattr("triune.training.figures.available", lambda: False)
