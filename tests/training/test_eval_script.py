"""`scripts/eval.py` against the runs that trained its models: the last numbers, to the digit; and which data is
measured, what is written, what a mistake is told."""

import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate_state import reset_accelerate
from script_loading import load_script
from two_processes import run_in_two

from triune.training import run as training
from triune.training.arguments import parse
from triune.training.evaluation import OF_SOURCE, check_classes, judged
from triune.training.prediction import load_config
from triune.training.report import read


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "eval.py"
SMALL = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
TASKS = ("causal_lm", "masked_lm", "image_classification", "sequence_classification")

pytestmark = pytest.mark.usefixtures("as_found", "no_figures")
script = load_script("scripts/eval.py")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Documents of made-up words, and rows of two classes that differ in their words."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    paragraphs = [" ".join(draw.choices(vocabulary, k=draw.randint(5, 40))) for _ in range(60)]
    (folder / "words.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    rows = [" ".join(draw.choices(vocabulary[:30] if row % 2 else vocabulary[30:], k=12)) for row in range(60)]
    table = [f"{text},{('wild', 'calm')[row % 2]}" for row, text in enumerate(rows)]
    (folder / "classes.csv").write_text("\n".join(["text,label", *table]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    """A function that trains for a task, once: its run folder. The weights that are saved are those of the best
    evaluation or an average, and the best is not the last step."""
    folder, done = tmp_path_factory.mktemp("runs"), {}
    data = {
        "causal_lm": (
            "--train_file",
            str(words / "words.txt"),
            "--tokenizer_type",
            "characters",
            "--ema_decay",
            "0.5",
        ),
        "masked_lm": ("--train_file", str(words / "words.txt"), "--mixed_precision", "bf16"),
        "sequence_classification": ("--train_file", str(words / "classes.csv")),
        "image_classification": ("--dataset_name", "digits", "--max_train_samples", "100", "--max_eval_samples", "70"),
    }

    def trained(task):
        if task not in done:
            flags = ["--task", task, "--output_dir", str(folder / task), *data[task], "--config", SMALL]
            flags += ["--vocab_size", "80", "--max_seq_length", "24", "--validation_split_percentage", "20"]
            flags += ["--max_steps", "6", "--eval_steps", "2", "--warmup_steps", "1", "--learning_rate", "1e-2"]
            flags += ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "7"]
            training.train(parse([*flags, "--fast_fp32", "no"]))
            reset_accelerate()
            done[task] = folder / task
        return done[task]

    return trained


def last_metrics(folder):
    record = read(folder)[-1]
    assert record["full"]
    return {name: value for name, value in record.items() if name not in ("kind", "step", "seconds", "full")}


def evaluated(capsys, *argv):
    """What `--json` prints, which has to be all."""
    capsys.readouterr()
    script.main([*map(str, argv), "--json"])
    return json.loads(capsys.readouterr().out)


def told(*argv):
    with pytest.raises(SystemExit) as stop:
        script.main([str(word) for word in argv])
    assert str(stop.value).startswith("error: ")
    return str(stop.value)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("task", TASKS)
def test_the_last_numbers_of_a_run_come_out_again(task, runs, capsys):
    """A model folder alone, against the last line of the metrics of the run that it lies in: equal, not nearly."""
    folder = runs(task)
    found = evaluated(capsys, folder / "model")
    assert found["metrics"] == last_metrics(folder)
    assert found["task"] == task
    page = json.loads((folder / "environment.json").read_text())
    assert found["data"]["fingerprint"] == page["data"]
    assert found["baselines"] == page["baselines"]


def test_a_model_that_was_moved(runs, words, tmp_path, capsys):
    """Away from its run a model needs its data named, by flags or by a recipe: then the same numbers, with the model's
    own length. Without, it is an error that says what to give."""
    folder = runs("causal_lm")
    shutil.copytree(folder / "model", tmp_path / "model")
    assert "no text to train on is named: give --train_file" in told(tmp_path / "model")
    same = ("--train_file", words / "words.txt", "--validation_split_percentage", "20")
    batch = ("--per_device_eval_batch_size", "7")
    assert evaluated(capsys, tmp_path / "model", *same, *batch)["metrics"] == last_metrics(folder)
    recipe = {"preset": "gpt2-mini", "train_file": str(words / "words.txt"), "validation_split_percentage": 20}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "max_steps": 3}))
    found = evaluated(capsys, tmp_path / "model", tmp_path / "recipe.yaml", *batch)
    assert found["metrics"] == last_metrics(folder)


def test_other_data_gives_other_numbers(runs, words, tmp_path, capsys):
    """The held-out side replaced by a file of one repeated word: bits per character of that file, whose characters are
    counted here."""
    folder = runs("causal_lm")
    (tmp_path / "other.txt").write_text("abab " * 50)
    found = evaluated(capsys, folder, "--validation_file", tmp_path / "other.txt")
    assert found["metrics"]["loss"] != last_metrics(folder)["loss"]
    assert "held out 250 in 1" in found["data"]["description"][0]
    bits = found["metrics"]["loss"] * found["answers"] / torch.tensor(2.0).log().item() / 250
    assert found["metrics"]["bits_per_character"] == pytest.approx(bits, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Which data


def test_flags_beat_the_recipe_beats_the_run(runs, tmp_path):
    """A field from each; what a recipe says of a model or of learning is not looked at."""
    folder = runs("masked_lm")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("eval_mlm_probability: 0.3\nmax_seq_length: 20\ntask: causal_lm\nlearning_rate: 7\npreset: x\n")
    model = str(folder / "model")
    made = judged(model, load_config(model), str(recipe), ["--max_seq_length", "16"])
    assert (made.data.max_seq_length, made.data.eval_mlm_probability) == (16, 0.3)
    assert (made.training.per_device_eval_batch_size, made.training.mixed_precision) == (7, "bf16")
    page = folder / "environment.json"
    page.write_text(page.read_text().replace('"precision": "bf16"', '"precision": "no"'))
    assert judged(model, load_config(model), None, []).training.mixed_precision == "no"
    assert judged(model, load_config(model), None, ["--mixed_precision=bf16"]).training.mixed_precision == "bf16"
    page.write_text(page.read_text().replace('"precision": "no"', '"precision": "bf16"'))
    assert (made.model.task, made.model.preset, made.model.model_name_or_path) == (None, None, model)
    assert made.training.learning_rate != 7


def test_another_source_takes_nothing_from_the_former(runs, tmp_path, words):
    """Everything that the run said of its source is at its default when a flag names another source, and stays when it
    only replaces the held-out side."""
    folder = runs("image_classification")
    model, defaults = str(folder / "model"), parse([]).data
    config = load_config(model)
    for flags, kept in ((["--train_dir", "images"], False), ([], True)):
        made = judged(model, config, None, flags).data
        assert (made.max_eval_samples == 70) is kept and (made.dataset_name == "digits") is kept
        changed = {name for name in OF_SOURCE if getattr(made, name) != getattr(defaults, name)}
        assert kept or changed == {"train_dir"}
    model = str(runs("causal_lm") / "model")
    made = judged(model, load_config(model), None, ["--validation_file=other.txt"]).data
    assert (made.train_file, made.validation_file) == (str(words / "words.txt"), "other.txt")


def test_changed_data_is_told(runs, words, tmp_path, capsys):
    """The run's own file with a word more than when it was trained on: a warning with both fingerprints; the same for
    other data would be noise."""
    shutil.copytree(runs("sequence_classification"), tmp_path / "run")
    file = tmp_path / "classes.csv"
    recorded = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    (tmp_path / "run/run.yaml").write_text(yaml.safe_dump({**recorded, "train_file": str(file)}))
    file.write_text((words / "classes.csv").read_text() + "\nsome more words,calm")
    script.main([str(tmp_path / "run")])
    assert "the data has changed since the model was trained: sha256" in capsys.readouterr().out
    script.main([str(tmp_path / "run"), "--train_file", str(words / "classes.csv")])
    assert "has changed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["calm", "wlid"], "'wlid' is none of the model's; did you mean 'wild'?"),
        (["wild", "calm"], "they are in another order"),
        (["calm"], "it lacks 'wild'"),
        (["calm", "wild", "odd"], "'odd' is none of the model's"),
    ],
)
def test_classes_have_to_be_the_models(names, why):
    """Misspelt, in another order, too few and too many, against calm and wild."""
    task = SimpleNamespace(config_fields=lambda: {"id2label": dict(enumerate(names))})
    with pytest.raises(ValueError, match="the classes of the data are not the model's") as caught:
        check_classes(task, SimpleNamespace(id2label={0: "calm", 1: "wild"}))
    assert why in str(caught.value)


def test_classes_that_fit():
    """The same names; a model that has none of its own; a task without classes."""
    two = SimpleNamespace(config_fields=lambda: {"id2label": {0: "calm", 1: "wild"}})
    check_classes(two, SimpleNamespace(id2label={0: "calm", 1: "wild"}))
    check_classes(two, SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}))
    check_classes(SimpleNamespace(config_fields=dict), SimpleNamespace(id2label={0: "calm"}))
    with pytest.raises(ValueError, match="not the model's"):
        check_classes(two, SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}))


# ---------------------------------------------------------------------------------------------------------------------
# What is shown, written and refused


def test_what_people_read_and_what_is_written(runs, tmp_path, capsys):
    """The end box holds the accuracy of the file, beside its baselines, below a preview of four texts; the file holds
    what it takes to know what was measured."""
    file = tmp_path / "new" / "metrics.json"
    script.main([str(runs("sequence_classification")), "--output_file", str(file)])
    shown, found = capsys.readouterr().out, json.loads(file.read_text())
    assert f"accuracy  {found['metrics']['accuracy']:.1%}  (majority class 50.0%" in shown
    assert sum(f"{name} " in line and "%" in line for line in shown.splitlines() for name in ("calm", "wild")) >= 4
    assert found["answers"] == 12  # a fifth of 60
    assert found["versions"]["torch"] == torch.__version__
    assert found["arguments"]["max_seq_length"] == 24 and "learning_rate" not in found["arguments"]


def test_mistakes_are_told(runs, tmp_path, words):
    """Each in a line: flags of learning, too many words, a task that is none, a side without its partner, classes of
    other data, a folder for a file, a model without its processor."""
    folder = runs("image_classification")
    assert "there is no flag --learning_rate in an evaluation" in told(folder, "--learning_rate", "1")
    assert "--max_eval_sample in an evaluation; did you mean 'max_eval_samples'?" in told(
        folder, "--max_eval_sample=1"
    )
    assert "validation_dir goes with --train_dir" in told(folder, "--validation_dir", "images")
    assert "did you mean 'image_classification'?" in told(folder, "--task", "image_clasification")
    assert "is a folder: name a file in it" in told(folder, "--output_file", tmp_path)
    assert "no recipe 'none.yaml'" in told(folder, "none.yaml")
    assert "'A' is none of the model's" in told(folder, "--dataset_name", "letters")
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model/preprocessor_config.json").unlink()
    assert "holds no image processor" in told(tmp_path / "model", "--dataset_name", "digits")
    with pytest.raises(SystemExit) as stop:  # argparse's own way
        script.main(["one", "two.yaml", "three"])
    assert stop.value.code == 2


def test_as_a_command(runs):
    """In a process of its own: the run's numbers as JSON on stdout, and not a word on stderr."""
    folder = runs("causal_lm")
    command = [sys.executable, str(SCRIPT), str(folder / "model"), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["metrics"] == last_metrics(folder)


def evaluate_as(rank, argv):
    script.main(argv)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(runs, tmp_path):
    """70 images dealt to two processes by sevens, against the run's numbers: each image counts once. One file."""
    folder = runs("image_classification")
    run_in_two(partial(evaluate_as, argv=[str(folder), "--output_file", str(tmp_path / "two.json")]), tmp_path)
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["answers"] == 70
    assert found["metrics"] == pytest.approx(last_metrics(folder), rel=1e-6)
