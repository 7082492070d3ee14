"""Sum up receipts by kind and distance of their sources. Imports no torch.

A receipt splits the gain of one token over the earlier tokens, or updates, that caused it; see `fwl_lab.receipt`.
Shares of both signs cancel, so the sum of their absolute values (gross) is given beside their sum (net) everywhere.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import default_learner, reader_facts, require_reader

# Dimension and variables of a receipt.
SOURCE: Final = "source"  # index in the trace of the last token that an update learned from
SOURCE_TEXT: Final = "source_text"
SOURCE_KIND: Final = "source_kind"  # index in KINDS
SHARE: Final = "share"
SHARE_BY_PARAMETER: Final = "share_by_parameter"
HELD: Final = "held"  # gain lost when a source is dropped and all other updates stay as they were
REPLAY: Final = "replay"  # gain lost when a source is dropped and later updates are computed again

# Dimensions and variables of a summary.
KIND: Final = "kind"
KINDS: Final = ("same token", "same word", "other")
DISTANCE: Final = "distance"  # smallest distance in a bin, which ends before twice that
NET: Final = "net"
GROSS: Final = "gross"
FRACTION: Final = "fraction"
NET_BY_DISTANCE: Final = "net_by_distance"
GROSS_BY_DISTANCE: Final = "gross_by_distance"
SOURCES_BY_DISTANCE: Final = "sources_by_distance"


def receipt_summary(receipts: xr.Dataset | Sequence[xr.Dataset], *, reader: str | None = None) -> xr.Dataset:
    """Sum up the shares of receipts by kind and distance of their sources.

    Parameters
    ----------
    receipts : Dataset or sequence of Dataset
        Receipts, with all their sources; or a trace from `add_receipts`, which holds the strongest only.
    reader : str, optional
        Reader of the trace whose receipts are meant; None: `default_learner` of the trace. Ignored unless a trace is
        given.

    Returns
    -------
    Dataset
        ``net``, ``gross`` (kind), nats: sums of the shares, and of their absolute values, over sources that are the
        same token, over those that differ from it only in case or surrounding space (the same word: an identifier in
        the sense of `str.isidentifier`, so that numbers and punctuation are none), and over others.
        An update that learned from several tokens (dynamic evaluation) counts as the first of these kinds that one of
        its tokens has. ``fraction`` (kind): net divided by the net of all kinds; NaN where that is 0.
        ``net_by_distance``, ``gross_by_distance``, ``sources_by_distance`` (distance): in bins from a power of two
        up to, not including, the next; distance in tokens from source to target. Coordinate ``distance``: the smallest
        distance of each bin.
        Attributes: ``receipts`` (their number), ``gain``, ``net``, ``gross`` (sums, nats), ``worst_residual`` (nats),
        and ``unlisted`` (nats), the part of the gain that is not in the sources given: residuals, and in a trace all
        sources but the strongest.

    Raises
    ------
    ValueError
        There is no receipt, one is given twice, or they are of several readers.
    """
    if isinstance(receipts, xr.Dataset) and schema.TOKEN_ID in receipts.variables:
        name = default_learner(receipts) if reader is None else require_reader(receipts, reader)
        kinds, distances, shares, facts = _of_trace(receipts, name)
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
    """Classify the sources of a token: index in `KINDS`, the first that any token of a source has.

    Parameters
    ----------
    trace : Dataset
    token : int
    sources : (n,) int
        Index of the last token that each learned from.
    lengths : (n,) int
        Number of tokens that each learned from.
    """
    if not len(sources):
        return np.zeros(0, dtype=np.int64)
    first = int((sources - lengths).min()) + 1
    part = trace.isel({schema.TOKEN: slice(first, token + 1)})
    return _kinds(part, np.full(len(sources), token - first), sources - first, lengths)


def source_lengths(trace: xr.Dataset, reader: str, sources: np.ndarray) -> np.ndarray:
    """Return how many tokens each source (n,) of a reader learned from: one, or a segment of dynamic evaluation."""
    return np.full(len(sources), reader_facts(trace)[require_reader(trace, reader)].tokens_per_update)


def _kinds(trace: xr.Dataset, tokens: np.ndarray, sources: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Classify pairs of a token and a source, (n,) each; see :func:`source_kinds`."""
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
    """Return a token's text without surrounding space and case if that is an identifier, else an empty text.

    Numbers and punctuation are no identifiers.
    """
    core = text.strip().casefold()
    return core if core.isidentifier() else ""


def _of_receipts(receipts: Sequence[xr.Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """Return kinds, distances and shares of all sources of some receipts, (n,) each, and the attributes."""
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
    """Return kinds, distances and shares of the sources that a trace lists, (n,) each, and the attributes."""
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
    """Return the attributes that do not follow from the shares."""
    return {"receipts": count, "gain": gain, "worst_residual": worst}
