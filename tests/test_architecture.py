"""Rules of the house that hold the design together, checked on the syntax trees: imports point one way, what travels
to the Hub is flat and light, no function branches too often, no script hides an installed package."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from triune.configuration.configuration_triune import ACTIVATIONS, AUTO_MAP, AXES, HEADS
from triune.configuration.export import source_files


ROOT = Path(__file__).resolve().parent.parent
# Each package may import those to its left, and `training` and `conversion` do not know each other.
MAY_IMPORT = {
    "configuration": {"configuration"},
    "modeling": {"configuration", "modeling"},
    "conversion": {"configuration", "modeling", "conversion"},
    "training": {"configuration", "modeling", "training"},
    "scripts": {"configuration", "modeling", "conversion", "training"},
}
BRANCH_LIMIT = {"configuration": 8, "modeling": 8, "conversion": 8, "training": 12, "scripts": 12}
HUB_PACKAGES = {"torch", "transformers", "huggingface_hub"}


def python_files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def files_of(*folders):
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for folder in folders for file in python_files(folder)]


def imports(tree, optional=True):
    """(level, module) of every import, those inside functions too; without the ones inside `try` unless `optional`."""
    guarded = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try) for node in ast.walk(attempt)}
    for node in ast.walk(tree):
        if not optional and id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def parse(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def own_nodes(function):
    """The nodes of a function without those of functions defined in it: they are counted by themselves."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from own_nodes(node)


def branches(function):
    return sum(isinstance(node, (ast.If, ast.IfExp)) for node in own_nodes(function))


@pytest.mark.parametrize("file", files_of(*MAY_IMPORT))
def test_imports_point_one_way(file):
    """configuration <- modeling <- {conversion, training} <- scripts, imports inside functions included."""
    package = file.relative_to(ROOT).parts[0]
    for level, module in imports(parse(file)):
        assert level < 2, f"{'.' * level}{module}: name the package"
        if module.split(".")[0] == "triune":
            assert module.split(".")[1] in MAY_IMPORT[package], module
        assert module.split(".")[0] not in {"tests", "benchmarks", "scripts"}, module


@pytest.mark.parametrize("file", files_of("configuration", "modeling"))
def test_foundation_needs_only_torch_and_transformers(file):
    """configuration and modeling import nothing else but the standard library; configuration not even torch."""
    allowed = HUB_PACKAGES | {"triune"} | set(sys.stdlib_module_names)
    if file.parent.name == "configuration":
        allowed -= {"torch"}
    needed = {module.split(".")[0] for level, module in imports(parse(file), optional=False) if level == 0}
    assert needed <= allowed


@pytest.mark.parametrize("file", [pytest.param(file, id=file.name) for file in source_files()])
def test_hub_code_is_flat(file):
    """transformers copies remote code by following `from .x import y` with x a neighbouring file; nothing else."""
    siblings = {source.stem for source in source_files()}
    tree = parse(file)
    for level, module in imports(tree):
        assert level in (0, 1), f"{module}: the loader cannot follow more than one dot"
        assert level == 0 or module in siblings, f"from .{module}: no such file beside it"
    # what transformers' own scanner takes for an import, in docstrings too
    assert set(get_relative_imports(file)) <= siblings
    # transformers' own scanner imports every package named outside `try`: only these may be asked for
    absolute = {module.split(".")[0] for level, module in imports(tree, optional=False) if level == 0}
    assert absolute <= HUB_PACKAGES | {"triune"} | set(sys.stdlib_module_names)


def test_hub_files_have_names_of_their_own():
    """Two packages become one folder: no file name twice, and none that hides a package that remote code imports."""
    names = [file.stem for file in source_files()]
    assert len(names) == len(set(names))
    assert not set(names) & (HUB_PACKAGES | set(sys.stdlib_module_names))


@pytest.mark.parametrize("file", files_of(*BRANCH_LIMIT))
def test_branch_limit(file):
    """At most 8 `if`s and ternaries in a function of the library, 12 in training and scripts."""
    limit = BRANCH_LIMIT[file.relative_to(ROOT).parts[0]]
    functions = [node for node in ast.walk(parse(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    too_many = {function.name: branches(function) for function in functions if branches(function) > limit}
    assert too_many == {}


def test_no_script_hides_an_installed_package():
    """`python scripts/x.py` puts scripts/ first on the path: a script named `evaluate` would be imported for it."""
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert {file.stem for file in python_files("scripts")} & installed == set()


def test_forward_has_no_isinstance_of_parts():
    """A forward pass does not ask what kind of part it has; it may ask what kind of value it was given. (The one
    exception is named: `owns_first_layer` asks whether a pipeline has put an identity in a layer's place.)"""
    values = {"dict", "Tensor"}
    for file in python_files("modeling"):
        for function in (node for node in ast.walk(parse(file)) if isinstance(node, ast.FunctionDef)):
            if function.name not in ("forward", "encode", "embed"):
                continue
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id == "isinstance":
                    assert ast.unparse(call.args[1]).split(".")[-1] in values, (file.name, ast.unparse(call))


def test_tables_agree():
    """Every choice of an axis has its part, every head its auto class, every activation its place in transformers."""
    import transformers
    from transformers.activations import ACT2FN

    from triune.modeling import feed_forward, heads, norms, positions, residuals, transformer

    tables = {
        "embedding": transformer.INPUTS,
        "position": positions.POSITIONS,
        "norm": norms.NORMS,
        "attention": transformer.MASKS,
        "feed_forward": feed_forward.FEED_FORWARDS,
        "residual": residuals.RESIDUALS,
        "pooling": heads.POOLINGS,
        "lm_head": heads.TRANSFORMS,
        "classifier": heads.CLASSIFIERS,
    }
    assert set(tables) == set(AXES)
    for axis, table in tables.items():
        assert set(table) == set(AXES[axis]), axis
    assert set(ACTIVATIONS) <= {*ACT2FN, "elu"}
    for head in HEADS.values():
        assert hasattr(transformers, head.auto_class)
    assert set(AUTO_MAP) == {"AutoConfig"} | {head.auto_class for head in HEADS.values()}


def figures(folder: str) -> list[tuple[str, int, int, str]]:
    """Of every file: its lines without blank ones, and the function with the most branches."""
    rows = []
    for file in python_files(folder):
        functions = [
            node for node in ast.walk(parse(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        most = max(functions, key=branches, default=None)
        lines = sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
        rows.append((file.name, lines, branches(most) if most else 0, most.name if most else "-"))
    return rows


if __name__ == "__main__":  # python tests/test_architecture.py
    for package in ("configuration", "modeling"):
        for name, lines, count, function in figures(package):
            print(f"{package + '/' + name:42} {lines:4} lines   most branches in one function: {count} ({function})")
