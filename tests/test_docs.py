"""What the documents name exists: paths, tests, make targets, presets, and the README's Python runs."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from triune.configuration import PRESETS, TriuneConfig
from triune.configuration.configuration_triune import AXES, HEADS


ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "configuration|modeling|training|recipes|benchmarks|scripts|tests|docs|hub_cards"
README = DOCUMENTS[0].read_text(encoding="utf-8")


def all_tests():
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_named_files_and_tests_exist(document):
    """Every path in backquotes or links, and every test by name."""
    text = document.read_text(encoding="utf-8")
    tests = all_tests()
    for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", text):
        assert name in tests or (ROOT / "tests" / f"{name}.py").exists() or list(ROOT.rglob(f"{name}.py")), name
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_named_make_targets_exist(document):
    """Every `make x` of the documents is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    pieces = re.split(r"^```.*$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    prose, code = pieces[::2], pieces[1::2]
    quoted = re.findall(r"`([^`\n]+)`", "\n".join(prose))
    for target in re.findall(r"^make ([a-z-]+)", "\n".join([*code, *quoted]), flags=re.MULTILINE):
        assert target in targets, target


def test_readme_python_runs(tmp_path, monkeypatch):
    """The README's Python blocks run from top to bottom, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    space = {}
    for block in blocks:
        exec(block, space)  # the document is ours
    assert type(space["model"]).__name__ == "TriuneForCausalLM"


def test_readme_tables_are_complete():
    """Every head, axis, choice and preset stands in the README."""
    for head in HEADS:
        assert f"`{head}`" in README, head
    for axis, choices in AXES.items():
        for name in (axis, *choices):
            assert f"`{name}`" in README, name
    for name in PRESETS:
        family = name.rsplit("-", 1)[0] if name.startswith(("era", "scratch")) else name
        assert f"`{name}`" in README or f"`{family}`" in README or name.split("-")[0] in ("era", "scratch"), name


def test_readme_figures_are_those_that_were_measured():
    """The table of results is what `benchmarks/run.py` makes of the file that it wrote."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "run.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.table(json.loads(benchmark.RESULTS.read_text())) in README


def test_every_field_is_explained():
    """Each axis of the configuration is described in its docstring."""
    for axis in AXES:
        assert f"{axis}: " in TriuneConfig.__doc__, axis
