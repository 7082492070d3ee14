"""Compute Δθ at any token of a trace, from the factors or the dense matrices that were recorded. Imports no torch.

Symbols: Δθ (R, C) fast minus slow weights of one parameter; δ_i (R,), k_i (C,) the factors of token i's own update,
−η·w included in δ; ρ_i the fraction of it that decay and cap have left since.

    Δθ at token t = Σ_{i<t} ρ_i δ_i k_iᵀ        a vector has no k
"""

import numpy as np
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import ReaderFacts, reader_facts, require_parameter, require_reader

LEAST = 0.1  # smallest ρ of the past for which Δθ is computed backwards, from a later dense one
EVERY = 64  # tokens between snapshots, in advice for a reader of which the trace does not say how often it updates


def fast_weight(trace: xr.Dataset, reader: str, parameter: str, token: int) -> xr.DataArray:
    """Return Δθ as it was when a token was scored: the sum of updates from the tokens before it.

    Parameters
    ----------
    trace : Dataset
        With the factors of `reader` (exact at any token) or with dense Δθ of it (at tokens whose last update was kept).
    reader, parameter : str
    token : int
        Index in the trace, or the number of its tokens: Δθ after the last one.

    Returns
    -------
    DataArray
        (row,) or (row, col), float32, in the parameter's own unit. Where it comes from a low-rank snapshot, the
        attribute "left_out" is the norm of the part that was not kept, relative to that of Δθ.

    Raises
    ------
    ValueError
        The trace has no such reader, parameter or token; or it does not hold Δθ there: the message says what to record.
        Of a reader that may learn with every token (it does, or the trace does not say), Δθ is known only right after
        a recorded update.
    """
    require_reader(trace, reader)
    require_parameter(trace, parameter)
    if not 0 <= token <= trace.sizes[schema.TOKEN]:
        raise ValueError(f"token is {token}; expected 0 to {trace.sizes[schema.TOKEN]}, of this trace.")
    start = first_source(trace, token)
    if trace.attrs.get(schema.FACTORED) == reader and schema.delta_name(parameter) in trace:
        values = _from_factors(trace, reader, parameter, token, start)
    else:
        values = _from_snapshots(trace, reader_facts(trace)[reader], parameter, token, start)
    dims = [schema.row_dim(parameter), schema.col_dim(parameter)][: values.ndim]
    attrs = {schema.UNITS: schema.ONE, "reader": reader, "parameter": parameter, "token": token}
    if values.ndim == 2 and schema.left_name(parameter) in trace and trace.attrs.get(schema.FACTORED) != reader:
        attrs["left_out"] = _left_out(trace, reader, parameter, token, values)
    return xr.DataArray(values, dims=dims, name=schema.fast_weight_name(parameter), attrs=attrs)


def factors(
    trace: xr.Dataset, parameter: str, first: int, token: int
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Return the factors of the updates from tokens `first` to `token` − 1, as they count in Δθ at `token`.

    The product `deltas.T @ keys` (the sum of `deltas` for a vector) is the part of Δθ that these tokens made.

    Returns
    -------
    keys : (n, C), or None for a vector
    deltas : (n, R)
        ρ δ.
    left : (n,)
        ρ.
    """
    left = retained(trace, str(trace.attrs[schema.FACTORED]), first, token)
    return *_scaled(trace, parameter, first, left), left


def retained(trace: xr.Dataset, reader: str, first: int, token: int) -> np.ndarray:
    """Return ρ (n,) of tokens `first` to `token` − 1 at `token`: the fraction of each update not yet decayed."""
    grid = trace[schema.UPDATE_TOKEN].values
    inside = (grid >= first) & (grid < token)
    each = np.ones(max(token - first, 0))
    each[grid[inside] - first] = trace[schema.RETENTION].sel({schema.READER: reader}).values[inside]
    return np.cumprod(each[::-1])[::-1]


def relative_drift(trace: xr.Dataset) -> xr.DataArray:
    """Return ‖Δθ‖ / ‖θ₀‖ of each parameter after each update: (reader, update, parameter), infinite where θ₀ is 0.

    Raises
    ------
    ValueError
        Norms were not recorded.
    """
    for name in (schema.DRIFT, schema.SLOW_NORM):
        if name not in trace:
            raise ValueError(f"{name!r} was not recorded; score with record=Recorder().")
    with np.errstate(divide="ignore"):
        ratio = trace[schema.DRIFT] / trace[schema.SLOW_NORM]
    return ratio.transpose(schema.READER, schema.UPDATE, schema.PARAMETER).assign_attrs({schema.UNITS: schema.ONE})


def first_source(trace: xr.Dataset, token: int) -> int:
    """Return the first token whose update can be in Δθ at `token`.

    That is the first of its document, or the first of the trace where fast weights were carried across documents.
    """
    if token == 0 or str(trace.attrs.get(schema.CARRY)) == "true":
        return 0
    last = token - 1 if token == trace.sizes[schema.TOKEN] else token
    return last - int(trace[schema.POSITION].values[last])


def _from_factors(trace: xr.Dataset, reader: str, parameter: str, token: int, start: int) -> np.ndarray:
    """Compute Δθ from the nearest dense one and the factors in between, forwards or backwards."""
    grid, name = trace[schema.UPDATE_TOKEN].values, schema.fast_weight_name(parameter)
    rows = trace.sel({schema.READER: reader})
    kept = np.flatnonzero(rows[schema.ANCHORED].values) if name in trace else np.zeros(0, dtype=int)
    kept = kept[[first_source(trace, int(t)) == start for t in grid[kept]]] if len(kept) else kept
    before, after = kept[grid[kept] < token], kept[grid[kept] >= token]
    since = token - 1 - int(grid[before[-1]]) if len(before) else token - start
    if len(after) and (until := int(grid[after[0]]) + 1 - token) < since:
        left = np.append(retained(trace, reader, token, token + until - 1), 1.0)
        if left[0] > LEAST:
            later = rows[name].isel({schema.UPDATE: int(after[0])}).values
            return np.asarray((later - _product(trace, parameter, token, left)) / np.float32(left[0]))
    first = token - since
    total = _product(trace, parameter, first, retained(trace, reader, first, token))
    if len(before):
        whole = retained(trace, reader, int(grid[before[-1]]), token)[0]
        total = total + rows[name].isel({schema.UPDATE: int(before[-1])}).values * np.float32(whole)
    return total


def _product(trace: xr.Dataset, parameter: str, first: int, left: np.ndarray) -> np.ndarray:
    """Return Σ ρ_i δ_i k_iᵀ over the tokens from `first` on, one for each ρ in `left` (n,)."""
    keys, deltas = _scaled(trace, parameter, first, left)
    return np.asarray(deltas.sum(0) if keys is None else deltas.T @ keys)


def _scaled(trace: xr.Dataset, parameter: str, first: int, left: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return keys (n, C), or None for a vector, and ρ δ (n, R) of the tokens from `first` on; `left` (n,) is ρ."""
    at = {schema.TOKEN: slice(first, first + len(left))}
    deltas = trace[schema.delta_name(parameter)].isel(at).values
    keys = trace[schema.key_name(parameter)].isel(at).values if schema.key_name(parameter) in trace else None
    return keys, deltas * left[:, None].astype(deltas.dtype)


def _from_snapshots(trace: xr.Dataset, facts: ReaderFacts, parameter: str, token: int, start: int) -> np.ndarray:
    """Return the dense Δθ, or its low-rank product, of the last update before the token, if that was kept."""
    reader = facts.name
    advice = (
        "Record with Recorder(factors=True) (fast-weight readers) or "
        f"Recorder(snapshots_every={facts.update_every or EVERY})."
    )
    name = schema.fast_weight_name(parameter)
    low = schema.left_name(parameter), schema.right_name(parameter)
    if not {name, *low} & set(trace.variables) or schema.ANCHORED not in trace:
        raise ValueError(f"Δθ of {parameter} of reader {reader!r} was not recorded. {advice}")
    rows = trace.sel({schema.READER: reader})
    grid, kept = trace[schema.UPDATE_TOKEN].values, rows[schema.ANCHORED].values
    if not kept.any():
        raise ValueError(f"Δθ of reader {reader!r} was not recorded. {advice}")
    moved = rows[schema.UPDATE_NORM].sel({schema.PARAMETER: parameter}).values > 0
    before = np.flatnonzero((grid >= start) & (grid < token) & (moved | kept))
    sides = [trace.sizes[dim] for dim in (schema.row_dim(parameter), schema.col_dim(parameter)) if dim in trace.sizes]
    if token == start or (facts.stepwise and not len(before)):
        return np.zeros(sides, dtype=np.float32)
    # Unless the reader is known to update only on the grid, tokens since the last recorded update have changed Δθ too.
    between = not facts.stepwise and (not len(before) or grid[before[-1]] != token - 1)
    if between or not kept[before[-1]]:
        held = grid[kept]
        near = int(held[np.abs(held - token).argmin()]) + 1
        raise ValueError(f"Δθ of reader {reader!r} at token {token} was not kept; the nearest is at {near}. {advice}")
    at = {schema.UPDATE: int(before[-1])}
    whole = rows[name].isel(at).values if name in trace else np.full(sides, np.nan, dtype=np.float32)
    if low[0] in trace and np.isnan(whole).all():
        whole = rows[low[0]].isel(at).values @ rows[low[1]].isel(at).values
    return np.asarray(whole)


def _left_out(trace: xr.Dataset, reader: str, parameter: str, token: int, values: np.ndarray) -> float:
    """Return the norm of what a low-rank snapshot lacks, relative to ‖Δθ‖; the two are orthogonal."""
    before = np.flatnonzero(trace[schema.UPDATE_TOKEN].values < token)
    drift = trace[schema.DRIFT].sel({schema.READER: reader, schema.PARAMETER: parameter}).values[before[-1:]]
    if not drift.size or not drift[0]:
        return 0.0
    return float(np.sqrt(max(0.0, 1.0 - (np.linalg.norm(values.astype(np.float64)) / drift[0]) ** 2)))
