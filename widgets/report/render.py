"""Write an executed notebook as one page that opens anywhere."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

import nbformat
from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from widgets.report.run import notebook_parameters, without_noise

PLOTLY: Final = "application/vnd.plotly.v1+json"
_FOLDER: Final = Path(__file__).parent  # of the style and the script

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


def write_report(notebook: str | Path, path: str | Path) -> Path:
    """Write an executed notebook as one HTML page that makes no request, and return its path.

    Charts are drawn from their data by plotly.js, which is in the page once. Widgets and progress bars, which need a
    kernel or are over, are left out.

    Raises
    ------
    FileNotFoundError
        There is no such notebook.
    """
    notebook, path = Path(notebook), Path(path)
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook at {notebook}")
    node = without_noise(nbformat.read(notebook, as_version=4))
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
        style=(_FOLDER / "report.css").read_text(encoding="utf-8"),
        contents=contents,
        parameters=_parameters_table(notebook_parameters(notebook) | given),
        body=str(soup),
        plotly=_plotly_script(),
        script=(_FOLDER / "report.js").read_text(encoding="utf-8"),
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
    """Return nbconvert's exporter with this report's cells; it makes the page's body only."""
    types = [PLOTLY, "text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    config = Config({"NbConvertBase": {"display_data_priority": types}})
    return HTMLExporter(
        config=config,
        template_name="classic",
        raw_template=_CELLS,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )


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
    """Return plotly.js without the addresses of its map layers and its logo: the page makes no request."""
    return re.sub(r"""((?:src|href)\s*=\s*["'`])(?:https?:)?//[^"'`]*""", r"\1#", get_plotlyjs())
