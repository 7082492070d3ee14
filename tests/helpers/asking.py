"""Ask a view what a browser would ask it."""

from concurrent.futures import Future
from typing import Any

from widgets.core.view import View
from widgets.core.wire import Answer


def asked(view: View, kind: str, **more: Any) -> Answer:
    """The answer to a question, waited for where it comes later; {"error": why} where there is none."""
    answer = view.reply({"kind": kind, **more})
    if isinstance(answer, Future):
        error = answer.exception(60)
        return ({"error": str(error)}, []) if error else answer.result()
    return answer
