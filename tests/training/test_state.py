"""Checkpoints: a run that stops and goes on equals one that does not, to the bit; half a checkpoint is none."""

import json

import pytest
import torch

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM
from triune.training.state import checkpoints, differences, load_checkpoint, save_checkpoint


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=1e-2),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


def make(kind):
    torch.manual_seed(0)
    config = TriuneConfig(
        attention="causal", vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = TriuneForCausalLM(config)
    decay = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return model, OPTIMIZERS[kind]([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])


def train(model, optimizer, first, last):
    for step in range(first, last):
        ids = torch.randint(0, 30, (4, 8), generator=torch.Generator().manual_seed(step))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors_of(optimizer):
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, entries in state.items() for name, value in entries.items()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    """Weights and optimiser state after 5 + 5 steps with a checkpoint between, against 10, bit for bit."""
    straight, straight_optimizer = make(kind)
    train(straight, straight_optimizer, 0, 10)
    model, optimizer = make(kind)
    train(model, optimizer, 0, 5)
    folder = save_checkpoint(tmp_path, 5, model, optimizer, {"note": "half way"})
    resumed, resumed_optimizer = make(kind)
    page = load_checkpoint(folder, resumed, resumed_optimizer)
    assert (page["step"], page["note"]) == (5, "half way")
    train(resumed, resumed_optimizer, 5, 10)
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    theirs = tensors_of(resumed_optimizer)
    for name, value in tensors_of(straight_optimizer).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    assert resumed.lm_head.weight is resumed.model.embed_tokens.weight


def test_newest_and_oldest(tmp_path):
    """By step and not by clock; the newest two are kept; a partial folder is no checkpoint."""
    model, optimizer = make("adamw")
    train(model, optimizer, 0, 1)
    for step in (100, 20, 3):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=3)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000003", "step-00000020", "step-00000100"]
    (tmp_path / "step-00009999").mkdir()
    assert checkpoints(tmp_path)[-1].name == "step-00000100"
    save_checkpoint(tmp_path, 200, model, optimizer, {}, keep=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000100", "step-00000200"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """An error while writing: the checkpoint of the same step and those before stay, and none is half-written."""
    model, optimizer = make("adamw")
    train(model, optimizer, 0, 1)
    save_checkpoint(tmp_path, 1, model, optimizer, {"value": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("triune.training.state.json.dumps", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, step, model, optimizer, {"value": 2})
    monkeypatch.undo()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(checkpoints(tmp_path)[0], model, optimizer)["value"] == 1


def test_files_are_plain_and_readable_by_others(tmp_path):
    """safetensors and JSON only, mode 644."""
    model, optimizer = make("adamw")
    train(model, optimizer, 0, 1)
    folder = save_checkpoint(tmp_path, 1, model, optimizer, {})
    assert sorted(file.name for file in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    json.loads((folder / "state.json").read_text())


def test_another_model_is_refused(tmp_path):
    """The names that are missing and those that are unexpected."""
    model, optimizer = make("adamw")
    train(model, optimizer, 0, 1)
    folder = save_checkpoint(tmp_path, 1, model, optimizer, {})
    config = TriuneConfig(
        attention="causal", vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    deeper = TriuneForCausalLM(config)
    with pytest.raises(ValueError, match=r"missing \['model.layers.1.attn_norm.bias'"):
        load_checkpoint(folder, deeper, torch.optim.AdamW(deeper.parameters()))
    with pytest.raises(ValueError, match="has 2 parameter groups and this run 1"):
        load_checkpoint(folder, model, torch.optim.AdamW(model.parameters()))


def test_differences_between_runs():
    """What changed, what came and what went, a line each; what may change is left out."""
    saved, now = {"seed": 0, "lr": 0.1, "old": 1, "logging_steps": 5}, {"seed": 0, "lr": 0.2, "logging_steps": 9}
    assert differences(saved, now, frozenset({"logging_steps"})) == ["lr: 0.1 -> 0.2", "old: 1 -> None"]
