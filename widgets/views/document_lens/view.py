"""DocumentLens: the text that was read, token by token, coloured by gain, NLL or rank."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import traitlets
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_names
from widgets.core.assets import source, style
from widgets.core.packing import pack, pack_texts, quantise
from widgets.core.selection import Selection, require_tokens
from widgets.core.view import View, reader_styles
from widgets.core.wire import Answer
from widgets.display.document import document_html, visible

#: Bytes of scores in the first message, and in each that follows; texts come on top.
PAGE_BYTES: Final = 1_250_000
#: Coarser steps than this, in nats, would show in the second decimal: then scores travel as float32.
COARSEST: Final = 0.004
#: Tokens whose alternatives and receipts a saved page takes along first, those of the largest gain or harm.
WANTED: Final = 500
#: Tokens of which alternatives and receipts are read at once.
_BLOCK_TOKENS: Final = 256
#: Tokens of the still picture, and the number of them before the selected one.
_PICTURE_TOKENS: Final = 240
_PICTURE_BEFORE: Final = 100
#: Sums of a receipt, by their names in an answer.
_RECEIPT_SUMS: Final = {"gain": schema.RECEIPT_GAIN, "gross": schema.RECEIPT_GROSS}

MEASURES: Final = ("gain", "nll", "rank")


class DocumentLens(View):
    """All documents of a trace as text, coloured by the scores of a reader.

    Parameters
    ----------
    trace : Dataset
        Where it lacks alternatives, ranks or receipts, the view says so in their place.
    selection : Selection, optional
        Shared with other views; its reader is compared with its baseline, any two readers.
    measure : "gain", "nll" or "rank"
        What colours the text: NLL of the baseline minus NLL of the reader, the reader's NLL, or how many tokens the
        reader expected more than the one that came. A trace of one reader has no gain: it starts with NLL.
    lines : int
        Lines of text to be seen at once.

    Raises
    ------
    ValueError
        `measure` is none of the three, or `lines` is less than 4.
    """

    _esm = source("document_lens")
    _css = style("document_lens")

    measure = traitlets.Enum(MEASURES).tag(sync=True)

    def __init__(
        self, trace: xr.Dataset, *, selection: Selection | None = None, measure: str = "gain", lines: int = 24
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; expected one of {', '.join(map(repr, MEASURES))}")
        if lines < 4:
            raise ValueError(f"lines is {lines}; expected at least 4 lines of text")
        require_tokens(trace)
        readers = reader_names(trace)
        self._pages = _Pages(trace)
        content, (data,) = self._pages.page(0)
        bad = ~np.isfinite(self._pages.nll)
        head = content | {
            "readers": reader_styles(trace),
            "tokens": trace.sizes[schema.TOKEN],
            "pages": len(self._pages.starts),
            "documents": [str(name) for name in trace[schema.DOCUMENT_NAME].values],
            "starts": np.searchsorted(trace[schema.DOCUMENT].values, np.arange(trace.sizes[schema.DOCUMENT])).tolist(),
            "lines": lines,
            "ranks": schema.LABEL_RANK in trace,
            "alternatives": schema.TOP_ID in trace,
            "receipts": schema.RECEIPT_SOURCE in trace,
            "not_finite": {"count": int(bad.sum()), "first": int(bad.any(0).argmax()) if bad.any() else None},
        }
        start = "nll" if measure == "gain" and len(readers) == 1 else measure
        # A cache that belongs to this view, and goes with it.
        self._block = lru_cache(maxsize=8)(self._read_block)
        super().__init__(trace, selection=selection, head=head, data=data, measure=start)

    def answer(self, question: Mapping[str, Any]) -> Answer:
        """Answer "page" (scores and texts), "ranks" (of one reader) and "token" (all that is known of one)."""
        match question.get("kind"):
            case "page":
                return self._pages.page(int(question["page"]))
            case "ranks":
                return self._ranks(str(question["reader"]))
            case "token":
                return self._token(int(question["token"])), []
        raise ValueError(f"DocumentLens knows no answer to {question.get('kind')!r}")

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Yield the selected token, the text, tokens of the largest |gain|; then ranks, and the other tokens."""
        assert self.trace is not None and self.selection is not None
        more = self.head["alternatives"] or self.head["receipts"]  # than scores, which are in the pages
        if more:
            yield {"kind": "token", "token": self.selection.token}
        yield from ({"kind": "page", "page": page} for page in range(1, len(self._pages.starts)))
        names = list(self.head["readers"])
        nll = self._pages.nll
        with np.errstate(invalid="ignore"):
            gain = np.abs(nll[names.index(self.selection.baseline)] - nll[names.index(self.selection.reader)])
        largest = np.argsort(-np.nan_to_num(gain, nan=-1.0), kind="stable")[: WANTED * more].tolist()
        yield from ({"kind": "token", "token": token} for token in largest)
        if self.head["ranks"]:
            yield from ({"kind": "ranks", "reader": name} for name in names)
        told = {*largest, self.selection.token}
        yield from ({"kind": "token", "token": token} for token in range(more * nll.shape[1]) if token not in told)

    def fallback_html(self) -> str:
        """Return the text around the selected token, coloured by gain; plain where there is no gain to show."""
        assert self.trace is not None and self.selection is not None
        document = self.trace[schema.DOCUMENT].values
        token, reader, baseline = self.selection.token, self.selection.reader, self.selection.baseline
        inside = np.flatnonzero(document == document[token])
        first = int(max(inside[0], token - _PICTURE_BEFORE))
        piece = self.trace.isel({schema.TOKEN: slice(first, min(first + _PICTURE_TOKENS, int(inside[-1]) + 1))})
        if reader != baseline and np.isfinite(piece[schema.NLL].values).all():
            stretch = {"start": first - int(inside[0]), "max_tokens": _PICTURE_TOKENS}
            return document_html(
                self.trace, reader=reader, baseline=baseline, document=int(document[token]), **stretch
            ).html
        text = "".join(visible(str(text)) for text in piece[schema.TOKEN_TEXT].values)
        return f'<pre style="white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate">{text}</pre>'

    def close(self) -> None:
        """Close the view, and release the trace and the answers kept."""
        super().close()
        # The cache holds the view; closing twice is allowed.
        self.__dict__.pop("_block", None)
        self.__dict__.pop("_pages", None)

    def _ranks(self, reader: str) -> Answer:
        """Return of every token the number of others that a reader expected more; −1: not recorded."""
        assert self.trace is not None
        if schema.LABEL_RANK not in self.trace:
            raise ValueError("ranks were not recorded: score(..., record=Recorder(top=10))")
        ranks = self.trace[schema.LABEL_RANK].sel({schema.READER: reader}).values.astype(np.int32)
        layout, data = pack({"rank": ranks})
        return {"columns": layout}, [data]

    def _token(self, token: int) -> dict[str, Any]:
        """Return each reader's exact score of one token, and its rank, alternatives and receipt as far as recorded."""
        if not 0 <= token < len(self._pages.ids):
            raise ValueError(f"token is {token}; expected 0 to {len(self._pages.ids) - 1}, this trace's tokens")
        block, at = self._block(token // _BLOCK_TOKENS), token % _BLOCK_TOKENS
        names = list(self.head["readers"])
        label = int(self._pages.ids[token])
        found: dict[str, Any] = {"token": token, "label": label, "readers": {}}
        seen: set[int] = set()
        for row, name in enumerate(names):
            score = float(self._pages.nll[row, token])
            one: dict[str, Any] = {"nll": score if np.isfinite(score) else None}
            found["readers"][name] = one
            if schema.LABEL_RANK in block and (rank := int(block[schema.LABEL_RANK][row, at])) >= 0:
                one["rank"] = rank
            if schema.TOP_ID in block and (ids := block[schema.TOP_ID][row, at].tolist())[0] >= 0:
                log_probs = block[schema.TOP_LOG_PROB][row, at].astype(float)
                one |= {"ids": ids, "log_probs": [round(value, 5) for value in log_probs.tolist()]}
                seen.update(ids)
            if schema.RECEIPT_SOURCE in block:
                there = block[schema.RECEIPT_SOURCE][row, at] >= 0
                if there.any():
                    one["sources"] = block[schema.RECEIPT_SOURCE][row, at][there].tolist()
                    one["shares"] = [round(x, 5) for x in block[schema.RECEIPT_SHARE][row, at][there].tolist()]
                    one |= {what: float(block[name][row, at]) for what, name in _RECEIPT_SUMS.items() if name in block}
        return found | {"texts": {str(index): self._pages.text_of(index) for index in sorted(seen)}}

    def _read_block(self, block: int) -> dict[str, np.ndarray]:
        """Return the recorded arrays of neighbouring tokens, (reader, token, ...) each."""
        assert self.trace is not None
        piece = self.trace.isel({schema.TOKEN: slice(block * _BLOCK_TOKENS, (block + 1) * _BLOCK_TOKENS)})
        receipts = (schema.RECEIPT_SOURCE, schema.RECEIPT_SHARE, *_RECEIPT_SUMS.values())
        recorded = (schema.LABEL_RANK, schema.TOP_ID, schema.TOP_LOG_PROB, *receipts)
        return {name: piece[name].values for name in recorded if name in piece}


class _Pages:
    """Texts and scores of a trace in pieces: a token is the number of a text, which is in the first piece with it."""

    def __init__(self, trace: xr.Dataset) -> None:
        self.nll = trace[schema.NLL].transpose(schema.READER, schema.TOKEN).values
        self.ids = trace[schema.TOKEN_ID].values
        there = schema.VOCABULARY_TEXT in trace.variables
        self._vocabulary = trace[schema.VOCABULARY_TEXT].values if there else None
        self._seen: dict[int, str] | None = None
        numbers: dict[str, int] = {}
        texts = trace[schema.TOKEN_TEXT].values.tolist()
        self._code = np.fromiter((numbers.setdefault(str(text), len(numbers)) for text in texts), dtype=np.uint32)
        self._distinct = list(numbers)
        size = 4 * (1 + len(self.nll)) if self._coarse(self.nll).any() else 2 * (2 + len(self.nll))
        step = max(PAGE_BYTES // size, 1)
        self.starts = list(range(0, len(texts), step))
        stops = [*self.starts[1:], len(texts)]
        self._tokens = [slice(*pair) for pair in zip(self.starts, stops, strict=True)]
        ends = (max(self._code[piece].tolist(), default=-1) + 1 for piece in self._tokens)
        known = list(accumulate(ends, max, initial=0))
        self._new = [slice(*pair) for pair in pairwise(known)]

    def page(self, index: int) -> Answer:
        """Return the scores of one piece, and the texts that no piece before it had."""
        if not 0 <= index < len(self.starts):
            raise ValueError(f"page is {index}; expected 0 to {len(self.starts) - 1}")
        tokens = self._tokens[index]
        code = self._code[tokens]
        arrays = {"code": code.astype(np.uint16) if self._new[index].stop <= 2**16 else code}
        scales: list[list[float] | None] = []
        for row, values in enumerate(self.nll[:, tokens]):
            coarse = bool(self._coarse(values[None])[0])
            arrays[f"nll_{row}"], low, step = (values.astype(np.float32), 0.0, 1.0) if coarse else quantise(values)
            scales.append(None if coarse else [low, step])
        layout, data = pack(pack_texts(self._distinct[self._new[index]]) | arrays)
        return {"columns": layout, "scales": scales, "first": tokens.start}, [data]

    def text_of(self, token_id: int) -> str:
        """Return the text of a token id; its number where the trace does not hold it."""
        if self._vocabulary is not None:
            return str(self._vocabulary[token_id])
        if self._seen is None:
            self._seen = {i: self._distinct[code] for i, code in zip(self.ids.tolist(), self._code, strict=True)}
        return self._seen.get(token_id, f"#{token_id}")

    @staticmethod
    def _coarse(nll: np.ndarray) -> np.ndarray:
        """Return of which readers 16 bits would not show hundredths of a nat, (readers,) bool."""
        finite = np.where(np.isfinite(nll), nll, 0.0)
        return np.asarray((finite.max(1) - finite.min(1)) / 65534 > COARSEST)
