"""What every view in the browser is made of: a selection it shares, data it starts with, questions it can ask."""

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

from fwl_lab.trace.schema import READER
from widgets import theme
from widgets.core import lifetime as housekeeping
from widgets.core.assets import _JS
from widgets.core.selection import Selection
from widgets.core.wire import Answer, _or_why, finite

_LOADER: Final = (_JS / "loader.js").read_text(encoding="utf-8")
WIDGET: Final = "application/vnd.jupyter.widget-view+json"


def reader_styles(trace: xr.Dataset) -> dict[str, dict[str, str]]:
    """What each reader of a trace is called and drawn with, by name: ``head["readers"]`` of every view."""
    names = [str(name) for name in trace[READER].values]
    colours = theme.colours(names)
    return {name: {"label": theme.label(name), "colour": colours[name], "dash": theme.dash(name)} for name in names}


class View(housekeeping.Housed, anywidget.AnyWidget):
    """A view of a trace. Kinds of views define `_esm`, `_css`, what they start with, and what they answer.

    Attributes
    ----------
    selection : Selection, or None where there is no trace yet
    head : dict
        What the view is about, as JSON; ``head["columns"]`` is the layout of `data`.
    data : bytes
        Arrays, see `widgets.packing`.
    """

    selection: Any = traitlets.Instance(Selection, allow_none=True).tag(sync=True, **ipywidgets.widget_serialization)
    head = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)  # `_esm`, which js/loader.js imports once for all views of a kind
    trace: Any = None  # Dataset, or None: none yet, or closed

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
                selection.retire()  # it ends with the view
        self.on_msg(View._asked)
        housekeeping.keep(self)

    # -- what a kind of view defines ------------------------------------------------------------------------------

    def answer(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer a question of the browser; ``question["kind"]`` tells which. ValueError: what the person may read.

        What takes long is answered by a future, so that the kernel stays free.
        """
        raise ValueError(f"{type(self).__name__} knows no answer to {question.get('kind')!r}")

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Questions whose answers a saved page takes along, the most wanted first."""
        return ()

    def fallback_html(self) -> str:
        """A still picture of the view, for where there is no kernel: inert HTML."""
        raise NotImplementedError

    # -- the wire -------------------------------------------------------------------------------------------------

    def reply(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """The answer, or {"error": why not}: a question never goes unanswered."""
        return _or_why(lambda: self.answer(question))

    @staticmethod
    def _asked(view: "View", question: dict[str, Any], _: list[memoryview]) -> None:
        def send(answer: Answer) -> None:
            content, buffers = answer
            view.send({"id": question.get("id")} | finite(content), buffers)

        answer = view.reply(question)
        if isinstance(answer, Future):
            answer.add_done_callback(lambda done: None if done.cancelled() else send(_or_why(done.result)))
        else:
            send(answer)

    def close(self) -> None:
        """Leave the page, and let go of the trace and of what was sent: a notebook's Out may keep the view itself."""
        if self.selection is not None:
            self.selection.left_by(self)
        super().close()
        self.layout.close()  # a widget of its own
        self.trace, self.head, self.data = None, {}, b""

    def __del__(self) -> None:
        with suppress(AttributeError):  # its constructor raised, and said why
            super().__del__()

    def _repr_mimebundle_(self, **_: Any) -> Any:
        """The live view; only its picture where nobody could use it, so that a saved notebook stays small."""
        still = {"text/html": self.fallback_html(), "text/plain": f"{type(self).__name__}"}
        if not housekeeping.someone_is_there():
            return still
        data, metadata = super()._repr_mimebundle_() or ({}, {})
        return data | still, metadata

    def to_html(self, path: str | Path) -> Path:
        """Write the view as one page that needs no kernel and no network; returns its path."""
        from widgets.core.page import write_page

        return write_page([self], path)
