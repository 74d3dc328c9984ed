"""Training of a moment, as `scripts/train.py` does it."""

from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from triune.training import run
from triune.training.arguments import parse


CONFIG = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
COMMON = {"max_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 4, "fast_fp32": "no", "config": CONFIG}
TEXT = {"vocab_size": 300, "max_seq_length": 32, "validation_split_percentage": 20}


def train(folder, **flags):
    given = {**COMMON, **flags, "output_dir": folder}
    run.train(parse([word for name, value in given.items() for word in (f"--{name}", str(value))]))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return folder
