"""Every recipe in the repository: loaded, its model built, trained for a step on a part of its data, and saved."""

from pathlib import Path

import pytest
import yaml
from accelerate_state import reset_accelerate
from script_loading import load_script
from transformers import PreTrainedConfig

from triune.training import run
from triune.training.arguments import parse
from triune.training.tasks import TASKS


ROOT = Path(__file__).resolve().parents[2]
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "recipes/finetuning").glob("*.yaml"))]
PART = {"masked_lm": ("--max_train_samples", "60", "--max_eval_samples", "1")}
PART["causal_lm"] = PART["masked_lm"]
PART["span_corruption"] = PART["masked_lm"]
PART["seq2seq"] = ("--max_train_samples", "200", "--max_eval_samples", "8")
PART["pretraining"] = ("--max_train_samples", "60", "--max_eval_samples", "4")

pytestmark = pytest.mark.usefixtures("as_found", "no_figures")


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """The run folder of a recipe after one step on a part of its data, made once. Fine-tuning goes on from the model
    that its recipe names, after a step of its own."""
    done = {}

    def make(recipe):
        if recipe.stem not in done:
            content, folder = yaml.safe_load(recipe.read_text()), tmp_path_factory.mktemp(recipe.stem)
            flags = ["--max_steps", "1", "--warmup_steps", "0", "--output_dir", str(folder)]
            if "model_name_or_path" in content:
                before = Path(content["model_name_or_path"]).parent.name
                flags += ["--model_name_or_path", str(make(ROOT / f"recipes/{before}.yaml") / "model")]
            done[recipe.stem] = one_step([str(recipe), *flags, *PART.get(content["task"], ())], folder)
        return done[recipe.stem]

    return make


def one_step(words, folder):
    try:
        assert run.train(parse(words))["loss"] > 0
    finally:
        reset_accelerate()
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step(recipe, stepped):
    """One step, and the model folder loads into the class that the task names; an adapter is beside it after LoRA."""
    folder, content = stepped(recipe), yaml.safe_load(recipe.read_text())
    model = TASKS[content["task"]].head.from_pretrained(folder / "model")
    assert_kept(model.config, content.get("config", {}))
    assert (folder / "adapter/adapter_config.json").is_file() == ("lora_rank" in content)


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


def test_every_recipe_is_listed():
    """What `--list` shows against the files: those of fine-tuning too, and not what accelerate is told. Those that
    start from an original are run in test_originals.py."""
    listed = load_script("scripts/train.py").recipes(ROOT / "recipes")
    files = [*RECIPES, *sorted((ROOT / "recipes/originals").glob("*.yaml"))]
    assert [row[0] for row in listed] == list(map(str, files)) and all(all(row[:3]) for row in listed)
