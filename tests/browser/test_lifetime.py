"""Views come and go: a cell run again replaces what it made, in the page and in the kernel; closing frees it."""

import pytest
from playwright.sync_api import expect

from .watching import heap

pytestmark = pytest.mark.browser

IMPORTS = """
import gc, weakref
from ipywidgets.widgets.widget import _instances
from fwl_lab.testing.traces import make_trace
from widgets import explore
trace = make_trace(0, tokens=2000)
made = []
"""
CELL = """
made.append(weakref.ref(shown := explore(trace)))
display(shown)  # a cell's value would be kept by IPython as Out[…] and _, which is not the views' doing
"""


def test_ten_runs_of_a_cell_grow_neither_page_nor_kernel(open_notebook, page):
    notebook = open_notebook([IMPORTS, CELL], run=False)
    notebook.run_cell(0)
    bare, views = heap(page), page.locator(".fwl")

    def run_again():
        notebook.run_cell(1)
        views.nth(3).wait_for()

    run_again()
    first, kernel = heap(page), notebook.ask("len(_instances)")
    for _ in range(10):
        run_again()
    after = heap(page)
    assert views.count() == notebook.ask("len(shown.views)") == 4
    assert notebook.ask("len(_instances)") == kernel
    # Views left behind would add ten times what one run added.
    assert after.nodes - first.nodes < first.nodes - bare.nodes
    assert after.listeners - first.listeners < first.listeners - bare.listeners
    notebook.ask("gc.collect()")
    assert notebook.ask("[ref() is not None for ref in made]") == [False] * 10 + [True]


def test_a_closed_view_leaves_the_page_and_the_kernel(open_notebook, page):
    notebook = open_notebook([IMPORTS, CELL, "shown.close()\ndel shown"], run=False)
    notebook.run_cell(0)
    notebook.run_cell(1)
    page.locator(".fwl").nth(3).wait_for()
    notebook.run_cell(2)
    page.wait_for_function("() => document.querySelectorAll('.fwl').length === 0")
    notebook.ask("gc.collect()")
    assert notebook.ask("[ref() is None for ref in made]") == [True]


def test_ten_runs_of_a_cell_with_a_selection_leave_one(open_notebook, page):
    shared = "chosen = Selection(trace)\ndisplay(DocumentLens(trace, selection=chosen))"
    notebook = open_notebook([IMPORTS + "from widgets import DocumentLens, Selection", shared], run=False)
    notebook.run_cell(0)
    counts = []
    for _ in range(11):
        notebook.run_cell(1)
        page.locator(".fwl").wait_for()
        counts.append(notebook.ask("len(_instances)"))
    assert counts == counts[:1] * 11


def test_a_view_whose_selection_is_gone_says_so(open_notebook, page):
    cell = "from widgets import Receipts\nview = Receipts(trace)\nview.selection.close()\nview"
    notebook = open_notebook([IMPORTS, cell])
    assert notebook.errors() == []
    expect(notebook.outputs(1)).to_contain_text("closed before it could be shown")
