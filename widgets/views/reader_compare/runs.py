"""Bring together the readers of one run, or of several over the same tokens: their figures and their settings."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab import analysis
from fwl_lab.analysis.comparisons import require_same_tokens
from fwl_lab.audit.certificate import Certificate, certificates
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.configurations import DERIVED, encode_configurations
from fwl_lab.trace.lookup import ReaderFacts, reader_configurations, reader_facts, reader_names
from widgets import theme
from widgets.display.numbers import number

#: Points of a cumulative line: sums are exact there, with straight lines between them.
SUM_POINTS: Final = 2000
#: Documents that a chart marks at most.
MARKED_DOCUMENTS: Final = 400
#: Variables that are compared beside the NLL, as far as a trace holds them.
_COMPARED_COSTS: Final = (schema.SECONDS, schema.PEAK_BYTES, schema.FLOPS_PER_TOKEN)
#: Attributes of a run that are no setting of its own: shown elsewhere, or about the recording.
_NO_SETTING: Final = (schema.READERS, schema.CERTIFICATES, schema.PROGRESS, schema.FACTORED)
#: Line styles of the second run, the third, ...; the first run's readers have their own.
_LATER_RUNS: Final = ("longdash", "dashdot", "longdashdot")

#: By the name of a reader in a comparison: its run, and its name there.
ReaderSources = dict[str, tuple[str, str]]


def sources(runs: Mapping[str, xr.Dataset]) -> ReaderSources:
    """Name the readers of several runs: as they are in the first, "run: reader" in the others.

    A reader of a later run that is in the first one too, by name, settings and every score, is left out.

    Raises
    ------
    ValueError
        No run; runs of unlike tokens; two readers would have one name.
    """
    if not runs:
        raise ValueError("no trace given; expected one, or a mapping from names of runs to traces")
    require_same_tokens(list(runs.values()))
    first, *others = runs
    found: ReaderSources = {reader: (first, reader) for reader in reader_names(runs[first])}
    for run in others:
        for reader in reader_names(runs[run]):
            if reader in found and _same(runs[first], runs[run], reader):
                continue
            if (name := f"{run}: {reader}") in found:
                raise ValueError(f"two readers would be called {name!r}; give the runs other names")
            found[name] = run, reader
    return found


def together(runs: Mapping[str, xr.Dataset], found: ReaderSources) -> xr.Dataset:
    """Make one trace of all readers compared, in memory: their scores and costs, and the tokens they read."""
    first = next(iter(runs.values()))
    columns = {name: ((schema.READER, schema.TOKEN), _rows(runs, found, name)) for name in (schema.NLL,)} | {
        name: (schema.READER, _rows(runs, found, name))
        for name in _COMPARED_COSTS
        if any(name in runs[run] for run, _ in found.values())
    }
    coords = {
        name: first[name].variable.load()
        for name, field in schema.FIELDS.items()
        if field.required and name not in (schema.NLL, schema.READER)
    }
    readers = {name: reader_configurations(runs[run]).get(reader, {}) for name, (run, reader) in found.items()}
    attrs = first.attrs | {schema.READERS: encode_configurations(readers)}
    return schema.with_units(xr.Dataset(columns, coords | {schema.READER: text_array(found)}, attrs))


def styles(runs: Mapping[str, xr.Dataset], found: ReaderSources) -> dict[str, dict[str, Any]]:
    """Return how readers are shown: those of one name in one colour, those of a later run in other line styles.

    Where runs have readers of one name and different kinds, the first run decides the colour.
    """
    order = list(runs)
    facts: dict[str, ReaderFacts] = {}
    for trace in runs.values():
        facts |= {name: one for name, one in reader_facts(trace).items() if name not in facts}
    known = theme.styles(facts)
    result: dict[str, dict[str, Any]] = {}
    for name, (run, reader) in found.items():
        index = order.index(run)
        own = known[reader]._asdict()
        later = (
            {"label": f"{run}: {own['label']}", "dash": _LATER_RUNS[(index - 1) % len(_LATER_RUNS)]} if index else {}
        )
        result[name] = own | later | {"run": index}
    return result


def badges(runs: Mapping[str, xr.Dataset], found: ReaderSources) -> dict[str, Certificate | None]:
    """Return the certificate of each reader; None: it has none."""
    known = {run: certificates(trace) for run, trace in runs.items()}
    return {name: known[run].get(reader) for name, (run, reader) in found.items()}


def settings(runs: Mapping[str, xr.Dataset], found: ReaderSources) -> dict[str, list[list[Any]]]:
    """Return the settings of readers, a row a setting: its name, then one text a reader; None: it has no such setting.

    ``different`` holds the rows in which readers differ, ``equal`` the others. Settings of the reader come first,
    then those of its run; what is nested has a dotted name.
    """
    columns = [_own_settings(runs[run], reader) | _run_settings(runs[run]) for run, reader in found.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows: dict[str, list[list[Any]]] = {"different": [], "equal": []}
    for name in names:
        values = [column.get(name) for column in columns]
        rows["equal" if len(set(values)) == 1 else "different"].append([name, *values])
    return rows


def cumulative_points(scores: xr.Dataset, points: int = SUM_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Sum the NLL over the whole trace at the ends of at most `points` − 1 bins of tokens, exact there.

    Returns
    -------
    at : (P,) int32
        Tokens before each point, from 0 to all of them; documents start at points, if there are not too many.
    sums : (R, P) float64, nats
        NLL of the tokens before each point; not finite from a score on that is not.
    """
    tokens = scores.sizes[schema.TOKEN]
    starts = _starts(scores)
    starts = starts if len(starts) <= min(MARKED_DOCUMENTS, points // 4) else starts[:0]
    grid = np.linspace(0, tokens, min(tokens + 1, points - len(starts))).round().astype(np.int32)
    at = np.union1d(grid, starts).astype(np.int32)
    running = np.cumsum(scores[schema.NLL].transpose(schema.READER, schema.TOKEN).values, axis=1)
    return at, np.concatenate([np.zeros((len(running), 1)), running], axis=1)[:, at]


def plain_figures(scores: xr.Dataset) -> dict[str, dict[str, float | None]]:
    """Return averages and costs of each reader; None where they are not finite, or not recorded."""
    means = analysis.summary(scores)
    columns = {
        "nll": means[analysis.NATS_PER_TOKEN],
        "perplexity": means[analysis.TOKEN_PERPLEXITY],
        "bits_per_byte": means[analysis.BITS_PER_BYTE],
        "tokens_per_second": means.get(analysis.TOKENS_PER_SECOND),
    } | {name: scores.get(name) for name in _COMPARED_COSTS}
    return {
        str(reader): {name: None if column is None else number(column.values[row]) for name, column in columns.items()}
        for row, reader in enumerate(scores[schema.READER].values)
    }


def intervals(scores: xr.Dataset, baseline: str) -> dict[str, Any]:
    """Return the mean gain of each reader with its interval, nat per token; and by cost the readers no other beats."""
    result = analysis.cost_frontier(scores, baseline)
    edges = (analysis.BITS_PER_TOKEN, analysis.LOW, analysis.HIGH)
    gain = {
        str(name): [number(result[edge].values[row] * np.log(2)) for edge in edges]
        for row, name in enumerate(result[schema.READER].values)
    }
    optimal = {
        str(cost): [str(n) for n in result[schema.READER].values[result[analysis.OPTIMAL].values[:, column]]]
        for column, cost in enumerate(result[analysis.COST].values)
    }
    return {"gain": gain, "optimal": optimal} | method(result)


def stretch(scores: xr.Dataset, start: int, stop: int, baseline: str) -> dict[str, Any]:
    """Return the mean gain of each reader over the tokens from `start` up to `stop`, and where its largest gain is."""
    tokens = scores.sizes[schema.TOKEN]
    if not 0 <= start < stop <= tokens:
        raise ValueError(f"no stretch from {start} to {stop}; expected two different ones, from 0 to {tokens}")
    gains = analysis.gain(scores.isel({schema.TOKEN: slice(start, stop)}), baseline)
    best = np.argmax(np.nan_to_num(gains.values, nan=-np.inf, posinf=-np.inf), axis=1)
    return {
        "mean": {
            str(name): number(row.mean()) for name, row in zip(gains[schema.READER].values, gains.values, strict=True)
        },
        "best": {str(name): start + int(i) for name, i in zip(gains[schema.READER].values, best, strict=True)},
    }


def documents(scores: xr.Dataset) -> list[list[Any]]:
    """Return name, first token and one past the last of each document that has tokens."""
    starts, names = _starts(scores), scores[schema.DOCUMENT_NAME].values
    stops, of = np.append(starts[1:], scores.sizes[schema.TOKEN]), scores[schema.DOCUMENT].values[starts]
    return [[str(names[d]), a, b] for d, a, b in zip(of.tolist(), starts.tolist(), stops.tolist(), strict=True)]


def not_finite(scores: xr.Dataset) -> dict[str, list[int]]:
    """Return of readers with scores that are not finite their number, and the first one's token."""
    bad = ~np.isfinite(scores[schema.NLL].transpose(schema.READER, schema.TOKEN).values)
    rows = zip(scores[schema.READER].values, bad, strict=True)
    return {str(name): [int(row.sum()), int(row.argmax())] for name, row in rows if row.any()}


def method(result: xr.Dataset) -> dict[str, Any]:
    """Return how the intervals of a result were drawn."""
    return {name: result.attrs[name] for name in ("resampled", "level", "resamples")}


def _starts(scores: xr.Dataset) -> np.ndarray:
    """Return the first token of each document that has any."""
    return np.flatnonzero(np.diff(scores[schema.DOCUMENT].values, prepend=-1))


def _same(first: xr.Dataset, other: xr.Dataset, reader: str) -> bool:
    """Return whether a reader of two runs has the same settings and scores."""
    one, two = (trace[schema.NLL].sel({schema.READER: reader}).values for trace in (first, other))
    same_settings = reader_configurations(first).get(reader) == reader_configurations(other).get(reader)
    return same_settings and bool(np.array_equal(one, two, equal_nan=True))


def _rows(runs: Mapping[str, xr.Dataset], found: ReaderSources, name: str) -> np.ndarray:
    """Stack the values of each reader; NaN where its run does not hold the variable."""
    rows = [runs[run].get(name) for run, _ in found.values()]
    return np.stack([
        np.float64(np.nan) if row is None else row.sel({schema.READER: reader}).values.astype(np.float64)
        for row, (_, reader) in zip(rows, found.values(), strict=True)
    ])  # fmt: skip


def _own_settings(trace: xr.Dataset, reader: str) -> dict[str, str]:
    """Return the settings of a reader, as far as the trace says."""
    configuration = reader_configurations(trace).get(reader, {})
    return _flat({name: value for name, value in configuration.items() if name not in DERIVED})


def _run_settings(trace: xr.Dataset) -> dict[str, str]:
    """Return the attributes of a run as settings; one that is a JSON object becomes several."""
    result: dict[str, Any] = {}
    for name, value in trace.attrs.items():
        if name not in _NO_SETTING:
            nested = isinstance(value, str) and value.startswith("{")
            result[str(name)] = json.loads(value) if nested else value
    return _flat(result)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Return settings as texts; nested ones by dotted names."""
    result: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{before}{name}.")
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            result[f"{before}{name}"] = value if isinstance(value, str) else json.dumps(plain, ensure_ascii=False)
    return result
