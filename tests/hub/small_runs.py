"""Training of a moment, as `scripts/train.py` does it."""

from accelerate_state import reset_accelerate

from triune.training import run
from triune.training.arguments import parse


CONFIG = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
COMMON = {"max_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 4, "fast_fp32": "no", "config": CONFIG}
TEXT = {"vocab_size": 300, "max_seq_length": 32, "validation_split_percentage": 20}

STACK = CONFIG.strip("{}")
PATCHES = f"{{{STACK}, embedding: {{image_size: [16, 20], patch_size: 4}}}}"
OTHERS = {
    "pretraining": {"task": "pretraining", "train_file": "words.txt", **TEXT},
    "seq2seq": {
        **{"task": "seq2seq", "train_file": "rows.csv", **TEXT, "max_target_length": 12},
        "config": f"{{encoder: {CONFIG}, decoder: {CONFIG}}}",
    },
    "mae": {
        **{"task": "masked_image_modeling", "train_dir": "images", "validation_split_percentage": 25},
        "config": f"{{encoder: {PATCHES}, decoder: {CONFIG}}}",
    },
    "clip": {
        **{"task": "contrastive", "train_file": "captions.csv", **TEXT, "validation_split_percentage": 25},
        "config": f"{{text: {CONFIG}, vision: {PATCHES}, projection_dim: 8}}",
    },
}


def train(folder, **flags):
    given = {**COMMON, **flags, "output_dir": folder}
    run.train(parse([word for name, value in given.items() for word in (f"--{name}", str(value))]))
    reset_accelerate()
    return folder
