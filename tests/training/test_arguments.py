"""Recipes and flags: precedence, and what an unknown or ill-typed one is told."""

import pytest

from triune.training.arguments import parse


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return str(file)

    return write


def message(argv):
    with pytest.raises(ValueError) as caught:
        parse(argv)
    return str(caught.value)


def test_flag_beats_recipe_beats_default(recipe):
    """One number from each: the default, the recipe's, the flag's."""
    path = recipe("task: masked_lm\nlearning_rate: 2e-3\nmax_steps: 70\n")
    arguments = parse([path, "--max_steps", "9", "--mixed_precision=bf16"])
    assert arguments.training.learning_rate == 2e-3  # YAML alone would read 2e-3 as a word
    assert (arguments.training.max_steps, arguments.training.mixed_precision) == (9, "bf16")
    assert (arguments.training.logging_steps, arguments.model.task) == (50, "masked_lm")
    assert [parse(["--max_steps", steps]).training.warmup_steps for steps in ("9", "90", "9000")] == [0, 9, 100]
    assert arguments.training.output_dir == "runs/mine"
    assert parse([]).training.output_dir == "runs/run"


def test_everything_is_written_down(recipe):
    """`as_dict` holds every flag once, and reading it back as a recipe gives the same arguments."""
    import yaml

    first = parse([recipe("preset: bert-mini\nconfig: {hidden_size: 64, position: rotary}\n"), "--seed", "3"])
    again = parse([recipe(yaml.safe_dump(first.as_dict()))])
    assert again.as_dict() == first.as_dict()
    assert yaml.safe_load(first.model.config) == {"hidden_size": 64, "position": "rotary"}


def test_flags_are_not_guessed(recipe):
    """A prefix of a flag is no flag; a typo is answered with the nearest name, in a flag and in a recipe."""
    assert "there is no flag --learning_rat; did you mean 'learning_rate'?" in message(["--learning_rat", "1"])
    assert "there is no flag --max_step; did you mean 'max_steps'?" in message(["--max_step=1"])
    assert "there is no flag 'lerning_rate'; did you mean 'learning_rate'?" in message([recipe("lerning_rate: 1\n")])


def test_recipe_that_is_none(recipe, tmp_path, monkeypatch):
    """A missing file lists the recipes there are; a file that is a list, or has a word for a number, says so."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bert.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "no recipe 'recipes/bret.yaml'; did you mean 'recipes/bert.yaml'?" in message(["recipes/bret.yaml"])
    assert "a recipe is a mapping of flags to values, got list" in message([recipe("- a\n- b\n")])
    assert "max_steps='many' in the recipe is a str, and the flag wants int" in message([recipe("max_steps: many\n")])


def test_wrong_value_on_the_command_line(capsys):
    """argparse names the flag and the value."""
    with pytest.raises(SystemExit):
        parse(["--max_steps", "many"])
    error = capsys.readouterr().err
    assert "--max_steps" in error and "invalid int value: 'many'" in error


def test_dashes_are_underscores():
    """`--max-steps` is `--max_steps`, as in Hugging Face's parser."""
    assert parse(["--max-steps", "7"]).training.max_steps == 7


def test_a_command_is_told_without_what_is_only_true_here(tmp_path):
    """What is shown to the world is what was typed, but for where the run lies and the folders of files; the recipe
    that differs from the defaults holds what was set and nothing else: against lists made by hand."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: causal_lm\ntrain_file: /home/someone/private/notes.txt\nmax_steps: 50\nseed: 0\n")
    typed = ["--output_dir", "/home/someone/runs/x", "--learning_rate", "1e-2", "--validation_file=~/held out.txt"]
    arguments = parse([str(recipe), *typed, "--resume_from_checkpoint", "no", "--streaming"])
    flags = "--learning_rate 1e-2 '--validation_file=held out.txt' --streaming"
    assert arguments.command(1) == f"accelerate launch scripts/train.py mine.yaml {flags}"
    assert arguments.command(8).startswith("accelerate launch --num_processes 8 scripts/train.py mine.yaml ")
    assert arguments.differing() == {
        **{"task": "causal_lm", "train_file": "notes.txt", "validation_file": "held out.txt", "streaming": True},
        **{"max_steps": 50, "learning_rate": 0.01, "warmup_steps": 5},
    }
