"""Compute the spectrum and singular directions of Δθ, and the tokens that a direction makes more likely.

Imports no torch.

Symbols as in :mod:`fwl_lab.analysis.fast_weights`; σ singular values, largest first; u, v left and right singular
directions.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.analysis.fast_weights import factors, fast_weight, first_source
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import require_parameter, require_reader

INDEX: Final = "index"  # dimension of singular directions, the leading one 0
AT: Final = "at"  # dimension of the tokens that a spectrum was asked for
SINGULAR_VALUE: Final = "singular_value"
EFFECTIVE_RANK: Final = "effective_rank"
STABLE_RANK: Final = "stable_rank"
ANGLE: Final = "angle"
SIDE: Final = "side"
LOGIT: Final = "logit"
NOTHING: Final = 1e-6  # of the largest singular value; a smaller one may be rounding of float32
RECENT: Final = 256  # last tokens whose mean key decides the sign of a direction


def spectrum(
    trace: xr.Dataset, parameter: str, tokens: Sequence[int], *, reader: str | None = None, count: int = 16
) -> xr.Dataset:
    """Compute the singular values of a matrix's Δθ at some tokens, in float64.

    Where fewer tokens were read than the matrix has rows or columns they come from the factors' Gram matrices D Dᵀ and
    K Kᵀ, and Δθ is not formed: σ² are the eigenvalues of S K Kᵀ S with S S = D Dᵀ. Beyond that the matrix is smaller
    than its factors, and is formed first.

    Parameters
    ----------
    trace : Dataset
    parameter : str
        Name of a matrix.
    tokens : sequence of int
        Indices in the trace.
    reader : str, optional
        None: the one whose factors the trace holds.
    count : int
        Number of leading values to return; the two ranks are of all values.

    Returns
    -------
    Dataset
        singular_value (at, index); effective_rank (at), the exponential of the entropy of σ / Σσ (Roy and Vetterli
        2007); stable_rank (at), Σσ² / max σ²; both NaN where Δθ is 0.

    Raises
    ------
    ValueError
        As for :func:`fast_weight`; or the parameter is a vector, or no reader is named and the trace holds no factors.
    """
    name = _factored(trace, reader)
    require_parameter(trace, parameter)
    _require_some("count", count)
    at = np.asarray(tokens)
    if at.ndim != 1 or not len(at) or at.dtype.kind not in "iu" or at.min() < 0 or at.max() > trace.sizes[schema.TOKEN]:
        raise ValueError(
            f"tokens is {tokens!r}; expected a list of indices, each 0 to {trace.sizes[schema.TOKEN]}, of this trace."
        )
    values = [_singular_values(trace, name, parameter, int(token)) for token in at]
    leading = np.stack([np.pad(v, (0, max(0, count - len(v))))[:count] for v in values])
    return xr.Dataset(
        {
            SINGULAR_VALUE: ((AT, INDEX), leading, {schema.UNITS: schema.ONE}),
            EFFECTIVE_RANK: (AT, [effective_rank(v) for v in values], {schema.UNITS: schema.ONE}),
            STABLE_RANK: (AT, [_stable_rank(v) for v in values], {schema.UNITS: schema.ONE}),
        },
        {AT: at.astype(np.int64)},
        {"reader": name, "parameter": parameter},
    )


def directions(trace: xr.Dataset, reader: str, parameter: str, token: int, *, count: int = 8) -> xr.Dataset:
    """Return the leading singular directions of a matrix's Δθ at a token.

    Returns
    -------
    Dataset
        singular_value (index), left (index, row), right (index, col), unit vectors. Signs are chosen such that the mean
        of the last recorded keys has a positive product with `right`; without keys, that the sum of `right` is
        positive.
    """
    _require_some("count", count)
    delta = fast_weight(trace, reader, parameter, token)
    _require_matrix(delta.values, parameter)
    left, values, right = np.linalg.svd(delta.values.astype(np.float64), full_matrices=False)
    left, values, right = left[:, :count].T, values[:count], right[:count]
    towards = np.ones(right.shape[1])
    if schema.key_name(parameter) in trace and token > first_source(trace, token):
        recent = slice(max(first_source(trace, token), token - RECENT), token)
        towards = trace[schema.key_name(parameter)].isel({schema.TOKEN: recent}).values.mean(0)
    sign = np.where(right @ towards < 0, -1.0, 1.0)[:, None]
    rows, cols = schema.row_dim(parameter), schema.col_dim(parameter)
    return xr.Dataset(
        {
            SINGULAR_VALUE: (INDEX, values, {schema.UNITS: schema.ONE}),
            "left": ((INDEX, rows), left * sign),
            "right": ((INDEX, cols), right * sign),
        },
        attrs=dict(delta.attrs),
    )


def effective_rank(values: np.ndarray) -> float:
    """Return exp(−Σ p ln p), p = σ / Σσ: 1 to n, n if all n values are equal; NaN if all are 0 (Roy and Vetterli 2007).

    values : (n,) singular values.
    """
    total = values.sum()
    if total <= 0:
        return float("nan")
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def principal_angles(delta: xr.DataArray, slow: Any, *, rank: int = 8) -> xr.DataArray:
    """Compute the angles between the leading singular subspaces of Δθ and θ₀: (side, index) radians, rising.

    0: Δθ lies in the leading subspace of the slow weights; π/2: it is orthogonal to it.

    Parameters
    ----------
    delta : DataArray (row, col)
        From :func:`fast_weight`.
    slow : array (row, col)
        θ₀, from `reader.slow_weights()`.
    rank : int
        Number of leading directions of each.

    Raises
    ------
    ValueError
        The shapes differ, or one of the two has fewer directions than `rank` (Δθ is 0 at a document's start).
    """
    _require_some("rank", rank)
    new, old = np.asarray(delta.values, dtype=np.float64), np.asarray(slow, dtype=np.float64)
    _require_matrix(new, str(delta.name))
    if new.shape != old.shape:
        raise ValueError(f"the slow weights have shape {old.shape}; expected {new.shape}, as Δθ.")
    (a, new_values, b), (c, old_values, d) = (np.linalg.svd(x, full_matrices=False) for x in (new, old))
    for whose, values in (("Δθ", new_values), ("the slow matrix", old_values)):
        if (found := _count(values)) < rank:
            raise ValueError(f"{whose} has {found} directions, and rank is {rank}; expected no more than it has.")
    cosines = np.stack(
        [
            np.linalg.svd(a[:, :rank].T @ c[:, :rank], compute_uv=False),
            np.linalg.svd(b[:rank] @ d[:rank].T, compute_uv=False),
        ]
    )
    sides = {SIDE: text_array(["rows", "columns"])}
    return xr.DataArray(np.arccos(cosines.clip(-1, 1)), sides, (SIDE, INDEX), ANGLE, {schema.UNITS: "rad"})


def promotes(
    trace: xr.Dataset,
    model: Any,
    parameter: str,
    token: int,
    *,
    reader: str | None = None,
    direction: int = 0,
    top: int = 10,
) -> xr.Dataset:
    """List the tokens whose logits a singular direction of Δθ raises, and lowers, most through the unembedding.

    A direction of W2 adds (σ v·h) u to the input of the last norm, so the logits move along U (g ∘ u), with u centred
    if that norm is a LayerNorm; b2 and b are vectors, and their own direction. The change is to first order, of a unit
    step, with g of θ₀. W1 acts through relu² and g on each token differently, so their directions have no such list.

    Parameters
    ----------
    trace : Dataset
    model : LanguageModel
        The model that read, for its unembedding and its tokenizer.
    parameter : str
        "W2", "b2" or "b".
    token : int
        As for :func:`fast_weight`.
    reader : str, optional
        None: the one whose factors the trace holds.
    direction : int
        Index of a singular direction of a matrix, the leading one 0.
    top : int
        Number of tokens at each end.

    Returns
    -------
    Dataset
        logit (side, rank), token_id (side, rank), token_text (side, rank); side "promoted" or "suppressed".

    Raises
    ------
    ValueError
        As for :func:`fast_weight`; or another parameter, model, or direction than Δθ has.
    """
    name = _factored(trace, reader)
    block = getattr(model, "block", None)
    if block is None or parameter not in ("W2", "b2", "b"):
        raise ValueError(f"parameter is {parameter!r}; expected 'W2', 'b2' or 'b' of a model with a fast-weight block.")
    _require_some("top", top)
    if (theirs := trace.attrs.get(schema.MODEL_HASH)) not in (None, own := model.weight_hash()):
        raise ValueError(
            f"the trace was read by a model with the hash {theirs}, this one's is {own}; expected the same."
        )
    if parameter == "W2":
        found = directions(trace, name, parameter, token, count=trace.sizes[schema.row_dim(parameter)])
        count, along = _count(found[SINGULAR_VALUE].values), found["left"].values
    else:
        along = fast_weight(trace, name, parameter, token).values.astype(np.float64)[None]
        count = int(along.any())
        along = along / (np.linalg.norm(along) or 1.0)
    if not 0 <= direction < count:
        there = f"{count} directions at token {token}" if count else f"none yet at token {token}"
        raise ValueError(f"direction is {direction}; expected one that Δθ of {parameter} has, from 0: {there}.")
    along = along[direction]
    if parameter != "b":
        along = along - along.mean() if block.kind == "layer" else along
        along = along * _numpy(block.g)
    logits = _numpy(block.head[0]) @ along
    order = np.argsort(logits)
    ids = np.stack([order[::-1][:top], order[:top]])
    texts = np.array([[model.tokenizer.decode([int(i)]) for i in row] for row in ids], dtype=np.dtypes.StringDType())
    sides = {SIDE: text_array(["promoted", "suppressed"])}
    return xr.Dataset(
        {
            LOGIT: ((SIDE, schema.RANK), np.take(logits, ids), {schema.UNITS: schema.ONE}),
            schema.TOKEN_ID: ((SIDE, schema.RANK), ids),
            schema.TOKEN_TEXT: ((SIDE, schema.RANK), texts),
        },
        sides,
        {"parameter": parameter, "token": token, "direction": direction, "reader": name},
    )


def _singular_values(trace: xr.Dataset, reader: str, parameter: str, token: int) -> np.ndarray:
    """Return all singular values of Δθ, largest first, in float64; see :func:`spectrum`."""
    start = first_source(trace, token)
    if trace.attrs.get(schema.FACTORED) == reader and schema.key_name(parameter) in trace:
        sides = [trace.sizes[schema.row_dim(parameter)], trace.sizes[schema.col_dim(parameter)]]
        if token - start < min(sides):
            keys, deltas, _ = factors(trace, parameter, start, token)
            assert keys is not None
            d, k = deltas.astype(np.float64), keys.astype(np.float64)
            weights, vectors = np.linalg.eigh(d @ d.T)
            half = vectors * np.sqrt(weights.clip(min=0))  # half halfᵀ = D Dᵀ
            squares = np.linalg.eigvalsh(half.T @ (k @ k.T) @ half) if len(d) else np.zeros(0)
            return np.sqrt(squares.clip(min=0))[::-1]
    delta = fast_weight(trace, reader, parameter, token).values.astype(np.float64)
    _require_matrix(delta, parameter)
    gram = delta @ delta.T if delta.shape[0] <= delta.shape[1] else delta.T @ delta
    return np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))[::-1]


def _factored(trace: xr.Dataset, reader: str | None) -> str:
    """Return the reader asked for, or the one whose factors the trace holds."""
    name = reader or str(trace.attrs.get(schema.FACTORED, ""))
    if not name:
        raise ValueError("the trace holds no factors; name a reader, or record with Recorder(factors=True).")
    require_reader(trace, name)
    return name


def _require_some(name: str, count: int) -> None:
    """Check that a number is positive."""
    if count < 1:
        raise ValueError(f"{name} is {count}; expected at least 1.")


def _count(values: np.ndarray) -> int:
    """Count the singular values of a matrix that are larger than rounding errors."""
    return int((values > NOTHING * values.max(initial=0.0)).sum())


def _stable_rank(values: np.ndarray) -> float:
    """Return Σσ² / max σ², NaN where all are 0."""
    top = values.max(initial=0.0)
    return float((values**2).sum() / top**2) if top > 0 else float("nan")


def _numpy(weight: Any) -> np.ndarray:
    """Return a torch parameter as a float64 array."""
    return np.asarray(weight.detach().float().cpu().numpy(), dtype=np.float64)


def _require_matrix(values: np.ndarray, parameter: str) -> None:
    """Check that a parameter is a matrix."""
    if values.ndim != 2:
        raise ValueError(f"{parameter} is a vector; expected a matrix, such as 'W2'.")
