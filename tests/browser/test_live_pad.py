"""LivePad in a real browser: type, move sliders, stop in mid-reading, by keys and by pointer; how soon it answers."""

import statistics

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)

CELL = """
import threading
from fwl_lab import StaticReader, load_model, stdlib_corpus
from widgets import LivePad

class Held(StaticReader):
    there, go_on = threading.Event(), threading.Event()

    def step(self, state, inputs, labels, weights):
        Held.there.set()
        Held.go_on.wait(120)
        return super().step(state, inputs, labels, weights)

model = load_model("bundled")
pad = LivePad(model, readers={"held": Held(model.base)})
pad.settings = pad.settings | {"readers": ["base", "fwl", "dynamic_evaluation"]}
pad
"""
PAUSE = 150  # ms that the view waits for another key, as live_pad.js says
TEXT = "def mean_gain(trace):\n    return trace.nll.mean()\n\n\ndef mean_loss(trace):\n    return trace"


def shown(view, text):
    """Wait until all of a text was read and is on the page."""
    view.page.wait_for_function(
        """text => {
          const root = document.querySelector(".fwl-live_pad"), behind = root.querySelector(".fwl-behind");
          return root.dataset.phase === "done" && behind.lastElementChild.textContent === "\\u200b"
            && behind.textContent === `${text}\\u200b`;
        }""",
        arg=text,
    )


def test_a_text_is_read_as_it_is_typed(open_notebook, page, serious_violations):
    notebook = open_notebook([CELL])
    view, status = page.locator(".fwl-live_pad"), page.locator(".fwl-live_pad [role=status]")
    expect(status).to_have_text("no text yet")
    view.focus()
    page.keyboard.press("Enter")
    expect(view.get_by_label("text to read")).to_be_focused()
    page.keyboard.type(TEXT)
    shown(view, TEXT)
    assert notebook.ask("pad.text") == TEXT
    nll = notebook.ask("{name: one['nll'] for name, one in pad.reading['readers'].items()}")
    assert (
        set(nll) == {"base", "fwl", "dynamic_evaluation"}
        and len(nll["fwl"]) == view.locator(".fwl-behind span:not(.fwl-unread)").count()
    )
    assert view.locator(".fwl-next").count() == 3 and view.locator(".fwl-next li").count() == 30
    likeliest = notebook.ask("pad.reading['readers']['fwl']['next'][0][1]")
    assert f"{100 * likeliest:.1f} %" in view.locator(".fwl-next").nth(1).locator("li").first.get_attribute("title")
    expect(status).to_contain_text(f"{len(nll['fwl'])} tokens: base ")
    # The caret is at the last token, whose figures are read out.
    page.keyboard.press("End")
    expect(status).to_contain_text(f"token {len(nll['fwl']) - 1} ")
    expect(status).to_contain_text(f"FWL {nll['fwl'][-1]:.2f}")
    page.keyboard.press("Backspace")
    shown(view, TEXT[:-1])
    for theme in ("Light", "Dark"):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.screenshot(f"live_pad-{theme.lower()}", view)
        assert serious_violations(page, ".fwl-live_pad") == []

    # By keys: tokens, jumps, the table, the controls.
    page.keyboard.press("Escape")
    expect(view).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(status).to_contain_text("token ")
    page.keyboard.press("v")
    expect(view.get_by_role("table", name="Tokens [nat]").locator("tbody tr")).to_have_count(
        notebook.ask("len(pad.reading['texts'])")
    )
    assert serious_violations(page, ".fwl-live_pad") == []
    page.keyboard.press("v")
    page.keyboard.press("c")
    slider = view.get_by_label("step size ×")
    for _ in range(20):
        if slider.evaluate("node => node === document.activeElement"):
            break
        page.keyboard.press("ArrowRight")
    expect(slider).to_be_focused()
    fwl = view.get_by_role("table", name="On this text").locator("tbody tr").nth(1).locator("td").nth(1)
    adapted = fwl.inner_text()
    page.keyboard.press("Home")
    expect(view.locator("output").first).to_have_text("0.0")
    expect(fwl).not_to_have_text(adapted)
    assert notebook.ask("pad.settings['step_scale'] == 0")
    static = notebook.ask('pad.trace.nll.sel(reader="fwl").mean().item()')
    assert fwl.inner_text() == f"{static:.3f}"
    view.get_by_label("inner batch M").focus()
    page.keyboard.press("End")
    view.get_by_label("dynamic evaluation", exact=True).uncheck()
    expect(view.locator(".fwl-next")).to_have_count(2)
    assert notebook.ask("pad.settings['inner_batch'] is None and pad.settings['readers'] == ['base', 'fwl']")
    expect(view.get_by_label("segment")).to_be_hidden()

    # Under the pointer, a token's figures.
    view.locator(".fwl-behind span").nth(2).hover(force=True, position={"x": 2, "y": 4})
    expect(status).to_contain_text("token 2 ")

    # Its own cell's markup is text.
    field = view.get_by_label("text to read")
    field.fill("<script>window.hurt = 1</script></style><b>x")
    shown(view, "<script>window.hurt = 1</script></style><b>x")
    assert page.evaluate("() => window.hurt === undefined && document.querySelector('.fwl-behind b') === null")
    field.fill("")
    expect(status).to_have_text("no text yet")


def test_a_reading_is_stopped_and_taken_up(open_notebook, page):
    notebook = open_notebook([CELL])
    view, status = page.locator(".fwl-live_pad"), page.locator(".fwl-live_pad [role=status]")
    field = view.get_by_label("text to read")
    field.fill(TEXT)
    shown(view, TEXT)
    view.get_by_label("held", exact=True).check()
    assert notebook.ask("Held.there.wait(60)")
    expect(view).to_have_attribute("data-phase", "reading")
    # The kernel answers, and typing goes on.
    assert notebook.ask("1 + 1") == 2
    field.focus()
    page.keyboard.press("Escape")
    expect(status).to_contain_text("stopped")
    expect(view.get_by_text("What was read stays")).to_be_visible()
    notebook.ask("Held.go_on.set()")
    page.keyboard.press("End")
    page.keyboard.type(".nll")
    shown(view, TEXT + ".nll")
    expect(view.locator(".fwl-next")).to_have_count(4)
    assert notebook.ask("pad.trace.sizes['reader']") == 4


def test_256_tokens_are_answered_soon(open_notebook, page, budget):
    """From the key to the last reader's colours, less the pause that is waited for on purpose."""
    notebook = open_notebook([CELL])
    notebook.ask("globals().__setitem__('long', next(d.text for d in stdlib_corpus('test') if len(d.text) > 9_000))")
    view = page.locator(".fwl-live_pad")
    view.wait_for()
    script = """async text => {
      const root = document.querySelector(".fwl-live_pad"), field = root.querySelector("textarea");
      const done = new Promise(answered => {
        const seen = new MutationObserver(() => {
          if (root.dataset.phase === "done" && root.querySelector(".fwl-unread").textContent === "\\u200b") {
            seen.disconnect();
            requestAnimationFrame(() => requestAnimationFrame(() => answered(performance.now())));
          }
        });
        setTimeout(() => seen.observe(root, {subtree: true, attributes: true, childList: true, characterData: true}));
      });
      field.value = text;
      const start = performance.now();
      field.dispatchEvent(new Event("input", {bubbles: true}));
      return await done - start;
    }"""
    times = []
    for run in range(5):
        # Another beginning: nothing of the last reading can be gone on from.
        given = notebook.ask(f"model.decode(model.encode('# {run}\\n' + long)[:256])")
        times.append(page.evaluate(script, given) - PAUSE)
        shown(view, given)
        assert notebook.ask("pad.trace.sizes['token']") == 256
    typed = []
    for letter in "abcde":
        given += letter
        typed.append(page.evaluate(script, given) - PAUSE)
        shown(view, given)
    budget("LivePad: 256 tokens, another text, three readers", statistics.median(times), 500, "ms")
    budget("LivePad: 256 tokens, one letter more, three readers", statistics.median(typed), 500, "ms")


def test_nothing_typed_is_lost_while_the_kernel_is_busy(open_notebook, page):
    """What was sent comes back late, when more has been typed: it must not replace that."""
    busy = "import time\ntime.sleep(4)"
    notebook = open_notebook([CELL, busy], run=False)
    notebook.run_cell(0)
    field = page.locator(".fwl-live_pad").get_by_label("text to read")
    expect(field).to_be_visible()
    notebook.start_cell(1)
    field.focus()
    page.evaluate("""() => {
      const field = document.querySelector(".fwl-live_pad textarea");
      window.lengths = [];
      (function look() { lengths.push(field.value.length); requestAnimationFrame(look); })();
    }""")
    for letters in ("import os", "\nimport sys", "\nimport re"):
        page.keyboard.type(letters)
        page.wait_for_timeout(3 * PAUSE)  # each is sent, and waits
    notebook.wait_idle()
    page.keyboard.type("\nimport json", delay=60)
    shown(page.locator(".fwl-live_pad"), "import os\nimport sys\nimport re\nimport json")
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths)
    # What the kernel sets is shown, though it was typed here before.
    notebook.ask("pad.set_trait('text', 'import os')")
    shown(page.locator(".fwl-live_pad"), "import os")
    expect(field).to_have_value("import os")
