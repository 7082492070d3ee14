"""Receipts: which earlier tokens paid for the selected token's gain, which cost, and the loss without one of them."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.attribution import summary as receipt_totals
from fwl_lab.attribution.summary import (
    HELD,
    KINDS,
    REPLAY,
    SHARE,
    SOURCE,
    receipt_summary,
    source_kinds,
    source_lengths,
)
from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_names
from widgets import theme
from widgets.core.assets import source, style
from widgets.core.selection import Selection, most_telling, require_tokens
from widgets.core.view import View, reader_styles
from widgets.core.wire import Answer
from widgets.display.document import quoted, visible
from widgets.display.numbers import signed

#: Rows of a receipt that is computed here; its sums and its profile are over all sources.
SHOWN: Final = 40
#: Tokens of text before and after a source.
CONTEXT_TOKENS: Final = 4
#: Characters of it on either side, at most.
CONTEXT_CHARACTERS: Final = 32
#: Variables of each receipt in a trace.
_RECEIPT_VARIABLES: Final = (
    schema.RECEIPT_GAIN, schema.RECEIPT_GROSS, schema.RECEIPT_RESIDUAL,
    schema.RECEIPT_SOURCE, schema.RECEIPT_SHARE, schema.RECEIPT_LEAVE_ONE_OUT,
)  # fmt: skip
#: Rows of the still picture.
_PICTURE_ROWS: Final = 8


class Receipts(View):
    """Receipt of the selected token, from the trace or, where a model is at hand, computed on demand.

    Parameters
    ----------
    trace : Dataset
        With receipts by `fwl_lab.add_receipts`, or none.
    model : LanguageModel, optional
        The one that read; with it, receipts that the trace does not hold are computed when asked for.
    selection : Selection, optional
        Shared with other views.
    """

    _esm = source("receipts")
    _css = style("receipts")

    def __init__(self, trace: xr.Dataset, *, model: Any = None, selection: Selection | None = None) -> None:
        require_tokens(trace)
        self.model = model
        self._computed: dict[tuple[str, int], dict[str, Any]] = {}
        self._worker = ThreadPoolExecutor(max_workers=1)
        # A cache that belongs to this view, and goes with it.
        self._kept = lru_cache(maxsize=4)(partial(_Kept, trace))
        head = {
            "readers": reader_styles(trace),
            "kinds": list(KINDS),
            "recorded": {name: _recorded(trace, name).tolist() for name in reader_names(trace)},
            "model": model is not None,
        }
        super().__init__(trace, selection=selection, head=head)
        if selection is None:
            self.selection.token = most_telling(trace, self.selection)

    def answer(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer "receipt" (of a token), "compute" (the same, with the model) and "summary" (all of a reader)."""
        trace, reader = self.trace, str(question.get("reader"))
        assert trace is not None
        match question.get("kind"):
            case "receipt":
                token = int(question["token"])
                if (reader, token) in self._computed:
                    return self._computed[reader, token], []
                return self._kept(reader).receipt(token) or self._absent(reader, token), []
            case "compute":
                return self._worker.submit(self._compute, reader, int(question["token"]))
            case "summary":
                return _summary(trace, reader), []
        return super().answer(question)

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Yield the selected reader's summary, the selected receipt, and all that are recorded."""
        assert self.trace is not None and self.selection is not None
        reader = self.selection.reader
        yield {"kind": "summary", "reader": reader}
        yield {"kind": "receipt", "reader": reader, "token": self.selection.token}
        for name, tokens in self.head["recorded"].items():
            yield from ({"kind": "receipt", "reader": name, "token": token} for token in tokens)

    def fallback_html(self) -> str:
        """Return the selected receipt as a table of its largest shares."""
        assert self.trace is not None and self.selection is not None
        reader, token = self.selection.reader, self.selection.token
        receipt = self._kept(reader).receipt(token)
        if receipt is None:
            return f"<p>No receipt of token {token:,} is recorded for {visible(theme.label(reader))}.</p>"
        rows = "".join(
            f'<tr><td style="text-align:left">{row["before"] and quoted(row["before"])}<b>{quoted(row["text"])}</b>'
            f"{row['after'] and quoted(row['after'])}</td>"
            f"<td>{row['distance']:,}</td><td>{signed(row['share'])}</td></tr>"
            for row in receipt["sources"][:_PICTURE_ROWS]
        )
        return (
            f"<table><caption>Who paid for {quoted(receipt['text'])}? Gain {signed(receipt['gain'])} nat, "
            f"gross {receipt['gross']:.3f} nat.</caption><thead><tr><th>source</th><th>tokens earlier</th>"
            f"<th>share [nat]</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    def close(self) -> None:
        """Close the view, and release the model and the receipts kept."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        super().close()
        self.model = None
        self._computed.clear()
        self.__dict__.pop("_kept", None)  # it holds the trace; closing twice is allowed

    def _compute(self, reader: str, token: int) -> Answer:
        """Split the gain of one token; from seconds (Fast Weight Layers) to minutes (dynamic evaluation)."""
        from fwl_lab import receipt

        if (reader, token) in self._computed:
            return self._computed[reader, token], []
        if self.model is None or self.trace is None:
            raise ValueError("no model is at hand; Receipts(trace, model=load_model(...)) computes receipts")
        about = self._kept(reader).about
        found = receipt(self.model, self.trace, token, reader)
        shares = found[SHARE].values
        order = np.argsort(-np.abs(shares), kind="stable")[:SHOWN]
        sources, columns = found[SOURCE].values, (("share", SHARE), ("held", HELD), ("replay", REPLAY))
        rows = {name: found[variable].values[order] for name, variable in columns}
        self._computed[reader, token] = (
            _as_json(about, reader, token, sources[order], rows)
            | _figures(found.attrs["gain"], found.attrs["gross"], found.attrs["residual"])
            | _by_distance(token - sources, shares)
        )
        return self._computed[reader, token], []

    def _absent(self, reader: str, token: int) -> dict[str, Any]:
        """Return where the nearest receipts are, for a token without one."""
        assert self.trace is not None
        computed = [at for name, at in self._computed if name == reader]
        tokens = np.union1d(self._kept(reader).tokens, np.array(computed, dtype=np.int64))
        at = int(np.searchsorted(tokens, token))
        near = {"previous": int(tokens[at - 1]) if at else None, "next": int(tokens[at]) if at < len(tokens) else None}
        return {"absent": True, "token": token, "text": str(self.trace[schema.TOKEN_TEXT].values[token])} | near


def recorded_receipt(trace: xr.Dataset, reader: str, token: int) -> dict[str, Any] | None:
    """Return the receipt of a token that a trace holds, as JSON; None where it holds none."""
    return _Kept(trace, reader).receipt(token)


class _Kept:
    """Receipts that a trace holds of one reader, with the texts and places of its tokens, in memory."""

    def __init__(self, trace: xr.Dataset, reader: str) -> None:
        self.reader, self.about, self.tokens = reader, _about(trace), _recorded(trace, reader)
        if len(self.tokens):
            rows = trace[list(_RECEIPT_VARIABLES)].sel({schema.READER: reader}).isel({schema.TOKEN: self.tokens})
            self.columns = {name: rows[name].values for name in _RECEIPT_VARIABLES}

    def receipt(self, token: int) -> dict[str, Any] | None:
        """Return the receipt of a token, as JSON; None: the trace holds none."""
        at = int(np.searchsorted(self.tokens, token))
        if at == len(self.tokens) or self.tokens[at] != token:
            return None
        row = {name: values[at] for name, values in self.columns.items()}
        there = row[schema.RECEIPT_SOURCE] >= 0
        sources, shares = row[schema.RECEIPT_SOURCE][there], row[schema.RECEIPT_SHARE][there]
        held = row[schema.RECEIPT_LEAVE_ONE_OUT][there]
        rows = {"share": shares, "held": held, "replay": np.full(len(held), np.nan)}
        figures = _figures(
            *(float(row[n]) for n in (schema.RECEIPT_GAIN, schema.RECEIPT_GROSS, schema.RECEIPT_RESIDUAL))
        )
        return _as_json(self.about, self.reader, token, sources, rows) | figures | _by_distance(token - sources, shares)


def _about(trace: xr.Dataset) -> xr.Dataset:
    """Return ids, texts and positions of the tokens of a trace, and its readers' facts, in memory."""
    names = (schema.READER, schema.TOKEN_ID, schema.TOKEN_TEXT, schema.POSITION)
    return xr.Dataset(coords={name: trace[name].variable for name in names}, attrs=trace.attrs).load()


def _recorded(trace: xr.Dataset, reader: str) -> np.ndarray:
    """Return the tokens of which the trace holds a receipt, rising."""
    if schema.RECEIPT_SOURCE not in trace or schema.RECEIPT_GAIN not in trace:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.isfinite(trace[schema.RECEIPT_GAIN].sel({schema.READER: reader}).values))


def _figures(gain: float, gross: float, residual: float) -> dict[str, float]:
    """Return the sums of shares above 0 (paid) and below (cost); together they are the gain less the residual."""
    net = gain - residual
    parts = {"paid": (gross + net) / 2, "cost": (net - gross) / 2}
    return {"gain": gain, "gross": gross, "residual": residual, "net": net} | parts


def _as_json(
    trace: xr.Dataset, reader: str, token: int, sources: np.ndarray, columns: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return a receipt for the browser: its token, and its sources as rows, largest share first."""
    texts = trace[schema.TOKEN_TEXT].values
    kinds = source_kinds(trace, token, sources, source_lengths(trace, reader, sources))
    first = max(token - int(trace[schema.POSITION].values[token]), 0)
    rows = []
    for i, at in enumerate(sources.tolist()):
        numbers = {name: None if np.isnan(v := float(values[i])) else v for name, values in columns.items()}
        before, after = (
            "".join(texts[max(at - CONTEXT_TOKENS, first) : at]),
            "".join(texts[at + 1 : at + 1 + CONTEXT_TOKENS]),
        )
        rows.append(
            {"token": at, "text": str(texts[at]), "before": before[-CONTEXT_CHARACTERS:]}
            | {"after": after[:CONTEXT_CHARACTERS]}
            | {"distance": token - at, "kind": int(kinds[i])}
            | numbers
        )
    before = "".join(texts[max(token - 2 * CONTEXT_TOKENS, first) : token])
    return {
        "token": token,
        "text": str(texts[token]),
        "position": int(trace[schema.POSITION].values[token]),
        "before": before[-2 * CONTEXT_CHARACTERS :],
        "sources": rows,
    }


def _by_distance(distance: np.ndarray, shares: np.ndarray) -> dict[str, list[float]]:
    """Sum shares in bins of tokens from source to target: from a power of two up to, not including, the next."""
    bins = np.log2(distance).astype(int)
    count = int(bins.max(initial=-1)) + 1
    net, gross = (np.bincount(bins, weights, count) for weights in (shares, np.abs(shares)))
    return {"bins": (2 ** np.arange(count)).tolist(), "bin_net": net.tolist(), "bin_gross": gross.tolist()}


def _summary(trace: xr.Dataset, reader: str) -> dict[str, Any]:
    """Sum all receipts of a reader: by kind of source, and by distance."""
    found = receipt_summary(trace, reader=reader)
    return {
        "bins": found[receipt_totals.DISTANCE].values.tolist(),
        "bin_net": found[receipt_totals.NET_BY_DISTANCE].values.tolist(),
        "bin_gross": found[receipt_totals.GROSS_BY_DISTANCE].values.tolist(),
        "receipts": int(found.attrs["receipts"]),
        "gain": float(found.attrs["gain"]),
        "listed": float(found.attrs["net"]),
        "kind_net": found[receipt_totals.NET].values.tolist(),
        "kind_gross": found[receipt_totals.GROSS].values.tolist(),
    }
