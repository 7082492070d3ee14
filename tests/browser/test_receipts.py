"""The receipts view in a real browser: keys, clicks, tabs, both themes, and its saved page."""

import json

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELL = """
import numpy as np
from fwl_lab.testing.traces import make_trace
from widgets.views.receipts.view import Receipts
from widgets.core.selection import Selection
trace = make_trace(2, tokens=900, documents=2)
known = np.flatnonzero(np.isfinite(trace.receipt_gain.sel(reader="fwl").values))
selection = Selection(trace, token=int(known[5]))
view = Receipts(trace, selection=selection)
view
"""


def test_receipts_are_driven_by_keys_and_clicks(open_notebook, page, serious_violations):
    notebook = open_notebook([CELL])
    view = page.locator(".fwl-receipts")
    rows = view.locator("[role=option]")
    rows.first.wait_for()
    assert rows.count() == notebook.ask("int((trace.receipt_source.sel(reader='fwl').values[known[5]] >= 0).sum())")
    share = notebook.ask("float(trace.receipt_share.sel(reader='fwl').values[known[5], 1])")
    view.focus()
    page.keyboard.press("ArrowDown")
    assert f"share {share:+.3f} nat".replace("-", "−") in view.locator("[role=status]").inner_text()
    source = notebook.ask("int(trace.receipt_source.sel(reader='fwl').values[known[5], 1])")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('.fwl-receipts [role=status]').textContent.includes('no receipt')"
    )
    assert notebook.ask("selection.token") == source
    page.keyboard.press("Backspace")
    rows.first.wait_for()
    assert notebook.ask("selection.token == int(known[5])")
    page.keyboard.press("n")
    page.wait_for_function(
        "old => !document.querySelector('.fwl-receipts [role=status]').textContent.startsWith(old)",
        arg=view.locator("[role=status]").inner_text()[:40],
    )
    assert notebook.ask("selection.token == int(known[6])")
    rows.nth(2).click()
    assert notebook.ask("selection.token == int(trace.receipt_source.sel(reader='fwl').values[known[6], 2])")
    page.keyboard.press("Backspace")
    rows.first.wait_for()
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.set_theme(theme)
        for key, name in (("1", "sources"), ("2", "distance"), ("3", "together")):
            view.focus()
            page.keyboard.press(key)
            page.locator(".fwl-receipts canvas, .fwl-receipts [role=option]").first.wait_for()
            assert serious_violations(page, ".fwl-receipts") == []
            notebook.screenshot(f"receipts-{name}-{theme[11:].lower()}", view)
    view.focus()
    page.keyboard.press("v")
    assert view.locator("table").last.locator("tbody tr").count() == notebook.ask(
        "len(view.answer({'kind': 'summary', 'reader': 'fwl'})[0]['bins'])"
    )


def test_the_kernel_selects_what_the_page_shows(open_notebook, page):
    notebook = open_notebook([CELL, "selection.token = int(known[2])"])
    page.wait_for_function(
        "() => document.querySelector('.fwl-receipts [role=status]')?.textContent.includes('gained')"
    )
    gain = notebook.ask("float(trace.receipt_gain.sel(reader='fwl').values[known[2]])")
    assert f"gained {gain:+.2f} nat".replace("-", "−") in page.locator(".fwl-receipts [role=status]").inner_text()


def test_a_saved_page_needs_nothing(open_file, tmp_path):
    from fwl_lab.testing.traces import make_trace
    from widgets.views.receipts.view import Receipts

    trace = make_trace(2, tokens=900, documents=2)
    view = Receipts(trace)
    known = json.loads(json.dumps(view.head["recorded"]["fwl"]))
    view.selection.token = known[0]
    page = open_file(view.to_html(tmp_path / "receipts.html"))
    view.close()
    rows = page.locator("[role=option]")
    rows.first.wait_for()
    page.locator(".fwl-receipts").focus()
    page.keyboard.press("n")
    page.wait_for_function("() => document.querySelector('[role=status]').textContent.includes('gained')")
    # A source without a receipt of its own was not taken along; the page says so and goes on.
    rows.first.click()
    page.get_by_text("saved view: browsing works, this needs a kernel").wait_for()
    page.keyboard.press("Backspace")
    rows.first.wait_for()


def test_a_receipt_that_comes_late_leaves_the_newer_one_alone(open_notebook, page):
    late = """
import threading
from fwl_lab.testing.traces import make_trace
from widgets import Receipts, Selection
trace = make_trace(2, tokens=900, documents=2)
gain = trace.receipt_gain.sel(reader="fwl").values
known = np.flatnonzero(np.isfinite(gain))
go_on, ended = threading.Event(), threading.Event()
selection = Selection(trace, token=int(known[5]) + 1)

def fails_late(reader, token):
    go_on.wait(60)
    ended.set()
    raise ValueError("it came too late")

view = Receipts(trace, model=object(), selection=selection)
view._compute = fails_late
view
"""
    notebook = open_notebook(["import numpy as np", late])
    view = page.locator(".fwl-receipts")
    view.get_by_role("button", name="Compute it").click()
    expect(view.get_by_text("Splitting the gain")).to_be_visible()
    view.focus()
    page.keyboard.press("n")
    expect(view.locator("[role=option]").first).to_be_visible()
    assert notebook.ask("selection.token == int(known[6])")
    page.wait_for_timeout(600)  # longer than it takes to say that something takes long
    notebook.ask("go_on.set()")
    assert notebook.ask("ended.wait(30)")
    page.wait_for_timeout(300)
    expect(view.locator("[role=option]").first).to_be_visible()
    assert "late" not in view.inner_text()
    # Back there, nothing is under way any more.
    page.keyboard.press("Escape")
    notebook.ask("selection.set_trait('token', int(known[5]) + 1)")
    expect(view.get_by_role("button", name="Compute it")).to_be_visible()
