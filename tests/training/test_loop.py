"""The loop against itself: interrupted and uninterrupted, one process and two, one micro-batch and several. Every run
here goes through `train`, as the script does, on a text file and with a small model."""

import os
import random
import shutil
import signal
from functools import partial

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate_state import reset_accelerate
from safetensors.torch import load_file
from short_runs import STEPS, Killed, arguments, assert_same_run, curve, killed_at, write_text
from torch.distributed.tensor import DTensor
from two_processes import run_in_two

from triune.modeling import TriuneForCausalLM
from triune.training import leaving, run
from triune.training.loop import TO_BE_CONTINUED, Interrupted, Loop


pytestmark = pytest.mark.usefixtures("as_found", "no_figures")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


VARIANTS = {
    "causal": ("--optim", "muon", "--ema_decay", "0.9"),
    "masked, accumulated": ("--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "2"),
    "workers": ("--dataloader_num_workers", "2", "--gradient_accumulation_steps", "2"),
    "streaming": ("--streaming", "--dataloader_num_workers", "2", "--max_eval_samples", "4"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_equals_an_uninterrupted_one(variant, text, tmp_path, monkeypatch):
    """Killed at random steps and started again, against left alone: curve, weights and optimiser, bit for bit; with
    dropout, accumulation, evaluations between, and workers."""
    task = "masked_lm" if variant.startswith("masked") else "causal_lm"
    text = text.with_suffix(".jsonl") if variant == "streaming" else text
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run.train(arguments(text, straight, *VARIANTS[variant], task=task))
    deaths = sorted(random.Random(variant).sample(range(STEPS), 2))
    for step in deaths:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, step)
            run.train(arguments(text, broken, *VARIANTS[variant], task=task))
    run.train(arguments(text, broken, *VARIANTS[variant], task=task))
    assert_same_run(straight, broken)


@pytest.mark.slow
def test_interrupted_at_five_random_steps(text, tmp_path, monkeypatch):
    """The same with five deaths in one run."""
    flags = ("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2", "--ema_decay", "0.9")
    run.train(arguments(text, tmp_path / "straight", *flags))
    for step in sorted(random.Random(5).sample(range(STEPS), 5)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, step)
            run.train(arguments(text, tmp_path / "broken", *flags))
    run.train(arguments(text, tmp_path / "broken", *flags))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_a_signal_ends_a_run_after_a_checkpoint(text, tmp_path, monkeypatch):
    """SIGTERM in step 5: the checkpoint is of a step that no multiple of save_steps is, the status says that it goes
    on, and the rest equals a run left alone."""
    update = Loop.update

    def interrupted(self, *given):
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *given)

    run.train(arguments(text, tmp_path / "straight"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(Loop, "update", interrupted)
        run.train(arguments(text, tmp_path / "broken"))
    assert stop.value.code == TO_BE_CONTINUED
    assert sorted(path.name for path in (tmp_path / "broken/checkpoints").glob("step-*"))[-1] == "step-00000005"
    run.train(arguments(text, tmp_path / "broken"))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


# ---------------------------------------------------------------------------------------------------------------------
# However a step is dealt


def final_weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def losses(folder):
    return torch.tensor([record["loss"] for record in curve(folder)], dtype=torch.float64)


def largest_difference(one, other):
    """Of the curve, relative, and of the final weights."""
    mine, theirs = final_weights(one), final_weights(other)
    weights = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    return float(((losses(one) - losses(other)).abs() / losses(one)).max()), weights


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm"])
def test_accumulation_changes_nothing(task, text, tmp_path):
    """A step of 8 samples in 1, 2 and 4 micro-batches, whose counts of labels differ: the same curve and weights to
    1e-6; plain SGD, so that a gradient's error is not blown up."""
    for parts in (1, 2, 4):
        flags = ("--per_device_train_batch_size", str(8 // parts), "--gradient_accumulation_steps", str(parts))
        flags += ("--optim", "sgd", "--max_grad_norm", "0", "--mlm_probability", "0.4")
        run.train(arguments(text, tmp_path / str(parts), *flags, task=task, dropout=0.0))
    for parts in (2, 4):
        curve_difference, weight_difference = largest_difference(tmp_path / "1", tmp_path / str(parts))
        assert curve_difference < 1e-6 and weight_difference < 1e-6
    assert len(set(losses(tmp_path / "1").tolist())) > 3  # it has learned something


def train_as(rank, text, folder, kind, flags):
    """What each of two processes does."""
    leaving.figures.available = lambda: False
    if kind == "fsdp":
        run.make_accelerator = partial(sharding, run.make_accelerator)
    task = "masked_lm"
    run.train(arguments(text, folder, *flags, task=task, dropout=0.0))


def sharding(make, settings, recorded=None):
    """accelerate has FSDP for accelerators only and falls back to DDP without a word: here it is told."""
    accelerator = make(settings)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=["TransformerLayer"])
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    prepare = accelerator.prepare

    def prepare_and_look(*things):
        prepared = prepare(*things)
        parameters = list(prepared[0].parameters())
        assert parameters and all(isinstance(parameter, DTensor) for parameter in parameters)
        return prepared

    accelerator.prepare = prepare_and_look
    return accelerator


TWO = {"ddp": (), "fsdp": (), "ddp, accumulated": ("--gradient_accumulation_steps", "2")}


@pytest.mark.parametrize("kind", TWO)
def test_two_processes_train_as_one(kind, text, tmp_path):
    """A step of 4 samples by one process, and dealt to two by DDP and by FSDP2: the same curve and weights. Clipping
    and AdamW are in it, and evaluations with an uneven last batch."""
    accumulation = 2 if "accumulated" in kind else 1
    flags = ("--per_device_eval_batch_size", "3", "--gradient_accumulation_steps", str(accumulation))
    run.train(arguments(text, tmp_path / "one", *flags, task="masked_lm", dropout=0.0))
    two = ("--per_device_train_batch_size", "2", *flags)
    run_in_two(partial(train_as, text=text, folder=tmp_path / "two", kind=kind, flags=two), tmp_path)
    curve_difference, weight_difference = largest_difference(tmp_path / "one", tmp_path / "two")
    assert curve_difference < 1e-5 and weight_difference < 1e-5


def train_and_die(rank, text, folder, flags, death, kind):
    leaving.figures.available = lambda: False
    if kind == "fsdp":
        run.make_accelerator = partial(sharding, run.make_accelerator)
    if death is not None:
        killed_at(pytest.MonkeyPatch(), death)
    try:
        run.train(arguments(text, folder, *flags))
    except Killed:
        pass


@pytest.mark.slow  # `tests/faults/test_processes.py` kills real processes
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_interrupted_run_of_two_processes(kind, text, tmp_path):
    """Killed and started again, against left alone, with dropout, accumulation and averages: bit for bit."""
    flags = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--ema_decay", "0.9")
    for name, death in (("straight", None), ("broken", 7), ("broken", None)):
        work = partial(train_and_die, text=text, folder=tmp_path / name, flags=flags, death=death, kind=kind)
        (tmp_path / f"{name}{death}").mkdir()
        run_in_two(work, tmp_path / f"{name}{death}")
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


# ---------------------------------------------------------------------------------------------------------------------
# What a run refuses, and what it keeps


def test_a_changed_run_is_not_continued(text, tmp_path):
    """The message has each difference, before and after; what only says where and how often is no difference."""
    run.train(arguments(text, tmp_path / "run", "--max_steps", "4"))
    changed = ("--max_steps", "4", "--seed", "1", "--weight_decay", "0.5")
    with pytest.raises(ValueError, match=r"other settings:\n  seed: 0 -> 1\n  weight_decay: 0.01 -> 0.5"):
        run.train(arguments(text, tmp_path / "run", *changed))
    run.train(arguments(text, tmp_path / "run", "--max_steps", "4", "--logging_steps", "1"))
    dealt = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    run.train(arguments(text, tmp_path / "run", "--max_steps", "4", *dealt))
    with pytest.raises(ValueError, match="samples of a step: 4 -> 2"):
        run.train(arguments(text, tmp_path / "run", "--max_steps", "4", "--per_device_train_batch_size", "2"))


def test_starting_over_keeps_the_old_run(text, tmp_path):
    """Under another name."""
    for _ in range(2):
        run.train(arguments(text, tmp_path / "run", "--max_steps", "4", "--resume_from_checkpoint", "no"))
    assert (tmp_path / "run.1" / "model" / "model.safetensors").is_file()
    assert curve(tmp_path / "run") == curve(tmp_path / "run.1")


def test_a_finished_run_is_left_alone(text, tmp_path, capsys):
    """The same command again, after the last step and after an early stop: nothing is trained, evaluated or written,
    the metrics are those of the first time."""
    for name, flags in {"all": ("--max_steps", "4"), "early": ("--max_train_tokens", "200")}.items():
        first = run.train(arguments(text, tmp_path / name, *flags))
        before = (tmp_path / name / "metrics.jsonl").read_text()
        again = run.train(arguments(text, tmp_path / name, *flags))
        assert again == pytest.approx(first)
        assert (tmp_path / name / "metrics.jsonl").read_text() == before
        assert "this run has come to its end" in capsys.readouterr().out


def test_a_run_that_dies_at_its_early_end_stays_there(text, tmp_path, monkeypatch):
    """Killed between its last checkpoint and its last evaluation: started again, it trains no step more."""
    flags = ("--max_train_tokens", "384", "--save_steps", "1")
    run.train(arguments(text, tmp_path / "straight", *flags))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Loop, "finish", lambda self, reason: (_ for _ in ()).throw(Killed))
        run.train(arguments(text, tmp_path / "broken", *flags))
    run.train(arguments(text, tmp_path / "broken", *flags))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_going_on_from_another_folder(text, tmp_path, monkeypatch):
    """From a checkpoint elsewhere, in a folder that holds another run: that one is set aside, and this one equals the
    run left alone, records and best weights included."""
    flags = ("--eval_steps", "1")
    run.train(arguments(text, tmp_path / "straight", *flags))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 7)
        run.train(arguments(text, tmp_path / "elsewhere", *flags))
    run.train(arguments(text, tmp_path / "here", "--seed", "1", *flags))
    checkpoint = max((tmp_path / "elsewhere/checkpoints").glob("step-*"))
    run.train(arguments(text, tmp_path / "here", *flags, "--resume_from_checkpoint", str(checkpoint)))
    assert_same_run(tmp_path / "straight", tmp_path / "here")
    assert (tmp_path / "here.1" / "model").is_dir()


def test_another_precision_is_another_run(text, tmp_path, monkeypatch):
    """Even where the launcher and not a flag asks for it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    run.train(arguments(text, tmp_path / "run", "--max_steps", "4"))
    reset_accelerate()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision: 'no' -> 'bf16'"):
        run.train(arguments(text, tmp_path / "run", "--max_steps", "4"))


def test_weights_saved_in_half_precision_are_trained_in_full(text, tmp_path):
    """From a model folder of bfloat16: float32 comes out, and the other way of naming a model is refused beside it."""
    run.train(arguments(text, tmp_path / "first", "--max_steps", "2"))
    model = TriuneForCausalLM.from_pretrained(tmp_path / "first/model", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    shutil.copy(tmp_path / "first/model/tokenizer.json", tmp_path / "half")
    shutil.copy(tmp_path / "first/model/tokenizer_config.json", tmp_path / "half")
    given = arguments(text, tmp_path / "second", "--max_steps", "2", "--model_name_or_path", str(tmp_path / "half"))
    with pytest.raises(ValueError, match="brings its own, and config="):
        run.train(given)
    given.model.config = given.model.tokenizer_type = None
    run.train(given)
    assert {value.dtype for value in final_weights(tmp_path / "second").values()} == {torch.float32}


def test_a_batch_larger_than_the_data_is_refused(text, tmp_path):
    """With the flags, their product, and what there is."""
    with pytest.raises(ValueError, match=r"per_device_train_batch_size=5000 .* = 5000 samples, .* training set has"):
        run.train(arguments(text, tmp_path / "run", "--per_device_train_batch_size", "5000"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(text, tmp_path, capsys):
    """No folder; the plan and its cost on the console."""
    run.train(arguments(text, tmp_path / "run", "--dry_run"))
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    for word in ("FLOP", "parameters", "memory", "dry run"):
        assert word in said


def test_budgets_stop_a_run(text, tmp_path):
    """By tokens at the step that reaches them, by time at once, by patience after so many evaluations."""
    run.train(arguments(text, tmp_path / "tokens", "--max_train_tokens", "200"))  # 64 in a step
    assert curve(tmp_path / "tokens")[-1]["step"] == 4
    run.train(arguments(text, tmp_path / "time", "--max_minutes", "1e-9"))
    assert curve(tmp_path / "time")[-1]["step"] == 1
    patience = ("--early_stopping_patience", "2", "--eval_steps", "1", "--learning_rate", "0")
    run.train(arguments(text, tmp_path / "patience", *patience))
    assert curve(tmp_path / "patience")[-1]["step"] == 3


def test_the_best_weights_or_the_last(text, tmp_path):
    """With a learning rate that ruins the model the best evaluation is an early one: the model folder has its weights,
    or the last ones, as it is told."""
    flags = ("--learning_rate", "3", "--lr_scheduler_type", "constant", "--eval_steps", "1", "--max_grad_norm", "0")
    run.train(arguments(text, tmp_path / "best", *flags))
    run.train(arguments(text, tmp_path / "last", *flags, "--no_load_best_model_at_end"))
    quick = [record["loss"] for record in curve(tmp_path / "best") if record["kind"] == "eval"][1:-1]
    assert quick.index(min(quick)) < len(quick) - 1
    best = load_file(next((tmp_path / "best/checkpoints").glob("best-*")) / "model.safetensors")
    for name, value in final_weights(tmp_path / "best").items():
        assert torch.equal(value, best[name])
    last = load_file(max((tmp_path / "last/checkpoints").glob("step-*")) / "model.safetensors")
    for name, value in final_weights(tmp_path / "last").items():
        assert torch.equal(value, last[name])


def test_a_gradient_that_is_never_finite_is_the_end(text, tmp_path, monkeypatch):
    """Steps without a finite gradient change nothing and are counted; so many in a row are an error with advice."""
    from triune.training.tasks.task import Task

    monkeypatch.setattr(Task, "loss", lambda self, model, batch, count: model(**batch).loss * float("nan"))
    monkeypatch.setattr("triune.training.loop.MOST_SKIPPED", 3)
    with pytest.raises(ValueError, match=r"not finite in 3 steps in a row, up to step 2: lower learning_rate=0.01"):
        run.train(arguments(text, tmp_path / "run"))
