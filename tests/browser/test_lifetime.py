"""Views come and go: running a cell again replaces what it made, in the page and in the kernel, and closing frees it."""

import pytest

from .watching import heap

pytestmark = pytest.mark.browser

IMPORTS = """
import gc, weakref
from ipywidgets.widgets.widget import _instances
from fwl_lab.testing import make_trace
from widgets import explore
trace = make_trace(0, tokens=2000)
made = []
"""
CELL = """
made.append(weakref.ref(shown := explore(trace)))
shown
"""


def test_ten_runs_of_a_cell_grow_neither_page_nor_kernel(open_notebook, page):
    notebook = open_notebook([IMPORTS, CELL])
    views = page.locator(".fwl")
    wanted = notebook.ask("len(shown.views)")

    def run_again():
        notebook.run_cell(1)
        views.nth(wanted - 1).wait_for()

    for _ in range(2):  # what is kept after the first runs is caches
        run_again()
    before, kernel = heap(page), notebook.ask("len(_instances)")
    for _ in range(10):
        run_again()
    after = heap(page)
    assert views.count() == wanted
    assert notebook.ask("len(_instances)") == kernel
    # One more view left behind in each run would be ten times its nodes and listeners.
    assert after.nodes - before.nodes < 0.5 * page.evaluate("() => document.querySelectorAll('.fwl, .fwl *').length")
    assert after.listeners - before.listeners < 100
    # What the notebook keeps as Out[…] is not the views' doing.
    notebook.ask("[get_ipython().displayhook.flush(), gc.collect()][0]")
    assert notebook.ask("[ref() is not None for ref in made]") == [False] * 12 + [True]


def test_a_closed_view_leaves_the_page_and_the_kernel(open_notebook, page):
    notebook = open_notebook([IMPORTS, CELL, "shown.close()\ndel shown"])
    page.wait_for_function("() => document.querySelectorAll('.fwl').length === 0")
    notebook.ask("[get_ipython().displayhook.flush(), gc.collect()][0]")
    assert notebook.ask("[ref() is None for ref in made]") == [True]
