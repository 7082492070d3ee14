"""Make receipts: split the gain of a token over the earlier tokens, or updates, that caused it.

The gain of a token over θ₀ is split over the earlier tokens (Fast Weight Layers) or updates (dynamic evaluation): all
updates are scaled together from 0 to 1, and each gets the integral of its own term of the slope as its share. The
shares sum to the gain up to a residual, which is kept below a tolerance, or else a warning is given. Large positive and
large negative shares often cancel, so the sum of their absolute values (gross) is given beside their sum. See
`path_integral` for the integration, `fast_weights` and `dynamic_evaluation` for the slope.

A share is not the gain that would be lost without its source. Two exact numbers are: *held* (the source's update is
dropped, the others stay as they were) and *replay* (it is dropped, and everything after it is read again).
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import xarray as xr

from fwl_lab.analysis.fast_weights import first_source
from fwl_lab.attribution import dynamic_evaluation as model_paths
from fwl_lab.attribution import fast_weights as block_paths
from fwl_lab.attribution.dynamic_evaluation import ModelPaths
from fwl_lab.attribution.fast_weights import BlockPaths
from fwl_lab.attribution.path_integral import Quadrature, warn_of_misses
from fwl_lab.attribution.stored import with_receipts
from fwl_lab.attribution.summary import (
    HELD,
    REPLAY,
    SHARE,
    SHARE_BY_PARAMETER,
    SOURCE,
    SOURCE_KIND,
    SOURCE_TEXT,
    source_kinds,
    source_lengths,
)
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader
from fwl_lab.readers.fast_weights import FastWeightReader
from fwl_lab.readers.rebuild import Given, reader_of
from fwl_lab.readers.static import StaticReader
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.configurations import differences
from fwl_lab.trace.lookup import default_learner, reader_facts, reader_names

#: Settings of the integration, by `Reader.learns`.
QUADRATURES: dict[str, Quadrature] = {"block": block_paths.QUADRATURE, "model": model_paths.QUADRATURE}


def receipt(
    model: LanguageModel,
    trace: xr.Dataset,
    token: int,
    reader: str | None = None,
    *,
    tolerance: float | None = None,
    leave_one_out: int = 8,
    replay: bool = True,
    readers: Mapping[str, Given] | None = None,
) -> xr.Dataset:
    """Split the gain of one token over the earlier tokens, or updates, that its reader learned from.

    The gain is the NLL at θ₀ (from a reader of the trace that stays there, or computed where the trace has none) minus
    the NLL of the adapted reader in the trace.

    Parameters
    ----------
    model : LanguageModel
        The model that read the trace.
    trace : Dataset
        If it holds the reader's factors (Recorder(factors=True)) they are used, else the document is read again.
    token : int
        Index in the trace.
    reader : str, optional
        Name in the trace of a FastWeightReader or a DynamicEvaluationReader. None: see
        `fwl_lab.trace.lookup.default_learner`.
    tolerance : float, optional
        Nats. The path is subdivided until the errors of its intervals, each the difference between the sum of the
        shares and the fall of the NLL, sum to at most this. None: 1e-4, for dynamic evaluation 5e-4. Infinite: the path
        is not subdivided.
    leave_one_out : int
        Compute ``held`` and ``replay`` for this many of the shares that are largest in absolute value.
    replay : bool
        Whether to compute ``replay``, which reads from each source to the target again.
    readers : mapping from name to Reader or factory, optional
        The reader, or a function from the model to it, for a reader whose settings the trace does not hold completely
        (one with an optimizer of torch's own, for example). It is unchanged.

    Returns
    -------
    Dataset
        ``share(source)`` and ``share_by_parameter(source, parameter)``, nats, positive where the source helped;
        ``held(source)``, ``replay(source)``: the gain that is lost without the source, nats, NaN where it was not
        computed. Coordinates: ``source``, trace index of the token that was learned (of dynamic evaluation the last of
        the segment), its ``source_text``, and ``source_kind`` (index in `fwl_lab.attribution.summary.KINDS`).
        Attributes: ``gain``, ``gross`` (Σ|share|) and ``residual`` (gain − Σ share), nats; ``nodes`` (number of
        evaluations of the slope), ``reader``, ``token``. A token before which nothing was learned has no source.

    Warns
    -----
    UserWarning
        The tolerance was not reached within the most evaluations that are made (2,048; dynamic evaluation 600); or the
        trace's NLL differs from that computed for the path by more than 1e-3 nats, because the trace was edited or
        read on another device or in another dtype.

    Raises
    ------
    ValueError
        No such token or reader; model and trace exchanged; a reader that does not adapt; a model with other weights
        than the one that read; a reader with other settings than in the trace; or carried fast weights whose factors
        the trace does not hold.
    """
    (found,) = receipts_of(
        model, trace, [token], reader, tolerance=tolerance, leave_one_out=leave_one_out, replay=replay, readers=readers
    )
    return found


def receipts_of(
    model: LanguageModel,
    trace: xr.Dataset,
    tokens: Sequence[int],
    reader: str | None = None,
    *,
    tolerance: float | None = None,
    leave_one_out: int = 8,
    replay: bool = True,
    readers: Mapping[str, Given] | None = None,
) -> list[xr.Dataset]:
    """Make the receipts of several tokens, in the order given; each document is read once for all of its tokens.

    See :func:`receipt` for parameters and errors.
    """
    reader, own = _reader(model, trace, reader, readers)
    indices = _indices(trace, tokens)
    quadrature = QUADRATURES[own.learns or ""]
    quadrature = quadrature if tolerance is None else replace(quadrature, tolerance=tolerance)
    if not quadrature.tolerance > 0 or leave_one_out < 0:
        raise ValueError(f"tolerance is {tolerance}, leave_one_out {leave_one_out}; expected above 0 nats, at least 0.")
    found: dict[int, xr.Dataset] = {}
    for first, group in _by_document(trace, own, indices).items():
        paths = _paths(own, trace, reader, first, max(group) + 1)
        for token in group:
            slow = _slow_nll(trace, own, paths, token)
            one = _split(trace, reader, paths, token, slow, quadrature)
            found[token] = _with_leave_one_out(one, trace, paths, leave_one_out, replay)
    return [found[token] for token in indices]


def add_receipts(
    trace: xr.Dataset,
    model: LanguageModel,
    tokens: Sequence[int],
    *,
    reader: str | None = None,
    top: int = 10,
    tolerance: float | None = None,
    readers: Mapping[str, Given] | None = None,
) -> xr.Dataset:
    """Return the trace with the receipts of some tokens of a reader added; receipts that it held of others stay.

    Parameters
    ----------
    trace : Dataset
    model : LanguageModel
        The model that read the trace.
    tokens : sequence of int
        Indices in the trace.
    top : int
        Number of shares to keep of each token, those largest in absolute value.
    reader, tolerance, readers
        As for :func:`receipt`.

    Returns
    -------
    Dataset
        With `receipt_source`, `receipt_share` and `receipt_leave_one_out` (reader, token, rank): the `top` sources,
        their shares, largest in absolute value first, and the gain lost without each (held), nats; -1 or NaN where
        there is none. Also with `receipt_gain`, `receipt_gross` and `receipt_residual` (reader, token), nats, of all
        sources.

    Raises
    ------
    ValueError
        `top` is below 1, or as for :func:`receipt`.
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1.")
    found = receipts_of(
        model, trace, tokens, reader, tolerance=tolerance, leave_one_out=top, replay=False, readers=readers
    )
    return with_receipts(trace, default_learner(trace) if reader is None else reader, found, top)


def _reader(
    model: LanguageModel, trace: xr.Dataset, name: str | None, given: Mapping[str, Given] | None
) -> tuple[str, Reader]:
    """Return the name in the trace of the reader whose receipts are asked for, and the reader.

    Raises
    ------
    ValueError
        Receipts of this kind of reader cannot be made, or it cannot be made from the trace.
    """
    name = default_learner(trace) if name is None and isinstance(trace, xr.Dataset) else str(name)
    found = None if given is None else given.get(name)
    reader = found if isinstance(found, Reader) and found.learns is None else reader_of(model, trace, name, given)
    if reader.learns is None:
        raise ValueError(
            f"reader {name!r} is a {type(reader).__name__}; receipts are of a FastWeightReader or a "
            "DynamicEvaluationReader itself, whose updates they know how to drop. This trace's readers: "
            f"{', '.join(reader_names(trace))}."
        )
    return name, reader


def _indices(trace: xr.Dataset, tokens: Sequence[int]) -> list[int]:
    """Return the tokens as ints; ValueError where one is no index of the trace."""
    try:
        indices = [operator.index(token) for token in tokens]
    except TypeError:
        raise ValueError(f"tokens is {tokens!r}; expected whole numbers, indices of the trace.") from None
    wrong = [index for index in indices if not 0 <= index < trace.sizes[schema.TOKEN]]
    if wrong:
        raise ValueError(f"token is {wrong[0]}; expected 0 to {trace.sizes[schema.TOKEN] - 1}, of this trace.")
    return indices


def _by_document(trace: xr.Dataset, reader: Reader, tokens: Sequence[int]) -> dict[int, list[int]]:
    """Group distinct target tokens by the first token that can be a source of theirs.

    Raises
    ------
    ValueError
        A target of dynamic evaluation was read with weights carried over from an earlier document.
    """
    position, groups = trace[schema.POSITION].values, dict[int, list[int]]()
    for token in sorted(set(tokens)):
        start, first = token - int(position[token]), first_source(trace, token)
        if first < start and reader.learns == "model":
            raise ValueError(
                f"token {token} was read with weights carried over from earlier documents; receipts of dynamic "
                "evaluation are of documents that begin at θ₀: score with carry=False."
            )
        groups.setdefault(first, []).append(token)
    return groups


def _paths(reader: Reader, trace: xr.Dataset, name: str, first: int, stop: int) -> BlockPaths | ModelPaths:
    """Return the paths of the targets in a range of trace indices, of the kind that the reader's updates need."""
    if reader.learns == "block":
        return BlockPaths(cast(FastWeightReader, reader), trace, name, first, stop)
    return ModelPaths(cast(DynamicEvaluationReader, reader), trace, first, stop)


def _slow_nll(trace: xr.Dataset, reader: Reader, paths: BlockPaths | ModelPaths, token: int) -> float:
    """Return the NLL of a token at θ₀, nats: the trace's, if it holds a reader of the same model that stays at θ₀."""
    still = StaticReader(reader.model).configuration()
    others = json.loads(trace.attrs.get(schema.READER_HASHES, "{}"))  # readers of other weights, by name
    for name, facts in reader_facts(trace).items():
        told = "block" in facts.configuration and facts.block == still["block"]
        if told and name not in others and not differences(facts.configuration, still):
            return float(trace[schema.NLL].sel({schema.READER: name}).values[token])
    return paths.slow(token)


def _split(
    trace: xr.Dataset, reader: str, paths: BlockPaths | ModelPaths, token: int, slow: float, quadrature: Quadrature
) -> xr.Dataset:
    """Return the receipt of a token without `held` and `replay`; `slow` is its NLL at θ₀, nats."""
    sources = paths.sources(token)
    integral = paths.shares(token, quadrature)
    table = np.stack(list(integral.parts.values()), axis=1)  # (n, parameters)
    share = table.sum(1)
    adapted = float(trace[schema.NLL].sel({schema.READER: reader}).values[token])
    warn_of_misses(token, integral, quadrature, (slow, adapted))
    gain = slow - adapted
    nats = {schema.UNITS: schema.NAT}
    kinds = source_kinds(trace, token, sources, source_lengths(trace, reader, sources))
    return xr.Dataset(
        {
            SHARE: (SOURCE, share, nats),
            SHARE_BY_PARAMETER: ((SOURCE, schema.PARAMETER), table, nats),
        },
        {
            SOURCE: sources,
            SOURCE_TEXT: (SOURCE, trace[schema.TOKEN_TEXT].values[sources]),
            SOURCE_KIND: (SOURCE, kinds),
            schema.PARAMETER: text_array(integral.parts),
        },
        {
            "gain": gain, "gross": float(np.abs(share).sum()), "residual": gain - float(share.sum()),
            "nodes": integral.evaluations, "reader": reader, "token": token,
        },
    )  # fmt: skip


def _with_leave_one_out(
    one: xr.Dataset, trace: xr.Dataset, paths: BlockPaths | ModelPaths, count: int, replay: bool
) -> xr.Dataset:
    """Add `held`, and `replay` if asked for, to a receipt, computed for the `count` strongest sources."""
    token, sources = one.attrs["token"], one[SOURCE].values
    strongest = np.argsort(-np.abs(one[SHARE].values), kind="stable")[:count]
    nll = float(trace[schema.NLL].sel({schema.READER: one.attrs["reader"]}).values[token])
    for name, without in ((HELD, paths.held), (REPLAY, paths.replayed if replay else None)):
        if without is None:
            continue
        lost = np.full(len(sources), np.nan)
        if len(strongest):
            lost[strongest] = without(token, sources[strongest].tolist()) - nll
        one[name] = (SOURCE, lost, {schema.UNITS: schema.NAT})
    return one
