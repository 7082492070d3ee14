"""UpdateScope: how far reading has moved each parameter, and Δθ itself at any token."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.analysis import require_reader
from fwl_lab.analysis.fast_weights import fast_weight
from fwl_lab.analysis.spectra import effective_rank
from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_names, require_parameter
from widgets.core.assets import source, style
from widgets.core.packing import pack, pack_texts
from widgets.core.selection import Selection, require_tokens
from widgets.core.view import View, reader_styles
from widgets.core.wire import Answer
from widgets.views.update_scope import tiles
from widgets.views.update_scope.norms import advice, document_starts, drifts, kept_tokens, still_picture

#: Orders of rows and columns: "length", by their norms, largest first, in the document's largest Δθ (see `_peak`), or
#: "stored", as the model has them.
ORDERS: Final = ("length", "stored")
#: Rows and columns of a piece of Δθ whose exact values are sent.
PIECE: Final = 64
#: Entries of a vector that are sent one by one.
VECTOR_ENTRIES: Final = 4096
#: Singular values that are sent; the rank is of all of them.
DIRECTIONS: Final = 16
#: Tokens of a trace up to which all texts are in the first message.
_TEXT_TOKENS: Final = 200_000
#: Bytes of factors, and of Δθ at some tokens, that are kept in memory.
_KEPT_BYTES: Final = 64 * 2**20
#: Updates of a document whose pictures a saved page takes along, of each parameter.
_FORESEEN_UPDATES: Final = 24


class UpdateScope(View):
    """Norms of Δθ over the document, and Δθ at the selected token as an animated heat map.

    Parameters
    ----------
    trace : Dataset
        With drift (`Recorder()`) for the norms; with factors or snapshots for the matrices.
    selection : Selection, optional
        Shared with other views: reader, token, parameter, and the pinned token that Δθ is compared with.
    """

    _esm = source("update_scope")
    _css = style("update_scope")

    def __init__(self, trace: xr.Dataset, *, selection: Selection | None = None) -> None:
        require_tokens(trace)
        self._deltas: OrderedDict[tuple[str, str, int], xr.DataArray] = OrderedDict()
        self._peaks: dict[tuple[str, str, int], dict[str, Any] | None] = {}
        self._part: tuple[str, xr.Dataset] | None = None
        arrays, moved = drifts(trace)
        texts = trace.sizes[schema.TOKEN] <= _TEXT_TOKENS
        if texts:
            arrays |= pack_texts([str(text) for text in trace[schema.TOKEN_TEXT].values])
        columns, data = pack(arrays)
        head = {
            "columns": columns,
            "readers": reader_styles(trace),
            "tokens": trace.sizes[schema.TOKEN],
            "texts": texts,
            "documents": [str(name) for name in trace[schema.DOCUMENT_NAME].values],
            "starts": document_starts(trace).tolist(),
            "carry": str(trace.attrs.get(schema.CARRY)) == "true",
            "moved": moved,
            "recorded": schema.DRIFT in trace,
            "record": {name: advice(trace, name) for name in reader_names(trace)},
        }
        super().__init__(trace, selection=selection, head=head, data=data)

    def answer(self, question: Mapping[str, Any]) -> Answer:
        """Answer a question of the page.

        Parameters
        ----------
        question : mapping
            With a `kind`, and the fields of that kind. A `pinned` token is one whose Δθ is subtracted, or None.

            ======== ====================================== =======================================================
            kind     fields                                 answer
            ======== ====================================== =======================================================
            tile     reader, parameter, token, pinned,      Δθ pooled to at most 256 cells a side (a vector: 4,096),
                     order                                  with its norm, scale and histogram
            piece    as of a tile, and row, column          exact values from there on, at most 64 rows and columns
            spectrum reader, parameter, token, pinned       up to 16 singular values, and the effective rank
            peak     reader, parameter, document            token of the document's largest Δθ, and the scale there
            saved                                           the questions for tiles that a saved page takes along
            ======== ====================================== =======================================================

            Where the trace does not hold Δθ at a token, the answer says why, and which token is the nearest.

        Raises
        ------
        ValueError
            The view is closed, or the question names something that is not in the trace.
        """
        if self.trace is None:
            raise ValueError("this view is closed; run its cell again")
        if question.get("kind") == "saved":
            return {"tiles": [q for q in self.foreseen() if q["kind"] == "tile"]}, []
        ways = {"tile": self._tile, "piece": self._piece, "spectrum": self._spectrum, "peak": self._scale}
        way = ways.get(str(question.get("kind")))
        if way is None:
            return super().answer(question)  # type: ignore[return-value]
        reader, parameter = str(question["reader"]), str(question["parameter"])
        require_reader(self.trace, reader)
        require_parameter(self.trace, parameter)
        last = self.trace.sizes[schema.TOKEN] - 1
        for token in (question.get("token"), question.get("pinned")):
            if token is not None and not 0 <= int(token) <= last:
                raise ValueError(f"token is {token}; expected 0 to {last}, of this trace")
        if question["kind"] == "peak":
            return way(question)
        for token in (question["token"], question.get("pinned")):
            if token is not None and (missing := self._missing(reader, parameter, int(token))) is not None:
                return missing, []
        return way(question)

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Yield the questions that a saved page can answer.

        They are about the selected parameter in all documents, the other parameters in this document, and other
        readers at the selected token.
        """
        assert self.trace is not None and self.selection is not None
        reader, chosen, pinned = self.selection.reader, self.selection.parameter, self.selection.pinned
        moved = self.head["moved"].get(reader, {"parameters": []})
        names = [entry["name"] for entry in moved["parameters"]]
        here = int(np.searchsorted(self.head["starts"], self.selection.token, side="right")) - 1
        yield {"kind": "saved"}
        for parameter in sorted(names, key=lambda name: name != chosen):
            for document in range(len(self.head["starts"])) if parameter == chosen else (here,):
                spread = self._spread(reader, parameter, document)
                wanted = [self.selection.token, self.head["starts"][document]] if document == here else []
                yield {"kind": "peak", "reader": reader, "parameter": parameter, "document": document}
                for token in dict.fromkeys([*wanted, *spread]):
                    at = {"reader": reader, "parameter": parameter, "token": token, "pinned": pinned}
                    yield {"kind": "tile", "order": ORDERS[0], **at}
                    if schema.col_dim(parameter) in self.trace.dims:
                        yield {"kind": "spectrum", **at}
        # Of other readers what there is at the selection, if only why there is nothing.
        for name in (name for name in self.head["moved"] if name != reader):
            for entry in self.head["moved"][name]["parameters"]:
                at = {"reader": name, "parameter": entry["name"], "token": self.selection.token, "pinned": pinned}
                yield {"kind": "tile", "order": ORDERS[0], **at}

    def fallback_html(self) -> str:
        """Return the norms of the selected reader's parameters as a still picture."""
        assert self.trace is not None and self.selection is not None
        reader = self.selection.reader
        return still_picture(self.trace, reader, self.selection.parameter)

    def close(self) -> None:
        """Close the view, and release the trace and the Δθ kept."""
        super().close()
        self._deltas.clear()
        self._peaks.clear()
        self._part = None

    def _delta(self, reader: str, parameter: str, token: int) -> xr.DataArray:
        """Return Δθ at a token; the last few are kept."""
        key = (reader, parameter, token)
        if key not in self._deltas:
            self._deltas[key] = fast_weight(self._holding(parameter), reader, parameter, token)
            while len(self._deltas) > 2 and sum(kept.nbytes for kept in self._deltas.values()) > _KEPT_BYTES:
                self._deltas.popitem(last=False)
        self._deltas.move_to_end(key)
        return self._deltas[key]

    def _holding(self, parameter: str) -> xr.Dataset:
        """Return the variables of the trace from which Δθ of a parameter is computed.

        Factors and norms are loaded into memory where they are small; the part of the last parameter is kept.
        """
        assert self.trace is not None
        if self._part is None or self._part[0] != parameter:
            factors = [schema.key_name(parameter), schema.delta_name(parameter)]
            dense = [schema.fast_weight_name(parameter), schema.left_name(parameter), schema.right_name(parameter)]
            grid = [schema.RETENTION, schema.ANCHORED, schema.UPDATE_NORM, schema.DRIFT]
            # Scores keep the trace's tokens in it where nothing else recorded has them.
            part = self.trace[[name for name in (schema.NLL, *factors, *dense, *grid) if name in self.trace]]
            small = [name for name in (*factors, *grid) if name in part]
            if sum(part[name].nbytes for name in small) <= _KEPT_BYTES:
                part = part.assign({name: part[name].load() for name in small})
            self._part = parameter, part
        return self._part[1]

    def _missing(self, reader: str, parameter: str, token: int) -> dict[str, Any] | None:
        """Return None where the trace gives Δθ at a token; else why not, and the nearest token at which it does.

        The nearest token is of the same document where that has one, and None where Δθ is recorded at no token.
        """
        assert self.trace is not None
        try:
            self._delta(reader, parameter, token)
        except ValueError as error:
            kept = kept_tokens(self.trace, reader, parameter)
            document = self.trace[schema.DOCUMENT].values
            near = kept[document[kept] == document[token]]
            near = near if len(near) else kept
            nearest = int(near[np.abs(near - token).argmin()]) if len(near) else None
            return {"absent": str(error), "at": token, "nearest": nearest}
        return None

    def _spread(self, reader: str, parameter: str, document: int) -> list[int]:
        """Return up to 24 tokens of a document, each just after an update, evenly spaced, at which Δθ was recorded."""
        assert self.trace is not None
        tokens = kept_tokens(self.trace, reader, parameter)
        first, end = [*self.head["starts"], self.head["tokens"]][document : document + 2]
        tokens = tokens[(tokens > first) & (tokens < end)]
        picked = np.unique(np.linspace(0, len(tokens) - 1, min(len(tokens), _FORESEEN_UPDATES)).round().astype(int))
        return [int(token) for token in tokens[picked]]

    def _peak(self, reader: str, parameter: str, document: int) -> dict[str, Any] | None:
        """Return token, colour limit and row/column orders of a document's largest Δθ; None where there is none.

        The largest is that with the largest drift, among the updates of `_spread`.
        """
        assert self.trace is not None
        key = (reader, parameter, document)
        if key not in self._peaks:
            self._peaks[key] = None
            if tokens := self._spread(reader, parameter, document):
                before = np.searchsorted(self.trace[schema.UPDATE_TOKEN].values, tokens) - 1
                drift = self.trace[schema.DRIFT].sel({schema.READER: reader, schema.PARAMETER: parameter}).values
                token = tokens[int(np.nan_to_num(drift[before], nan=-1.0, posinf=-1.0).argmax())]
                values = self._delta(reader, parameter, token).values
                limit = tiles.colour_limit(tiles.pool(values))
                self._peaks[key] = {"token": token, "limit": limit, "orders": tiles.longest_first(values)}
        return self._peaks[key]

    def _shown(self, question: Mapping[str, Any]) -> np.ndarray:
        """Return Δθ at the token, less Δθ at the pinned one if there is one."""
        at = str(question["reader"]), str(question["parameter"])
        values = self._delta(*at, int(question["token"])).values
        pinned = question.get("pinned")
        return np.asarray(values if pinned is None else values - self._delta(*at, int(pinned)).values)

    def _ordered(self, question: Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the values shown, in the order that is asked for, and that order of (rows, columns)."""
        if question["order"] not in ORDERS:
            raise ValueError(f"order is {question['order']!r}; expected one of {', '.join(map(repr, ORDERS))}")
        values = self._shown(question)
        document = int(np.searchsorted(self.head["starts"], int(question["token"]), side="right")) - 1
        peak = self._peak(str(question["reader"]), str(question["parameter"]), document)
        if peak is None or question["order"] != ORDERS[0]:
            return values, [np.arange(side, dtype=np.int32) for side in values.shape]
        return values[np.ix_(*peak["orders"])], list(peak["orders"])

    def _tile(self, question: Mapping[str, Any]) -> Answer:
        values, orders = self._ordered(question)
        matrix = values.ndim == 2
        cells = tiles.pool(values, tiles.SIDE_CELLS if matrix else VECTOR_ENTRIES)
        codes, size = tiles.squeeze(cells)
        arrays = {"codes": codes, "bars": tiles.histogram(values, size)} if matrix else {
            "values": cells.astype(np.float32), "bars": tiles.histogram(values, size)
        }  # fmt: skip
        arrays |= {f"order_{axis}": order for axis, order in enumerate(orders)}
        squares = np.square(values, dtype=np.float64)
        if matrix:
            arrays |= {f"norms_{axis}": tiles.pool(np.sqrt(squares.sum(1 - axis))).astype("f4") for axis in (0, 1)}
        columns, data = pack(arrays)
        bad = tiles.NotFinite.of(values)
        first = None if bad is None else [int(order[i]) for order, i in zip(orders, bad.first, strict=True)]
        whole = self._delta(str(question["reader"]), str(question["parameter"]), int(question["token"]))
        norm = float(np.sqrt(squares.sum()))
        return {
            "columns": columns, "shape": list(values.shape), "cells": list(cells.shape), "size": size,
            "limit": tiles.colour_limit(cells), "norm": norm if np.isfinite(norm) else None,
            "bad": None if bad is None else {"count": bad.count, "first": first},
            "left_out": whole.attrs.get("left_out"),
        }, [data]  # fmt: skip

    def _piece(self, question: Mapping[str, Any]) -> Answer:
        values, _ = self._ordered(question)
        if values.ndim != 2:
            raise ValueError(f"{question['parameter']} is a vector: all of its values are in its picture")
        row, column = int(question["row"]), int(question["column"])
        if not (0 <= row < values.shape[0] and 0 <= column < values.shape[1]):
            raise ValueError(f"row {row}, column {column} is outside; expected them within {values.shape}")
        columns, data = pack({"values": values[row : row + PIECE, column : column + PIECE].astype(np.float32)})
        return {"columns": columns, "row": row, "column": column}, [data]

    def _spectrum(self, question: Mapping[str, Any]) -> Answer:
        values = self._shown(question)
        if values.ndim != 2:
            raise ValueError(f"{question['parameter']} is a vector: it has no singular values")
        if not np.isfinite(values).all():
            raise ValueError("Δθ is not finite here, and has no singular values")
        found = tiles.singular_values(values)
        total = float(np.square(found).sum())
        rank = effective_rank(found)
        return {
            "values": found[:DIRECTIONS].tolist(), "of": len(found), "rank": rank if np.isfinite(rank) else None,
            "share": float(found[0] ** 2 / total) if total else None,
        }, []  # fmt: skip

    def _scale(self, question: Mapping[str, Any]) -> Answer:
        reader, parameter = str(question["reader"]), str(question["parameter"])
        peak = self._peak(reader, parameter, int(question["document"]))
        if peak is None:
            return {"limit": None}, []
        values = self._delta(reader, parameter, peak["token"]).values
        finite = np.abs(values[np.isfinite(values)])
        first = tiles.singular_values(values)[0] if values.ndim == 2 and len(finite) == values.size else 0.0
        size = float(finite.max(initial=0.0))
        return {"token": peak["token"], "limit": peak["limit"], "size": size, "first": float(first)}, []
