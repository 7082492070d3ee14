"""A notebook that is open in JupyterLab, driven through JupyterLab's own commands."""

import ast
import json
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page

from .server import ROOT, JupyterLab

SHOTS = ROOT / "runs" / "browser"
# Available to all scripts below; the notebook is the only document that is open.
PANEL = """
window.openNotebook = () => {
  const shell = window.jupyterapp?.shell;
  return shell && [...shell.widgets("main")].find(widget => widget.content?.widgets && widget.sessionContext);
};
"""


class LabNotebook:
    """A notebook in a page.

    Attributes
    ----------
    page : Playwright's page, with JupyterLab in it.
    path : the notebook's file, below the server's root.
    """

    def __init__(self, page: Page, lab: JupyterLab, path: str) -> None:
        self.page, self.path = page, path
        page.add_init_script(PANEL)
        # A workspace of its own, named for the file: nothing else is open there.
        workspace = Path(path).stem
        page.goto(f"{lab.url}/lab/workspaces/{workspace}/tree/{path}?reset&token={lab.token}")
        page.wait_for_function("() => window.openNotebook()")
        page.evaluate(
            """async () => {
              await jupyterapp.restored;
              const {context, sessionContext} = openNotebook();
              await context.ready;
              await sessionContext.ready;
              await sessionContext.session.kernel.info;
              jupyterapp.shell.collapseLeft();
              jupyterapp.shell.collapseRight();
            }"""
        )
        self.wait_idle()

    def run_all(self, *, check: bool = True) -> None:
        """Run all cells and wait until they have; with `check`, fail where one reports an error."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        self._finish(check)

    def run_cell(self, index: int, *, check: bool = True) -> None:
        """Run the cell at `index`, counted from 0 and with Markdown, and wait until it has."""
        self.page.evaluate(
            """index => {
              const notebook = openNotebook().content;
              notebook.deselectAll();
              notebook.activeCellIndex = index;
              return jupyterapp.commands.execute("notebook:run-cell");
            }""",
            index,
        )
        self._finish(check)

    def start_cell(self, index: int) -> None:
        """Run the cell at `index`, and do not wait until it has."""
        self.page.evaluate(
            """index => {
              const notebook = openNotebook().content;
              notebook.deselectAll();
              notebook.activeCellIndex = index;
              jupyterapp.commands.execute("notebook:run-cell");
            }""",
            index,
        )
        self.page.wait_for_function("() => openNotebook().sessionContext.session?.kernel?.status === 'busy'")

    def _finish(self, check: bool) -> None:
        self.wait_idle()
        if check:
            assert not (failed := self.errors()), f"cells failed: {failed}"

    def errors(self) -> list[str]:
        """Return what failed in which cell, `cell 2: ValueError: …`."""
        return self.page.evaluate(
            """() => openNotebook().content.widgets.flatMap((cell, index) =>
              (cell.model.toJSON().outputs ?? [])
                .filter(output => output.output_type === "error")
                .map(output => `cell ${index}: ${output.ename}: ${output.evalue}`))"""
        )

    def kernel_busy(self) -> bool:
        """Return whether the kernel is at work now."""
        return self.page.evaluate("() => openNotebook().sessionContext.session.kernel.status !== 'idle'")

    def wait_idle(self) -> None:
        """Wait until the kernel has nothing left to do."""
        self.page.wait_for_function("() => openNotebook().sessionContext.session?.kernel?.status === 'idle'")

    def ask(self, expression: str) -> Any:
        """Return a Python expression's value in the kernel, by way of JSON; asked after all that widgets had to send.

        Raises
        ------
        ValueError
            Where the expression fails in the kernel; says how.
        """
        answer = self.page.evaluate(
            """async code => {
              const {kernel} = openNotebook().sessionContext.session;
              // A widget sends its latest change once the kernel is idle after the one before it: when this is done.
              await kernel.requestExecute({code: "", store_history: false}).done;
              const request = {code: "", silent: false, store_history: false, user_expressions: {answer: code}};
              return (await kernel.requestExecute(request).done).content.user_expressions.answer;
            }""",
            f"__import__('json').dumps({expression})",
        )
        if answer["status"] != "ok":
            raise ValueError(f"{expression} failed in the kernel: {answer['ename']}: {answer['evalue']}")
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def expect(self, expression: str, seconds: float = 60) -> None:
        """Wait until a Python expression is true in the kernel: changes of widgets come there some time after a key.

        Raises
        ------
        AssertionError
            It was not within so many seconds.
        """
        end = time.monotonic() + seconds
        while not self.ask(f"bool({expression})"):
            assert time.monotonic() < end, f"not true within {seconds:g} s: {expression}"

    def outputs(self, index: int) -> Locator:
        """Return where the outputs of the cell at `index` are, counted from 0 and with Markdown."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-Cell-outputArea")

    def set_theme(self, name: str) -> None:
        """Change to "JupyterLab Light" or "JupyterLab Dark", and wait until the page shows it."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        # A splash covers the page until the theme's styles are there.
        self.page.wait_for_function(
            "theme => document.body.dataset.jpThemeName === theme && !document.getElementById('jupyterlab-splash')",
            arg=name,
        )

    def screenshot(self, name: str, of: Locator | None = None) -> Path:
        """Save the page, or only one part of it, as runs/browser/<name>.png; return the path."""
        path = SHOTS / f"{name}.png"
        (of or self.page).screenshot(path=path)
        return path
