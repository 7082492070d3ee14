"""Show all views of a trace at once, linked: the text, receipts, the weights, and the readers compared."""

from pathlib import Path
from typing import Any, Final

import ipywidgets
import xarray as xr

from widgets.core import lifetime
from widgets.core.page import write_page
from widgets.core.selection import Selection, most_telling
from widgets.core.view import View
from widgets.views.document_lens.view import DocumentLens
from widgets.views.reader_compare.view import ReaderCompare
from widgets.views.receipts.view import Receipts
from widgets.views.update_scope.view import UpdateScope

_SIDE_BY_SIDE: Final = {"display": "flex", "flex_flow": "row wrap", "align_items": "stretch"}


class Explorer(lifetime.Housed, ipywidgets.VBox):
    """Four views of a trace, sharing one `selection`.

    Parameters
    ----------
    trace : Dataset
    model : LanguageModel, optional
        The one that read; with it, receipts that the trace does not hold are computed when asked for.
    selection : Selection, optional
        None: one that ends with these views.

    Attributes
    ----------
    lens : DocumentLens
    receipts : Receipts
    scope : UpdateScope
    compare : ReaderCompare
    selection : Selection
    """

    def __init__(self, trace: xr.Dataset, *, model: Any = None, selection: Selection | None = None) -> None:
        self.selection = Selection(trace) if selection is None else selection
        self.lens = DocumentLens(trace, selection=self.selection)
        self.receipts = Receipts(trace, model=model, selection=self.selection)
        self.scope = UpdateScope(trace, selection=self.selection)
        self.compare = ReaderCompare(trace, selection=self.selection)
        super().__init__([self.lens, self.receipts, self.scope, self.compare])
        if selection is None:
            self.selection.retire()  # it ends with the views
        lifetime.keep(self)

    @property
    def views(self) -> list[View]:
        """Views from top to bottom."""
        return [self.lens, self.receipts, self.scope, self.compare]

    def to_html(self, path: str | Path) -> Path:
        """Write all views as one page that needs no kernel and no network, and return its path."""
        return write_page(self.views, path, title="Explore a trace")

    def close(self) -> None:
        """Leave the page, and release the trace."""
        for view in self.views:
            view.close()
        self.layout.close()
        super().close()

    def _repr_mimebundle_(self, **given: Any) -> Any:
        """Return the live views; only their pictures where nobody could use them, so that a notebook stays small."""
        still = {"text/html": "".join(view.fallback_html() for view in self.views), "text/plain": "Explorer"}
        if not lifetime.someone_is_there():
            return still
        return super()._repr_mimebundle_(**given) | still


def explore(trace: xr.Dataset, *, model: Any = None, reader: str | None = None, token: int | None = None) -> Explorer:
    """Open a trace in all views at once.

    Parameters
    ----------
    trace : Dataset
        Of `fwl_lab.score` or `fwl_lab.open_trace`; where it lacks something, the views say how to record that.
    model : LanguageModel, optional
        The one that read: with it, receipts that the trace does not hold are computed when asked for.
    reader : str, optional
        Selected at first. None: one that adapts and has receipts, if any has.
    token : int, optional
        Selected at first, index in the trace. None: the largest gain, of those that have a receipt if any has.
    """
    selection = Selection(trace, reader=reader, token=0 if token is None else token)
    if token is None:
        selection.token = most_telling(trace, selection)
    made = Explorer(trace, model=model, selection=selection)
    selection.retire()  # it ends with the views
    return made
