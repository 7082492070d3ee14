"""What a trace says: gains, averages and breakdowns with intervals. xarray in, xarray out; no torch.

Gain is the NLL of a baseline reader minus the NLL of a reader, token by token, in nats; positive is better.

Breakdowns and bootstraps return a Dataset with

======================  =============================================================================================
``mean``                micro average: all gain in the bucket over all tokens in it, nat per token
``low``, ``high``       percentile bootstrap interval (95 % unless told otherwise) of that mean
``tokens``              tokens in the bucket
``documents``           documents with a token in the bucket
======================  =============================================================================================

Intervals are *paired*: both readers are resampled together. With several documents, whole documents are resampled,
so the interval speaks of other documents like these; a bucket held by one of several documents has none (NaN), and
with fewer than about ten documents it is too narrow. With a single document, overlapping blocks of consecutive
tokens are resampled around a circle (Politis and Romano 1992): that interval speaks of this document only.
"""

from typing import Final

import numpy as np
import xarray as xr

from fwl_lab.bootstrap import DEFAULT, Bootstrap, Units
from fwl_lab.trace import (
    BASE,
    BYTE,
    BYTE_COUNT,
    DOCUMENT,
    NAT,
    NLL,
    ONE,
    POSITION,
    READER,
    SECOND,
    SECONDS,
    TOKEN,
    TOKEN_ID,
    TOKENS,
    UNITS,
    text_array,
)

BUCKET: Final = "bucket"  # dimension of a breakdown
LABEL: Final = "label"  # what a bucket is called
START: Final = "start"  # first value in a bucket
STOP: Final = "stop"  # one past the last value in it; -1: open
MEAN: Final = "mean"
LOW: Final = "low"
HIGH: Final = "high"
TOKEN_COUNT: Final = "tokens"
DOCUMENT_COUNT: Final = "documents"
AVERAGE: Final = "average"  # dimension of paired_bootstrap()
MICRO: Final = "micro"
PER_DOCUMENT: Final = "per_document"

NATS_PER_TOKEN: Final = "nats_per_token"
NATS_PER_TOKEN_PER_DOCUMENT: Final = "nats_per_token_per_document"
BITS_PER_BYTE: Final = "bits_per_byte"
TOKEN_PERPLEXITY: Final = "token_perplexity"
TOKENS_PER_SECOND: Final = "tokens_per_second"
TIME_RATIO: Final = "time_ratio"

_OCCURRENCES = (0, 1, 2, 3, 5, 9, 17)


def require_reader(trace: xr.Dataset, name: str) -> str:
    """`name`, if the trace has that reader.

    Raises
    ------
    ValueError
        It has not; the message lists those it has.
    """
    known = [str(reader) for reader in trace[READER].values]
    if name not in known:
        raise ValueError(f"no reader {name!r} in this trace; it holds {', '.join(known)}")
    return name


def gain(trace: xr.Dataset, baseline: str = BASE) -> xr.DataArray:
    """Gain of every reader but the baseline: (reader, token) float64, nats; positive is better than the baseline."""
    require_reader(trace, baseline)
    others = trace[NLL].isel({READER: trace[READER].values != baseline})
    difference = trace[NLL].sel({READER: baseline}).drop_vars(READER) - others
    return difference.transpose(READER, TOKEN).rename("gain").assign_attrs({UNITS: NAT, "baseline": baseline})


def summary(trace: xr.Dataset, relative_to: str | None = None) -> xr.Dataset:
    """One row of averages a reader, over all documents.

    ``nats_per_token``
        Micro average: every token counts the same. Its exponential is ``token_perplexity``.
    ``nats_per_token_per_document``
        Mean of the documents' own averages: every document counts the same.
    ``bits_per_byte``
        All nats / ln 2 over all UTF-8 bytes; comparable across tokenizers.
    ``tokens_per_second``, ``time_ratio``
        Speed, and time over the time of `relative_to` (None: "base", if there); present if times were recorded.
    """
    nll = trace[NLL].transpose(READER, TOKEN).values
    names, tokens = trace[READER].values, nll.shape[1]
    _, document = np.unique(trace[DOCUMENT].values, return_inverse=True)
    length = np.bincount(document)
    totals = nll.sum(axis=1)
    per_document = np.stack([np.bincount(document, row) / length for row in nll])
    size = int(trace[BYTE_COUNT].sum())
    columns = {
        NATS_PER_TOKEN: (totals / tokens, f"{NAT}/{TOKENS}"),
        NATS_PER_TOKEN_PER_DOCUMENT: (per_document.mean(axis=1), f"{NAT}/{TOKENS}"),
        BITS_PER_BYTE: (totals / np.log(2) / size if size else np.full(len(names), np.nan), f"bit/{BYTE}"),
        TOKEN_PERPLEXITY: (np.exp(totals / tokens), ONE),
    }
    if relative_to is not None:
        require_reader(trace, relative_to)
    if SECONDS in trace:
        seconds = trace[SECONDS].values
        columns[TOKENS_PER_SECOND] = (tokens / seconds, f"{TOKENS}/{SECOND}")
        reference = relative_to or BASE
        if reference in names:
            columns[TIME_RATIO] = (seconds / seconds[names == reference], ONE)
    return xr.Dataset(
        {name: (READER, values, {UNITS: units}) for name, (values, units) in columns.items()},
        coords={READER: names},
        attrs={TOKEN_COUNT: tokens, DOCUMENT_COUNT: len(length), "relative_to": relative_to or BASE},
    )


def cumulative_nll(trace: xr.Dataset) -> xr.DataArray:
    """NLL summed from each document's start up to and including a token: (reader, token), nats."""
    return _cumulative(trace, trace[NLL]).rename("cumulative_nll")


def cumulative_gain(trace: xr.Dataset, baseline: str = BASE) -> xr.DataArray:
    """Gain summed from each document's start up to and including a token: (reader, token), nats.

    Its slope is the gain per token just there; where it falls, the reader does worse than the baseline.
    """
    return _cumulative(trace, gain(trace, baseline)).rename("cumulative_gain")


def gain_by_position(
    trace: xr.Dataset, bucket: int = 512, *, baseline: str = BASE, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Mean gain in buckets of `bucket` tokens from the document's start: does it help at once, does it last?"""
    if bucket < 1:
        raise ValueError(f"a bucket must hold at least 1 token, not {bucket}")
    index = trace[POSITION].values // bucket
    starts = np.arange(index.max() + 1) * bucket
    labels = [f"{start:,}–{start + bucket - 1:,}" for start in starts]
    return _breakdown(trace, index, _buckets(labels, starts, starts + bucket), baseline, bootstrap)


def gain_by_occurrence(trace: xr.Dataset, *, baseline: str = BASE, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Mean gain by how often the same token id came earlier in the same document.

    Bucket "0" is a token's first occurrence: what adaptation does beyond remembering tokens.
    """
    starts = np.array(_OCCURRENCES)
    index = (
        np.searchsorted(starts, earlier_occurrences(trace[DOCUMENT].values, trace[TOKEN_ID].values), side="right") - 1
    )
    labels = [_span(start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]
    return _breakdown(trace, index, _buckets(labels, starts, np.append(starts[1:], -1)), baseline, bootstrap)


def gain_by_frequency(
    trace: xr.Dataset, counts: np.ndarray, *, baseline: str = BASE, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Mean gain by how often the token occurs in the model's training split, in bins of powers of ten.

    Parameters
    ----------
    counts : (V,) int
        Occurrences of every token id in the training split.

    Raises
    ------
    ValueError
        `counts` is not one number a token id, or holds a negative one.
    """
    counts, ids = np.asarray(counts), trace[TOKEN_ID].values
    if counts.ndim != 1 or len(counts) <= ids.max() or counts.min() < 0:
        raise ValueError(
            f"counts must be one number, 0 or more, for each token id up to {ids.max()}, not shape {counts.shape}"
        )
    top = int(np.floor(np.log10(max(counts[ids].max(), 1))))
    starts = np.concatenate([[0], 10 ** np.arange(top + 1)])
    stops = np.append(starts[1:], 10 ** (top + 1))
    labels = ["never seen", *(_decade(int(start)) for start in starts[1:])]
    index = np.searchsorted(starts, counts[ids], side="right") - 1
    return _breakdown(trace, index, _buckets(labels, starts, stops), baseline, bootstrap)


def paired_bootstrap(trace: xr.Dataset, *, baseline: str = BASE, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Mean gain over a baseline with its interval, averaged in two ways: ``mean``, ``low``, ``high`` (reader, average).

    ``average`` is "micro" (ratio of sums: every token counts the same) or "per_document" (mean of the documents' own
    averages: every document counts the same). To compare two adapted readers, name one as the baseline.
    """
    gains, document = gain(trace, baseline), trace[DOCUMENT].values
    units = Units.of(gains.values, document, np.zeros(len(document), dtype=np.int64), 1)
    micro = units.intervals(bootstrap)
    per_document = micro if units.blocks else units.averaged().intervals(bootstrap)
    columns = {
        name: ((READER, AVERAGE), np.concatenate([a, b], axis=1), {UNITS: f"{NAT}/{TOKENS}"})
        for name, a, b in zip((MEAN, LOW, HIGH), micro, per_document, strict=True)
    }
    coords = {READER: gains[READER].values, AVERAGE: text_array([MICRO, PER_DOCUMENT])}
    counts = {TOKEN_COUNT: len(document), DOCUMENT_COUNT: len(np.unique(document))}
    return xr.Dataset(columns, coords, _attributes(units, baseline, bootstrap) | counts)


def earlier_occurrences(document: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """How often each token id has occurred before in its own document: (T,), (T,) -> (T,) int."""
    order = np.lexsort((ids, document))  # stable, so equal ids stay in reading order
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (np.diff(ids[order]) != 0) | (np.diff(document[order]) != 0)
    place = np.arange(len(ids))
    occurrence = np.empty(len(ids), dtype=np.int64)
    occurrence[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    return occurrence


def _cumulative(trace: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Running sums along tokens, from 0 at each document's start."""
    values = values.transpose(READER, TOKEN)
    sums = np.cumsum(values.values, axis=1)
    first = np.flatnonzero(np.diff(trace[DOCUMENT].values, prepend=-1))
    before = np.where(first > 0, sums[:, first - 1], 0.0)
    lengths = np.diff(first, append=sums.shape[1])
    return values.copy(data=sums - np.repeat(before, lengths, axis=1)).assign_attrs({UNITS: NAT})


def _breakdown(
    trace: xr.Dataset, index: np.ndarray, buckets: xr.Dataset, baseline: str, bootstrap: Bootstrap
) -> xr.Dataset:
    """Mean gain and interval in each bucket that a token falls in; `index` (token,) says which."""
    gains, document = gain(trace, baseline), trace[DOCUMENT].values
    held, index = np.unique(index, return_inverse=True)
    units = Units.of(gains.values, document, index, len(held))
    pairs = np.unique(np.stack([index, document]), axis=1)
    columns = {
        name: ((READER, BUCKET), values, {UNITS: f"{NAT}/{TOKENS}"})
        for name, values in zip((MEAN, LOW, HIGH), units.intervals(bootstrap), strict=True)
    }
    counts = {
        TOKEN_COUNT: (BUCKET, units.counts.sum(axis=0)),
        DOCUMENT_COUNT: (BUCKET, np.bincount(pairs[0], minlength=len(held))),
    }
    coords = {READER: gains[READER].values} | dict(buckets.isel({BUCKET: held}).coords)
    return xr.Dataset(columns | counts, coords, _attributes(units, baseline, bootstrap))


def _buckets(labels: list[str], starts: np.ndarray, stops: np.ndarray) -> xr.Dataset:
    return xr.Dataset(coords={LABEL: (BUCKET, text_array(labels)), START: (BUCKET, starts), STOP: (BUCKET, stops)})


def _attributes(units: Units, baseline: str, bootstrap: Bootstrap) -> dict[str, str | int | float]:
    resampled = "blocks of one document" if units.blocks else "documents"
    return {"baseline": baseline, "resampled": resampled, "resamples": bootstrap.resamples, "level": bootstrap.level}


def _span(start: int, stop: int) -> str:
    """Label of the whole numbers from `start` up to, not including, `stop`; −1 is open."""
    if stop == -1:
        return f"{start}+"
    return f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"


def _decade(start: int) -> str:
    """Label of the numbers from a power of ten up to the next: "1–9", "10–99", "1k–10k"."""
    if start < 1000:
        return f"{start}–{10 * start - 1}"
    short = [f"{value // 1000}k" if value < 10**6 else f"{value // 10**6}M" for value in (start, 10 * start)]
    return "–".join(short)
