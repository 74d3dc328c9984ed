"""What `benchmarks/run.py` measures is what the documents say, and it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from script_loading import load_script
from short_runs import write_text

from triune.modeling import TriuneForCausalLM
from triune.training import building
from triune.training.arguments import parse
from triune.training.run import make_task


ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "benchmarks" / "run.py"
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
SUITES = ("steps", "levers", "generation", "data", "startup", "checkpoint", "scaling", "growth")


def run(*words: str) -> str:
    return subprocess.run([sys.executable, RUN, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def script(monkeypatch):
    """`benchmarks/run.py`, given words."""
    monkeypatch.syspath_prepend(str(RUN.parent))
    module = load_script("benchmarks/run.py")

    def called(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        module.main()

    return called


def test_the_page_shows_what_was_measured(script, capsys):
    """Every table of `docs/performance.md` is what the script makes of its file."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    script("--table")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == len(MEASURED)
    for table in tables:
        assert table in page


def test_the_page_shows_the_race(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    monkeypatch.setattr(sys, "argv", ["race.py", "--table"])
    load_script("benchmarks/race.py").main()
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nanogpt", "best"])
def test_the_recipes_of_the_race_are_runs(name, tmp_path):
    """Their flags are known; they have as many parameters as nanoGPT's has without its vocabulary."""
    recipe = ROOT / "benchmarks" / "race" / f"{name}.yaml"
    arguments = parse([str(recipe), "--train_file", str(write_text(tmp_path))])
    building.check_choices(arguments.training)
    config = building.build_config(arguments, make_task(arguments))
    with torch.device("meta"):
        model = TriuneForCausalLM(config)
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert layers == pytest.approx(12 * 4 * 128**2, rel=0.01)


def test_rows_are_no_void():
    """Both computed the same."""
    assert all(row["agree"] for row in MEASURED["steps"])
    assert all(row["same_tokens"] for row in MEASURED["generation"])


@pytest.mark.parametrize(
    "words, told", [(["speed"], "there is no suite 'speed'"), (["steps", "bert"], "steps has no job 'bert'")]
)
def test_an_unknown_name_is_told(words, told, script):
    with pytest.raises(SystemExit, match=f"error: {told}"):
        script(*words)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_runs(suite):
    """On small models, without writing."""
    before = (ROOT / "benchmarks" / "results" / "speed.json").read_bytes()
    lines = run(suite, "--quick", "--busy", "--rounds", "2").splitlines()
    assert lines and all(line.startswith("| ") and "void" not in line for line in lines)
    assert (ROOT / "benchmarks" / "results" / "speed.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("words", [("steps", "t5", "--precision", "bf16"), ("generation", "4M")], ids=" ".join)
def test_nothing_has_become_slower(words):
    """The tripwire: a ratio that was committed, measured again, has not dropped by more than a tenth. `--check`
    without names does all of them, which takes the better part of an hour."""
    run(*words, "--check", "--busy")
