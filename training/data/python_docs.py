"""Python's documentation as it is installed: the reference topics that `help()` shows, and docstrings by module.

Sources are read and parsed, never imported: nothing runs, and modules of other platforms are read as well.
"""

import ast
import os
import sysconfig
import warnings
from pathlib import Path

from triune.training.data.text import Document


LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "__pycache__"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def reference_topics() -> list[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ModuleNotFoundError(
            "pydocs needs pydoc_data.topics, which this Python was installed without; install Python's full standard "
            "library (on Debian: the package libpython3-stdlib) or choose another data set"
        ) from error
    return [Document(f"topic {name}", text) for name, text in sorted(topics.items())]


def documented(source: bytes) -> list[tuple[str, str]]:
    """The name and the docstring of the module, its classes and functions, in the order of the file; the docstring
    without its indentation. The module's name is empty, and functions have () behind theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))  # a module has no line
    calls = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = (getattr(node, "name", "") + "()" * isinstance(node, calls) for node in nodes)
    return [(name, text) for name, text in zip(names, map(ast.get_docstring, nodes)) if text]


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def documented_modules() -> dict[str, list[tuple[str, str]]]:
    """What is documented in each module of the standard library that documents anything, by its name."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = set(subfolders) - LEFT_OUT
        for file in (Path(folder, name) for name in files if name.endswith(".py")):
            modules[module_name(file, root)] = documented(file.read_bytes())
    modules = {name: found for name, found in sorted(modules.items()) if found}
    if len(modules) < 2:
        raise ModuleNotFoundError(
            f"pydocs and names need the sources of the standard library, and there are none in {root}"
        )
    return modules


def standard_library() -> list[Document]:
    """One document for each module that documents anything."""
    return [
        Document(f"module {name}", "\n\n".join(text for _, text in found))
        for name, found in documented_modules().items()
    ]
