"""`scripts/embeddings.py`: what is written, read back, against the weights and the tokenizer of the saved model."""

import csv

import pytest
import torch
from safetensors.torch import load_file
from script_loading import load_script

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification
from triune.training.image_processor import build_processor
from triune.training.tokenizers import train_tokenizer


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = ["def f(x):\n\treturn x\r\n", 'he said "no"']

script = load_script("scripts/embeddings.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with a model of characters, line ends and tabs among them, and three rows that no token uses."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer("characters", TEXT, 64, 32)
    size = {"vocab_size": len(tokenizer) + 3, "max_position_embeddings": 32, "attention": "causal"}
    TriuneForCausalLM(TriuneConfig(**SMALL, **size)).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    return run, tokenizer


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_vectors_and_names(folder, capsys):
    """Each number of each vector to the bit, each token with its id: a line for a line, whatever a token is."""
    run, tokenizer = folder
    script.main([str(run)])
    assert "embeddings/vectors.tsv" in capsys.readouterr().out
    weights = load_file(run / "model" / "model.safetensors")["model.embed_tokens.weight"]
    vectors = torch.tensor([[float(number) for number in row] for row in rows_of(run / "embeddings" / "vectors.tsv")])
    assert torch.equal(vectors, weights[: len(tokenizer)]) and len(weights) == len(tokenizer) + 3
    names, *tokens = rows_of(run / "embeddings" / "metadata.tsv")
    assert names == ["token", "id"] and len(tokens) == len(vectors)
    vocabulary = {id: token for token, id in tokenizer.get_vocab().items()}
    seen = {"\n": "↵", "\r": "↵", "\t": "⇥"}
    assert tokens == [[seen.get(vocabulary[id], vocabulary[id]), str(id)] for id in range(len(tokenizer))]
    assert {"↵", "⇥", '"'} <= {token for token, _ in tokens}


def test_only_the_first(folder, tmp_path):
    """The first seven, elsewhere, by the model folder's own name."""
    script.main([str(folder[0] / "model"), "--output_dir", str(tmp_path / "there"), "--most", "7"])
    assert len(rows_of(tmp_path / "there" / "vectors.tsv")) == 7
    assert len(rows_of(tmp_path / "there" / "metadata.tsv")) == 8


def test_mistakes_are_told(folder, tmp_path):
    """A model of images, a name that is no folder, a number that is none, a flag that there is not."""
    patches = {"type": "patches", "image_size": 8, "patch_size": 4}
    TriuneForImageClassification(TriuneConfig(**SMALL, embedding=patches)).save_pretrained(tmp_path / "model")
    build_processor((8, 8), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "model")
    mistakes = {
        (str(tmp_path),): "reads no tokens",
        ("someone/model",): "--output_dir",
        (str(folder[0]), "--most", "0"): "most=0 is not allowed",
        (str(folder[0]), "--output"): "did you mean '--output_dir'",
    }
    for words, says in mistakes.items():
        with pytest.raises(SystemExit, match=says):
            script.main(list(words))
