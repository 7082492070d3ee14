"""Base class of all views in the browser: a shared selection, data to start with, answers to questions."""

import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anywidget
import ipywidgets
import traitlets
import xarray as xr

from widgets import theme
from widgets.core import lifetime
from widgets.core.assets import JS
from widgets.core.page import write_page
from widgets.core.selection import Selection
from widgets.core.wire import Answer, answer_or_error, finite

_LOADER: Final = (JS / "loader.js").read_text(encoding="utf-8")
WIDGET: Final = "application/vnd.jupyter.widget-view+json"


def reader_styles(trace: xr.Dataset) -> dict[str, dict[str, str]]:
    """Return how each reader of a trace is shown, by name, as JSON: ``head["readers"]`` of every view."""
    return {name: style._asdict() for name, style in theme.trace_styles(trace).items()}


class View(lifetime.Housed, anywidget.AnyWidget):
    """View of a trace. A subclass defines `_esm`, `_css`, :meth:`answer` and :meth:`fallback_html`.

    Attributes
    ----------
    selection : Selection, or None where there is no trace yet
        Shared with other views of the trace.
    head : dict
        JSON that the view starts with; ``head["columns"]`` is the layout of `data`.
    data : bytes
        Arrays that the view starts with, see `widgets.core.packing`.
    code : str
        The view's module, `_esm`, which ``js/loader.js`` imports once for all views of a kind.
    trace : Dataset, or None
        None where there is none yet, and after :meth:`close`.
    """

    selection: Any = traitlets.Instance(Selection, allow_none=True).tag(sync=True, **ipywidgets.widget_serialization)
    head = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    trace: Any = None

    def __init__(self, trace: xr.Dataset | None, *, selection: Selection | None = None, **traits: Any) -> None:
        unknown = [name for name in traits if not self.has_trait(name)]
        if unknown:
            known = ", ".join(inspect.signature(type(self).__init__).parameters)
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}; it takes {known}")
        self.trace = trace
        own = selection is None
        if trace is not None and selection is None:
            selection = Selection(trace)
        if "head" in traits:
            traits["head"] = finite(traits["head"])
        super().__init__(selection=selection, _esm=_LOADER, code=str(type(self)._esm), **traits)
        if selection is not None:
            selection.used_by(self)
            if own:
                selection.retire()  # it is closed with the view
        self.on_msg(View._asked)
        lifetime.keep(self)

    # -- defined by subclasses ------------------------------------------------------------------------------------

    def answer(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer a question of the browser; ``question["kind"]`` tells which.

        Returns
        -------
        Answer, or a future of it
            A future where it takes long, so that the kernel stays free.

        Raises
        ------
        ValueError
            With a message for the person who looks at the view.
        """
        raise ValueError(f"{type(self).__name__} knows no answer to {question.get('kind')!r}")

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Return the questions whose answers a saved page takes along, the most wanted first."""
        return ()

    def fallback_html(self) -> str:
        """Return a still picture of the view for places without a kernel: HTML without scripts."""
        raise NotImplementedError

    # -- questions and answers ------------------------------------------------------------------------------------

    def reply(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer a question, with {"error": why not} where that fails, so that no question goes unanswered."""
        return answer_or_error(lambda: self.answer(question))

    @staticmethod
    def _asked(view: "View", question: dict[str, Any], _: list[memoryview]) -> None:
        """Send the answer to a message of the browser, under the message's id."""

        def send(answer: Answer) -> None:
            content, buffers = answer
            view.send({"id": question.get("id")} | finite(content), buffers)

        answer = view.reply(question)
        if isinstance(answer, Future):
            answer.add_done_callback(lambda done: None if done.cancelled() else send(answer_or_error(done.result)))
        else:
            send(answer)

    def close(self) -> None:
        """Take the view off the page and drop the trace and the data: a notebook's Out may keep the view itself."""
        if self.selection is not None:
            self.selection.left_by(self)
        super().close()
        self.layout.close()  # a widget of its own, which ipywidgets leaves open
        self.trace, self.head, self.data = None, {}, b""

    def __del__(self) -> None:
        with suppress(AttributeError):  # raised where the constructor failed and told why
            super().__del__()

    def _repr_mimebundle_(self, **_: Any) -> Any:
        """Return the live view, or only its picture where no browser is attached, so that notebooks stay small."""
        still = {"text/html": self.fallback_html(), "text/plain": f"{type(self).__name__}"}
        if not lifetime.someone_is_there():
            return still
        data, metadata = super()._repr_mimebundle_() or ({}, {})
        return data | still, metadata

    def to_html(self, path: str | Path) -> Path:
        """Write the view as one page that needs no kernel and no network, and return the path."""
        return write_page([self], path)
