"""The harness reports what it is there to report: each kind of failure is made on purpose, and seen."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

COUNTER = """
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = '''
    export default { render({ model, el }) {
      const button = document.createElement("button");
      button.className = "counter";
      const show = () => { button.textContent = `${model.get("count")} clicks`; };
      button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes(); };
      model.on("change:count", show);
      show();
      el.append(button);
    } };
    '''
    count = traitlets.Int(0).tag(sync=True)

counter = Counter()
counter
"""


def test_a_click_reaches_the_kernel_and_the_kernel_the_page(open_notebook, watched):
    notebook = open_notebook(["import json", COUNTER])
    button = notebook.outputs(1).locator(".counter")
    expect(button).to_have_text("0 clicks")
    button.click()
    button.click()
    assert notebook.ask("counter.count") == 2
    notebook.ask("counter.set_trait('count', 7)")
    expect(button).to_have_text("7 clicks")
    assert [message.size for message in watched.messages if message.kind == "comm_open"][-1] > 500
