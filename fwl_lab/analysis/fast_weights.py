"""What a document made of the weights: Δθ at any token of a trace. No torch.

Symbols: Δθ (R, C) fast minus slow weights of one parameter; δ_i (R,), k_i (C,) the factors of token i's own update,
−η·w in δ; ρ_i what a decay or a cap has left of it since.

    Δθ at token t = Σ_{i<t} ρ_i δ_i k_iᵀ        a vector has no k
"""

import json

import numpy as np
import xarray as xr

from fwl_lab.analysis import require_reader
from fwl_lab.trace import schema as schema
from fwl_lab.trace.lookup import require_parameter

LEAST = 0.1  # of the past that decay must have left for it to be found from what came later


def fast_weight(trace: xr.Dataset, reader: str, parameter: str, token: int) -> xr.DataArray:
    """Δθ in force when a token was scored: made of the tokens before it, not of itself.

    Parameters
    ----------
    trace : Dataset
        With the factors of `reader` (exact at any token) or with dense Δθ of it (at tokens whose last update was kept).
    reader, parameter : str
    token : int
        Index in the trace; of what stands after the last token of a document, one more.

    Returns
    -------
    DataArray (row,) or (row, col), float32, in the parameter's own unit. Of a snapshot of low rank the attribute
    "left_out" is the norm of what it lacks, relative to that of Δθ.

    Raises
    ------
    ValueError
        No such reader, parameter or token; or the trace does not hold it: says what to record.
    """
    require_reader(trace, reader)
    require_parameter(trace, parameter)
    if not 0 <= token <= trace.sizes[schema.TOKEN]:
        raise ValueError(f"token is {token}; expected 0 to {trace.sizes[schema.TOKEN]}, of this trace.")
    start = first_source(trace, token)
    if trace.attrs.get(schema.FACTORED) == reader and schema.delta_name(parameter) in trace:
        values = _from_factors(trace, reader, parameter, token, start)
    else:
        values = _from_snapshots(trace, reader, parameter, token, start)
    dims = [schema.row_dim(parameter), schema.col_dim(parameter)][: values.ndim]
    attrs = {schema.UNITS: schema.ONE, "reader": reader, "parameter": parameter, "token": token}
    if values.ndim == 2 and schema.left_name(parameter) in trace and trace.attrs.get(schema.FACTORED) != reader:
        attrs["left_out"] = _left_out(trace, reader, parameter, token, values)
    return xr.DataArray(values, dims=dims, name=schema.fast_weight_name(parameter), attrs=attrs)


def factors(
    trace: xr.Dataset, parameter: str, first: int, token: int
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Keys (n, C) or None, updates δ (n, R) with ρ in them, and ρ (n,): of the tokens `first` to `token` − 1.

    Their product `δᵀ k` (of a vector the sum of δ) is what these tokens made of Δθ at `token`.
    """
    at = {schema.TOKEN: slice(first, token)}
    deltas = trace[schema.delta_name(parameter)].isel(at).values
    keys = trace[schema.key_name(parameter)].isel(at).values if schema.key_name(parameter) in trace else None
    left = retained(trace, str(trace.attrs[schema.FACTORED]), first, token)
    return keys, deltas * left[:, None].astype(deltas.dtype), left


def retained(trace: xr.Dataset, reader: str, first: int, token: int) -> np.ndarray:
    """ρ (n,): what decay and cap have left, when `token` is scored, of what tokens `first` to `token` − 1 taught."""
    grid = trace[schema.UPDATE_TOKEN].values
    inside = (grid >= first) & (grid < token)
    each = np.ones(max(token - first, 0))
    each[grid[inside] - first] = trace[schema.RETENTION].sel({schema.READER: reader}).values[inside]
    return np.cumprod(each[::-1])[::-1]


def relative_drift(trace: xr.Dataset) -> xr.DataArray:
    """‖Δθ‖ / ‖θ₀‖ of each parameter after each update, (reader, update, parameter); infinite where θ₀ is 0."""
    for name in (schema.DRIFT, schema.SLOW_NORM):
        if name not in trace:
            raise ValueError(f"{name!r} was not recorded; score with record=Recorder().")
    with np.errstate(divide="ignore"):
        ratio = trace[schema.DRIFT] / trace[schema.SLOW_NORM]
    return ratio.transpose(schema.READER, schema.UPDATE, schema.PARAMETER).assign_attrs({schema.UNITS: schema.ONE})


def first_source(trace: xr.Dataset, token: int) -> int:
    """First token whose updates can be in Δθ at `token`: of its document, or of all where fast weights are carried."""
    if token == 0 or str(trace.attrs.get(schema.CARRY)) == "true":
        return 0
    last = token - 1 if token == trace.sizes[schema.TOKEN] else token
    return last - int(trace[schema.POSITION].values[last])


def _from_factors(trace: xr.Dataset, reader: str, parameter: str, token: int, start: int) -> np.ndarray:
    """The nearest dense Δθ, and the factors between: added to an earlier one, taken from a later one."""
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
    """Σ ρ_i δ_i k_iᵀ over the tokens from `first` on, one for each ρ in `left` (n,)."""
    at = {schema.TOKEN: slice(first, first + len(left))}
    deltas = trace[schema.delta_name(parameter)].isel(at).values
    deltas = deltas * left[:, None].astype(deltas.dtype)
    if schema.key_name(parameter) not in trace:
        return np.asarray(deltas.sum(0))
    return np.asarray(deltas.T @ trace[schema.key_name(parameter)].isel(at).values)


def _from_snapshots(trace: xr.Dataset, reader: str, parameter: str, token: int, start: int) -> np.ndarray:
    """The dense Δθ of the last update before the token, if that was kept."""
    every = _every(trace, reader)
    advice = f"Record with Recorder(factors=True) (fast-weight readers) or Recorder(snapshots_every={every})."
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
    still = token == start if _learns_with_every_token(trace, reader) else not len(before)
    sides = [trace.sizes[dim] for dim in (schema.row_dim(parameter), schema.col_dim(parameter)) if dim in trace.sizes]
    if still:
        return np.zeros(sides, dtype=np.float32)
    # A fast-weight block learns with every token, whatever its norms are recorded at.
    inside = _learns_with_every_token(trace, reader) and (not len(before) or grid[before[-1]] != token - 1)
    if inside or not kept[before[-1]]:
        held = grid[kept]
        near = int(held[np.abs(held - token).argmin()]) + 1
        raise ValueError(f"Δθ of reader {reader!r} at token {token} was not kept; the nearest is at {near}. {advice}")
    at = {schema.UPDATE: int(before[-1])}
    whole = rows[name].isel(at).values if name in trace else np.full(sides, np.nan, dtype=np.float32)
    if low[0] in trace and np.isnan(whole).all():
        whole = rows[low[0]].isel(at).values @ rows[low[1]].isel(at).values
    return np.asarray(whole)


def _left_out(trace: xr.Dataset, reader: str, parameter: str, token: int, values: np.ndarray) -> float:
    """‖Δθ − its low rank‖ / ‖Δθ‖, from the norm recorded of the whole: what is kept is orthogonal to it."""
    before = np.flatnonzero(trace[schema.UPDATE_TOKEN].values < token)
    drift = trace[schema.DRIFT].sel({schema.READER: reader, schema.PARAMETER: parameter}).values[before[-1:]]
    if not drift.size or not drift[0]:
        return 0.0
    return float(np.sqrt(max(0.0, 1.0 - (np.linalg.norm(values.astype(np.float64)) / drift[0]) ** 2)))


def _learns_with_every_token(trace: xr.Dataset, reader: str) -> bool:
    """Whether Δθ moves between the updates that are recorded: that of a fast-weight block does."""
    return bool(json.loads(trace.attrs.get(schema.READERS, "{}")).get(reader, {}).get("kind") == "FastWeightReader")


def _every(trace: xr.Dataset, reader: str) -> int:
    """Tokens between a reader's updates, for advice."""
    configuration = json.loads(trace.attrs.get(schema.READERS, "{}")).get(reader, {})
    return int(configuration.get("segment") or configuration.get("inner_batch") or 64)
