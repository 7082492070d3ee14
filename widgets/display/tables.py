"""Write down an evaluation: plain numbers to keep in a file, and the same numbers as tables for people.

All numbers come from one trace by :func:`evaluate`; the tables only write them down, so that file and table agree.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace import schema
from fwl_lab.trace.lookup import (
    ReaderFacts,
    default_baseline,
    default_reader,
    reader_configurations,
    reader_facts,
    reader_names,
)
from fwl_lab.trace.schema import BASE, DOCUMENT_NAME, DYNAMIC_EVALUATION, FWL, POSITION, READER, SECONDS, TOKEN
from widgets import theme
from widgets.display.numbers import interval, number
from widgets.display.numbers import interval_text as interval_text

SUPPORT: Final = 10  # documents that a bucket must hold before it counts as evidence
#: Keys of an evaluation that name readers of the trace: what gains are over, the one looked at closely, and the two
#: that are compared with each other.
BASELINE, WATCHED, FAST_WEIGHTS, GRADIENT_STEPS = "baseline", "watched", "fast_weights", "gradient_steps"
#: Keys of a reader's time over that of others.
_OVER_BASELINE, _OVER_GRADIENT_STEPS = f"time_over_{BASE}", f"time_over_{DYNAMIC_EVALUATION}"
_AVERAGES: Final = (analysis.MICRO, analysis.PER_DOCUMENT)
_MEASURES: Final = (
    analysis.NATS_PER_TOKEN,
    analysis.NATS_PER_TOKEN_PER_DOCUMENT,
    analysis.BITS_PER_BYTE,
    analysis.TOKEN_PERPLEXITY,
    analysis.WORD_PERPLEXITY,
)
_READER_COSTS: Final = (schema.FLOPS_PER_TOKEN, schema.PEAK_BYTES)
_PROVENANCE: Final = (
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
    """Return averages of each reader as a table for people: rounded, with units in the headings.

    Times are relative to the reader `relative_to`; None: the first that has a block and does not adapt, else the first.
    """
    if relative_to is None:
        facts = reader_facts(trace)
        still = [name for name, one in facts.items() if one.block and not one.adapts]
        relative_to = (still or list(facts))[0]
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
    """Return all figures of an evaluation, as JSON values; a number that does not exist is None.

    Averages are over the tokens at positions below `table_tokens`: scores are causal, so these are the scores of a
    reading that stopped there. Buckets and times are of the whole reading.

    Returns
    -------
    dict
        ``readers``: per reader the averages of `analysis.summary`, ``gain`` over the baseline (per average ``mean``,
        ``low`` and ``high``, nat/token) and, where times were recorded, ``tokens_per_second``, ``time_over_base`` (the
        baseline) and ``time_over_dynamic_evaluation``, ``flops_per_token`` and ``peak_bytes``.
        ``fwl_over_dynamic_evaluation``: the gain of the first reader that learns with every token over the first that
        takes gradient steps. ``baseline``, ``watched``, ``fast_weights``, ``gradient_steps``: names of these readers
        and of the one that is looked at closely, whatever they are called; None where there is none.
        ``buckets``: per bucket of positions ``start``, ``stop``, ``tokens``, ``documents`` and the ``gain`` of each
        reader. ``tokens``, ``documents``: in the averages. ``configurations`` of the readers, ``document_names`` and
        ``provenance``: what made the trace.

    Raises
    ------
    ValueError
        The trace has no reader "base" and every reader adapts, or `table_tokens` or `bucket` is not positive.
    """
    if table_tokens < 1:
        raise ValueError(f"table_tokens is {table_tokens}; expected at least 1")
    baseline, (fast, gradient) = default_baseline(trace), compared_readers(reader_facts(trace))
    head = trace.isel({TOKEN: trace[POSITION].values < table_tokens})
    means, gains = analysis.summary(head), analysis.paired_bootstrap(head, baseline=baseline)
    readers: dict[str, dict[str, Any]] = {}
    for name in reader_names(trace):
        row = {measure: number(means[measure].sel({READER: name})) for measure in _MEASURES}
        costs = {cost: number(means[cost].sel({READER: name})) for cost in _READER_COSTS if cost in means}
        own = {} if name == baseline else {"gain": _gains(gains, name)}
        readers[name] = row | own | _times(trace, name, baseline, gradient) | costs
    difference = None
    if fast is not None and gradient is not None:
        difference = _gains(analysis.paired_bootstrap(head, baseline=gradient), fast)
    return {
        "tokens": int(head.sizes[TOKEN]),
        "documents": int(means.attrs[analysis.DOCUMENT_COUNT]),
        "table_tokens": table_tokens,
        "level": gains.attrs["level"],
        "resampled": gains.attrs["resampled"],
        "readers": readers,
        BASELINE: baseline,
        WATCHED: default_reader(trace),
        FAST_WEIGHTS: fast,
        GRADIENT_STEPS: gradient,
        "fwl_over_dynamic_evaluation": difference,
        "buckets": _buckets(analysis.gain_by_position(trace, bucket, baseline=baseline)),
        "document_names": [str(name) for name in trace[DOCUMENT_NAME].values],
        "configurations": reader_configurations(trace),
        "provenance": {name: _plain(trace.attrs[name]) for name in _PROVENANCE if name in trace.attrs},
    }


def compared_readers(readers: Mapping[str, ReaderFacts]) -> tuple[str | None, str | None]:
    """Return the first reader that learns with every token, and the first that takes gradient steps; None: none."""
    fast = (name for name, one in readers.items() if one.every_token)
    gradient = (name for name, one in readers.items() if one.stepwise)
    return next(fast, None), next(gradient, None)


def accuracy_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of nats and gains of each reader by both averages, with intervals."""
    rows, over = {}, _baseline_label(evaluation)
    for name, row in evaluation["readers"].items():
        gain = row.get("gain", {})
        rows[theme.label(name)] = {
            "nats / token": _text(row[analysis.NATS_PER_TOKEN]),
            f"gain over {over}": interval_text(gain.get(analysis.MICRO)),
            "mean of documents": _text(row[analysis.NATS_PER_TOKEN_PER_DOCUMENT]),
            "gain, mean of documents": interval_text(gain.get(analysis.PER_DOCUMENT)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def cost_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of the readers in other units, with their costs."""
    columns = {
        analysis.BITS_PER_BYTE: ("bits / byte", "{:.4f}"),
        analysis.TOKEN_PERPLEXITY: ("token perplexity", "{:,.2f}"),
        analysis.WORD_PERPLEXITY: ("word perplexity", "{:,.0f}"),
        analysis.TOKENS_PER_SECOND: ("tokens / s", "{:,.0f}"),
        _OVER_BASELINE: (f"time / {_baseline_label(evaluation)}", "{:.2f} ×"),
        _OVER_GRADIENT_STEPS: ("time / dyn. eval.", "{:.2f} ×"),
    }
    costs = {schema.FLOPS_PER_TOKEN: "MFLOP / token", schema.PEAK_BYTES: "peak MB"}
    rows = {
        theme.label(name): {title: _text(row.get(column), form) for column, (title, form) in columns.items()}
        | {title: _text(_millions(row.get(cost)), "{:,.0f}") for cost, title in costs.items()}
        for name, row in evaluation["readers"].items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def bucket_table(evaluation: Mapping[str, Any], *, readers: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a table of a row a bucket of positions: its documents and tokens, and each reader's gain with interval.

    Readers stand in the order of `readers`, and those that were not read are left out; None: all, the one that is
    looked at closely first.
    """
    first = evaluation.get(WATCHED, FWL)
    rows = {
        _span(bucket): {"documents": f"{bucket['documents']:,}", "tokens": f"{bucket['tokens']:,}"}
        | {
            theme.label(name): interval_text(bucket["gain"][name])
            for name in (sorted(bucket["gain"], key=lambda name: name != first) if readers is None else readers)
            if name in bucket["gain"]
        }
        for bucket in evaluation["buckets"]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def provenance_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of what made the numbers, one row a fact."""
    facts: dict[str, str] = {}
    for name, value in evaluation["provenance"].items():
        facts |= value if isinstance(value, dict) else {name.replace("_", " "): str(value)}
    return pd.DataFrame({"": facts})


def bucket_statement(evaluation: Mapping[str, Any], *, reader: str | None = None, documents: int = SUPPORT) -> str:
    """Say in which buckets held by enough documents a reader's mean gain is not positive.

    Parameters
    ----------
    reader : str, optional
        None: the one that is looked at closely.
    documents : int
        That a bucket must hold.
    """
    reader = evaluation.get(WATCHED, FWL) if reader is None else reader
    base = _baseline_label(evaluation)
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
        f"not better than {base} in {len(worse)} of {reach}: {'; '.join(worse)}."
        if worse
        else (f"better than {base}, on average, in all of {reach}.")
    )
    doubt = f" In {len(unsure)} of them the interval of a gain reaches zero: {'; '.join(unsure)}." if unsure else ""
    return f"{label} is {said}{doubt}"


def difference_statement(evaluation: Mapping[str, Any]) -> str:
    """Say what FWL gains over dynamic evaluation, by both averages."""
    gain = evaluation["fwl_over_dynamic_evaluation"]
    pairs = ((FAST_WEIGHTS, FWL), (GRADIENT_STEPS, DYNAMIC_EVALUATION))
    fast, gradient = (theme.label(evaluation.get(key) or usual) for key, usual in pairs)
    if gain is None:
        return f"{fast} and {gradient} were not both read, so they are not compared."
    micro, per_document = (interval_text(gain[average]) for average in _AVERAGES)
    return f"{fast} gains over {gradient} {micro} nats per token, and {per_document} by the mean of documents."


def _baseline_label(evaluation: Mapping[str, Any]) -> str:
    return theme.label(evaluation.get(BASELINE, BASE))


def _gains(result: xr.Dataset, name: str) -> dict[str, dict[str, float | None]]:
    row = result.sel({READER: name})
    return {average: interval(row.sel({analysis.AVERAGE: average})) for average in _AVERAGES}


def _times(trace: xr.Dataset, name: str, baseline: str, gradient: str | None) -> dict[str, float | None]:
    """Return the speed of a reader over the whole reading, and its time over that of others."""
    if SECONDS not in trace:
        return {}
    seconds = dict(zip(reader_names(trace), trace[SECONDS].values, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {analysis.TOKENS_PER_SECOND: number(trace.sizes[TOKEN] / seconds[name])} | {
            key: number(seconds[name] / seconds[other])
            for key, other in ((_OVER_BASELINE, baseline), (_OVER_GRADIENT_STEPS, gradient))
            if other is not None
        }


def _buckets(result: xr.Dataset) -> list[dict[str, Any]]:
    numbers = (analysis.START, analysis.STOP, analysis.TOKEN_COUNT, analysis.DOCUMENT_COUNT)
    return [
        {name: int(column[name]) for name in numbers}
        | {"gain": {str(name): interval(column.sel({READER: name})) for name in result[READER].values}}
        for column in (result.isel({analysis.BUCKET: index}) for index in range(result.sizes[analysis.BUCKET]))
    ]


def _span(bucket: Mapping[str, Any]) -> str:
    return f"{bucket[analysis.START]:,}–{bucket[analysis.STOP] - 1:,}"


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _plain(value: Any) -> Any:
    """Return an attribute of a trace as a JSON value: JSON text becomes the object that it describes."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value


def _text(value: float | None, form: str = "{:.4f}") -> str:
    return "–" if value is None else form.format(value)
