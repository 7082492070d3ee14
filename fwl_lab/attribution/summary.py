"""What receipts say of a document: who teaches whom, from how far, and how much of it cancels. No torch.

A receipt splits the gain of one token over the earlier tokens, or updates, that caused it; see `fwl_lab.receipt`.
Shares of both signs cancel, so the sum of their sizes (gross) stands beside their sum (net) everywhere.
"""

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from fwl_lab.trace import schema as schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import require_reader

SOURCE: Final = "source"  # dimension of a receipt: trace index of the token that was learned, last of its update
SOURCE_TEXT: Final = "source_text"
SOURCE_KIND: Final = "source_kind"  # index in KINDS
SHARE: Final = "share"
SHARE_BY_PARAMETER: Final = "share_by_parameter"
HELD: Final = "held"
REPLAY: Final = "replay"

# Of a summary.
KIND: Final = "kind"
KINDS: Final = ("same token", "same word", "other")
DISTANCE: Final = "distance"  # first distance of a bin that ends before twice that
NET: Final = "net"
GROSS: Final = "gross"
FRACTION: Final = "fraction"
NET_BY_DISTANCE: Final = "net_by_distance"
GROSS_BY_DISTANCE: Final = "gross_by_distance"
SOURCES_BY_DISTANCE: Final = "sources_by_distance"


def receipt_summary(receipts: xr.Dataset | Sequence[xr.Dataset], *, reader: str = "fwl") -> xr.Dataset:
    """What some receipts say together.

    Parameters
    ----------
    receipts : Dataset or sequence of Dataset
        Receipts, with all their sources; or a trace from `add_receipts`, which holds the strongest only.
    reader : str
        Whose receipts of a trace.

    Returns
    -------
    Dataset
        ``net``, ``gross`` (kind), nats: sums of the shares, and of their sizes, from sources that are the same token,
        that differ from it only in case or in the space around (the same word), and others. Where an update learned
        from several tokens (dynamic evaluation), the nearest of the three that any of them is. ``fraction`` (kind):
        of the net sum; of "same token" it is what exact repeats pay, against the rest.
        ``net_by_distance``, ``gross_by_distance``, ``sources_by_distance`` (distance): in bins from a power of two
        up to, not including, the next; tokens from source to target.
        Attributes: ``receipts`` (how many), ``gain``, ``net``, ``gross`` (sums, nats), ``worst_residual`` (nats), and
        ``unlisted``, the part of the gain that the sources at hand do not hold (residuals, and in a trace all but the
        strongest).

    Raises
    ------
    ValueError
        There is no receipt, or one stands twice, or they are of several readers.
    """
    if isinstance(receipts, xr.Dataset) and schema.TOKEN_ID in receipts.variables:
        kinds, distances, shares, facts = _of_trace(receipts, reader)
    else:
        kinds, distances, shares, facts = _of_receipts([receipts] if isinstance(receipts, xr.Dataset) else receipts)
    net, gross = float(shares.sum()), float(np.abs(shares).sum())
    by_kind, by_kind_gross = (np.bincount(kinds, w, len(KINDS)) for w in (shares, np.abs(shares)))
    bins = np.log2(distances).astype(np.int64)
    held = np.arange(bins.max(initial=-1) + 1)
    nats = {schema.UNITS: schema.NAT}
    return xr.Dataset(
        {
            NET: (KIND, by_kind, nats),
            GROSS: (KIND, by_kind_gross, nats),
            FRACTION: (KIND, by_kind / net if net else np.full(len(KINDS), np.nan), {schema.UNITS: schema.ONE}),
            NET_BY_DISTANCE: (DISTANCE, np.bincount(bins, shares, len(held)), nats),
            GROSS_BY_DISTANCE: (DISTANCE, np.bincount(bins, np.abs(shares), len(held)), nats),
            SOURCES_BY_DISTANCE: (DISTANCE, np.bincount(bins, minlength=len(held))),
        },
        {KIND: text_array(KINDS), DISTANCE: (DISTANCE, 2**held, {schema.UNITS: schema.TOKENS})},
        facts | {"net": net, "gross": gross, "unlisted": facts["gain"] - net},
    )


def source_kinds(trace: xr.Dataset, token: int, sources: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Index in KINDS of each source (n,): the nearest that any of its `lengths` (n,) tokens, the last named, is."""
    if not len(sources):
        return np.zeros(0, dtype=np.int64)
    first = int((sources - lengths).min()) + 1
    part = trace.isel({schema.TOKEN: slice(first, token + 1)})
    return _kinds(part, np.full(len(sources), token - first), sources - first, lengths)


def source_lengths(trace: xr.Dataset, reader: str, sources: np.ndarray) -> np.ndarray:
    """How many tokens each source learned from: one, or a segment of dynamic evaluation."""
    configuration = json.loads(trace.attrs.get(schema.READERS, "{}")).get(reader, {})
    return np.full(len(sources), int(configuration.get("segment", 1)))


def _kinds(trace: xr.Dataset, tokens: np.ndarray, sources: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Index in KINDS of pairs of a token and a source, (n,) each."""
    ids, texts = trace[schema.TOKEN_ID].values, trace[schema.TOKEN_TEXT].values
    back = np.arange(lengths.max(initial=0))
    learned = np.maximum(sources[:, None] - back, 0)  # (n, tokens of the longest source)
    needed, places = np.unique(np.append(tokens, learned), return_inverse=True)
    numbers = {"": -1}
    words = np.array([numbers.setdefault(_word(text), len(numbers)) for text in texts[needed].tolist()])[places]
    own, theirs = words[: len(tokens), None], words[len(tokens) :].reshape(learned.shape)
    found = np.full(learned.shape, KINDS.index("other"))
    found[(own == theirs) & (own >= 0)] = KINDS.index("same word")
    found[ids[tokens][:, None] == ids[learned]] = KINDS.index("same token")
    found[back >= lengths[:, None]] = len(KINDS)
    return found.min(1, initial=len(KINDS))


def _word(text: str) -> str:
    """What stays of a token when space around it and case are left aside, where that is a word."""
    core = text.strip().casefold()
    return core if core.isidentifier() else ""


def _of_receipts(receipts: Sequence[xr.Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """Kinds, distances and shares of all sources, and the facts about the receipts."""
    if not receipts:
        raise ValueError("there is no receipt; expected some from receipt(), or a trace from add_receipts().")
    names = sorted({str(one.attrs.get("reader")) for one in receipts})
    if len(names) > 1:
        raise ValueError(f"the receipts are of the readers {', '.join(names)}; expected those of one, a summary each.")
    once: set[tuple[int, float]] = set()  # two traces may each have a receipt of the same token
    for one in receipts:
        key = (int(one.attrs["token"]), float(one.attrs["gain"]))
        if key in once:
            raise ValueError(f"the receipt of token {key[0]} is given twice; expected each once.")
        once.add(key)
    kinds = np.concatenate([one[SOURCE_KIND].values for one in receipts])
    distances = np.concatenate([one.attrs["token"] - one[SOURCE].values for one in receipts])
    shares = np.concatenate([one[SHARE].values for one in receipts])
    gain = sum(float(one.attrs["gain"]) for one in receipts)
    worst = max(abs(float(one.attrs["residual"])) for one in receipts)
    return kinds.astype(np.int64), distances, shares, _facts(len(receipts), gain, worst)


def _of_trace(trace: xr.Dataset, reader: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    require_reader(trace, reader)
    if schema.RECEIPT_SOURCE not in trace or schema.RECEIPT_GAIN not in trace:
        raise ValueError("the trace holds no receipts; expected one from add_receipts().")
    rows = trace.sel({schema.READER: reader})
    tokens = np.flatnonzero(np.isfinite(rows[schema.RECEIPT_GAIN].values))
    if not len(tokens):
        raise ValueError(f"the trace holds no receipts of reader {reader!r}; see add_receipts(reader={reader!r}).")
    sources, shares = (rows[name].values[tokens] for name in (schema.RECEIPT_SOURCE, schema.RECEIPT_SHARE))
    there = sources >= 0
    sources, shares, owners = sources[there], shares[there], np.repeat(tokens, there.sum(1))
    gains, residuals = (rows[name].values[tokens] for name in (schema.RECEIPT_GAIN, schema.RECEIPT_RESIDUAL))
    facts = _facts(len(tokens), float(gains.sum()), float(np.abs(residuals).max()))
    kinds = _kinds(trace, owners, sources, source_lengths(trace, reader, sources))
    return kinds, owners - sources, shares, facts


def _facts(count: int, gain: float, worst: float) -> dict[str, float]:
    return {"receipts": count, "gain": gain, "worst_residual": worst}
