"""The harness reports what it is there to report: each kind of failure is made on purpose, and seen."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from .budgets import Budget
from .conftest import BUDGETS, find_chromium
from .watching import dom_nodes, heap, measure, read_message

pytestmark = pytest.mark.browser

COUNTER = """
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = '''
    export default { render({ model, el }) {
      const button = document.createElement("button");
      button.className = "counter";
      const show = () => { button.textContent = `${model.get("count")} clicks`; };
      button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes(); };
      model.on("change:count", show);
      show();
      el.append(button);
    } };
    '''
    count = traitlets.Int(0).tag(sync=True)
    blob = traitlets.Bytes(bytes(100_000)).tag(sync=True)

counter = Counter()
counter
"""


def test_a_click_reaches_the_kernel_and_the_kernel_the_page(open_notebook, watched):
    notebook = open_notebook(["import fwl_lab, widgets", COUNTER])
    button = notebook.outputs(1).locator(".counter")
    expect(button).to_have_text("0 clicks")
    # Faster than the kernel: ipywidgets sends one change at a time, and holds back the next until the kernel is idle.
    button.evaluate("button => { for (let click = 0; click < 5; click++) button.click() }")
    assert notebook.ask("counter.count") == 5
    notebook.ask("counter.set_trait('count', 7)")
    expect(button).to_have_text("7 clicks")
    opened = [message.size for message in watched.messages if message.kind == "comm_open"]
    assert 100_000 < max(opened) < 110_000
    notebook.run_cell(1)
    expect(button).to_have_text("0 clicks")
    with pytest.raises(ValueError, match="nowhere failed in the kernel: NameError"):
        notebook.ask("nowhere")


def test_a_cell_that_fails_is_reported(open_notebook):
    notebook = open_notebook(["1", "1 / 0", "2"], run=False)
    assert notebook.errors() == []
    with pytest.raises(AssertionError, match="cell 1: ZeroDivisionError"):
        notebook.run_all()
    notebook.run_all(check=False)
    assert notebook.errors() == ["cell 1: ZeroDivisionError: division by zero"]
    assert not notebook.kernel_busy()


def test_a_notebook_takes_parameters_and_starts_with_no_trace_of_the_last(open_notebook, tmp_path):
    made = tmp_path / "made.ipynb"
    made.write_text(
        '{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {"tags": ["parameters"]},'
        ' "outputs": [], "source": "size = 1"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
        encoding="utf-8",
    )
    notebook = open_notebook(made, parameters={"size": 5})
    assert notebook.ask("size") == 5
    assert notebook.ask("'counter' in globals()") is False
    assert notebook.page.evaluate("document.body.dataset.jpThemeName") == "JupyterLab Light"


def test_foreign_requests_are_caught_and_lead_nowhere(page, watched):
    page.goto("about:blank")
    got = page.evaluate(
        "() => fetch('https://example.org/x.js', {mode: 'no-cors'}).then(() => 'there', () => 'nowhere')"
    )
    assert got == "nowhere"
    with pytest.raises(AssertionError, match=r"https://example\.org/x\.js"):
        watched.assert_clean()
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in watched.problems)
    watched.foreign.clear()
    watched.problems.clear()


@pytest.mark.parametrize("script", ["console.error('planted')", "setTimeout(() => { throw new Error('planted') })"])
def test_errors_of_a_page_are_caught(page, watched, script):
    page.goto("about:blank")
    page.evaluate(f"() => new Promise(done => {{ {script}; setTimeout(done, 1) }})")
    with pytest.raises(AssertionError, match="planted"):
        watched.assert_clean()
    watched.problems.clear()


def test_axe_finds_what_was_planted_and_only_there(page, serious_violations):
    page.set_content(
        "<html lang=en><title>t</title><body><main><div id=bad><img src='data:,'></div><div id=good>text</div>"
    )
    (found,) = serious_violations(page, "#bad")
    assert found.startswith("image-alt (critical)") and "<img" in found
    assert serious_violations(page, "#good") == []


def test_both_themes_show_and_leave_pictures(open_notebook):
    notebook = open_notebook(["print('themes')"])
    colours, pictures = [], []
    for name in ("Light", "Dark"):
        notebook.set_theme(f"JupyterLab {name}")
        colours.append(notebook.page.evaluate("getComputedStyle(document.body).getPropertyValue('--jp-layout-color1')"))
        pictures.append(notebook.screenshot(f"harness-{name.lower()}", notebook.outputs(0)).read_bytes())
    assert colours[0] != colours[1]
    assert pictures[0][:8] == b"\x89PNG\r\n\x1a\n" and pictures[0] != pictures[1]


def test_what_a_page_holds_is_measured(page):
    page.set_content("<body><main></main>")
    before = heap(page)
    page.evaluate(
        "() => { window.kept = Array.from({length: 1e5}, (_, i) => ({i}));"
        " for (let i = 0; i < 500; i++) document.querySelector('main').append(document.createElement('div')) }"
    )
    during = heap(page)
    assert during.bytes - before.bytes > 1_000_000 and during.nodes - before.nodes >= 500
    assert dom_nodes(page, "main") == 501
    # Taken out of the page, yet held by a variable: still counted, which is what a leak looks like.
    page.evaluate("() => { window.list = document.querySelector('main'); list.remove(); delete window.kept }")
    assert dom_nodes(page) == 1 and heap(page).nodes >= during.nodes - 5
    page.evaluate("() => { delete window.list }")
    after = heap(page)
    assert after.nodes < before.nodes + 50 and after.bytes < before.bytes + 500_000
    runs: list[float] = measure(page, "new Promise(done => { window.last = run; done() })", repeat=3)
    assert len(runs) == 3 and min(runs) > 0 and page.evaluate("window.last") == 2


@pytest.fixture
def listening() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


# Caches and service workers are left out: the request itself must not leave the browser.
ASK = "address => fetch(address, { cache: 'no-store' }).then(() => 'answered', () => 'refused')"


def test_files_open_with_the_network_off(alone, browser, listening, tmp_path):
    """A request to a server that does answer fails there, before it is sent."""
    address, asked = listening
    path = tmp_path / "saved.html"
    path.write_text("<title>t</title>", "utf-8")
    context, seen = alone
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate(ASK, f"{address}/offline") == "refused" and asked == []
    assert any("ERR_INTERNET_DISCONNECTED" in problem for problem in seen.problems)
    seen.problems.clear()
    online = browser.new_context()
    reached = online.new_page()
    reached.goto(path.as_uri())
    assert reached.evaluate(ASK, f"{address}/online") == "answered" and asked == ["/online"]
    online.close()


def test_files_that_need_others_are_caught(open_file, alone, tmp_path):
    (tmp_path / "beside.js").write_text("document.title = 'loaded'", encoding="utf-8")
    path = tmp_path / "saved.html"
    path.write_text(
        "<title>t</title><script src=beside.js></script><script src=http://127.0.0.1/x.js></script>", "utf-8"
    )
    assert open_file(path).title() == "t"
    _, seen = alone
    assert sorted(set(seen.foreign)) == [(tmp_path / "beside.js").as_uri(), "http://127.0.0.1/x.js"]
    seen.foreign.clear()
    seen.problems.clear()


def test_budgets_are_asserted_on_request_only(page, budget, request, monkeypatch):
    monkeypatch.delenv("FWL_LAB_BUDGETS", raising=False)
    budget("an empty page: heap", heap(page).bytes / 1e6, 10, "MB")
    budget("to be exceeded", 2, 1, "s")
    monkeypatch.setenv("FWL_LAB_BUDGETS", "1")
    with pytest.raises(AssertionError, match=r"to be exceeded +2 +≤ 1 +s +EXCEEDED"):
        budget("to be exceeded", 2, 1, "s")
    # The report is for what was measured.
    kept = request.config.stash[BUDGETS]
    kept[:] = [row for row in kept if row.name != "to be exceeded"]


def test_a_missing_browser_is_said(monkeypatch):
    monkeypatch.setenv("CHROMIUM", "no-such-program")
    with pytest.raises(FileNotFoundError, match=r"'no-such-program', no program; install it"):
        find_chromium()


def test_budgets_have_two_sides():
    assert Budget("frames", 60, 30, "frames/s", at_least=True).kept and not Budget("size", 3, 2, "MB").kept


def test_frames_that_are_no_messages_are_left_alone():
    assert read_message("text") is None and read_message(bytes(16)) is None
