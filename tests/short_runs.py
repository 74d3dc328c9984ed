"""Runs of seconds, as the script makes them: on a text file, with a small model. And whether two are the same."""

import json
import random

import torch
from safetensors.torch import load_file

from triune.training.arguments import parse
from triune.training.loop import Loop


CONFIG = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, position: rotary, hidden_dropout_prob: %s}"
STEPS = 10


def write_text(folder):
    """Some documents of made-up words, in paragraphs; beside them the same as JSON lines."""
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefgh", k=words.randint(2, 6))) for _ in range(60)]
    paragraphs = [" ".join(words.choices(vocabulary, k=words.randint(5, 40))) for _ in range(80)]
    file = folder / "words.txt"
    file.write_text("\n\n".join(paragraphs))
    lines = [json.dumps({"text": paragraph}) for paragraph in paragraphs]
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    return file


def words(text, folder, *flags, task="causal_lm", dropout=0.1):
    """Of the command line."""
    given = {
        **{"task": task, "train_file": text, "output_dir": folder, "tokenizer_type": "characters"},
        **{"vocab_size": 40, "config": CONFIG % dropout, "max_seq_length": 16, "validation_split_percentage": 20},
        **{"max_steps": STEPS, "warmup_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        **{"logging_steps": 2, "eval_steps": 4, "save_steps": 3, "fast_fp32": "no"},
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))] + list(flags)


def arguments(*given, **named):
    return parse(words(*given, **named))


def curve(folder):
    """All that was logged, without what a clock says."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name not in ("seconds", "throughput")} for record in records
    ]


def left_behind(folder):
    """Everything of the last checkpoint: weights, moments, averages, and the page without clocks."""
    last = max((folder / "checkpoints").glob("step-*"))
    tensors = {
        f"{file.name}/{name}": value for file in last.glob("*.safetensors") for name, value in load_file(file).items()
    }
    page = json.loads((last / "state.json").read_text())
    page["progress"].pop("seconds")
    return tensors, page["progress"], page["optimizer"]


def assert_same_run(one, other):
    """To the bit."""
    assert curve(one) == curve(other)
    (tensors, *pages), (theirs, *their_pages) = left_behind(one), left_behind(other)
    assert tensors.keys() == theirs.keys() and pages == their_pages
    different = [name for name in tensors if not torch.equal(tensors[name], theirs[name])]
    assert different == []
    for file in ("model.safetensors", "config.json"):
        assert (one / "model" / file).read_bytes() == (other / "model" / file).read_bytes()


class Killed(Exception):
    pass


def killed_at(monkeypatch, step):
    """The run dies in the middle of this step, after the weights have changed."""
    update = Loop.update

    def dying(self, *given):
        result = update(self, *given)
        if self.progress.step == step:
            raise Killed
        return result

    monkeypatch.setattr(Loop, "update", dying)
