"""The notebooks that hold views, in JupyterLab as a person opens them: all cells run, every view is driven."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from widgets.report.run import run_notebook

from .server import ROOT

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)

NOTEBOOKS = ROOT / "notebooks"
VIEWS = ("document_lens", "receipts", "update_scope", "reader_compare")


@pytest.fixture
def look(serious_violations):
    """Call it with a notebook, a name and views: leaves pictures of both themes; nothing there is inaccessible."""

    def look_at(notebook, name, views):
        for theme in ("Dark", "Light"):
            notebook.set_theme(f"JupyterLab {theme}")
            for view in views:
                place = notebook.page.locator(f".fwl-{view}")
                place.scroll_into_view_if_needed()
                if view == "document_lens":
                    expect(place.locator(".selected").first).to_be_in_viewport()
                assert serious_violations(notebook.page, f".fwl-{view}") == []
                notebook.screenshot(f"{name}-{view}-{theme.lower()}", place)

    return look_at


def test_the_quickstart_ends_with_all_views(open_notebook, page, tmp_path, look):
    parameters = {"max_tokens": 512, "readers": ["base", "static", "fwl"], "output": str(tmp_path / "out")}
    notebook = open_notebook(NOTEBOOKS / "00_quickstart.ipynb", parameters=parameters)
    lens, receipts, scope, compare = (page.locator(f".fwl-{name}") for name in VIEWS)
    status = lens.locator(".fwl-status")
    expect(status).to_contain_text("gain")
    # It begins at a gain that has a receipt.
    expect(receipts.locator("[role=option]").first).to_be_visible()
    look(notebook, "quickstart", VIEWS)

    # Keys, search, a click.
    lens.focus()
    first = notebook.ask("views.selection.token")
    page.keyboard.press("n")
    notebook.expect(f"views.selection.token != {first}")
    page.keyboard.press("/")
    page.keyboard.type("self")
    page.keyboard.press("Enter")
    notebook.expect("'self' in str(trace.token_text.values[views.selection.token])")
    page.keyboard.press("Escape")
    # A receipt that the trace does not hold is computed when its view is asked.
    token = notebook.ask(
        "max((t for t, gain in enumerate(trace.receipt_gain.sel(reader='fwl').values) if t > 64 and gain != gain),"
        " key=lambda t: float(trace.nll.sel(reader='base')[t] - trace.nll.sel(reader='fwl')[t]))"
    )
    assert notebook.ask(f"views.selection.set_trait('token', {token})") is None
    expect(status).to_contain_text(f" at {token:,} ")
    receipts.get_by_role("button", name="Compute it").click()
    expect(receipts.locator(".fwl-status")).to_contain_text(f" at {token:,}: FWL gained")
    assert notebook.ask("list(views.receipts._computed)") == [["fwl", token]]
    # Now the text shows who paid, too.
    expect(lens.locator(".fwl-sources button").first).to_be_visible()
    assert notebook.ask("views.selection.receipt['token']") == token
    # Play, and stop.
    scope.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    notebook.expect("views.selection.token > 3")
    page.keyboard.press("Space")
    # Brush the curve; the text goes there.
    canvas = compare.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    notebook.expect("views.selection.span is not None")
    start = notebook.ask("views.selection.span")[0]
    expect(status).to_contain_text(f" at {start:,} ")
    assert (tmp_path / "out" / "views.html").exists()


def test_the_live_notebook_reads_what_is_typed_and_what_is_chosen(open_notebook, page, tmp_path, look):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("one", "two"):
        (texts / f"{name}.txt").write_text(f"def {name}(fish):\n    return fish\n" * 60)
    notebook = open_notebook(
        NOTEBOOKS / "05_live.ipynb", parameters={"path": str(texts), "output": str(tmp_path / "live")}
    )
    pad, console = page.locator(".fwl-live_pad"), page.locator(".fwl-run_console")
    expect(pad).to_have_attribute("data-phase", "done")
    expect(console.locator(".fwl-plan")).to_contain_text("tokens")
    look(notebook, "live", ("live_pad", "run_console"))
    field = pad.get_by_label("text to read")
    field.fill("def fish():\n    return fish")
    notebook.expect("pad.text == 'def fish():\\n    return fish'")
    notebook.expect("pad.trace is not None and ''.join(pad.trace.token_text.values) == pad.text")
    console.get_by_role("button", name="Start reading").click()
    expect(console.locator(".fwl-status")).to_contain_text("done: ")
    # The last cell shows what was read.
    last = page.evaluate("() => openNotebook().content.widgets.length - 1")
    notebook.run_cell(last)
    expect(page.locator(".fwl-document_lens .fwl-status")).to_contain_text("gain")
    assert notebook.ask("console.trace.sizes['token']") == notebook.ask("views.lens.trace.sizes['token']") > 500


def test_the_gallery_shows_every_view(open_notebook, page, tmp_path, look):
    notebook = open_notebook(
        NOTEBOOKS / "06_widget_gallery.ipynb", parameters={"tokens": 900, "output": str(tmp_path / "gallery")}
    )
    for view in VIEWS:
        expect(page.locator(f".fwl-{view} .fwl-status")).not_to_be_empty()
    look(notebook, "gallery", VIEWS)
    first = notebook.ask("selection.token")
    page.locator(".fwl-document_lens").focus()
    page.keyboard.press("ArrowRight")
    notebook.expect(f"selection.token == {first + 1}")
    expect(page.locator(".fwl-update_scope .fwl-status")).to_contain_text(f"token {first + 1:,}")


def test_what_a_batch_run_left_is_seen_without_a_kernel(open_notebook, page, tmp_path):
    """Opened and not run: still pictures, and nothing that waits for a widget."""
    executed = run_notebook(
        NOTEBOOKS / "06_widget_gallery.ipynb", tmp_path / "gallery", {"tokens": 900}, progress=False
    )
    notebook = open_notebook(Path(executed), run=False)
    shown = page.locator(".jp-OutputArea-output")
    expect(shown.locator(".fwl-doc pre").first).to_be_visible()
    expect(shown.get_by_text("Who paid for")).to_be_visible()
    expect(shown.locator("img[src^=data]")).to_have_count(2)
    # Not trusted, so without a stylesheet; tokens have their colours all the same.
    token = shown.locator("pre span[style*=background]").first
    colour = token.evaluate("node => getComputedStyle(node).backgroundColor")
    assert colour != "rgba(0, 0, 0, 0)"
    assert page.get_by_text("Loading widget").count() == page.get_by_text("Error displaying widget").count() == 0
    for number, place in enumerate(shown.all()):
        place.scroll_into_view_if_needed()
        notebook.screenshot(f"gallery-still-{number}", place)
