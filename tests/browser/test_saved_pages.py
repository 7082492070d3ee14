"""Saved pages of every view, from a file with the network off: inert whatever the text is, linked, accessible."""

import itertools

import numpy as np
import pytest
from playwright.sync_api import expect

import fwl_lab
from fwl_lab.testing.traces import make_trace
from widgets import DocumentLens, LivePad, ReaderCompare, Receipts, Selection, UpdateScope, explore

from .notebook import SHOTS

pytestmark = pytest.mark.browser

TRAPS = [
    "<script>window.hurt = 1</script>", "</script><script>window.hurt = 1</script>", "</style><b class=hurt>", "<!--",
    "<img src=x onerror='window.hurt = 1'>", '" onmouseover="window.hurt = 1', "'", "`${window.hurt = 1}`", "&lt;",
    "\\u003c", " שלום", "עולם", "\u202eright to left", "\u2066", "😀", "\x00", "\x1b[31m", "\t", "\r\n", "\n", "�", "",
    "\ufeff", "\u3164",
]  # fmt: skip
HURT = """() => window.hurt !== undefined || document.querySelector(".hurt, img[src=x], [onmouseover]") !== null"""


@pytest.fixture(scope="module")
def trace():
    """A made-up trace of traps; its largest gain has a receipt."""
    made = make_trace(3, tokens=900, documents=2)
    texts = list(itertools.islice(itertools.cycle(TRAPS), made.sizes["token"]))
    kind = np.dtypes.StringDType()
    return made.assign_coords({
        "token_text": ("token", np.array(texts, dtype=kind)),
        "document_name": ("document_name", np.array(["<script>window.hurt = 1</script>", "</style>"], dtype=kind)),
    })  # fmt: skip


def hold(page, selector, serious_violations, name):
    """A page is inert, and accessible in both themes; leaves a picture of each."""
    assert not page.evaluate(HURT)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious_violations(page, selector) == []
        page.screenshot(path=SHOTS / f"saved-{name}-{scheme}.png", full_page=True)
    assert not page.evaluate(HURT)


@pytest.mark.parametrize(
    ("kind", "step"),
    [(DocumentLens, "n"), (Receipts, "ArrowDown"), (UpdateScope, "ArrowRight"), (ReaderCompare, "ArrowUp")],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_page_of_traps_is_inert_and_goes_on_working(open_file, serious_violations, tmp_path, trace, kind, step):
    token = int(trace["receipt_gain"].sel(reader="fwl").argmax("token"))
    view = kind(trace, selection=Selection(trace, token=token))
    path = view.to_html(tmp_path / "page.html")
    saved = path.read_text(encoding="utf-8")
    assert "http://" not in saved and "https://" not in saved
    page = open_file(path)
    root, status = page.locator(".fwl"), page.locator(".fwl-status")
    expect(status).not_to_be_empty()
    if kind is DocumentLens:  # a byte of a character, a byte order mark and a letter that looks like nothing are seen
        for shown in ("‧", "⟨FEFF⟩", "⟨3164⟩"):
            expect(root.locator(".fwl-row").get_by_text(shown, exact=True).first).to_be_visible()
    hold(page, ".fwl", serious_violations, kind.__name__)
    before = status.inner_text()
    root.focus()
    page.keyboard.press(step)
    expect(status).not_to_have_text(before)
    page.keyboard.press("v")
    expect(root.locator("tbody tr").first).to_be_visible()
    assert not page.evaluate(HURT)
    page.keyboard.press("?")
    expect(root.locator(".fwl-help")).to_be_visible()
    view.close()


def test_all_views_on_one_page_follow_one_selection(open_file, serious_violations, tmp_path, trace):
    views = explore(trace)
    page = open_file(views.to_html(tmp_path / "views.html"))
    lens, receipts, scope, compare = (
        page.locator(f".fwl-{name}") for name in ("document_lens", "receipts", "update_scope", "reader_compare")
    )
    for view in (lens, receipts, scope, compare):
        expect(view.locator(".fwl-status")).not_to_be_empty()
    hold(page, "body", serious_violations, "explore")
    # The source of the selected gain, chosen in one view, is where the others go.
    rows = receipts.locator("[role=option]")
    row = views.compare.trace.isel(token=views.selection.token).sel(reader="fwl")
    source = int(row["receipt_source"][1])
    rows.nth(1).click()
    expect(lens.locator(".fwl-status")).to_contain_text(f" at {source:,} ")
    expect(scope.locator(".fwl-status")).to_contain_text(f"token {source:,}")
    receipts.focus()
    page.keyboard.press("Backspace")
    expect(lens.locator(".fwl-status")).to_contain_text(f" at {views.selection.token:,} ")
    # Tab leads from view to view.
    lens.focus()
    page.keyboard.press("Tab")
    expect(receipts).to_be_focused()
    views.close()


def test_a_pad_is_read_but_not_written_without_a_kernel(open_file, serious_violations, tmp_path):
    pad = LivePad(fwl_lab.load_model("bundled"), text="".join(TRAPS[:10]) * 2)
    pad._worker.wait(60)
    tokens = pad.trace.sizes["token"]
    path = pad.to_html(tmp_path / "pad.html")
    assert "http://" not in (saved := path.read_text(encoding="utf-8")) and "https://" not in saved
    page = open_file(path)
    pad.close()
    view = page.locator(".fwl-live_pad")
    expect(view.get_by_text("Saved view: browsing works")).to_be_visible()
    expect(view.get_by_label("text to read")).not_to_be_editable()
    hold(page, ".fwl", serious_violations, "LivePad")
    view.focus()
    page.keyboard.press("ArrowLeft")
    expect(view.locator(".fwl-status")).to_contain_text(f"token {tokens - 1} ")
    page.keyboard.press("v")
    expect(view.get_by_role("table", name="Tokens [nat]").locator("tbody tr")).to_have_count(tokens)
    assert not page.evaluate(HURT)
