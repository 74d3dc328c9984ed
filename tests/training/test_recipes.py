"""Every recipe in the repository: loaded, its model built, trained for a step on a part of its data, and saved."""

from pathlib import Path

import pytest
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers import PreTrainedConfig

from triune.training import leaving, run
from triune.training.arguments import parse
from triune.training.tasks import TASKS


ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PART = {"masked_lm": ("--max_train_samples", "60", "--max_eval_samples", "1")}
PART["causal_lm"] = PART["masked_lm"]
PART["pretraining"] = ("--max_train_samples", "60", "--max_eval_samples", "4")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """accelerate keeps its state for the process."""
    monkeypatch.setattr(leaving.figures, "available", lambda: False)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step(recipe, tmp_path):
    """One step, and the model folder loads into the class that the task names."""
    content = yaml.safe_load(recipe.read_text())
    flags = ("--max_steps", "1", "--warmup_steps", "0", "--output_dir", str(tmp_path), *PART.get(content["task"], ()))
    metrics = run.train(parse([str(recipe), *flags]))
    assert metrics["loss"] > 0
    model = TASKS[content["task"]].head.from_pretrained(tmp_path / "model")
    assert_kept(model.config, content.get("config", {}))


def assert_kept(config, wanted):
    """What a recipe says of a configuration, of the stacks within it, and of their entries."""
    for field, value in wanted.items():
        kept = getattr(config, field)
        if isinstance(kept, PreTrainedConfig):
            assert_kept(kept, value)
        elif isinstance(value, dict):
            assert {key: kept[key] for key in value} == value
        else:
            assert kept == value or kept["type"] == value


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is(recipe):
    """Its first line is what `--list` prints, and it fits on a screen."""
    lines = recipe.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines) < 50
