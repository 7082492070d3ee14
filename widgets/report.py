"""Run a notebook into a folder and write a report that opens anywhere, without a network or a kernel.

    python -m widgets.report NOTEBOOK FOLDER [-p NAME VALUE]...

The notebook runs in the directory the command is given in, so that relative paths mean what they say there. The
executed notebook and ``report.html`` are left in FOLDER; a parameter ``output``, if the notebook has one and it is not
given, becomes FOLDER.
"""

import argparse
import ast
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

import nbformat
import papermill
from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from plotly.offline import get_plotlyjs
from traitlets.config import Config

PLOTLY: Final = "application/vnd.plotly.v1+json"
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
# Of these text stays text whatever it spells: a folder may be called 7.
PLACES: Final = frozenset({"control", "document", "model", "path"})
_HERE: Final = Path(__file__).parent
_PROGRESS: Final = re.compile(r"\d+%\|.*\||\d+(\.\d+)?(it|tok|token|cell)s?/s")

_CELLS: Final = """
{%- extends 'base.html.j2' -%}
{%- block input_group -%}
<div class="code">{{ self.input() }}</div>
{%- endblock -%}
{%- block data_other -%}
{%- if '@plotly' in output.data -%}
<div class="chart">
<script type="application/json">{{ output.data['@plotly'] | json_dumps | escape_html_script }}</script>
</div>
{%- endif -%}
{%- endblock -%}
""".replace("@plotly", PLOTLY)

# The policy is the proof: with it a browser would refuse any request that the page made.
_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:; font-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<div class="bar"><strong>$title</strong><button id="code">Show code</button>
<button id="scheme">Light / dark</button></div>
<div class="page"><nav>$contents</nav><main>$parameters$body</main></div>
<script>$plotly</script>
<script type="module">$script</script>
</body>
</html>
""")


class NotebookFailed(Exception):
    """A cell of a notebook raised; the partly executed notebook is kept."""


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Names and default values in a notebook's cell tagged ``parameters``; a value that is no literal is None.

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
    """Parameters with values as the notebook expects them: text is read as a literal unless the default is text.

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
        elif isinstance(value, str) and name not in PLACES and not isinstance(default, str):
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
    """Execute a notebook into a folder; returns the path of the executed notebook.

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
    # What a widget was is nothing without its kernel, and much to store.
    nbformat.write(_without_noise(nbformat.read(executed, as_version=4)), executed)
    return executed


def write_report(notebook: str | Path, path: str | Path) -> Path:
    """Write an executed notebook as one HTML page that makes no request; returns its path.

    Charts are drawn from their data by plotly.js, which is in the page once. Widgets and progress bars, which need a
    kernel or have had their time, are left out.
    """
    notebook, path = Path(notebook), Path(path)
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook at {notebook}")
    node = _without_noise(nbformat.read(notebook, as_version=4))
    given = node.metadata.get("papermill", {}).get("parameters", {})
    body, _ = _exporter().from_notebook_node(node)
    soup = _without_requests(BeautifulSoup(body, "html.parser"))
    heading = soup.find("h1")
    sections = soup.find_all("h2")
    for index, section in enumerate(sections):
        section["id"] = f"section-{index}"
    contents = "".join(f'<a href="#{section["id"]}">{html.escape(section.get_text())}</a>' for section in sections)
    page = _PAGE.substitute(
        title=html.escape(heading.get_text() if heading else notebook.stem),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        contents=contents,
        parameters=_parameters_table(notebook_parameters(notebook) | given),
        body=str(soup),
        plotly=_plotly_script(),
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _parameters_table(parameters: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in parameters.items()
    )
    return f'<details><summary>parameters</summary><table class="parameters">{rows}</table></details>' if rows else ""


def _exporter() -> HTMLExporter:
    """nbconvert's exporter with our cells; it makes the page's body only."""
    types = [PLOTLY, "text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    config = Config({"NbConvertBase": {"display_data_priority": types}})
    return HTMLExporter(
        config=config,
        template_name="classic",
        raw_template=_CELLS,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )


def _without_noise(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop widgets and their state, and progress bars written as text."""
    node.metadata.pop("widgets", None)
    for cell in node.cells:
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                # What a carriage return has overwritten was never meant to stay.
                lines = [line.rpartition("\r")[2] for line in output.text.replace("\r\n", "\n").split("\n")]
                output.text = "\n".join(line for line in lines if not _PROGRESS.search(line))
                if output.text.strip():
                    kept.append(output)
            elif WIDGET not in output.get("data", {}):
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return node


def _without_requests(soup: BeautifulSoup) -> BeautifulSoup:
    """Turn links to elsewhere into text with the address beside it, and drop what would be fetched."""
    for tag in soup.find_all(True):
        for attribute in ("src", "href"):
            address = str(tag.get(attribute, ""))
            if not re.match(r"\s*([a-z][a-z0-9+.-]*:)?//", address, re.IGNORECASE):
                continue
            del tag[attribute]
            if tag.name == "a" and address not in tag.get_text():
                tag.append(f" ({address})")
            elif tag.name != "a":
                tag.replace_with(str(tag.get("alt", "")))
    return soup


def _plotly_script() -> str:
    """plotly.js without the addresses of its map layers and its logo, which a page without a network has no use for."""
    return re.sub(r"""((?:src|href)\s*=\s*["'`])(?:https?:)?//[^"'`]*""", r"\1#", get_plotlyjs())


def _literal(text: str, otherwise: Any) -> Any:
    """The Python (or JSON) value that a text spells, or `otherwise`."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return otherwise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 the notebook failed, 2 a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m widgets.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    asked = parser.parse_args(arguments)
    try:
        executed = run_notebook(asked.notebook, asked.folder, dict(asked.parameter))
        print(write_report(executed, asked.folder / "report.html"))
    except NotebookFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
