"""A trained encoder that stays as it is under a new head: `--model_name_or_path` with `--freeze`, as a probe is made.

Through `train`, as the script does, of texts and of images.
"""

import random

import pandas
import pytest
import torch
from safetensors.torch import load_file

from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.modeling import TriuneForMaskedImageModeling, TriuneForMaskedLM
from triune.training import run
from triune.training.arguments import parse
from triune.training.image_processor import build_processor
from triune.training.tokenizers import train_tokenizer


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

pytestmark = pytest.mark.usefixtures("as_found", "no_figures")


def masked_lm(folder):
    """A masked language model and texts of two kinds; gives the flags that name them."""
    words = random.Random(0)
    texts = [f"{words.choice(['calm', 'wild'])} {' '.join(words.choices('abcdefgh', k=6))}" for _ in range(60)]
    tokenizer = train_tokenizer("wordpiece", texts, 64, 16)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": tokenizer.pad_token_id}
    TriuneForMaskedLM(TriuneConfig(**SIZES, **size)).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    rows = [{"text": f"{text} {place}", "label": text.split()[0]} for place, text in enumerate(texts)]
    pandas.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    data = ["--train_file", str(folder / "rows.csv"), "--validation_split_percentage", "20", "--max_seq_length", "16"]
    return ["--task", "sequence_classification", *data]


def mae(folder):
    """A model that draws hidden patches: its decoder is left behind."""
    embedding = {"type": "patches", "image_size": 8, "patch_size": 2, "cls_token": False}
    encoder = {**SIZES, "embedding": embedding, "pooling": "mean"}
    model = TriuneForMaskedImageModeling(TriuneMAEConfig(encoder=encoder, decoder={**SIZES, "num_hidden_layers": 1}))
    model.save_pretrained(folder / "encoder")
    build_processor((8, 8), [0.5] * 3, [0.5] * 3).save_pretrained(folder / "encoder")
    return ["--task", "image_classification", "--dataset_name", "digits", "--max_train_samples", "64"]


@pytest.mark.parametrize("make", [masked_lm, mae])
def test_only_the_classifier_learns(make, tmp_path, capsys):
    """After three steps: every weight of the encoder to the bit as it was saved, and the bias of the classifier no
    longer 0; the table on the console says how little is trained."""
    torch.manual_seed(0)
    flags = make(tmp_path)
    steps = ["--max_steps", "3", "--warmup_steps", "0", "--learning_rate", "0.01", "--optim", "adamw"]
    small = ["--per_device_train_batch_size", "8", "--max_eval_samples", "10", "--output_dir", str(tmp_path / "run")]
    run.train(parse([*flags, *steps, *small, "--model_name_or_path", str(tmp_path / "encoder"), "--freeze", "^model"]))
    before = load_file(tmp_path / "encoder" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    inside = [name for name in after if name.startswith("model.")]
    assert len(inside) >= 30 and set(after) - set(inside) == {"classifier.weight", "classifier.bias"}
    for name in inside:
        assert torch.equal(after[name], before[name]), name
    assert after["classifier.bias"].all()  # it starts at 0
    assert "% trained" in capsys.readouterr().out
