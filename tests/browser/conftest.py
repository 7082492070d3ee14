"""What tests in a browser share: one JupyterLab, one Chromium, a watched page each."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, BrowserContext, Page, Route, ViewportSize, sync_playwright

from .access import find_violations, install_axe
from .budgets import Budget, write_budgets
from .notebook import SHOTS, LabNotebook
from .server import JupyterLab
from .watching import Watch, watch

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name leads anywhere; what asks for one is reported by the watch, at no cost to other requests.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
VIEWPORT: ViewportSize = {"width": 1400, "height": 1000}
# One name each for a session: JupyterLab remembers layouts by it.
NUMBERS = itertools.count()
# An answer from the page comes after all that it has reported before.
SETTLED = "() => new Promise(done => setTimeout(done))"
BUDGETS = pytest.StashKey[list[Budget]]()


class OpenNotebook(Protocol):
    """See the fixture of this name."""

    def __call__(self, cells: list[str] | Path, *, run: bool = True, parameters: dict | None = None) -> LabNotebook: ...


class AddBudget(Protocol):
    """See the fixture `budget`."""

    def __call__(self, name: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> None: ...


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    """JupyterLab, running."""
    server = JupyterLab(tmp_path_factory.mktemp("jupyterlab"))
    yield server
    server.close()


def find_chromium() -> str:
    """Return where Chromium is: $CHROMIUM, or the first of its names that is installed."""
    named = os.environ.get("CHROMIUM")
    found = (
        shutil.which(named) if named else next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    )
    if found is None:
        said = f"$CHROMIUM is {named!r}, no program" if named else "no program called chromium"
        raise FileNotFoundError(f"{said}; install it (Debian: apt-get install chromium) or say CHROMIUM=/path/to/it")
    return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, headless, with a fresh profile and home."""
    home = str(tmp_path_factory.mktemp("chromium"))
    executable = find_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS, env={**os.environ, "HOME": home})
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """What all pages on JupyterLab share, its scripts in the cache above all."""
    shared = browser.new_context(viewport=VIEWPORT, permissions=["clipboard-read", "clipboard-write"])
    shared.set_default_timeout(60_000)
    yield shared
    shared.close()


@pytest.fixture
def watched(context: BrowserContext) -> Iterator[Watch]:
    """What the test's pages report; clear a list to say that its contents were meant."""
    seen = watch(context)
    yield seen
    context.remove_listener("page", seen.attach)
    seen.assert_clean()


@pytest.fixture
def page(context: BrowserContext, watched: Watch) -> Iterator[Page]:
    """A page that must report no error and ask nothing of another machine."""
    opened = context.new_page()
    yield opened
    if not opened.is_closed():
        opened.evaluate(SETTLED)
    opened.close()


@pytest.fixture
def open_notebook(page: Page, lab: JupyterLab) -> OpenNotebook:
    """Call it with code cells, or with a notebook's path and parameters, to open it in JupyterLab and run all cells."""

    def open_it(cells: list[str] | Path, *, run: bool = True, parameters: dict | None = None) -> LabNotebook:
        if isinstance(cells, Path):
            made = load_notebook_node(str(cells))
        else:
            made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        if parameters:
            made = parameterize_notebook(made, parameters)
        name = f"notebook-{next(NUMBERS)}.ipynb"
        nbformat.write(made, lab.folder / name)
        notebook = LabNotebook(page, lab, name)
        if run:
            notebook.run_all()
        return notebook

    lab.reset()
    return open_it


@pytest.fixture
def alone(browser: Browser) -> Iterator[tuple[BrowserContext, Watch]]:
    """Where files are opened, with the network off, and what they report."""
    context = browser.new_context(viewport=VIEWPORT, offline=True)
    context.set_default_timeout(60_000)
    seen = watch(context)
    yield context, seen
    for opened in context.pages:
        opened.evaluate(SETTLED)
    context.close()
    seen.assert_clean()


@pytest.fixture
def open_file(alone: tuple[BrowserContext, Watch]) -> Callable[[Path], Page]:
    """Call it with the path of an HTML file to open it; it must work with no network and no file beside it."""
    context, seen = alone

    def open_it(path: Path) -> Page:
        address = path.resolve().as_uri()

        def guard(route: Route) -> None:
            if route.request.url == address:
                route.continue_()
            else:
                seen.foreign.append(route.request.url)
                route.abort()

        opened = context.new_page()
        opened.route("**/*", guard)
        opened.goto(address)
        return opened

    return open_it


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source, from npm the first time."""
    return install_axe(SHOTS)


@pytest.fixture
def serious_violations(axe: str) -> Callable[[Page, str], list[str]]:
    """Call it with a page and a selector: what axe finds there and calls serious or critical."""
    return lambda page, selector: find_violations(page, selector, axe)


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> AddBudget:
    """Call it with what was measured and its limit; with FWL_LAB_BUDGETS=1 the limit is asserted."""
    kept = request.config.stash.setdefault(BUDGETS, [])

    def add(name: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> None:
        measured = Budget(name, value, limit, unit, at_least)
        kept.append(measured)
        # Other work on the machine makes any of them late: that is no defect, unless it is asked about.
        if os.environ.get("FWL_LAB_BUDGETS") == "1":
            assert measured.kept, str(measured)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the budgets, and leave them in runs/browser/budgets.json."""
    if measured := config.stash.get(BUDGETS, []):
        terminalreporter.section("budgets")
        for row in measured:
            terminalreporter.write_line(str(row), red=not row.kept)
        write_budgets(measured, SHOTS / "budgets.json")
