"""Views as one page: their data, their modules and the answers they may need, and no request to anywhere."""

import base64
import html
import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from string import Template
from typing import Any, Final

from widgets.core.view import View
from widgets.core.wire import finite, question_key

#: Answers that a page takes along stop at so many bytes, over all its views.
BUDGET: Final = 24 * 2**20

_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>:root { color-scheme: light dark; } body { margin: 1.5rem auto; max-width: 1280px; padding: 0 1rem;
background: light-dark(#ffffff, #14171c); }</style>
</head>
<body>
$places
<script type="application/json" id="state">$state</script>
<script>const viewModules = {};
$modules
$runtime</script>
</body>
</html>
""")


def write_page(views: Sequence[View], path: str | Path, *, title: str | None = None, budget: int = BUDGET) -> Path:
    """Write views that share a selection as one page; returns its path.

    Parameters
    ----------
    budget : int
        Bytes of answers to take along: what a view would ask a kernel for, the most wanted first. What is left out
        reads "saved view: this needs a kernel".
    """
    modules: dict[str, str] = {}
    styles: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}
    for view in views:
        kind = type(view).__name__
        # A class of the page instead of a module: files opened from a disk cannot import one another.
        modules[kind] = f"viewModules.{kind} = (() => {{\n{view.code.replace('export default', 'return')}\n}})();"
        styles[kind] = view._css
        models[view.model_id] = {"kind": kind, "state": _state(view), "answers": _answers(view, budget // len(views))}
        if (shared := view.selection) is not None:
            models[shared.model_id] = {"kind": None, "state": _state(shared), "answers": {}}
    places = "".join(f'<div data-model="{view.model_id}"></div>' for view in views)
    sheet = "".join(f"<style>{text}</style>" for text in styles.values())
    name = title or " · ".join(dict.fromkeys(type(view).__name__ for view in views))
    page = _PAGE.substitute(
        title=html.escape(name),
        places=sheet + places,
        state=_inert(models),
        modules="\n".join(modules.values()),
        runtime=(Path(__file__).parent / "js" / "page.js").read_text(encoding="utf-8"),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _state(widget: Any) -> dict[str, Any]:
    """What the browser knows of a widget, without what ipywidgets adds and what is on the page once."""
    elsewhere = ("layout", "tabbable", "tooltip", "comm", "code")
    return {k: finite(v) for k, v in widget.get_state().items() if not k.startswith("_") and k not in elsewhere}


def _answers(view: View, budget: int) -> dict[str, list[Any]]:
    """Answers to what the view foresees, while they fit."""
    answers: dict[str, list[Any]] = {}
    size = 0
    for question in view.foreseen():
        reply = view.reply(question)
        content, buffers = reply.result() if isinstance(reply, Future) else reply
        content = finite(content)
        size += len(json.dumps(content)) + sum(len(buffer) for buffer in buffers)
        if size > budget:
            break
        answers[question_key(question)] = [content, buffers]
    return answers


def _inert(value: Any) -> str:
    """JSON that no HTML parser ends early; bytes are {"base64": ...}."""
    text = json.dumps(value, default=_bytes, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bytes(value: Any) -> dict[str, str]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"{type(value).__name__} is no JSON")
