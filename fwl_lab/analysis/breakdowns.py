"""Break gains down by position, repetition, frequency and class of token, with intervals. Imports no torch.

Breakdowns and bootstraps return a Dataset with

======================  =============================================================================================
``mean``                micro average: all gain in the bucket over all tokens in it, nat per token
``low``, ``high``       percentile bootstrap interval (95 % unless told otherwise) of that mean
``tokens``              tokens in the bucket
``documents``           documents with a token in the bucket
``share``               share of the gain of all tokens, with ``share_low``, ``share_high``: by class and by repetition
======================  =============================================================================================

Intervals are *paired*: both readers are resampled together. With several documents, whole documents are resampled,
so the interval is about other documents like these; a bucket that only one of several documents has tokens in gets none
(NaN), and with fewer than about ten documents it is too narrow. With a single document, overlapping blocks of
consecutive tokens are resampled around a circle (Politis and Romano 1992): that interval is about this document only.

`baseline` is the reader that gains are measured against; None: `default_baseline` of the trace.
"""

import unicodedata
from typing import Final

import numpy as np
import xarray as xr

from fwl_lab.analysis.bootstrap import DEFAULT, Bootstrap, Units
from fwl_lab.analysis.gains import BASELINE, DOCUMENT_COUNT, TOKEN_COUNT, gain
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.schema import BASE, DOCUMENT, NAT, ONE, POSITION, READER, TOKEN_ID, TOKEN_TEXT, TOKENS, UNITS

BUCKET: Final = "bucket"  # dimension of a breakdown
LABEL: Final = "label"  # text that names a bucket
START: Final = "start"  # first value in a bucket
STOP: Final = "stop"  # one past the last value in it; -1: open
MEAN: Final = "mean"
LOW: Final = "low"
HIGH: Final = "high"
SHARE: Final = "share"
SHARE_LOW: Final = "share_low"
SHARE_HIGH: Final = "share_high"
AVERAGE: Final = "average"  # dimension of paired_bootstrap()
MICRO: Final = "micro"
PER_DOCUMENT: Final = "per_document"

#: Classes of tokens, see :func:`token_class`.
TOKEN_CLASSES: Final = ("word", "number", "punctuation", "whitespace", "other")
REPETITIONS: Final = ("first occurrence", "repeat")

_OCCURRENCES = (0, 1, 2, 3, 5, 9, 17)


def gain_by_position(
    trace: xr.Dataset, bucket: int = 512, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Average the gain in buckets of `bucket` positions, counted from the document's start."""
    if isinstance(bucket, bool) or not isinstance(bucket, int | np.integer) or bucket < 1:
        raise ValueError(f"a bucket must hold at least 1 token, not {bucket!r}; expected a whole number.")
    index = trace[POSITION].values // bucket
    starts = np.arange(index.max() + 1) * bucket
    labels = [f"{start:,}–{start + bucket - 1:,}" for start in starts]
    return _breakdown(trace, index, _buckets(labels, starts, starts + bucket), baseline, bootstrap)


def gain_by_occurrence(trace: xr.Dataset, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Average the gain by how often the same token id came earlier in the same document.

    Bucket "0" is a token's first occurrence: the gain there is more than the memory of a token.
    """
    starts = np.array(_OCCURRENCES)
    index = (
        np.searchsorted(starts, earlier_occurrences(trace[DOCUMENT].values, trace[TOKEN_ID].values), side="right") - 1
    )
    labels = [_span(start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]
    return _breakdown(trace, index, _buckets(labels, starts, np.append(starts[1:], -1)), baseline, bootstrap)


def gain_by_frequency(
    trace: xr.Dataset, counts: np.ndarray, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Average the gain by how often the token occurs in the model's training split, in bins of powers of ten.

    Parameters
    ----------
    trace : Dataset
    counts : (V,) int
        Occurrences of every token id in the training split.
    baseline : str, optional
    bootstrap : Bootstrap

    Raises
    ------
    ValueError
        `counts` is not one number per token id, or holds a negative one.
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


def gain_by_repetition(trace: xr.Dataset, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Average the gain over first occurrences of a token id in its document and over repeats, with their shares."""
    again = earlier_occurrences(trace[DOCUMENT].values, trace[TOKEN_ID].values) > 0
    buckets = xr.Dataset(coords={LABEL: (BUCKET, text_array(REPETITIONS))})
    return _breakdown(trace, again.astype(np.int64), buckets, baseline, bootstrap, shares=True)


def gain_by_token_class(
    trace: xr.Dataset, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Average the gain over words, numbers, punctuation, whitespace and other tokens, with their shares."""
    texts = trace[TOKEN_TEXT].values.tolist()
    places = {text: TOKEN_CLASSES.index(token_class(text)) for text in set(texts)}
    index = np.array([places[text] for text in texts])
    buckets = xr.Dataset(coords={LABEL: (BUCKET, text_array(TOKEN_CLASSES))})
    return _breakdown(trace, index, buckets, baseline, bootstrap, shares=True)


def token_class(text: str) -> str:
    """Classify a token by its text alone, whitespace around it left out.

    Returns
    -------
    One of these strings.

    "word"
        Letters, digits and underscores, not starting with a digit: names, keywords, parts of words.
    "number"
        A digit, then letters, digits, underscores and points: "42", "0x1f", "1.5e".
    "punctuation"
        Punctuation, operators and other signs of Unicode's categories P, Sm, Sc and Sk: "()", "==", "…".
    "whitespace"
        At least one space, tab or line break, and nothing else.
    "other"
        Anything mixed ("[0]", "self."), emoji, control characters, and the empty text of a token that ends inside a
        character.
    """
    core = text.strip()
    if not core:
        return "whitespace" if text else "other"
    if core.isidentifier():
        return "word"
    if core[0].isdecimal() and all(c.isalnum() or c in "._" for c in core):
        return "number"
    kinds = {unicodedata.category(c) for c in core}
    return "punctuation" if all(k[0] == "P" or k in ("Sm", "Sc", "Sk") for k in kinds) else "other"


def paired_bootstrap(trace: xr.Dataset, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Average the gain over all tokens in two ways, with intervals: ``mean``, ``low``, ``high`` (reader, average).

    ``average`` is "micro" (ratio of sums: every token counts the same) or "per_document" (mean of the documents' own
    averages: every document counts the same). To compare two adapted readers, name one as the baseline.
    """
    return averages(gain(trace, baseline), bootstrap=bootstrap)


def averages(gains: xr.DataArray, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Average gains (reader, token), as :func:`paired_bootstrap` does those of a trace.

    Parameters
    ----------
    gains : DataArray
        With the coordinate "document" on its tokens.
    baseline : str, optional
        Name for the result's attribute; None: that of the gains' own attribute "baseline".
    bootstrap : Bootstrap
    """
    baseline = str(gains.attrs.get(BASELINE, BASE)) if baseline is None else baseline
    document = gains[DOCUMENT].values
    units = Units.of(gains.transpose(READER, ...).values, document, np.zeros(len(document), dtype=np.int64), 1)
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
    """Count how often each token id has occurred before in its own document: (T,), (T,) -> (T,) int."""
    order = np.lexsort((ids, document))  # stable, so equal ids stay in reading order
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (np.diff(ids[order]) != 0) | (np.diff(document[order]) != 0)
    place = np.arange(len(ids))
    occurrence = np.empty(len(ids), dtype=np.int64)
    occurrence[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    return occurrence


def _breakdown(
    trace: xr.Dataset,
    index: np.ndarray,
    buckets: xr.Dataset,
    baseline: str | None,
    bootstrap: Bootstrap,
    *,
    shares: bool = False,
) -> xr.Dataset:
    """Average the gain in each bucket that holds a token; `index` (token,) is each token's bucket."""
    gains, document = gain(trace, baseline), trace[DOCUMENT].values
    held, index = np.unique(index, return_inverse=True)
    units = Units.of(gains.values, document, index, len(held))
    pairs = np.unique(np.stack([index, document]), axis=1)
    estimates = {(MEAN, LOW, HIGH): (units.intervals(bootstrap), f"{NAT}/{TOKENS}")}
    if shares:
        estimates[SHARE, SHARE_LOW, SHARE_HIGH] = units.shares(bootstrap), ONE
    columns = {
        name: ((READER, BUCKET), values, {UNITS: unit})
        for names, (results, unit) in estimates.items()
        for name, values in zip(names, results, strict=True)
    }
    counts = {
        TOKEN_COUNT: (BUCKET, units.counts.sum(axis=0)),
        DOCUMENT_COUNT: (BUCKET, np.bincount(pairs[0], minlength=len(held))),
    }
    coords = {READER: gains[READER].values} | dict(buckets.isel({BUCKET: held}).coords)
    return xr.Dataset(columns | counts, coords, _attributes(units, gains.attrs[BASELINE], bootstrap))


def _buckets(labels: list[str], starts: np.ndarray, stops: np.ndarray) -> xr.Dataset:
    """Return the coordinates of buckets that are ranges of numbers."""
    return xr.Dataset(coords={LABEL: (BUCKET, text_array(labels)), START: (BUCKET, starts), STOP: (BUCKET, stops)})


def _attributes(units: Units, baseline: str, bootstrap: Bootstrap) -> dict[str, str | int | float]:
    """Return the attributes that say how a result was made."""
    resampled = "blocks of one document" if units.blocks else "documents"
    return {BASELINE: baseline, "resampled": resampled, "resamples": bootstrap.resamples, "level": bootstrap.level}


def _span(start: int, stop: int) -> str:
    """Return a label of the whole numbers from `start` up to, not including, `stop`; −1: without end."""
    if stop == -1:
        return f"{start}+"
    return f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"


def _decade(start: int) -> str:
    """Return a label of the numbers from a power of ten up to the next: "1–9", "10–99", "1k–10k"."""
    if start < 1000:
        return f"{start}–{10 * start - 1}"
    short = [f"{value // 1000}k" if value < 10**6 else f"{value // 10**6}M" for value in (start, 10 * start)]
    return "–".join(short)
