"""Reports: parameters are checked, noise and requests stay out, charts are there and alive."""

import json
import re
import shutil
import subprocess

import nbformat
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from plotly.offline import get_plotlyjs

from widgets.report import render as report
from widgets.report.__main__ import main
from widgets.report.render import PLOTLY, write_report
from widgets.report.run import WIDGET, check_parameters, notebook_parameters, run_notebook

PARAMETERS = """
name = "a"  # text
count = 3
rate: float = 0.5
readers = [
    "base",
    "fwl",
]
path = None
size = None
flag = False
output = "runs"
"""


def _save(path, *cells):
    for index, cell in enumerate(cells):
        cell["id"] = f"c{index}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=list(cells), metadata={"kernelspec": kernel}), path)
    return path


def _parameters_cell(source=PARAMETERS):
    return new_code_cell(source.strip(), metadata={"tags": ["parameters"]})


def _display(data):
    return new_output("display_data", data=data)


def _chart(y, **layout):
    figure = go.Figure(go.Scatter(y=y), layout)
    return _display({PLOTLY: json.loads(figure.to_json()), "text/html": "<script src='https://cdn.plot.ly'></script>"})


@pytest.fixture
def notebook(tmp_path):
    return _save(tmp_path / "story.ipynb", _parameters_cell(), new_code_cell("print(name)"))


def test_parameters_are_read_from_the_tagged_cell(notebook):
    assert notebook_parameters(notebook) == {
        "name": "a",
        "count": 3,
        "rate": 0.5,
        "readers": ["base", "fwl"],
        "path": None,
        "size": None,
        "flag": False,
        "output": "runs",
    }
    with pytest.raises(FileNotFoundError, match="no notebook at"):
        notebook_parameters(notebook.with_name("other.ipynb"))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("name", "123", "123"),
        ("name", "None", None),
        ("count", "12", 12),
        ("count", "None", None),
        ("rate", "1", 1),
        ("rate", "1e-3", 1e-3),
        ("readers", "['base']", ["base"]),
        ("readers", '["a", "b"]', ["a", "b"]),
        ("path", "texts/a.txt", "texts/a.txt"),
        ("path", "7", "7"),
        ("path", "[7]", "[7]"),
        ("path", "null", None),
        ("size", "128", 128),
        ("size", "1e-3", 1e-3),
        ("size", "[1, 2]", [1, 2]),
        ("size", "null", None),
        ("size", "true", "true"),
        ("size", "'quoted'", "'quoted'"),
        ("count", "null", None),
        ("flag", "true", True),
        ("flag", "False", False),
        ("count", 5, 5),
    ],
)
def test_values_become_what_the_notebook_expects(notebook, name, given, value):
    checked = check_parameters(notebook, {name: given})[name]
    assert checked == value
    assert type(checked) is type(value)


@pytest.mark.parametrize(
    ("name", "given"),
    [("count", "many"), ("count", "1.5"), ("count", "true"), ("readers", "fwl"), ("flag", "1"), ("name", 3)],
)
def test_a_value_of_another_type_is_refused(notebook, name, given):
    with pytest.raises(ValueError, match=f"parameter '{name}' of story.ipynb must be like"):
        check_parameters(notebook, {name: given})


def test_an_unknown_parameter_names_the_known_ones(notebook, tmp_path):
    with pytest.raises(ValueError, match=r"has no parameter 'nmae'; it has name, count, rate"):
        run_notebook(notebook, tmp_path / "out", {"nmae": "b"})
    assert not (tmp_path / "out").exists()
    bare = _save(tmp_path / "bare.ipynb", new_code_cell("1"))
    with pytest.raises(ValueError, match="it has none at all"):
        check_parameters(bare, {"name": "b"})


def test_a_folder_that_is_a_file_or_the_notebooks_own_is_refused(notebook, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        run_notebook(notebook, tmp_path / "file")
    before = notebook.read_bytes()
    with pytest.raises(ValueError, match="written over itself"):
        run_notebook(notebook, tmp_path)
    assert notebook.read_bytes() == before


@pytest.fixture
def page(tmp_path):
    """A report of a notebook with all that may be in one."""
    remote = "[paper](https://example.org/paper) ![graph](https://example.org/graph.png) [here](#there)"
    progress = "\r 50%|█████     | 1/2 [00:01<00:01]\r100%|██████████| 2/2 [00:02<00:00,  1.00tok/s]\nkept line\n"
    path = _save(
        tmp_path / "story.ipynb",
        new_markdown_cell("# Plain & simple"),
        _parameters_cell('name = "<i>x</i>"'),
        new_markdown_cell("## First & foremost\n\n" + remote),
        new_code_cell("chart(1)", outputs=[_chart([1, 2, 3], title={"text": "</script><b>loud</b>"})]),
        new_markdown_cell("## Second\n\n<iframe src='//example.org'></iframe>"),
        new_code_cell("chart(2)", outputs=[_chart([4.0, 5.0]), new_output("stream", name="stderr", text=progress)]),
        new_code_cell("bar()", outputs=[_display({WIDGET: {"model_id": "deadbeef"}, "text/plain": "HBox(children)"})]),
        new_code_cell("table()", outputs=[_display({"text/html": "<table><tr><td>12</td></tr></table>"})]),
        new_code_cell("print()", outputs=[new_output("stream", name="stdout", text="a < b\n")]),
    )
    node = nbformat.read(path, as_version=4)
    node.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"deadbeef": {}}}}
    nbformat.write(node, path)
    return write_report(path, tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def _soup(page):
    return BeautifulSoup(page, "html.parser")


def test_charts_are_data_beside_one_copy_of_plotly(page):
    charts = [json.loads(script.string) for script in _soup(page).select(".chart > script")]
    assert [chart["data"][0]["y"] for chart in charts] == [[1, 2, 3], [4.0, 5.0]]
    assert charts[0]["layout"]["title"]["text"] == "</script><b>loud</b>"
    banner = re.search(r"plotly\.js v[\d.]+", get_plotlyjs())
    assert banner is not None
    assert page.count(banner.group()) == 1
    assert "Plotly.newPlot" in page
    assert "showSendToCloud: false" in page


def test_a_report_asks_for_nothing(page):
    assert not re.search(r"""(?:src|href)\s*=\s*["'`]?\s*(?:[a-z]+:)?//""", page, re.IGNORECASE)
    assert "default-src 'none'" in _soup(page).select_one("meta[http-equiv]")["content"]
    soup = _soup(page)
    assert not [tag for tag in soup.find_all(["link", "iframe", "img"]) if tag.get("src") or tag.get("href")]
    assert not soup.find_all("script", src=True)
    for word in ("chart-studio", "require.js", "cdn.plot.ly/plotly", "cdnjs", "mathjax@"):
        assert word not in page.lower(), word
    main = soup.main.get_text()
    assert "paper (https://example.org/paper)" in main
    assert "graph" in main


def test_plotly_is_changed_only_in_its_addresses():
    """The same code but for addresses: equal once every address in src and href is taken out of both."""
    address = re.compile(r"""((?:src|href)\s*=\s*["'`])[^"'`]*""")
    assert address.sub(r"\1", report._plotly_script()) == address.sub(r"\1", get_plotlyjs())


def test_widgets_and_progress_are_left_out_and_the_rest_is_kept(page):
    soup = _soup(page)
    text = soup.main.get_text()
    assert "deadbeef" not in page
    assert "HBox" not in text
    assert "100%" not in text
    assert "kept line" in text
    assert soup.main.select_one("td", string="12")
    assert "a < b" in text
    assert "Out[" not in text


def test_titles_contents_and_parameters(page):
    soup = _soup(page)
    assert soup.title.get_text() == soup.h1.get_text() == "Plain & simple"
    links = soup.select("nav a")
    assert [link.get_text() for link in links] == ["First & foremost", "Second"]
    for link in links:
        assert soup.select_one(link["href"]).get_text() == link.get_text()
    row = soup.select_one("table.parameters tr")
    assert [cell.get_text() for cell in row.find_all(["th", "td"])] == ["name", "<i>x</i>"]


def test_code_is_there_but_hidden_until_asked_for(page):
    soup = _soup(page)
    assert [block.get_text().strip() for block in soup.select(".code")][1] == "chart(1)"
    assert soup.select_one("button#code").get_text() == "Show code"
    assert "body:not(.show-code) .code { display: none; }" in page


def test_a_report_of_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook at"):
        write_report(tmp_path / "none.ipynb", tmp_path / "report.html")


def test_a_run_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "from pathlib import Path\nPath(output, 'proof.txt').write_text(f'{name} {count}')\nname"
    notebook = _save(tmp_path / "story.ipynb", _parameters_cell(), new_code_cell(source))
    assert main([str(notebook), "out/deep", "-p", "name", "it's", "-p", "count", "7"]) == 0
    assert (tmp_path / "out" / "deep" / "proof.txt").read_text() == "it's 7"
    assert capsys.readouterr().out.splitlines()[-1] == "out/deep/report.html"
    page = (tmp_path / "out" / "deep" / "report.html").read_text(encoding="utf-8")
    cells = {row.th.get_text(): row.td.get_text() for row in _soup(page).select("table.parameters tr")}
    assert cells["name"] == "it's"
    assert cells["output"] == "out/deep"
    assert cells["rate"] == "0.5"


def test_a_failing_notebook_says_what_failed_and_is_kept(tmp_path, capsys):
    cells = [new_code_cell("print('before')"), new_code_cell("x = 1\n1 / 0"), new_code_cell("print('after')")]
    notebook = _save(tmp_path / "broken.ipynb", *cells)
    assert main([str(notebook), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "broken.ipynb failed in cell 2" in error
    assert "ZeroDivisionError: division by zero" in error
    assert str(tmp_path / "out" / "broken.ipynb") in error
    kept = nbformat.read(tmp_path / "out" / "broken.ipynb", as_version=4)
    texts = [output.get("text", "") for cell in kept.cells for output in cell.get("outputs", [])]
    assert "before\n" in texts
    assert "after\n" not in texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.ipynb", "out"], "no notebook at none.ipynb"),
        (["story.ipynb", "out", "-p", "x", "1"], "no parameter 'x'"),
    ],
)
def test_mistakes_on_the_command_line_exit_with_two(notebook, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(notebook.parent)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.browser
def test_every_chart_is_drawn_in_a_browser_without_a_network(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:1", "--virtual-time-budget=20000"]
    command = [browser, *flags, "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    soup = _soup(done.stdout)
    assert soup.body["data-ready"] == "true"
    lines = [chart.select(".scatterlayer .js-line") for chart in soup.select(".chart")]
    assert [len(line) for line in lines] == [1, 1]
