"""Hold the place in a trace that its views share: a reader, a token, a parameter; what is pinned and brushed."""

from typing import Any
from weakref import WeakSet

import numpy as np
import traitlets
import xarray as xr
from anywidget import AnyWidget

from fwl_lab.trace.lookup import find_baseline, reader_facts
from fwl_lab.trace.schema import NLL, PARAMETER, READER, RECEIPT_GAIN, TOKEN, UPDATE_TOKEN
from widgets.core import lifetime


class Selection(lifetime.Housed, AnyWidget):
    """Share one place in a trace among its views: what one of them selects, all of them show.

    It lives in the browser as well, so that views follow each other at once, whatever the kernel is doing. One that a
    view made for itself ends with that view; one that a cell made ends once the cell is run again and no view uses it.

    Parameters
    ----------
    trace : Dataset
    reader : str, optional
        None: the last that adapts and has receipts, else the last that adapts, else the last.
    token : int
        Index in the trace.

    Attributes
    ----------
    readers : list of str
        All readers of the trace.
    reader, baseline : str
        The reader whose scores are shown, and the one they are compared with.
    token : int
        Index in the trace, over all documents.
    update : int
        The last update made before that token; −1 before the first. Setting it selects the token after the update.
    parameter : str
        Name of a fast parameter; "" where none is recorded.
    pinned : int or None
        A second token, to compare with.
    span : (int, int) or None
        First token, and one past the last, of a brushed stretch.
    receipt : dict
        The last receipt that a view computed when asked to: "reader", "token", "gain", "gross", "sources", "shares".
    """

    _esm = "export default {};"
    _view_name = traitlets.Any(None, allow_none=True).tag(sync=True)  # it is nothing to look at

    reader = traitlets.Unicode().tag(sync=True)
    baseline = traitlets.Unicode().tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    parameter = traitlets.Unicode().tag(sync=True)
    pinned = traitlets.Int(None, allow_none=True).tag(sync=True)
    span: Any = traitlets.List(traitlets.Int(), default_value=None, allow_none=True, minlen=2, maxlen=2).tag(sync=True)
    receipt = traitlets.Dict().tag(sync=True)
    update = traitlets.Int(-1)

    def __init__(self, trace: xr.Dataset, *, reader: str | None = None, token: int = 0) -> None:
        require_tokens(trace)
        self._users: WeakSet[Any] = WeakSet()  # views
        self._passing = False
        facts = reader_facts(trace)
        self.readers = list(facts)
        self._parameters = [str(name) for name in trace[PARAMETER].values] if PARAMETER in trace.variables else []
        self._grid = trace[UPDATE_TOKEN].values.astype(int) if UPDATE_TOKEN in trace.variables else np.zeros(0, int)
        self._tokens = trace.sizes[TOKEN]
        adapting = [name for name, one in facts.items() if one.adapts]
        explained = [name for name in adapting if _has_receipt(trace, name).any()]
        super().__init__(
            reader=reader if reader is not None else (explained or adapting or self.readers)[-1],
            baseline=find_baseline(trace) or self.readers[0],
            token=token,
            parameter=next((name for name in ("W2", *self._parameters) if name in self._parameters), ""),
        )
        self._follow(None)
        lifetime.keep(self)

    def used_by(self, view: Any) -> None:
        """Note a view of this selection."""
        self._users.add(view)

    def left_by(self, view: Any) -> None:
        """Note that a view is closed; the last one closes a selection that has been retired."""
        self._users.discard(view)
        if self._passing and not self._users:
            self.close()

    def retire(self) -> None:
        """Close as soon as no view uses this any more."""
        self._passing = True
        if not self._users:
            self.close()

    def close(self) -> None:
        """Close the browser's side, its layout included."""
        super().close()
        self.layout.close()  # a widget of its own

    @traitlets.validate("reader", "baseline")
    def _known_reader(self, proposal: traitlets.Bunch) -> str:
        return _one_of(proposal.value, self.readers, "reader")

    @traitlets.validate("parameter")
    def _known_parameter(self, proposal: traitlets.Bunch) -> str:
        return _one_of(proposal.value, self._parameters or [""], "parameter")

    @traitlets.validate("token", "pinned")
    def _inside(self, proposal: traitlets.Bunch) -> int | None:
        if proposal.value is not None and not 0 <= proposal.value < self._tokens:
            raise traitlets.TraitError(
                f"{proposal.trait.name} is {proposal.value}; expected 0 to {self._tokens - 1}, this trace's tokens"
            )
        return proposal.value

    @traitlets.validate("span")
    def _ordered(self, proposal: traitlets.Bunch) -> list[int] | None:
        if proposal.value is not None and not 0 <= proposal.value[0] < proposal.value[1] <= self._tokens:
            raise traitlets.TraitError(
                f"span is {proposal.value}; expected a first token and one past the last, within 0 to {self._tokens}"
            )
        return proposal.value

    @traitlets.validate("update")
    def _known_update(self, proposal: traitlets.Bunch) -> int:
        if not -1 <= proposal.value < len(self._grid):
            raise traitlets.TraitError(
                f"update is {proposal.value}; expected -1 to {len(self._grid) - 1}, the updates that are recorded"
            )
        return proposal.value

    @traitlets.observe("token")
    def _follow(self, _: traitlets.Bunch | None) -> None:
        self.update = int(np.searchsorted(self._grid, self.token)) - 1

    @traitlets.observe("update")
    def _lead(self, change: traitlets.Bunch) -> None:
        if change.new != int(np.searchsorted(self._grid, self.token)) - 1:
            self.token = min(int(self._grid[change.new]) + 1, self._tokens - 1) if change.new >= 0 else 0


def _one_of(value: str, known: list[str], what: str) -> str:
    if value not in known:
        raise traitlets.TraitError(f"{what} is {value!r}; expected one of {', '.join(map(repr, known))}")
    return value


def require_tokens(trace: xr.Dataset) -> None:
    """Raise ValueError where a trace holds nothing to select, or is none."""
    if not isinstance(trace, xr.Dataset):
        raise ValueError(f"trace is {trace!r:.80}; expected a Dataset, such as open_trace(path).")
    if not trace.sizes.get(TOKEN):
        raise ValueError("this trace holds no token; score at least one document: score(model, documents, readers)")


def most_telling(trace: xr.Dataset, selection: Selection) -> int:
    """Return the token of the largest gain, among those with a receipt if there are any."""
    nll = trace[NLL]
    with np.errstate(invalid="ignore"):
        gain = nll.sel({READER: selection.baseline}).values - nll.sel({READER: selection.reader}).values
    known = _has_receipt(trace, selection.reader)
    gain = np.where(known, gain, -np.inf) if known.any() else gain
    return int(np.argmax(np.nan_to_num(gain, nan=-np.inf)))


def _has_receipt(trace: xr.Dataset, reader: str) -> np.ndarray:
    """Return of which tokens the trace holds a receipt of a reader, (tokens,) bool."""
    if RECEIPT_GAIN not in trace:
        return np.zeros(trace.sizes[TOKEN], dtype=bool)
    return np.isfinite(trace[RECEIPT_GAIN].sel({READER: reader}).values)
