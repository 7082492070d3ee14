"""Record what made a trace or a figure: library versions, Python, the project's commit and the time.

Imports no torch.
"""

import importlib.metadata
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from fwl_lab.trace.schema import COMMIT, CREATED, DIRTY, PYTHON, UNKNOWN, VERSIONS


def provenance() -> dict[str, str]:
    """Return what makes a trace now, as its attributes: library versions (JSON), Python, commit, and time in UTC."""
    versions = {}
    for library in ("fwl-lab", "torch", "transformers", "tokenizers", "numpy", "xarray", "zarr"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = UNKNOWN
    commit, dirty = checkout(Path(__file__).resolve().parents[2])
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        VERSIONS: json.dumps(versions),
        PYTHON: platform.python_version(),
        COMMIT: commit,
        DIRTY: dirty,
        CREATED: created,
    }


def checkout(root: Path) -> tuple[str, str]:
    """Return the commit of the git checkout at `root`, and whether tracked files differ from it.

    Returns
    -------
    commit, dirty : str
        A hash and "true" or "false"; "unknown" for both where `root` is not the top folder of a checkout.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(("git", "-C", root, *arguments), capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, whose commit would say nothing about this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return UNKNOWN, UNKNOWN
        return git("rev-parse", "HEAD"), str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, UNKNOWN
