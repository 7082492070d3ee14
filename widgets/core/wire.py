"""Format of messages between a view and its kernel: answers, errors, JSON without infinities, keys of questions."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import traitlets

_log: Final = logging.getLogger(__name__)

#: Answer to a question of a view: a JSON object and pieces of bytes.
Answer = tuple[dict[str, Any], list[bytes]]


def answer_or_error(answer: Callable[[], Any]) -> Any:
    """Return what a function returns, or its error as an answer; errors not written for people are logged too."""
    try:
        return answer()
    except (ValueError, traitlets.TraitError) as error:
        return {"error": str(error)}, []
    except Exception as error:
        _log.exception("a question of the page failed")
        return {"error": f"{type(error).__name__}: {error}"}, []


def finite(content: Any) -> Any:
    """Return JSON content with null in place of numbers that are not finite, which JSON does not have."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def question_key(question: dict[str, Any]) -> str:
    """Return a question as the text by which a saved page finds its answer; ``js/page.js`` makes the same text."""
    return json.dumps(question, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
