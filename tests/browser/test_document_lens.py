"""The lens in a real browser: keys, clicks, search, the map, both themes, long documents, and its saved page."""

import re

import pytest
from playwright.sync_api import expect

from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema as schema
from widgets.core.selection import Selection
from widgets.views.document_lens.view import DocumentLens

pytestmark = pytest.mark.browser

LENS = ".fwl-document_lens"
CELL = """
import numpy as np
from fwl_lab.testing.traces import make_trace
from widgets.views.document_lens.view import DocumentLens
from widgets.core.selection import Selection
trace = make_trace(2, tokens={tokens}, documents=3, recorded={recorded})
gain = trace.nll.sel(reader="base").values - trace.nll.sel(reader="fwl").values
order = np.argsort(-np.abs(gain), kind="stable")
selection = Selection(trace, reader="fwl")
"""
SHOW = "lens = DocumentLens(trace, selection=selection)\nlens"
ALTERNATIVES = f"{LENS} .fwl-slopes"


@pytest.fixture
def lens(open_notebook, page):
    notebook = open_notebook([CELL.format(tokens=3000, recorded=True), SHOW])
    page.locator(ALTERNATIVES).wait_for()
    return notebook


def _press(page, *keys):
    page.locator(LENS).focus()
    for key in keys:
        page.keyboard.press(key)


def _status(page):
    return page.locator(f"{LENS} .fwl-status")


def test_keys_move_the_selection_of_the_kernel(lens, page):
    _press(page, "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight")
    assert lens.ask("selection.token") == 2
    _press(page, "End", "ArrowDown", "Home")
    line = page.locator(f"{LENS} .fwl-row:has(.selected)")
    assert page.locator(f"{LENS} .selected").evaluate("node => node === node.parentNode.firstElementChild")
    assert line.count() == 1 and lens.ask("selection.token") > 2
    _press(page, "n")
    assert lens.ask("selection.token == int(order[0])")
    expect(_status(page)).to_contain_text("the biggest by |gain|")
    expect(_status(page)).to_contain_text(f"gain {lens.ask('float(gain[order[0]])'):+.2f}".replace("-", "−"))
    _press(page, "n", "n", "p")
    assert lens.ask("selection.token == int(order[1])")
    expect(page.locator(f"{LENS} .selected")).to_be_visible()
    _press(page, "]")
    assert lens.ask("int(trace.position[selection.token])") == 0
    _press(page, "N")
    assert lens.ask("selection.token in order[:2000].tolist()")
    # What another view selects is followed.
    lens.ask("selection.set_trait('token', 1234)")
    expect(_status(page)).to_contain_text(
        f"FWL {lens.ask('float(trace.nll.sel(reader=`fwl`)[1234])'.replace('`', chr(34))):.2f}"
    )
    expect(page.locator(f"{LENS} .selected")).to_be_visible()


def test_a_click_shows_what_was_expected_and_who_paid(lens, page):
    token = lens.ask("int(np.flatnonzero(np.isfinite(trace.receipt_gain.values[3]))[3])")
    lens.ask(f"selection.set_trait('token', {token})")
    sources = page.locator(f"{LENS} .fwl-sources button")
    sources.first.wait_for()
    count = lens.ask(f"int((trace.receipt_source.values[3, {token}] >= 0).sum())")
    assert sources.count() == count
    shown = page.locator(f"{LENS} .fwl-row .pays, {LENS} .fwl-row .costs")
    assert 0 < shown.count() <= count
    after = page.locator(f"{LENS} .after li:not(.head)")
    assert after.count() in (10, 11) and page.locator(f"{LENS} .after li.label").count() == 1
    rank = lens.ask(f"int(trace.label_rank.values[3, {token}])")
    assert page.locator(f"{LENS} .after li.label small").inner_text() == f"{rank + 1:,}"
    other = page.locator(f"{LENS} .fwl-row span:not(.fixed)").nth(7)
    index = other.evaluate("node => node.token")
    other.click()
    assert lens.ask("selection.token") == index
    expect(page.locator(f"{LENS} .fwl-which small")).to_contain_text(
        f"position {lens.ask(f'int(trace.position[{index}])'):,}"
    )
    sources.first.wait_for(state="detached") if not lens.ask(
        f"bool(np.isfinite(trace.receipt_gain.values[3, {index}]))"
    ) else sources.first.wait_for()


def test_pointing_shows_the_figures_of_every_reader_right_to_a_hundredth(lens, page):
    span = page.locator(f"{LENS} .fwl-row span").nth(12)
    span.hover()
    tip = page.locator(f"{LENS} .fwl-tip")
    expect(tip).to_be_visible()
    token = span.evaluate("node => node.token")
    shown = [float(x) for x in re.findall(r"([\d.]+) nat", tip.inner_text())[:4]]
    exact = lens.ask(f"trace.nll.values[:, {token}].tolist()")
    assert shown == pytest.approx(exact, abs=0.00501 + 0.0005)


def test_it_is_one_tab_stop_and_enter_leads_into_the_panel(lens, page):
    inside = "() => document.activeElement.closest('.fwl-document_lens') !== null"
    named = "() => document.activeElement.className"
    lens.ask("selection.set_trait('token', int(np.flatnonzero(np.isfinite(trace.receipt_gain.values[3]))[3]))")
    page.locator(f"{LENS} .fwl-sources button").first.wait_for()
    page.locator(LENS).focus()
    page.keyboard.press("Tab")
    assert not page.evaluate(inside)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(named) == "fwl fwl-document_lens"
    page.keyboard.press("Shift+Tab")
    assert not page.evaluate(inside)
    page.locator(LENS).focus()
    page.keyboard.press("Enter")
    assert page.evaluate(named) == "fwl-side"
    page.keyboard.press("Tab")
    source = lens.ask("int(trace.receipt_source.values[3, selection.token, 0])")
    page.keyboard.press("Enter")
    page.wait_for_function("t => document.querySelector('.fwl-document_lens .selected')?.token === t", arg=source)
    page.keyboard.press("Escape")
    assert page.evaluate(named) == "fwl fwl-document_lens"
    assert lens.ask("selection.token") == source


def test_search_finds_across_tokens_and_counts(lens, page):
    query, places = lens.ask(
        "(lambda text, query: [query, sum(text.count(query) for text in text)])"
        "([''.join(trace.token_text.values[trace.document.values == d]).lower() for d in range(3)], 'return')"
    )
    _press(page, "/")
    page.keyboard.type(query)
    page.keyboard.press("Enter")
    count = page.locator(f"{LENS} .fwl-count")
    expect(count).to_contain_text(f"of {places:,}")
    first = lens.ask("selection.token")
    assert query in lens.ask("''.join(trace.token_text.values[selection.token:selection.token + 7]).lower()")
    page.keyboard.press("Enter")
    second = lens.ask("selection.token")
    page.keyboard.press("Shift+Enter")
    assert second > first and lens.ask("selection.token") == first
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.classList.contains('fwl-document_lens')")


def test_colours_the_map_the_picker_and_the_table(lens, page):
    scroll = page.locator(f"{LENS} .fwl-scroll")
    legend = page.locator(f"{LENS} .fwl-legend")
    expect(legend).to_contain_text("nat better")
    _press(page, "m")
    expect(legend).to_contain_text("nat or more")
    assert lens.ask("lens.measure") == "nll"
    _press(page, "m")
    expect(legend).to_contain_text("1st expected")
    lens.ask("lens.set_trait('measure', 'gain')")
    expect(legend).to_contain_text("nat better")
    canvas = page.locator(f"{LENS} .fwl-map canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": 40, "y": box["height"] * 0.9})
    page.wait_for_function("s => document.querySelector(s).scrollTop > 500", arg=f"{LENS} .fwl-scroll")
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 40, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + box["height"] * 0.4)
    page.mouse.up()
    page.keyboard.up("Shift")
    start, stop = lens.ask("selection.span")
    assert abs(start - 600) < 20 and abs(stop - 1200) < 20
    page.locator(f"{LENS} select").first.select_option("2")
    assert lens.ask("int(trace.document[selection.token])") == 2
    expect(page.locator(f"{LENS} .fwl-title b")).to_have_text("package/module_2.py")
    _press(page, "v")
    row = page.locator(f"{LENS} tr[aria-selected=true]")
    assert row.locator("td").first.inner_text() == f"{lens.ask('selection.token'):,}"
    _press(page, "ArrowRight")
    expect(row.locator("td").nth(1)).to_have_text("1")
    _press(page, "v")
    expect(scroll).to_be_visible()


def test_it_is_accessible_in_both_themes(lens, page, serious_violations):
    token = lens.ask("int(np.flatnonzero(np.isfinite(trace.receipt_gain.values[3]))[9])")
    lens.ask(f"selection.set_trait('token', {token})")
    page.locator(f"{LENS} .fwl-sources button").first.wait_for()
    for theme in ("Light", "Dark"):
        lens.set_theme(f"JupyterLab {theme}")
        for measure, word in (("gain", "nat better"), ("nll", "nat or more"), ("rank", "1st expected")):
            lens.ask(f"lens.set_trait('measure', '{measure}')")
            expect(page.locator(f"{LENS} .fwl-legend")).to_contain_text(word)
            lens.screenshot(f"lens-{measure}-{theme.lower()}", page.locator(LENS))
            assert serious_violations(page, LENS) == []
        _press(page, "v")
        assert serious_violations(page, LENS) == []
        _press(page, "v")


MADE = """async () => {
  const notebook = openNotebook().content;
  notebook.deselectAll();
  notebook.activeCellIndex = 1;
  await jupyterapp.commands.execute("notebook:run-cell");
  const done = performance.now();
  while (!document.querySelector(".fwl-document_lens .fwl-row span")) await new Promise(requestAnimationFrame);
  return performance.now() - done;
}"""
SCROLLED = """async () => {
  const scroll = document.querySelector(".fwl-document_lens .fwl-scroll");
  const start = performance.now();
  for (let i = 0; i < 90; i++) { scroll.scrollTop += 400; await new Promise(requestAnimationFrame); }
  return 90000 / (performance.now() - start);
}"""
POINTED = """() => {
  const times = [...document.querySelectorAll(".fwl-document_lens .fwl-row span")].slice(0, 200).map((span) => {
    const start = performance.now();
    span.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
    return performance.now() - start;
  });
  return times.sort((a, b) => a - b)[times.length >> 1];
}"""


def test_a_hundred_thousand_tokens_are_light(open_notebook, page, watched, budget):
    notebook = open_notebook([CELL.format(tokens=100_000, recorded=False), SHOW], run=False)
    notebook.run_cell(0)
    before = len(watched.messages)
    budget("lens, 100,000 tokens: first paint after the cell", page.evaluate(MADE) / 1000, 1.5, "s")
    notebook.wait_idle()
    sizes = [message.size for message in watched.messages[before:] if message.kind == "comm_open"]
    assert max(sizes) > 500_000
    budget("lens, 100,000 tokens: first message", max(sizes) / 1e6, 2, "MB")
    assert max(sizes) <= 2e6
    budget("lens, 100,000 tokens: hover handler, median", page.evaluate(POINTED), 16, "ms")
    budget("lens, 100,000 tokens: scrolling", page.evaluate(SCROLLED), 30, "frames/s", at_least=True)
    assert page.locator(f"{LENS} .fwl-row").count() < 50
    _press(page, "n")
    assert notebook.ask("selection.token == int(order[0])")
    expect(page.locator(f"{LENS} .selected")).to_be_visible()


def test_longer_traces_arrive_in_pages(open_notebook, page):
    small = "import widgets.views.document_lens.view as module; module.PAGE_BYTES = 6000"
    notebook = open_notebook([small, CELL.format(tokens=3000, recorded=True), SHOW])
    expect(page.locator(f"{LENS} .fwl-progress")).to_be_hidden()
    assert notebook.ask("lens.head['pages']") == 6
    _press(page, "n")
    assert notebook.ask("selection.token == int(order[0])")
    page.locator(f"{LENS} select").first.select_option("2")
    expect(page.locator(f"{LENS} .fwl-title b")).to_have_text("package/module_2.py")


def test_a_saved_page_shows_the_text_as_it_reads_and_runs_nothing_in_it(open_file, tmp_path):
    trace = make_trace(5, tokens=400, documents=1)  # full of markup, quotes and right-to-left text
    selection = Selection(trace, reader="fwl", token=9)
    view = DocumentLens(trace, selection=selection, lines=200)
    page = open_file(view.to_html(tmp_path / "lens.html"))
    page.wait_for_selector("body[data-ready]")
    page.locator(ALTERNATIVES).wait_for()
    shown = page.evaluate(
        """() => [...document.querySelectorAll(".fwl-document_lens .fwl-row")]
          .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
          .flatMap(row => [...row.children].map(span => [span.token, span.textContent]))"""
    )
    texts: dict[int, str] = {}
    for token, text in shown:
        texts[token] = texts.get(token, "") + text
    assert list(texts) == list(range(400))
    for token, text in enumerate(trace[schema.TOKEN_TEXT].values):
        if str(text).isprintable() and not str(text).isspace():
            assert texts[token] == str(text)
        assert texts[token] != ""
    assert any("script" in text for text in texts.values()) and any("ש" in text for text in texts.values())
    assert page.locator("script").count() == 2
    page.locator(LENS).focus()
    page.keyboard.press("n")
    expect(_status(page)).to_contain_text("the biggest by |gain|")
    page.locator(ALTERNATIVES).wait_for()
    view.close()
    selection.close()


def test_scores_that_are_not_finite_can_be_gone_to(open_file, tmp_path):
    trace = make_trace(5, tokens=900, documents=2, recorded=False)
    values = trace[schema.NLL].values.copy()
    values[3, 777] = float("nan")
    view = DocumentLens(trace.assign({schema.NLL: (trace[schema.NLL].dims, values, trace[schema.NLL].attrs)}))
    page = open_file(view.to_html(tmp_path / "lens.html"))
    page.get_by_role("button", name="first of 1 scores that are not finite").click()
    expect(_status(page)).to_contain_text("FWL not finite")
    expect(page.locator(f"{LENS} .selected.fwl-odd")).to_be_visible()
    expect(page.locator(f"{LENS} .fwl-side")).to_contain_text("Recorder(top=10)")
    page.locator(f"{LENS} select").nth(1).select_option("rank")
    expect(page.locator(f"{LENS} .fwl-legend")).to_have_text("not recorded: Recorder(top=10)")
    view.close()
