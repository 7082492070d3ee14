"""RunConsole in a real browser: choose, plan, start, cancel in mid-reading, read to the end, copy the command."""

import shlex

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)

# A reader that can be held: what a page shows in the middle of a reading does not depend on the machine's speed.
CELL = """
import gc, threading, weakref
from fwl_lab import StaticReader, load_model, open_trace, stdlib_corpus
from widgets import RunConsole

class Held(StaticReader):
    calls, hold_at = 0, 3
    there, go_on = threading.Event(), threading.Event()

    def read(self, tokens, weights=None):
        Held.calls += threading.current_thread().name == "fwl-worker"  # not where its speed is measured
        if Held.calls == Held.hold_at:
            Held.there.set()
            Held.go_on.wait(120)
        return super().read(tokens, weights)

model = load_model("bundled")
texts = sorted((d for d in stdlib_corpus("test") if 8_000 < len(d.text) < 16_000), key=lambda d: d.name)[:12]
console = RunConsole(model, texts, path="runs", readers={"held": Held(model.base)}, max_tokens=None)
console
"""


def choose_two(view):
    """Choose two documents and two readers; wait for the plan of these."""
    view.get_by_label("filter documents by name").wait_for()
    view.locator("[role=option]").nth(1).click()
    for name in ("static", "dynamic evaluation", "FWL"):
        view.get_by_label(name, exact=True).uncheck()
    expect(view.locator(".fwl-plan")).to_contain_text("of 2 documents")


def test_a_reading_is_planned_cancelled_and_read_to_its_end(open_notebook, page, serious_violations):
    notebook = open_notebook([CELL])
    view, status = page.locator(".fwl-run_console"), page.locator(".fwl-run_console [role=status]")
    start, cancel = view.get_by_role("button", name="Start reading"), view.get_by_role("button", name="Cancel")
    choose_two(view)
    plan = notebook.ask("console.plan()")
    assert plan["size"] in view.locator(".fwl-plan").inner_text()
    assert f"{plan['tokens']:,} tokens" in view.locator(".fwl-plan").inner_text()
    assert notebook.ask("console.settings['documents'] == [0, 1] and console.settings['readers'] == ['base', 'held']")
    expect(view.locator(".fwl-times")).to_contain_text("256 tokens read just now")
    look(notebook, view, serious_violations, "plan")

    # Held in its third block, which the base has read.
    start.click()
    expect(view.locator(".fwl-bar")).to_have_count(2)
    assert notebook.ask("Held.there.wait(60)")
    expect(cancel).to_be_focused()
    expect(status).to_contain_text("reading: ")
    assert not notebook.ask("console.start()"), "a second start does nothing"
    look(notebook, view, serious_violations, "reading")
    page.keyboard.press("Escape")
    expect(status).to_contain_text("stopping after the block")
    notebook.ask("Held.go_on.set()")
    expect(status).to_contain_text("cancelled: ")
    kept = notebook.ask("open_trace(console.run['path']).sizes['token']")
    assert (
        kept == notebook.ask("min(3072, console.lengths()[0])") < plan["tokens"]
        and f"cancelled: {kept:,} tokens" in status.inner_text()
    )
    expect(start).to_be_focused()
    expect(view.locator(".fwl-plan")).to_contain_text("trace-2.zarr")
    look(notebook, view, serious_violations, "cancelled")

    page.keyboard.press("Enter")
    expect(status).to_contain_text(f"done: {plan['tokens']:,} tokens read by 2 readers")
    rows = view.locator("tbody tr")
    assert rows.count() == 2
    nll = notebook.ask("console.trace.nll.mean('token').values.tolist()")
    assert [f"{value:.3f}" in rows.nth(i).inner_text() for i, value in enumerate(nll)] == [True, True]
    expect(view.locator(".fwl-kept")).to_contain_text("explore(console.trace)")
    look(notebook, view, serious_violations, "done")


def look(notebook, view, serious_violations, name):
    """In both themes: what axe finds, and a picture."""
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        notebook.set_theme(theme)
        assert serious_violations(notebook.page, ".fwl-run_console") == []
        notebook.screenshot(f"run_console-{name}-{theme[11:].lower()}", view)


def test_refusals_and_commands_are_told_in_words(open_notebook, page, serious_violations):
    notebook = open_notebook([CELL])
    view = page.locator(".fwl-run_console")
    start, copy = view.get_by_role("button", name="Start reading"), view.get_by_role("button", name="Copy as papermill")
    choose_two(view)
    copy.click()
    expect(view.locator(".fwl-command")).to_contain_text("a shell cannot make the reader 'held'")
    view.get_by_label("held", exact=True).uncheck()
    view.get_by_label("FWL", exact=True).check()
    copy.click()
    expect(view.locator(".fwl-command pre")).to_contain_text("python -m widgets.report")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == notebook.ask("console.command()") and copied.count("widgets.report") == 2
    assert notebook.ask("texts[0].name") in shlex.split(copied)
    look(notebook, view, serious_violations, "command")

    view.get_by_label("Tokens of each, at most").fill("0")
    expect(view.locator(".fwl-why")).to_contain_text("Cannot start: max tokens is 0; expected a whole number")
    expect(start).to_be_disabled()
    view.get_by_label("Tokens of each, at most").fill("")
    notebook.ask("setattr(console, 'byte_budget', '1 MiB')")
    view.get_by_label("factors of Δθ").check()
    expect(view.locator(".fwl-why")).to_contain_text("the byte budget is 1 MiB. Largest: ")
    look(notebook, view, serious_violations, "refused")
    view.get_by_label("scores only").check()
    expect(start).to_be_enabled()


def test_the_form_is_filled_with_the_keyboard(open_notebook, page):
    notebook = open_notebook([CELL])
    view = page.locator(".fwl-run_console")
    expect(view.locator(".fwl-told").last).to_contain_text("tokens")
    view.get_by_label("filter documents by name").focus()
    page.keyboard.type(name := notebook.ask("texts[5].name"))
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(view.locator("[role=option][aria-selected=true]")).to_contain_text(name)
    expect(view.locator(".fwl-told").last).to_contain_text("2 of 12 chosen")
    page.keyboard.press("Tab")
    expect(view.get_by_label("base", exact=True)).to_be_focused()
    page.keyboard.press("Space")
    expect(view.locator(".fwl-plan")).to_contain_text("of 2 documents")
    assert notebook.ask("console.settings['documents'] == [0, 5] and 'base' not in console.settings['readers']")


def test_closing_in_mid_reading_ends_it(open_notebook, page):
    notebook = open_notebook([CELL.replace("\nconsole\n", "\ndisplay(console)\n"), CLOSE], run=False)
    notebook.run_cell(0)
    view = page.locator(".fwl-run_console")
    choose_two(view)
    view.get_by_role("button", name="Start reading").click()
    assert notebook.ask("Held.there.wait(60)")
    notebook.run_cell(1)
    expect(view).to_have_count(0)
    assert notebook.ask(
        "worker.wait(60) and gc.collect() >= 0 and gone() is None and 2048 < read.sizes['token'] <= 3072"
    )


CLOSE = """
gone, worker, path = weakref.ref(console), console._worker, "runs/trace.zarr"
console.close()
del console
Held.go_on.set()
worker.wait(60)
read = open_trace(path)
"""


def test_a_saved_page_shows_plan_and_summary_and_says_what_it_cannot(open_file, serious_violations, tmp_path):
    from fwl_lab import Document, load_model
    from widgets import RunConsole

    hostile = "</script><script>alert(1)</script></style>\"'&<b> \u202eשלום"
    console = RunConsole(
        load_model("bundled"), [Document(hostile, "import os\n" * 40), Document("b", "x = 1\n")], path=tmp_path
    )
    console.settings = console.settings | {"readers": ["base", "fwl"]}
    console.start()
    assert console._worker.wait(60) and console.run["phase"] == "done"
    path = console.to_html(tmp_path / "console.html")
    assert "http://" not in (saved := path.read_text(encoding="utf-8")) and "https://" not in saved
    page = open_file(path)
    console.close()
    view = page.locator(".fwl-run_console")
    expect(view.locator(".fwl-why")).to_have_text("saved view: browsing works, reading needs a kernel")
    expect(view.get_by_role("button", name="Start reading")).to_be_disabled()
    expect(view.locator(".fwl-plan")).to_contain_text("of 1 document")
    assert view.locator("tbody tr").count() == 2
    assert "</script><script>alert(1)" in view.locator("[role=option]").first.inner_text()
    view.get_by_label("filter documents by name").fill("b")
    view.get_by_role("button", name="Copy as papermill").click()
    expect(view.locator(".fwl-command")).to_contain_text("is not in the test split of Python's own library")
    assert serious_violations(page, ".fwl-run_console") == []
