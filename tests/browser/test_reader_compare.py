"""ReaderCompare in a real browser: rows, keys, brush, charts, both themes, its saved page, its budgets."""

import statistics
import time

import pytest

from fwl_lab.testing.traces import make_trace
from widgets.views.reader_compare.view import ReaderCompare

pytestmark = pytest.mark.browser

CELL = """
import json
import numpy as np
from fwl_lab import analysis
from fwl_lab.audit.certificate import Certificate, Check, add_certificates
from fwl_lab.testing.traces import make_trace
from widgets.views.reader_compare.view import ReaderCompare
trace = make_trace(2, tokens=900, documents=3)
good = Check("causality", True, 0.0, 0.0, "nat", "512 tokens changed")
bad = Check("padding", False, 0.3, 0.0, "nat", "<b>token 17</b> changed")
trace = add_certificates(trace, {"fwl": Certificate((good,)), "dynamic_evaluation": Certificate((good, bad))})
other = trace.copy(deep=True)
other["nll"][3] *= 0.9
compare = ReaderCompare({"one": trace, "two": other})
compare
"""
LONG = """
from timeit import timeit
from fwl_lab.testing.traces import make_trace
from widgets.views.reader_compare.view import ReaderCompare
from widgets.display.numbers import signed
trace = make_trace(1, tokens=100_000, documents=8, recorded=False)
"""
# Each handler's own time, in ms, for pointers that wander over the chart.
HOVER = """() => {
  const canvas = document.querySelector(".fwl-reader_compare canvas"), box = canvas.getBoundingClientRect();
  return Array.from({length: 200}, (_, i) => {
    const at = {clientX: box.left + 70 + (i * 37) % (box.width - 260), clientY: box.top + 120};
    const event = new PointerEvent("pointermove", at);
    const start = performance.now();
    canvas.dispatchEvent(event);
    return performance.now() - start;
  });
}"""
VIEW = ".fwl-reader_compare"


def signed(value, digits=3):
    return f"{value:+.{digits}f}".replace("-", "−")


def drag(page, start, stop):
    """Brush from one share of the chart's width to another."""
    canvas = page.locator(f"{VIEW} canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + start * box["width"], box["y"] + 120)
    page.mouse.down()
    page.mouse.move(box["x"] + stop * box["width"], box["y"] + 120, steps=4)
    page.mouse.up()


def intervals_are_there(page):
    page.wait_for_function(
        f"() => document.querySelector('{VIEW} .fwl-method')?.textContent.includes('bootstrap over')"
    )


def test_it_is_driven_by_clicks_and_keys(open_notebook, page, serious_violations):
    notebook = open_notebook([CELL])
    view = page.locator(VIEW)
    intervals_are_there(page)
    rows = view.locator("tr[data-reader]")
    assert rows.count() == 5
    low = notebook.ask("float(analysis.paired_bootstrap(compare.trace).low.sel(reader='fwl', average='micro'))")
    assert f"[{signed(low)}, " in view.locator('tr[data-reader="fwl"]').inner_text()

    view.locator('tr[data-reader="two: fwl"] th').click()
    assert notebook.ask("compare.selection.reader") == "two: fwl"
    view.locator('tr[data-reader="static"] th').click(modifiers=["Shift"])
    page.wait_for_function(f"() => document.querySelector('{VIEW} [role=status]').textContent.includes('over static')")
    assert notebook.ask("[compare.selection.reader, compare.selection.baseline]") == ["two: fwl", "static"]
    view.locator("header select").select_option("base")
    view.focus()
    for _ in range(2):
        page.keyboard.press("ArrowUp")
    view.locator('tr[data-reader="dynamic_evaluation"][aria-selected="true"]').wait_for()
    page.keyboard.press("Enter")
    opened = view.locator(".fwl-open")
    assert "padding" in opened.inner_text() and "<b>token 17</b> changed" in opened.inner_text()
    assert view.locator(".fwl-badge.failed").inner_text() == "✗ failed: padding"
    page.keyboard.press("Enter")
    assert opened.count() == 0

    count = notebook.ask("len(compare.head['settings']['equal'])")
    view.get_by_text(f"{count} equal settings hidden").click()
    assert view.locator(".fwl-equal dt").count() == count
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.set_theme(theme)
        for key, name in (("1", "tokens"), ("2", "position"), ("3", "kinds"), ("4", "cost")):
            view.focus()
            page.keyboard.press(key)
            view.locator(".fwl-stage:not([hidden]) canvas").wait_for()
            assert serious_violations(page, VIEW) == []
            notebook.screenshot(f"compare-{name}-{theme[11:].lower()}", view)


def test_a_brushed_stretch_is_everyones(open_notebook, page):
    notebook = open_notebook([CELL])
    view = page.locator(VIEW)
    intervals_are_there(page)
    drag(page, 0.2, 0.5)
    view.locator(".fwl-words b").first.wait_for()
    start, stop = notebook.ask("compare.selection.span")
    assert 0 < start < stop < 900 and notebook.ask("compare.selection.token") == start
    mean = notebook.ask(f"float((trace.nll[0] - trace.nll[3])[{start}:{stop}].mean())")
    assert f"FWL {signed(mean)}" in view.locator(".fwl-words").inner_text()
    view.focus()
    page.keyboard.press("g")
    chosen = notebook.ask("compare.selection.reader")
    gain = f"(compare.trace.nll.sel(reader='base') - compare.trace.nll.sel(reader={chosen!r})).values"
    best = notebook.ask(f"{start} + int({gain}[{start}:{stop}].argmax())")
    view.get_by_role("status").get_by_text(f"token {best} ").wait_for()
    assert notebook.ask("compare.selection.token") == best
    page.keyboard.press("x")
    view.get_by_text("Drag over the chart").wait_for()
    assert notebook.ask("compare.selection.span") is None
    page.keyboard.press("Shift+ArrowRight")
    notebook.expect("compare.selection.span is not None")
    first, last = notebook.ask("compare.selection.span")
    for key, stop in (("Shift+ArrowRight", 2 * last - first), ("Shift+ArrowLeft", last)):
        page.keyboard.press(key)
        notebook.expect(f"list(compare.selection.span) == {[first, stop]}")
    # A stretch that another view sets is told here as well, to the token.
    notebook.ask("setattr(compare.selection, 'span', [101, 203])")
    mean = notebook.ask("float((trace.nll[0] - trace.nll[3])[101:203].mean())")
    view.locator(".fwl-words").get_by_text(signed(mean), exact=True).wait_for()


def test_hovering_tells_all_readers(open_notebook, page):
    notebook = open_notebook([CELL])
    view = page.locator(VIEW)
    intervals_are_there(page)
    canvas = view.locator("canvas")
    canvas.hover(position={"x": 300, "y": 150})
    readout = view.locator(".fwl-readout")
    token = int(readout.locator("> b").inner_text().split()[1].replace(",", ""))
    gain = notebook.ask(f"float((trace.nll[0] - trace.nll[1])[:{token}].sum())")
    assert readout.locator("dt").count() == 4
    said = dict(zip(readout.locator("dt").all_inner_texts(), readout.locator("dd").all_inner_texts(), strict=True))
    value = float({name.strip(): text for name, text in said.items()}["static"].split()[0].replace("−", "-"))
    assert value == pytest.approx(gain, rel=0.01, abs=0.01)
    view.focus()
    page.keyboard.press("3")
    page.keyboard.press("v")
    rows = view.locator(".fwl-chart tbody tr")
    rows.first.wait_for()
    assert rows.count() == notebook.ask(
        "len(compare.answer({'kind': 'breakdown', 'by': 'class', 'baseline': 'base'})[0]['buckets'])"
    )


def test_a_long_trace_is_no_burden(open_notebook, page, budget):
    notebook = open_notebook([LONG, "compare = ReaderCompare(trace)\ncompare"], run=False)
    notebook.run_cell(0)
    notebook.run_cell(1)
    start = time.perf_counter()
    page.locator(f"{VIEW} tr[data-reader]").first.wait_for()
    budget("compare: first paint after the cell", time.perf_counter() - start, 1.5, "s")
    intervals_are_there(page)
    size = notebook.ask("len(__import__('json').dumps(compare.head)) + len(compare.data)")
    assert size <= 2 * 2**20
    budget("compare: first message", size / 2**20, 2, "MiB")
    budget("compare: hover, median", statistics.median(page.evaluate(HOVER)), 16, "ms")
    slowest = notebook.ask(
        "max(timeit(lambda: ReaderCompare.reply(compare, question), number=1) for question in compare.foreseen())"
    )
    budget("compare: slowest answer", slowest, 2, "s")


def test_a_saved_page_needs_nothing(open_file, tmp_path):
    trap = "</script><script>document.title = 'trapped'</script>"
    trace = make_trace(2, tokens=900, documents=3)
    trace["document_name"].values[0] = trap
    worse = trace.copy(deep=True)
    worse["nll"][3] *= 1.1
    view = ReaderCompare({"one": trace, trap: worse})
    page = open_file(view.to_html(tmp_path / "compare.html"))
    view.close()
    intervals_are_there(page)
    shown = page.locator(VIEW)
    assert page.title() == "ReaderCompare" and trap in shown.inner_text()
    shown.focus()
    for key in "234":
        page.keyboard.press(key)
        shown.locator(".fwl-stage:not([hidden]) canvas").wait_for()
    page.keyboard.press("1")
    drag(page, 0.3, 0.4)
    shown.locator(".fwl-words b").first.wait_for()
    page.keyboard.press("g")
    shown.get_by_text("saved view: browsing works, this needs a kernel").wait_for()
    shown.locator("header select").select_option("fwl")
    page.wait_for_function(f"() => document.querySelector('{VIEW} [role=status]').textContent.includes('over FWL')")
    intervals_are_there(page)
