"""Runs of tokens that a model has copied: against Python's own comparison of slices; and where they are told."""

import json
import random

import pytest
import torch

from triune.modeling import TriuneForCausalLM
from triune.training import run
from triune.training.arguments import parse
from triune.training.memorisation import longest_copied_run
from triune.training.report import PREVIEW


def by_slices(written, text):
    """The longest slice of one that is a slice of the other."""
    return max(
        (
            length
            for start in range(len(written))
            for length in range(1, len(written) - start + 1)
            for place in range(len(text) - length + 1)
            if written[start : start + length] == text[place : place + length]
        ),
        default=0,
    )


@pytest.mark.parametrize("seed", range(8))
def test_runs_are_those_of_slices(seed):
    """Random tokens of three kinds, where runs are long and overlap."""
    draw = random.Random(seed)
    text, written = draw.choices(range(3), k=40), draw.choices(range(4), k=12)
    assert longest_copied_run(written, torch.tensor(text, dtype=torch.int32)) == by_slices(written, text)


def test_ends_and_nothing():
    """A run at either end, all of it, and none."""
    text = torch.tensor([7, 8, 9, 1, 2])
    for written, run_of in (([7, 8], 2), ([5, 1, 2], 2), ([7, 8, 9, 1, 2], 5), ([3], 0), ([], 0)):
        assert longest_copied_run(written, text) == run_of
    assert longest_copied_run([2, 7], text) == 1  # the end and the beginning are no run


def test_previews_are_kept(tmp_path, monkeypatch, as_found, no_figures):
    """What a model writes at each evaluation stands in the records, with step and loss of that evaluation; of one that
    always says the same token, as much of it is copied as the text has of that token in a row."""
    words = random.Random(0)
    paragraphs = [" ".join(words.choices(["ab", "cde", "f"], k=30)) for _ in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join([*paragraphs, "a" * 9]))
    beside = TriuneForCausalLM.forward

    def always_a(self, *given, **named):
        """Whatever is read, `a` comes next."""
        output = beside(self, *given, **named)
        if not self.training and named.get("labels") is None:
            output.logits = torch.zeros_like(output.logits)
            output.logits[..., letter] = 1e4
        return output

    monkeypatch.setattr(TriuneForCausalLM, "forward", always_a)
    letter = 5 + sorted(set("\n abcdef")).index("a")  # behind the special tokens, in order
    sizes = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    flags = {"task": "causal_lm", "train_file": tmp_path / "text.txt", "tokenizer_type": "characters", "max_steps": 4}
    flags |= {
        "config": sizes,
        "max_seq_length": 16,
        "eval_steps": 2,
        "warmup_steps": 0,
        "output_dir": tmp_path / "run",
    }
    flags |= {"per_device_train_batch_size": 4, "fast_fp32": "no", "seed": 3}
    run.train(parse([word for name, value in flags.items() for word in (f"--{name}", str(value))]))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["kind"] == PREVIEW]
    assert [record["step"] for record in kept] == [0, 2, 4]
    for record in kept:
        told = [one for one in records if one["kind"] == "eval" and one["step"] == record["step"]]
        assert record["loss"] in [one["loss"] for one in told]
        assert len(record["lines"]) >= 1
        for line in record["lines"]:
            assert "| aaaaaaaa (8 of 8 tokens in a row stand in the training text)" in line
    assert PREVIEW not in (tmp_path / "run" / "metrics.csv").read_text()
