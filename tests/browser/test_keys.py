"""Keys pressed in a view are the view's: JupyterLab's shortcuts, some of which cut cells, stay out of it."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELLS = [
    "from fwl_lab.testing.traces import make_trace\nfrom widgets import explore\n"
    "trace = make_trace(4, tokens=900, documents=2)\nexplore(trace)",
    "from fwl_lab import Document, load_model\nfrom widgets import LivePad, RunConsole\nmodel = load_model('bundled')\n"
    "pad = LivePad(model, text='import os')\npad",
    "RunConsole(model, [Document('one', 'import os'), Document('two', 'import sys')])",
    "1",
]
VIEWS = ("document_lens", "receipts", "update_scope", "reader_compare", "live_pad", "run_console")
NOTEBOOK = """() => openNotebook().content.widgets.map(cell => `${cell.model.type} ${cell.model.sharedModel.source}`)"""
FOCUS = """([selector, index]) => {
  const places = [...document.querySelectorAll(selector)].flatMap(root => [root, ...root.querySelectorAll("*")])
    .filter(node => node.tabIndex >= 0 || node.hasAttribute("tabindex"))
    .filter(node => !node.disabled && node.checkVisibility());
  places[index]?.focus();
  return index < places.length;
}"""


def test_no_key_in_a_view_reaches_the_notebook(open_notebook, page):
    notebook = open_notebook(CELLS)
    for view in VIEWS:
        page.locator(f".fwl-{view}").wait_for()
    before = page.evaluate(NOTEBOOK)
    for view in VIEWS:
        index = 0
        while page.evaluate(FOCUS, [f".fwl-{view}", index]):
            for key in ("b", "m", "x"):  # below the cell a new one; the cell as Markdown; cut
                page.keyboard.press(key)
            assert page.evaluate(NOTEBOOK) == before, f"control {index} of {view}"
            index += 1
        assert index > 3
    assert notebook.errors() == []


def test_arrows_move_a_slider(open_notebook, page):
    open_notebook(CELLS[1:2])
    slider = page.locator(".fwl-live_pad").get_by_label("inner batch M")
    before = slider.input_value()
    slider.focus()
    page.keyboard.press("ArrowDown")
    expect(slider).not_to_have_value(before)
