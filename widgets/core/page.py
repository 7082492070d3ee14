"""Write views as one HTML page that needs no kernel and no network: their data, modules and foreseen answers."""

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from string import Template
from typing import Any, Final, Protocol

from widgets.core.assets import JS
from widgets.core.wire import Answer, finite, question_key

#: Bytes of answers that a page holds at most, over all its views.
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


class Shown(Protocol):
    """What a page needs of a view; :class:`widgets.core.view.View` has it.

    Attributes
    ----------
    model_id : str
        Id by which the page finds the view's state.
    code : str
        ES module with one ``export default`` of an object that has ``render``.
    selection : widget, or None
        State that the view shares with others on the page.
    _css : str
        Style sheet.
    """

    model_id: Any
    code: Any
    selection: Any
    _css: Any

    def get_state(self) -> dict[str, Any]:
        """Return the values of all traits that the browser has."""

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Return the questions to answer in advance, the most wanted first."""

    def reply(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer a question, with ``{"error": why}`` where it has no answer."""


def write_page(views: Sequence[Shown], path: str | Path, *, title: str | None = None, budget: int = BUDGET) -> Path:
    """Write views that share a selection as one page.

    Parameters
    ----------
    views
        In the order in which they stand on the page.
    path
        File to write; missing folders are made.
    title
        Of the page; the names of the views where it is None.
    budget
        Bytes of answers to take along, shared equally among the views: what a view would ask a kernel for, the most
        wanted first. A question that is left out is answered by "saved view: browsing works, this needs a kernel".

    Returns
    -------
    Path
        Of the file.
    """
    modules: dict[str, str] = {}
    styles: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}
    for view in views:
        kind = type(view).__name__
        # A function instead of a module, since a page opened from a disk can import nothing; strict, as modules are.
        body = re.sub(r"^export default\b", "return", view.code, count=1, flags=re.MULTILINE)
        modules[kind] = f'viewModules.{kind} = (() => {{\n"use strict";\n{body}\n}})();'
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
        runtime=(JS / "page.js").read_text(encoding="utf-8"),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _state(widget: Any) -> dict[str, Any]:
    """Return a widget's state for the page, without what ipywidgets adds and what the page holds once."""
    elsewhere = ("layout", "tabbable", "tooltip", "comm", "code")
    return {k: finite(v) for k, v in widget.get_state().items() if not k.startswith("_") and k not in elsewhere}


def _answers(view: Shown, budget: int) -> dict[str, list[Any]]:
    """Return the answers that a view foresees by `question_key`, while they fit in `budget` bytes."""
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
    """Return JSON in which no HTML parser finds the end of its script; bytes are {"base64": ...}."""
    text = json.dumps(value, default=_bytes, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bytes(value: Any) -> dict[str, str]:
    """Return bytes as JSON, for what the encoder does not know."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"{type(value).__name__} is no JSON")
