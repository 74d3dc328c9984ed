"""Run the notebooks from top to bottom and keep what they print and show; Jupyter is not needed for it:

    python scripts/notebooks.py                       # all of notebooks/, each rewritten with its outputs
    python scripts/notebooks.py notebooks/gpt.ipynb   # one of them

A minute or two each on two cores. What is kept of a cell is what it printed, and its last value as Jupyter would show
it: a picture as PNG, anything else as its repr.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Notebook = dict[str, Any]


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def split(code: str) -> tuple[ast.Module, ast.Expression | None]:
    """The statements of a cell, and its last one by itself if it has a value."""
    tree = ast.parse(code)
    if not tree.body or not isinstance(tree.body[-1], ast.Expr) or code.rstrip().endswith(";"):
        return tree, None
    return ast.Module(tree.body[:-1], type_ignores=[]), ast.Expression(tree.body[-1].value)


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def shown(value: Any) -> dict[str, Any]:
    """A value by type of content."""
    data = {"text/plain": lines(repr(value))}
    if hasattr(value, "_repr_png_"):
        picture = base64.b64encode(value._repr_png_()).decode("ascii")
        data = {"image/png": picture, "text/plain": ["<a picture>"]}  # its repr would name a place in memory
    return data


def run_cell(code: str, space: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The outputs of a cell, in the form of a notebook."""
    statements, last = split(code)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(statements, f"<cell {count}>", "exec"), space)
        value = eval(compile(last, f"<cell {count}>", "eval"), space) if last else None
    outputs = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())})
    if value is not None:
        data = shown(value)
        outputs.append({"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}})
    return outputs


def run(notebook: Notebook) -> dict[str, Any]:
    """Every code cell in order, its outputs put in; gives the names that the cells have made."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for count, cell in enumerate(code_cells(notebook), 1):
        cell["outputs"], cell["execution_count"] = run_cell(source(cell), space, count), count
    return space


def main(names: list[str]) -> None:
    for path in [Path(name).resolve() for name in names] or sorted(Path("notebooks").resolve().glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        run(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
