"""Modules and style sheets of the views, as text for the browser."""

from pathlib import Path
from typing import Final

_JS: Final = Path(__file__).parent / "js"
_VIEWS: Final = Path(__file__).parent.parent / "views"
_ORDER: Final = {
    "document_lens": ("layout", "drawing", "text", "walk", "panel", "index"),
    "live_pad": ("text", "panels", "index"),
    "reader_compare": ("charts", "panels", "tables", "index"),
    "receipts": ("index",),
    "run_console": ("parts", "index"),
    "update_scope": ("drawing", "panels", "asking", "picture", "index"),
}


def source(view: str) -> str:
    """Return the ES module of a view: what views share, then its own files, of which the last exports it."""
    paths = (_JS / "common.js", _JS / "charts.js", *(_VIEWS / view / f"{name}.js" for name in _ORDER[view]))
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def style(view: str) -> str:
    """Return the style sheet of a view, after the one that views share."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (_JS / "common.css", _VIEWS / view / "style.css"))
