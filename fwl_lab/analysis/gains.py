"""Compute the NLL and the gain of each reader of a trace, averaged and cumulated over tokens. Imports no torch.

Units, for a reader whose NLL adds up to N nats over T tokens, W words and B bytes of UTF-8:

====================  ===========  ======================================================================
``nats_per_token``    N / T        depends on the tokenizer
``token_perplexity``  exp(N / T)   size of a uniform distribution over tokens with the same NLL
``bits_per_byte``     N / ln 2 / B comparable across tokenizers
``nats_per_word``     N / W        comparable across tokenizers; depends on what a word is
``word_perplexity``   exp(N / W)   the usual figure of WikiText; = token_perplexity ** (T / W)
====================  ===========  ======================================================================

A word is what `str.split` finds between whitespace in a document's text. The nats of whitespace are counted with those
of words, as is usual; a document that was not read to its end may end inside a word.
"""

from typing import Final

import numpy as np
import xarray as xr

from fwl_lab.trace.lookup import default_baseline, find_baseline, first_tokens, require_reader
from fwl_lab.trace.schema import (
    BYTE,
    BYTE_COUNT,
    DOCUMENT,
    FLOPS_PER_TOKEN,
    NAT,
    NLL,
    ONE,
    PEAK_BYTES,
    READER,
    SECOND,
    SECONDS,
    TOKEN,
    TOKEN_TEXT,
    TOKENS,
    UNITS,
)

BASELINE: Final = "baseline"  # attribute: the reader that gains are measured against
RELATIVE_TO: Final = "relative_to"  # attribute: the reader that times are divided by
TOKEN_COUNT: Final = "tokens"
DOCUMENT_COUNT: Final = "documents"
WORD_COUNT: Final = "words"

NATS_PER_TOKEN: Final = "nats_per_token"
NATS_PER_TOKEN_PER_DOCUMENT: Final = "nats_per_token_per_document"
BITS_PER_BYTE: Final = "bits_per_byte"
TOKEN_PERPLEXITY: Final = "token_perplexity"
NATS_PER_WORD: Final = "nats_per_word"
WORD_PERPLEXITY: Final = "word_perplexity"
TOKENS_PER_SECOND: Final = "tokens_per_second"
TIME_RATIO: Final = "time_ratio"
WORDS: Final = "word"  # unit


def gain(trace: xr.Dataset, baseline: str | None = None) -> xr.DataArray:
    """Return the gain of every reader but the baseline: NLL of the baseline minus its own.

    Parameters
    ----------
    trace : Dataset
    baseline : str, optional
        Name of a reader; None: "base", or else the first that does not adapt (`default_baseline`).

    Returns
    -------
    DataArray
        (reader, token) float64, nats; positive is better than the baseline. Its attribute "baseline" names that reader.

    Raises
    ------
    ValueError
        The trace has no such reader, or every reader adapts and `baseline` is None.
    """
    baseline = default_baseline(trace) if baseline is None else require_reader(trace, baseline)
    others = trace[NLL].isel({READER: trace[READER].values != baseline})
    difference = trace[NLL].sel({READER: baseline}).drop_vars(READER) - others
    return difference.transpose(READER, TOKEN).rename("gain").assign_attrs({UNITS: NAT, BASELINE: baseline})


def summary(trace: xr.Dataset, relative_to: str | None = None) -> xr.Dataset:
    """Average each reader over all documents.

    Parameters
    ----------
    trace : Dataset
    relative_to : str, optional
        Reader whose time is the unit of `time_ratio`; None: the default baseline, if there is one.

    Returns
    -------
    Dataset of variables (reader,)

    ``nats_per_token``, ``token_perplexity``, ``bits_per_byte``, ``nats_per_word``, ``word_perplexity``
        Micro averages, in the units of this module's table: every token, byte or word counts the same. NaN where
        there is no byte or no word; infinite where a perplexity is too large for a float.
    ``nats_per_token_per_document``
        Mean of the documents' own averages: every document counts the same.
    ``tokens_per_second``, ``time_ratio``
        Speed, and time divided by that of `relative_to`; present if times were recorded.
    ``flops_per_token``, ``peak_bytes``
        Counted operations, and memory beyond that in use before reading; present if they were recorded.

    Raises
    ------
    ValueError
        The trace has no reader `relative_to`.
    """
    nll = trace[NLL].transpose(READER, TOKEN).values
    names, tokens = trace[READER].values, nll.shape[1]
    _, document = np.unique(trace[DOCUMENT].values, return_inverse=True)
    length = np.bincount(document)
    totals = nll.sum(axis=1)
    per_document = np.stack([np.bincount(document, row) / length for row in nll])
    size, words = int(trace[BYTE_COUNT].sum()), word_count(trace)
    per_word = totals / words if words else np.full(len(names), np.nan)
    columns = {
        NATS_PER_TOKEN: (totals / tokens, f"{NAT}/{TOKENS}"),
        NATS_PER_TOKEN_PER_DOCUMENT: (per_document.mean(axis=1), f"{NAT}/{TOKENS}"),
        BITS_PER_BYTE: (totals / np.log(2) / size if size else np.full(len(names), np.nan), f"bit/{BYTE}"),
        TOKEN_PERPLEXITY: (perplexity(totals / tokens), ONE),
        NATS_PER_WORD: (per_word, f"{NAT}/{WORDS}"),
        WORD_PERPLEXITY: (perplexity(per_word), ONE),
    }
    reference = find_baseline(trace) if relative_to is None else require_reader(trace, relative_to)
    if SECONDS in trace:
        # A time of 0 was too short to be measured beside the time that recording took.
        seconds = np.where(trace[SECONDS].values > 0, trace[SECONDS].values, np.nan)
        columns[TOKENS_PER_SECOND] = (tokens / seconds, f"{TOKENS}/{SECOND}")
        if reference is not None:
            columns[TIME_RATIO] = (seconds / seconds[names == reference], ONE)
    for name in (FLOPS_PER_TOKEN, PEAK_BYTES):
        if name in trace:
            columns[name] = (trace[name].values, trace[name].attrs[UNITS])
    return xr.Dataset(
        {name: (READER, values, {UNITS: units}) for name, (values, units) in columns.items()},
        coords={READER: names},
        attrs={TOKEN_COUNT: tokens, WORD_COUNT: words, DOCUMENT_COUNT: len(length)}
        | ({} if reference is None else {RELATIVE_TO: reference}),
    )


def word_count(trace: xr.Dataset) -> int:
    """Count the words of all documents: what `str.split` finds between whitespace; none spans two documents."""
    texts = trace[TOKEN_TEXT].values.tolist()
    starts = first_tokens(trace)
    ends = np.append(starts[1:], len(texts))
    return sum(len("".join(texts[start:end]).split()) for start, end in zip(starts, ends, strict=True))


def perplexity(nats: np.ndarray) -> np.ndarray:
    """Return exp(`nats`), where `nats` are averages; infinite where that is too large for a float."""
    with np.errstate(over="ignore"):
        return np.exp(nats)


def cumulative_nll(trace: xr.Dataset) -> xr.DataArray:
    """Sum the NLL from each document's start up to and including each token: (reader, token), nats."""
    return _cumulative(trace, trace[NLL]).rename("cumulative_nll")


def cumulative_gain(trace: xr.Dataset, baseline: str | None = None) -> xr.DataArray:
    """Sum the gain from each document's start up to and including each token: (reader, token), nats.

    Its slope is the gain per token; where it falls, the reader does worse than the baseline. See :func:`gain`.
    """
    return _cumulative(trace, gain(trace, baseline)).rename("cumulative_gain")


def _cumulative(trace: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Cumulate values along tokens, starting from 0 in each document."""
    values = values.transpose(READER, TOKEN)
    sums = np.cumsum(values.values, axis=1)
    first = first_tokens(trace)
    before = np.where(first > 0, sums[:, first - 1], 0.0)
    lengths = np.diff(first, append=sums.shape[1])
    return values.copy(data=sums - np.repeat(before, lengths, axis=1)).assign_attrs({UNITS: NAT})
