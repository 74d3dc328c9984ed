"""scripts/convert.py, as it is called: there, back, with another head, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file
from script_loading import load_script


ROOT = Path(__file__).resolve().parents[2]
CONFIG = hf.GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=60, n_positions=20, bos_token_id=1, eos_token_id=2)


def convert(*words):
    return subprocess.run(
        [sys.executable, "scripts/convert.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_there_and_back(tmp_path):
    """A published folder with a tokenizer's file beside it: checked there and back, the weights bit for bit, the file
    carried along; a mistake is a sentence and leaves nothing."""
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(CONFIG).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "merges.txt").write_text("#version: 0.2\n")
    there = convert(tmp_path / "theirs", tmp_path / "own", "--check")
    assert there.returncode == 0, there.stderr
    assert "gpt2 -> TriuneForCausalLM" in there.stdout and "random inputs: largest difference" in there.stdout
    assert json.loads((tmp_path / "own" / "config.json").read_text())["model_type"] == "triune"
    back = convert(tmp_path / "own", tmp_path / "back", "--check")
    assert back.returncode == 0, back.stderr
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all((tmp_path / place / "merges.txt").is_file() for place in ("own", "back"))
    wrong = convert(tmp_path / "own", tmp_path / "bert", "--to", "bert")
    assert wrong.returncode == 1 and "error: this model is not one of bert" in wrong.stderr
    assert not (tmp_path / "bert").exists()


def test_a_file_of_an_author(tmp_path):
    """Meta's MAE, without a configuration: what transformers makes of ours in today's layout is what is compared."""
    script = load_script("benchmarks/conversion.py")
    fields = {**script.MAE, "num_attention_heads": 1, "hidden_size": 64, "decoder_num_attention_heads": 16}
    fields |= {"decoder_hidden_size": 32, "intermediate_size": 256, "layer_norm_eps": 1e-6}
    theirs = script.randomised(hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**fields)))
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = script.timm_vit(load_file(tmp_path / "theirs" / "model.safetensors"))
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    there = convert(tmp_path / "mae.pth", tmp_path / "own", "--check")
    assert there.returncode == 0, there.stderr
    assert "vit_mae -> TriuneForMaskedImageModeling: 62 tensors, all of them accounted for" in there.stdout
    assert "random inputs: largest difference" in there.stdout
    back = convert(tmp_path / "own", tmp_path / "back", "--check")
    assert back.returncode == 0, back.stderr
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
