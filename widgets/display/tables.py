"""What an evaluation found: plain numbers to keep in a file, and the same numbers as tables for people.

All numbers come from one trace by :func:`evaluate`; the tables only write them down, so that file and table agree.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace import schema as schema
from fwl_lab.trace.schema import BASE, DOCUMENT_NAME, POSITION, READER, SECONDS, TOKEN
from widgets import theme

DYNAMIC_EVALUATION: Final = "dynamic_evaluation"
FWL: Final = "fwl"
STATIC: Final = "static"
SUPPORT: Final = 10  # documents that a bucket must hold before it counts as evidence
_AVERAGES: Final = (analysis.MICRO, analysis.PER_DOCUMENT)
_LEVELS: Final = (
    analysis.NATS_PER_TOKEN,
    analysis.NATS_PER_TOKEN_PER_DOCUMENT,
    analysis.BITS_PER_BYTE,
    analysis.TOKEN_PERPLEXITY,
    analysis.WORD_PERPLEXITY,
)
_COSTS: Final = (schema.FLOPS_PER_TOKEN, schema.PEAK_BYTES)
_SOURCES: Final = (
    schema.MODEL_NAME,
    schema.MODEL_HASH,
    schema.CORPUS_HASH,
    schema.COMMIT,
    schema.DIRTY,
    schema.DEVICE,
    schema.DTYPE,
    schema.THREADS,
    schema.SEED,
    schema.PYTHON,
    schema.VERSIONS,
    schema.CREATED,
)


def summary_table(trace: xr.Dataset, *, relative_to: str | None = None) -> pd.DataFrame:
    """Averages of each reader as a table for people: rounded, with units in the headings.

    Times are relative to the reader `relative_to`; None: the one named "static", or else the first.
    """
    if relative_to is None:
        relative_to = STATIC if STATIC in trace[READER].values else str(trace[READER].values[0])
    table = analysis.summary(trace, relative_to)
    columns = {
        analysis.NATS_PER_TOKEN: ("nats / token", "{:.4f}"),
        analysis.NATS_PER_TOKEN_PER_DOCUMENT: ("nats / token, mean of documents", "{:.4f}"),
        analysis.BITS_PER_BYTE: ("bits / byte", "{:.4f}"),
        analysis.TOKEN_PERPLEXITY: ("token perplexity", "{:,.2f}"),
        analysis.TOKENS_PER_SECOND: ("tokens / s", "{:,.0f}"),
        analysis.TIME_RATIO: (f"time / {theme.label(relative_to)}", "{:.2f} ×"),
    }
    if table.attrs[analysis.DOCUMENT_COUNT] == 1:
        del columns[analysis.NATS_PER_TOKEN_PER_DOCUMENT]
    texts = {
        title: [form.format(value) for value in table[name].values]
        for name, (title, form) in columns.items()
        if name in table
    }
    return pd.DataFrame(texts, index=[theme.label(str(name)) for name in table[READER].values])


def evaluate(trace: xr.Dataset, *, table_tokens: int = 8192, bucket: int = 512) -> dict[str, Any]:
    """All figures of an evaluation, as JSON values; a number that does not exist is None.

    Averages are over the tokens at positions below `table_tokens`: scores are causal, so these are the scores of a
    reading that stopped there. Buckets and times are of the whole reading.

    Returns
    -------
    dict
        ``readers``: per reader the averages of `analysis.summary`, ``gain`` over base (per average ``mean``, ``low``
        and ``high``, nat/token) and, where times were recorded, ``tokens_per_second``, ``time_over_base`` and
        ``time_over_dynamic_evaluation``, ``flops_per_token`` and ``peak_bytes``. ``fwl_over_dynamic_evaluation``: the
        gain of one over the other.
        ``buckets``: per bucket of positions ``start``, ``stop``, ``tokens``, ``documents`` and the ``gain`` of each
        reader. ``tokens``, ``documents``: in the averages. ``configurations`` of the readers, ``document_names`` and
        ``provenance``: what made the trace.

    Raises
    ------
    ValueError
        The trace has no reader "base", or `table_tokens` or `bucket` is not positive.
    """
    if table_tokens < 1:
        raise ValueError(f"table_tokens is {table_tokens}; expected at least 1")
    analysis.require_reader(trace, BASE)
    head = trace.isel({TOKEN: trace[POSITION].values < table_tokens})
    levels, gains = analysis.summary(head), analysis.paired_bootstrap(head)
    names = [str(name) for name in trace[READER].values]
    readers: dict[str, dict[str, Any]] = {}
    for name in names:
        row = {level: number(levels[level].sel({READER: name})) for level in _LEVELS}
        costs = {cost: number(levels[cost].sel({READER: name})) for cost in _COSTS if cost in levels}
        readers[name] = row | ({} if name == BASE else {"gain": _gains(gains, name)}) | _times(trace, name) | costs
    both = {DYNAMIC_EVALUATION, FWL} <= set(names)
    return {
        "tokens": int(head.sizes[TOKEN]),
        "documents": int(levels.attrs[analysis.DOCUMENT_COUNT]),
        "table_tokens": table_tokens,
        "level": gains.attrs["level"],
        "resampled": gains.attrs["resampled"],
        "readers": readers,
        "fwl_over_dynamic_evaluation": _gains(analysis.paired_bootstrap(head, baseline=DYNAMIC_EVALUATION), FWL)
        if both
        else None,
        "buckets": _buckets(analysis.gain_by_position(trace, bucket)),
        "document_names": [str(name) for name in trace[DOCUMENT_NAME].values],
        "configurations": _plain(trace.attrs.get(schema.READERS, "{}")),
        "provenance": {name: _plain(trace.attrs[name]) for name in _SOURCES if name in trace.attrs},
    }


def accuracy_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Nats and gains of each reader by both averages, with intervals."""
    rows = {}
    for name, row in evaluation["readers"].items():
        gain = row.get("gain", {})
        rows[theme.label(name)] = {
            "nats / token": _text(row[analysis.NATS_PER_TOKEN]),
            "gain over base": interval_text(gain.get(analysis.MICRO)),
            "mean of documents": _text(row[analysis.NATS_PER_TOKEN_PER_DOCUMENT]),
            "gain, mean of documents": interval_text(gain.get(analysis.PER_DOCUMENT)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def cost_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """The readers in other units, and what they cost."""
    columns = {
        analysis.BITS_PER_BYTE: ("bits / byte", "{:.4f}"),
        analysis.TOKEN_PERPLEXITY: ("token perplexity", "{:,.2f}"),
        analysis.WORD_PERPLEXITY: ("word perplexity", "{:,.0f}"),
        analysis.TOKENS_PER_SECOND: ("tokens / s", "{:,.0f}"),
        f"time_over_{BASE}": ("time / base", "{:.2f} ×"),
        f"time_over_{DYNAMIC_EVALUATION}": ("time / dyn. eval.", "{:.2f} ×"),
    }
    costs = {schema.FLOPS_PER_TOKEN: "MFLOP / token", schema.PEAK_BYTES: "peak MB"}
    rows = {
        theme.label(name): {title: _text(row.get(column), form) for column, (title, form) in columns.items()}
        | {title: _text(_millions(row.get(cost)), "{:,.0f}") for cost, title in costs.items()}
        for name, row in evaluation["readers"].items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def bucket_table(evaluation: Mapping[str, Any], *, readers: Sequence[str] | None = None) -> pd.DataFrame:
    """One row a bucket of positions: what it holds, and each reader's gain over base with its interval.

    Readers stand in the order of `readers`, and those that were not read are left out; None: all, FWL first.
    """
    rows = {
        _span(bucket): {"documents": f"{bucket['documents']:,}", "tokens": f"{bucket['tokens']:,}"}
        | {
            theme.label(name): interval_text(bucket["gain"][name])
            for name in (sorted(bucket["gain"], key=lambda name: name != FWL) if readers is None else readers)
            if name in bucket["gain"]
        }
        for bucket in evaluation["buckets"]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def provenance_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """What made the numbers, one row a fact."""
    facts: dict[str, str] = {}
    for name, value in evaluation["provenance"].items():
        facts |= value if isinstance(value, dict) else {name.replace("_", " "): str(value)}
    return pd.DataFrame({"": facts})


def bucket_statement(evaluation: Mapping[str, Any], *, reader: str = FWL, documents: int = SUPPORT) -> str:
    """In which buckets held by enough documents a reader's mean gain over base is not positive, in words."""
    label = theme.label(reader)
    if reader not in evaluation["readers"]:
        return f"{label} was not read, so nothing can be said of how long its gain lasts."
    held = [bucket for bucket in evaluation["buckets"] if bucket["documents"] >= documents]
    if not held:
        return f"No bucket is held by {documents} documents or more: nothing can be said of how long the gain lasts."
    gains = {_span(bucket): bucket["gain"][reader] for bucket in held}
    worse = [f"{span} ({interval_text(gain)})" for span, gain in gains.items() if gain[analysis.MEAN] <= 0]
    unsure = [span for span, gain in gains.items() if gain[analysis.MEAN] > 0 and not (gain[analysis.LOW] or 0) > 0]
    reach = f"the {len(held)} buckets held by {documents} documents or more (to token {held[-1][analysis.STOP]:,})"
    said = (
        f"not better than base in {len(worse)} of {reach}: {'; '.join(worse)}."
        if worse
        else (f"better than base, on average, in all of {reach}.")
    )
    doubt = f" In {len(unsure)} of them the interval of a gain reaches zero: {'; '.join(unsure)}." if unsure else ""
    return f"{label} is {said}{doubt}"


def difference_statement(evaluation: Mapping[str, Any]) -> str:
    """FWL's gain over dynamic evaluation, by both averages, in words."""
    gain = evaluation["fwl_over_dynamic_evaluation"]
    if gain is None:
        return "FWL and dynamic evaluation were not both read, so they are not compared."
    micro, per_document = (interval_text(gain[average]) for average in _AVERAGES)
    return f"FWL gains over dynamic evaluation {micro} nats per token, and {per_document} by the mean of documents."


def interval_text(gain: Mapping[str, float | None] | None) -> str:
    """ "+0.123 [+0.101, +0.145]", or what there is of it."""
    if gain is None or gain[analysis.MEAN] is None:
        return "–"
    mean, low, high = (gain[name] for name in (analysis.MEAN, analysis.LOW, analysis.HIGH))
    return f"{mean:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def _gains(result: xr.Dataset, name: str) -> dict[str, dict[str, float | None]]:
    row = result.sel({READER: name})
    return {average: _interval(row.sel({analysis.AVERAGE: average})) for average in _AVERAGES}


def _interval(row: xr.Dataset) -> dict[str, float | None]:
    return {edge: number(row[edge]) for edge in (analysis.MEAN, analysis.LOW, analysis.HIGH)}


def _times(trace: xr.Dataset, name: str) -> dict[str, float | None]:
    """Speed of a reader over the whole reading, and its time over that of others."""
    if SECONDS not in trace:
        return {}
    names = [str(reader) for reader in trace[READER].values]
    seconds = dict(zip(names, trace[SECONDS].values, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {analysis.TOKENS_PER_SECOND: number(trace.sizes[TOKEN] / seconds[name])} | {
            f"time_over_{other}": number(seconds[name] / seconds[other])
            for other in (BASE, DYNAMIC_EVALUATION)
            if other in names
        }


def _buckets(result: xr.Dataset) -> list[dict[str, Any]]:
    numbers = (analysis.START, analysis.STOP, analysis.TOKEN_COUNT, analysis.DOCUMENT_COUNT)
    return [
        {name: int(column[name]) for name in numbers}
        | {"gain": {str(name): _interval(column.sel({READER: name})) for name in result[READER].values}}
        for column in (result.isel({analysis.BUCKET: index}) for index in range(result.sizes[analysis.BUCKET]))
    ]


def _span(bucket: Mapping[str, Any]) -> str:
    return f"{bucket[analysis.START]:,}–{bucket[analysis.STOP] - 1:,}"


def number(value: Any) -> float | None:
    """A float that JSON can hold."""
    number = float(value)
    return number if math.isfinite(number) else None


def signed(value: float) -> str:
    """With its sign, to a thousandth: +0.120, −0.120."""
    return f"{value:+.3f}".replace("-", "−")


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _plain(value: Any) -> Any:
    """An attribute of a trace as a JSON value: what is JSON text in it becomes what it describes."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value


def _text(value: float | None, form: str = "{:.4f}") -> str:
    return "–" if value is None else form.format(value)
