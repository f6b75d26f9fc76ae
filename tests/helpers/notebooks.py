"""Run notebooks cell by cell without Jupyter, and keep what they print.

`python -m tests.helpers.notebooks examples/NAME.ipynb` runs one in an empty folder and writes its outputs into it.
"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_OUTPUT = 2000  # characters of a cell that are kept


def read_notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def list_code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(notebook: dict[str, Any]) -> list[str]:
    """Run all code cells one after the other; returns what each prints, and the value of its last line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: list[str] = []
    for number, cell in enumerate(list_code_cells(notebook)):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        sink = io.StringIO()
        with contextlib.redirect_stdout(sink):
            exec(compile(tree, f"cell {number}", "exec"), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
                if value is not None:
                    print(value)
        printed.append(sink.getvalue()[:MAX_OUTPUT])
    return printed


def keep_outputs(notebook: dict[str, Any], printed: list[str]) -> None:
    """Put what was printed into the cells, as Jupyter does."""
    for number, (cell, text) in enumerate(zip(list_code_cells(notebook), printed, strict=True), start=1):
        cell["execution_count"] = number
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [stream] if text else []


def read_outputs(notebook: dict[str, Any]) -> list[str]:
    """Read what the cells of a notebook have printed."""
    return ["".join(part for out in cell["outputs"] for part in out["text"]) for cell in list_code_cells(notebook)]


if __name__ == "__main__":
    file = Path(sys.argv[1]).absolute()
    content = read_notebook(file)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outputs = run_cells(content)
    keep_outputs(content, outputs)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
