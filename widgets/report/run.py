"""Run a notebook with parameters that are checked before anything starts."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from widgets.core.view import WIDGET as WIDGET

#: Parameters whose values stay text whatever they spell: a folder may be called 7.
TEXT_PARAMETERS: Final = frozenset({"control", "document", "model", "path"})
_PROGRESS: Final = re.compile(r"\d+%\|.*\||\d+(\.\d+)?(it|tok|token|cell)s?/s")


class NotebookFailed(Exception):
    """Raised where a cell of a notebook raised; the partly executed notebook is kept."""


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Return names and default values of a notebook's cell tagged ``parameters``; a value that is no literal is None.

    Raises
    ------
    FileNotFoundError
        There is no such notebook.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook at {path}")
    found: dict[str, Any] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or "parameters" not in cell.metadata.get("tags", []):
            continue
        for statement in ast.parse(cell.source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _literal(ast.unparse(statement.value), None)
    return found


def check_parameters(path: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with values as the notebook expects them: text is read as a literal unless the default is text.

    Where the default is None, only None, numbers, lists, tuples and dicts are read; the rest, and what names a place
    (a path, a document, a model), stays text. ``None`` and ``null`` always are None.

    Raises
    ------
    ValueError
        The notebook has no such parameter, or its default is of another type.
    """
    defaults = notebook_parameters(path)
    checked = {}
    for name, value in parameters.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none at all"
            raise ValueError(f"{Path(path).name} has no parameter {name!r}; it has {known}")
        default = defaults[name]
        if value in ("None", "null"):
            value = None
        elif isinstance(value, str) and name not in TEXT_PARAMETERS and not isinstance(default, str):
            read = _literal(value, value)
            plain = type(read) in (int, float, list, tuple, dict)
            value = read if plain or default is not None else value
        fits = (int, float) if isinstance(default, float) else type(default)
        wrong = isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, fits)
        if default is not None and value is not None and wrong:
            raise ValueError(
                f"parameter {name!r} of {Path(path).name} must be like {default!r} "
                f"({type(default).__name__}), not {value!r}"
            )
        checked[name] = value
    return checked


def run_notebook(
    notebook: str | Path, folder: str | Path, parameters: Mapping[str, Any] | None = None, *, progress: bool = True
) -> Path:
    """Execute a notebook into a folder, and return the path of the executed notebook.

    Raises
    ------
    FileNotFoundError, ValueError
        No such notebook, no such parameter, a parameter of the wrong type, or `folder` is a file.
    NotebookFailed
        A cell raised; says which one, what, and where the notebook is kept.
    """
    notebook, folder = Path(notebook), Path(folder)
    values = check_parameters(notebook, parameters or {})
    if "output" in notebook_parameters(notebook):
        values.setdefault("output", str(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to write to")
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    if executed.resolve() == notebook.resolve():
        raise ValueError(f"{executed} would be written over itself; choose another folder")
    try:
        # Reached over loopback, as Jupyter's kernels are by default: a warning about that is no newcomer's first line.
        quiet = {"extra_arguments": ["--log-level=ERROR"]}
        papermill.execute_notebook(notebook, executed, parameters=values, progress_bar=progress, **quiet)
    except PapermillExecutionError as error:
        lines = error.source.strip().splitlines()
        source = "\n".join(f"    {line}" for line in lines[:8] + ["..."] * (len(lines) > 8))
        raise NotebookFailed(
            f"{notebook.name} failed in cell {error.exec_count}:\n{source}\n{error.ename}: {error.evalue}\n"
            f"The notebook up to there is kept as {executed}"
        ) from error
    # A widget's state is of no use without its kernel, and large.
    nbformat.write(without_noise(nbformat.read(executed, as_version=4)), executed)
    return executed


def _literal(text: str, otherwise: Any) -> Any:
    """Return the Python (or JSON) value that a text spells, or `otherwise`."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return otherwise


def without_noise(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop widgets and their state, and progress bars written as text; return the notebook."""
    node.metadata.pop("widgets", None)
    for cell in node.cells:
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                # A carriage return overwrote what stands before it on its line.
                lines = [line.rpartition("\r")[2] for line in output.text.replace("\r\n", "\n").split("\n")]
                output.text = "\n".join(line for line in lines if not _PROGRESS.search(line))
                if output.text.strip():
                    kept.append(output)
            elif WIDGET not in output.get("data", {}):
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return node
