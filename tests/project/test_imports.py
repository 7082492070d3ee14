"""The two halves stay apart: opening a trace loads no torch, and the library draws nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import fwl_lab
import widgets

TORCH = ("torch", "transformers", "tokenizers", "safetensors")
VIEWS = ("plotly", "ipywidgets", "anywidget", "widgets")
TORCH_FREE = [
    "fwl_lab",
    "fwl_lab.trace.schema",
    "fwl_lab.analysis",
    "fwl_lab.analysis.bootstrap",
    "fwl_lab.audit.certificate",
    "fwl_lab.analysis.fast_weights",
    "fwl_lab.attribution.summary",
    "fwl_lab.analysis.spectra",
    "fwl_lab.interventions.surgery",
    "fwl_lab.trace.writer",
    "fwl_lab.testing.traces",
    *(f"widgets.{path.stem}" for path in sorted(Path(widgets.__file__).parent.glob("*.py")) if path.stem != "__init__"),
]


def test_views_and_traces_load_no_torch():
    """All in one process, which says after each import which of these packages are there."""
    code = f"""
import importlib, json, sys
loaded = {{}}
for name in {TORCH_FREE}:
    importlib.import_module(name)
    loaded[name] = [package for package in {TORCH} if package in sys.modules]
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == {name: [] for name in TORCH_FREE}


def _imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_library_imports_no_view():
    """Read from the source, so that imports inside functions count too."""
    files = sorted(Path(fwl_lab.__file__).parent.rglob("*.py"))
    assert len(files) > 5
    drawing = {path.name: _imported_by(path) & set(VIEWS) for path in files}
    assert not {name: views for name, views in drawing.items() if views}


def test_views_import_no_torch_anywhere():
    files = sorted(Path(widgets.__file__).parent.rglob("*.py"))
    assert len(files) >= 5
    assert not {path.name for path in files if _imported_by(path) & set(TORCH)}
