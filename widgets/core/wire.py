"""What travels between a view and its kernel: questions, answers, JSON without infinities."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import traitlets

_log: Final = logging.getLogger(__name__)

#: A JSON object and pieces of bytes: what a view gets to a question.
Answer = tuple[dict[str, Any], list[bytes]]


def _or_why(answer: Callable[[], Any]) -> Any:
    """What a function returns, or the error it raises as an answer; one that is not meant for people is logged, too."""
    try:
        return answer()
    except (ValueError, traitlets.TraitError) as error:
        return {"error": str(error)}, []
    except Exception as error:
        _log.exception("a question of the page failed")
        return {"error": f"{type(error).__name__}: {error}"}, []


def finite(content: Any) -> Any:
    """JSON in which numbers that are not finite are null: JSON has no others."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def question_key(question: dict[str, Any]) -> str:
    """A question as the text by which a page finds its answer; ``js/page.js`` makes the same."""
    return json.dumps(question, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
