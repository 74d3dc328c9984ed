"""What the documents name exists: paths, tests, make targets, presets, and the README's Python runs."""

import ast
import json
import re
from pathlib import Path

import pytest
from script_loading import load_script

from triune.configuration import PRESETS, TriuneConfig
from triune.configuration.configuration_triune import AXES, HEADS


ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "configuration|modeling|training|recipes|benchmarks|scripts|tests|docs|hub_cards|notebooks"
README = DOCUMENTS[0].read_text(encoding="utf-8")
CHECKLIST = (ROOT / "docs" / "checklist.md").read_text(encoding="utf-8")


def functions_of(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def all_tests():
    return set().union(*(functions_of(file) for file in (ROOT / "tests").rglob("test_*.py")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_named_files_and_tests_exist(document):
    """Every path in backquotes or links, and every test by name."""
    text = document.read_text(encoding="utf-8")
    known = all_tests() | {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", text):
        assert name in known, name
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (document.parent / path).exists(), path


def test_every_item_of_the_checklist_has_its_proof():
    """The rows count to 65; every test stands in the file that its link leads to; a row without one says why."""
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", CHECKLIST, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 66))
    named = re.findall(r"\[`(\w+)::(test_\w+)`\]\(([\w./-]+)\)", CHECKLIST)
    assert len(named) == CHECKLIST.count("::test_") > 100
    tests = {path: functions_of(ROOT / "docs" / path) for _, _, path in named}
    for stem, name, path in named:
        assert Path(path).stem == stem and name in tests[path], f"{path}::{name}"
    for number, row in rows:
        assert "::test_" in row or "not run: " in row or "out of scope: " in row, number
    assert "to be confirmed" not in CHECKLIST


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
    """The table of results is what `benchmarks/recipes.py` makes of the file that it wrote."""
    benchmark = load_script("benchmarks/recipes.py")
    assert benchmark.table(json.loads(benchmark.RESULTS.read_text())) in README


def test_every_field_is_explained():
    """Each axis of the configuration is described in its docstring."""
    for axis in AXES:
        assert f"{axis}: " in TriuneConfig.__doc__, axis
