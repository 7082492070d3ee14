"""axe-core, the automated accessibility check, fetched from npm and kept beside the screenshots."""

import shutil
import subprocess
from pathlib import Path

from playwright.sync_api import Page

VERSION = "4.14.1"


def install_axe(folder: Path) -> str:
    """Return axe-core's source; installs it below `folder` unless this version is there.

    Raises
    ------
    FileNotFoundError
        Where it has to be installed and there is no npm.
    """
    source = folder / f"axe-core-{VERSION}" / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(
                "axe-core comes from npm, which is not here; install it (Debian: apt-get install npm)"
            )
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(source.parents[2])]
        source.parents[2].mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", *options, f"axe-core@{VERSION}"], check=True)
    return source.read_text(encoding="utf-8")


def find_violations(page: Page, selector: str, axe: str) -> list[str]:
    """Return what axe finds below `selector` and calls serious or critical, `rule (impact): why: markup` each.

    Parameters
    ----------
    axe : its source.
    """
    page.evaluate(f"() => {{ if (!window.axe) {{ {axe} }} }}")
    found = page.evaluate("selector => axe.run(selector, {resultTypes: ['violations']})", selector)
    return [
        f"{violation['id']} ({violation['impact']}): {violation['help']}: {node['html']}"
        for violation in found["violations"]
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"]
    ]
