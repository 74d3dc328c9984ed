"""The script as a user meets it: what it lists, and one sentence for each mistake, without a traceback."""

import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from script_loading import load_script


ROOT = Path(__file__).resolve().parents[2]
SMALL = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"


@pytest.fixture(scope="module")
def script():
    return load_script("scripts/train.py")


@pytest.fixture(autouse=True)
def in_a_folder(as_found, tmp_path, monkeypatch):
    """With a text, a table, a recipe and a saved model of a small vocabulary."""
    monkeypatch.chdir(tmp_path)
    words = random.Random(0)
    paragraphs = [" ".join(words.choices(string.ascii_letters, k=40)) for _ in range(60)]
    Path("text.txt").write_text("\n\n".join(paragraphs))
    Path("table.csv").write_text("body,kind\n" + "".join(f"row {number},a\n" for number in range(30)))
    Path("empty.txt").write_text("")
    Path("recipe.yaml").write_text("task: causal_lm\ntrain_file: text.txt\nlerning_rate: 1e-3\n")


def message(script, *argv):
    with pytest.raises(SystemExit) as stop:
        script.main(list(argv))
    return str(stop.value)


TEXT = ("--task", "causal_lm", "--config", SMALL, "--vocab_size", "300", "--max_seq_length", "16")
MISTAKES = {
    "a missing file": (("--train_file", "test.txt"), r"train_file='test.txt'.*did you mean 'text.txt'"),
    "an empty file": (("--train_file", "empty.txt"), r"train_file='empty.txt'.* (empty|no text)"),
    "no data": ((), r"no text to train on is named: give --train_file"),
    "a wrong column": (("--train_file", "table.csv"), r"text_column='text'.*'body', 'kind'"),
    "a large batch": (
        ("--train_file", "text.txt", "--per_device_train_batch_size", "10000"),
        r"per_device_train_batch_size=10000 .* = 10000 samples, and the training set has \d+: lower",
    ),
    "an unknown optimiser": (
        ("--train_file", "text.txt", "--optim", "adamww"),
        r"optim='adamww'.*did you mean 'adamw'",
    ),
    "an unknown schedule": (
        ("--train_file", "text.txt", "--lr_scheduler_type", "cosin"),
        r"lr_scheduler_type='cosin'.*did you mean 'cosine'",
    ),
    "a field that the model has not": (
        ("--train_file", "text.txt", "--config", "{hiden_size: 16}"),
        r"hiden_size.*did you mean 'hidden_size'",
    ),
    "an option that is a word": (
        ("--train_file", "text.txt", "--optim_args", "amsgrad"),
        r"optim_args='amsgrad' must be a mapping of names to values",
    ),
    "a model for another task": (
        ("--train_file", "text.txt", "--preset", "vit-mini", "--config", "{}"),
        r"TriuneForCausalLM.*(tokens|patches)",
    ),
    "nothing to freeze": (
        ("--train_file", "text.txt", "--freeze", "encoder"),
        r"freeze='encoder' matches no parameter",
    ),
    "no checkpoint": (
        ("--train_file", "text.txt", "--resume_from_checkpoint", "text"),
        r"resume_from_checkpoint='text' is not a checkpoint",
    ),
    "fp16 on a processor": (("--train_file", "text.txt", "--mixed_precision", "fp16"), r"fp16' needs a GPU"),
    "a model that is none": (
        ("--train_file", "text.txt", "--model_name_or_path", "nowhere", "--tokenizer_type", "bpe"),
        r"model_name_or_path='nowhere'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(mistake, script):
    """That names the flag, the value and what there is."""
    flags, expected = MISTAKES[mistake]
    said = message(script, *TEXT, *flags)
    assert re.search(expected, said), said
    assert said.startswith("error: ") and not Path("runs").exists()


def test_mistakes_in_recipes_and_tasks(script):
    """An unknown key, a recipe that is not there, a task that is none."""
    assert "there is no flag 'lerning_rate'; did you mean 'learning_rate'?" in message(script, "recipe.yaml")
    assert re.search(r"no recipe 'recipe2.yaml'", message(script, "recipe2.yaml"))
    assert re.search(r"task='causal' is not one of .*did you mean 'causal_lm'", message(script, "--task", "causal"))


def test_another_vocabulary_is_refused(script, tmp_path):
    """A saved model and a tokenizer of more tokens: both sizes."""
    run = (*TEXT, "--train_file", "text.txt", "--max_steps", "1", "--warmup_steps", "0", "--output_dir")
    script.main([*run, "first"])
    larger = (*run, "second", "--vocab_size", "320")
    script.main(list(larger))
    flags = ("--model_name_or_path", "first/model", "--tokenizer_name", "second/model")
    own = run[:2] + run[4:]  # without --config
    said = message(script, *own, "third", *flags)
    assert re.search(
        r"vocabulary mismatch: the tokenizer has \d+ tokens, and model_name_or_path='first/model' has", said
    )


def test_the_list_has_all_recipes_and_tasks(script, capsys, monkeypatch):
    """Those in the folder, with their first lines."""
    monkeypatch.chdir(ROOT)
    script.main(["--list"])
    said = capsys.readouterr().out
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"recipes/{recipe.name}" in said
    for task in ("masked_lm", "causal_lm", "image_classification", "sequence_classification"):
        assert task in said


@pytest.mark.slow
def test_the_script_alone():
    """In a process of its own: a sentence on stderr, status 1, no traceback."""
    done = subprocess.run([sys.executable, ROOT / "scripts/train.py", *TEXT], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no text to train on is named")
    assert "Traceback" not in done.stderr


HELP = """
import sys
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, "scripts")
import train
try:
    train.main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code)
print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""


@pytest.mark.parametrize("flag", ["--help", "--max_steps=x"])
def test_help_waits_for_nothing(flag):
    """What takes seconds to import is not imported; nor for a value that is none."""
    done = subprocess.run([sys.executable, "-c", HELP, flag], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    told = done.stdout + done.stderr
    assert ("usage: train.py [recipe.yaml] [--flag value ...]" in told) and (flag == "--help" or "invalid int" in told)
