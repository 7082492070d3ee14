"""Which earlier tokens paid for a gain: receipts.

The gain of a token over θ₀ is split over the earlier tokens (Fast Weight Layers) or updates (dynamic evaluation) that
caused it: along the common scaling of all updates from 0 to 1, each gets the integral of its own part of the slope.
These shares sum to the gain, up to a residual that is kept below a tolerance, or else warned of. They cancel: many a
large positive share stands against a large negative one, so that the gross sum stands beside the net. How a share is
computed: `path_integral`, `block_paths`, `model_paths`.

A share is no promise of what would have been lost without a source; that is *held* (its update dropped, the others as
they were) and *replay* (dropped, and everything after it read again), both exact.
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
from fwl_lab.attribution.path_integral import Rule, warn_of_misses
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
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import default_reader, reader_facts, reader_names

RULES: dict[str, Rule] = {"block": block_paths.RULE, "model": model_paths.RULE}  # by `Reader.learns`


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
    """Split the gain of one token over what it was learned from.

    The gain is the NLL at θ₀ (of the trace's reader that stays there, or computed where the trace has none) minus the
    trace's NLL under adaptation.

    Parameters
    ----------
    model : LanguageModel
        The one that read.
    trace : Dataset
        Where it holds the reader's factors (Recorder(factors=True)) they are used, else the document is read again.
    token : int
        Index in the trace.
    reader : str, optional
        Of the trace: a FastWeightReader or a DynamicEvaluationReader. None: see `fwl_lab.trace.lookup.default_reader`.
    tolerance : float, optional
        By how much the shares may miss the fall of the NLL along the path, nats: sizes summed over the stretches that
        it is cut into until they agree. None: 1e-4, for dynamic evaluation 5e-4. Infinite: it is not cut.
    leave_one_out : int
        For so many of the largest shares, of either sign, compute ``held`` and ``replay``.
    replay : bool
        False leaves ``replay`` out, which reads from each source to the target again.
    readers : mapping from name to Reader or factory, optional
        The reader, or a function from the model to it, where the trace does not say all of how it was set (an optimizer
        of torch's own, say). It stays as it is.

    Returns
    -------
    Dataset
        ``share(source)`` and ``share_by_parameter(source, parameter)``, nats, positive where the source helped;
        ``held(source)``, ``replay(source)``: the gain that is lost without the source, nats, NaN where it was not
        computed. Coordinates: ``source``, trace index of the token that was learned (of dynamic evaluation the last of
        the segment), its ``source_text``, and ``source_kind`` (index in `fwl_lab.receipt_totals.KINDS`).
        Attributes: ``gain``, ``gross`` (Σ|share|) and ``residual`` (gain − Σ share), nats; ``nodes`` (how often the
        slope was evaluated), ``reader``, ``token``. A token before which nothing was learned has no source.

    Warns
    -----
    UserWarning
        The shares missed the tolerance after as many evaluations as are made at most (2,048; dynamic evaluation 600);
        or the trace's NLL is another than the one along the path, so that it was edited, or read in another way.

    Raises
    ------
    ValueError
        No such token or reader; arguments exchanged; a reader whose weights stand still; a model with other weights
        than the one that read; a reader set otherwise than in the trace; carried fast weights whose factors the trace
        does not hold.
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
    """Receipts of several tokens, in their order; each document is read once for all of them. See :func:`receipt`."""
    reader, own = _reader(model, trace, reader, readers)
    indices = _indices(trace, tokens)
    rule = RULES[own.learns or ""] if tolerance is None else replace(RULES[own.learns or ""], tolerance=tolerance)
    if not rule.tolerance > 0 or leave_one_out < 0:
        raise ValueError(f"tolerance is {tolerance}, leave_one_out {leave_one_out}; expected above 0 nats, at least 0.")
    found: dict[int, xr.Dataset] = {}
    for first, group in _by_document(trace, own, indices).items():
        paths = _paths(own, trace, reader, first, max(group) + 1)
        for token in group:
            slow = _slow_nll(trace, own, paths, token)
            one = _split(trace, reader, paths, token, slow, rule)
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
    """A trace that also holds the receipts of some tokens of a reader; those it held of others stay.

    Adds `receipt_source`, `receipt_share` and `receipt_leave_one_out` (reader, token, rank): the `top` largest shares,
    of either sign, largest first, and what is lost without each, the others as they were (held); -1 or NaN where there
    is none. Also `receipt_gain`, `receipt_gross` and `receipt_residual` (reader, token), nats, of all sources.
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1.")
    found = receipts_of(
        model, trace, tokens, reader, tolerance=tolerance, leave_one_out=top, replay=False, readers=readers
    )
    reader = default_reader(trace) if reader is None else reader
    row = reader_names(trace).index(reader)
    arrays = _empty(trace, top)
    for one in found:
        token = one.attrs["token"]
        order = np.argsort(-np.abs(one[SHARE].values), kind="stable")[:top]
        ranked = {
            schema.RECEIPT_SOURCE: (one[SOURCE].values, -1),
            schema.RECEIPT_SHARE: (one[SHARE].values, np.nan),
            schema.RECEIPT_LEAVE_ONE_OUT: (one[HELD].values, np.nan),
        }
        for name, (values, none) in ranked.items():
            arrays[name][row, token] = none
            arrays[name][row, token, : len(order)] = values[order]
        for name in (schema.RECEIPT_GAIN, schema.RECEIPT_GROSS, schema.RECEIPT_RESIDUAL):
            arrays[name][row, token] = one.attrs[name.removeprefix("receipt_")]
    dims = (schema.READER, schema.TOKEN, schema.RANK)
    nats = {schema.UNITS: schema.NAT}
    added = trace.drop_vars([name for name in arrays if name in trace]).assign(
        {
            name: (dims[: values.ndim], values, {} if name == schema.RECEIPT_SOURCE else nats)
            for name, values in arrays.items()
        }
    )
    return schema.validate(added, values=False)


def _reader(
    model: LanguageModel, trace: xr.Dataset, name: str | None, given: Mapping[str, Given] | None
) -> tuple[str, Reader]:
    """The reader whose receipts are asked for, as it was set."""
    name = default_reader(trace) if name is None and isinstance(trace, xr.Dataset) else str(name)
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
    """The tokens asked for, of a trace that has them."""
    try:
        indices = [operator.index(token) for token in tokens]
    except TypeError:
        raise ValueError(f"tokens is {tokens!r}; expected whole numbers, indices of the trace.") from None
    wrong = [index for index in indices if not 0 <= index < trace.sizes[schema.TOKEN]]
    if wrong:
        raise ValueError(f"token is {wrong[0]}; expected 0 to {trace.sizes[schema.TOKEN] - 1}, of this trace.")
    return indices


def _by_document(trace: xr.Dataset, reader: Reader, tokens: Sequence[int]) -> dict[int, list[int]]:
    """Different targets by the first token that can be a source of theirs, of one document each."""
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
    if reader.learns == "block":
        return BlockPaths(cast(FastWeightReader, reader), trace, name, first, stop)
    return ModelPaths(cast(DynamicEvaluationReader, reader), trace, first, stop)


def _slow_nll(trace: xr.Dataset, reader: Reader, paths: BlockPaths | ModelPaths, token: int) -> float:
    """NLL of a token at θ₀: the trace's own, where it holds a reader that stays there, over the same model."""
    block = reader.model.block is not None
    others = json.loads(trace.attrs.get(schema.READER_HASHES, "{}"))  # readers of other weights, by name
    for name, facts in reader_facts(trace).items():
        window = facts.configuration.get("window")
        if not facts.adapts and facts.block == block and window == reader.model.window and name not in others:
            return float(trace[schema.NLL].sel({schema.READER: name}).values[token])
    return paths.slow(token)


def _split(
    trace: xr.Dataset, reader: str, paths: BlockPaths | ModelPaths, token: int, slow: float, rule: Rule
) -> xr.Dataset:
    """A receipt without leave-one-out."""
    sources = paths.sources(token)
    integral = paths.shares(token, rule)
    table = np.stack(list(integral.parts.values()), axis=1)  # (n, parameters)
    share = table.sum(1)
    adapted = float(trace[schema.NLL].sel({schema.READER: reader}).values[token])
    warn_of_misses(token, integral, rule, (slow, adapted))
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
    """The receipt with what is lost without its strongest sources."""
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


def _empty(trace: xr.Dataset, top: int) -> dict[str, np.ndarray]:
    """Arrays for receipts, with those that the trace holds already."""
    readers, tokens = trace.sizes[schema.READER], trace.sizes[schema.TOKEN]
    shape = (readers, tokens, max(top, trace.sizes.get(schema.RANK, 0)))
    arrays = {
        schema.RECEIPT_SOURCE: np.full(shape, -1, dtype=np.int64),
        schema.RECEIPT_SHARE: np.full(shape, np.nan),
        schema.RECEIPT_LEAVE_ONE_OUT: np.full(shape, np.nan),
    } | {
        name: np.full(shape[:2], np.nan)
        for name in (schema.RECEIPT_GAIN, schema.RECEIPT_GROSS, schema.RECEIPT_RESIDUAL)
    }
    for name, values in arrays.items():
        if name in trace:
            known = trace[name].values
            values[tuple(slice(n) for n in known.shape)] = known
    return arrays
