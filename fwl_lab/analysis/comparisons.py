"""Compare gains: of several seeds, of reset and carried weights, net of generic adaptation, and with costs.

Imports no torch.

``mean``, ``low``, ``high``, `baseline` and `bootstrap` are as in :mod:`fwl_lab.analysis.breakdowns`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.analysis.bootstrap import DEFAULT, Bootstrap
from fwl_lab.analysis.breakdowns import AVERAGE, HIGH, LOW, MEAN, MICRO, averages, paired_bootstrap
from fwl_lab.analysis.gains import BASELINE, NATS_PER_TOKEN, TOKEN_COUNT, TOKEN_PERPLEXITY, gain, perplexity
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import default_baseline, reader_names, require_reader
from fwl_lab.trace.schema import (
    BYTE,
    CARRY,
    DOCUMENT,
    DOCUMENT_NAME,
    FLOP,
    FLOPS_PER_TOKEN,
    MODEL_HASH,
    NAT,
    NLL,
    ONE,
    PEAK_BYTES,
    POSITION,
    READER,
    SECOND,
    SECONDS,
    SEED,
    TOKEN,
    TOKEN_ID,
    TOKENS,
    UNITS,
    UNKNOWN,
)

#: Names that the controls give to readers; see `fwl_lab.inference.controls`.
OWN: Final = "own"
WRONG: Final = "wrong"
MORE_CONTEXT: Final = "more_context"

RUN: Final = "run"  # dimension of across_seeds()
GAIN: Final = "gain"
STD: Final = "std"
LEAST: Final = "min"
MOST: Final = "max"

STATE: Final = "state"  # dimension of reset_and_carry()
RESET: Final = "reset"
CARRIED: Final = "carry"
DIFFERENCE: Final = "difference"

PART: Final = "part"  # dimension of net_gain()
GENERIC: Final = "generic"
NET: Final = "net"

BITS_PER_TOKEN: Final = "bits_per_token"
SECONDS_PER_TOKEN: Final = "seconds_per_token"
COST: Final = "cost"  # dimension of `optimal` in cost_frontier()
COSTS: Final = (SECONDS_PER_TOKEN, FLOPS_PER_TOKEN, PEAK_BYTES)
OPTIMAL: Final = "optimal"


def require_same_tokens(traces: Sequence[xr.Dataset]) -> None:
    """Check that traces are of the same tokens of the same documents in the same order.

    Raises
    ------
    ValueError
        They are not; the message says which trace differs from the first, and where.
    """
    first, *others = traces
    names = [str(name) for name in first[DOCUMENT_NAME].values]
    for number, other in enumerate(others, start=1):
        theirs = [str(name) for name in other[DOCUMENT_NAME].values]
        if names != theirs:
            unlike = next((f"{a!r} and {b!r}" for a, b in zip(names, theirs, strict=False) if a != b), "their number")
            raise ValueError(
                f"trace {number} is of other documents than trace 0 ({len(theirs)} and {len(names)}; they differ in "
                f"{unlike}); expected traces of the same documents in the same order"
            )
        if first.sizes[TOKEN] != other.sizes[TOKEN]:
            raise ValueError(
                f"trace {number} holds {other.sizes[TOKEN]} tokens, trace 0 holds {first.sizes[TOKEN]}; expected the "
                "same documents, cut by the same tokenizer, read to the same length"
            )
        for name in (DOCUMENT, POSITION, TOKEN_ID):
            unequal = np.flatnonzero(first[name].values != other[name].values)
            if unequal.size:
                raise ValueError(
                    f"trace {number} differs from trace 0 in {name!r} from token {unequal[0]} on; expected the same "
                    "documents, cut by the same tokenizer, read to the same length"
                )


def across_seeds(traces: Sequence[xr.Dataset], *, baseline: str | None = None) -> xr.Dataset:
    """Compare the gain of each reader in several runs over the same documents, one run per seed.

    The spread is that of seeds; for that of documents see `paired_bootstrap`.

    Parameters
    ----------
    traces : sequence of Dataset
        Two or more.
    baseline : str, optional
        None: `default_baseline` of the first trace.

    Returns
    -------
    Dataset
        ``gain`` (run, reader), micro averages, nat per token; over the runs ``mean``, ``std`` (with one degree of
        freedom less than runs), ``min`` and ``max`` (reader). Coordinates ``seed`` and ``model_hash`` (run).

    Raises
    ------
    ValueError
        There are fewer than two traces, or one differs from the first in documents, tokens or readers.
    """
    if isinstance(traces, xr.Dataset) or len(traces) < 2:
        given = 1 if isinstance(traces, xr.Dataset) else len(traces)
        raise ValueError(f"{given} trace given; expected a list of two or more, one a seed")
    require_same_tokens(traces)
    readers = reader_names(traces[0])
    baseline = default_baseline(traces[0]) if baseline is None else baseline
    for number, trace in enumerate(traces):
        if set(reader_names(trace)) != set(readers):
            raise ValueError(
                f"trace {number} holds the readers {', '.join(reader_names(trace))}, trace 0 holds "
                f"{', '.join(readers)}; expected the same ones, select them with trace.sel(reader=[...])"
            )
    gains = [gain(trace, baseline).mean(TOKEN) for trace in traces]
    names = gains[0][READER].values
    table = np.stack([row.sel({READER: names}).values for row in gains])  # (run, reader)
    spread = {MEAN: table.mean(0), STD: table.std(0, ddof=1), LEAST: table.min(0), MOST: table.max(0)}
    units = {UNITS: f"{NAT}/{TOKENS}"}
    coords = {
        READER: names,
        SEED: (RUN, [int(trace.attrs.get(SEED, -1)) for trace in traces]),
        MODEL_HASH: (RUN, text_array(str(trace.attrs.get(MODEL_HASH, UNKNOWN)) for trace in traces)),
    }
    columns: dict[str, Any] = {name: (READER, values, units) for name, values in spread.items()}
    return xr.Dataset({GAIN: ((RUN, READER), table, units)} | columns, coords, {BASELINE: baseline})


def reset_and_carry(
    reset: xr.Dataset, carry: xr.Dataset, *, baseline: str | None = None, bootstrap: Bootstrap = DEFAULT
) -> xr.Dataset:
    """Compare gains with fast weights reset at document boundaries and with fast weights carried across them.

    Parameters
    ----------
    reset, carry : Dataset
        Traces of ``score(..., carry=False)`` and ``score(..., carry=True)``.
    baseline : str, optional
        None: `default_baseline` of `reset`.
    bootstrap : Bootstrap

    Returns
    -------
    Dataset
        ``mean``, ``low``, ``high`` (state, reader, average); ``state`` is "reset", "carry" or "difference", the second
        minus the first, paired token by token. Carried documents are not independent of each other, so the intervals
        of "carry" and "difference" are about these documents in this order.

    Raises
    ------
    ValueError
        The traces' attributes "carry" are not "false" and "true", or their tokens or readers differ.
    """
    for trace, name, expected in ((reset, RESET, "false"), (carry, CARRIED, "true")):
        if (found := trace.attrs.get(CARRY)) != expected:
            raise ValueError(
                f"the {name} trace has the attribute {CARRY!r} {found!r}, expected {expected!r}: give one trace of "
                "score(..., carry=False) and one of score(..., carry=True), in this order"
            )
    require_same_tokens([reset, carry])
    baseline = default_baseline(reset) if baseline is None else baseline
    without, with_ = gain(reset, baseline), gain(carry, baseline)
    if set(without[READER].values) != set(with_[READER].values):
        raise ValueError(
            f"the traces hold other readers: {', '.join(without[READER].values)} and {', '.join(with_[READER].values)};"
            " select the same ones with trace.sel(reader=[...])"
        )
    with_ = with_.sel({READER: without[READER].values})
    gains = (without, with_, without.copy(data=with_.values - without.values))
    rows = [averages(each, baseline=baseline, bootstrap=bootstrap) for each in gains]
    return xr.concat(rows, xr.Variable(STATE, text_array([RESET, CARRIED, DIFFERENCE])), combine_attrs="drop_conflicts")


def net_gain(
    trace: xr.Dataset,
    own: str = OWN,
    wrong: str = WRONG,
    *,
    baseline: str | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> xr.Dataset:
    """Split a reader's gain into generic adaptation, which any document would have given, and the rest.

    Parameters
    ----------
    trace : Dataset
        From `wrong_document`.
    own, wrong : str
        Names of the reader, and of the same reader with another document's fast weights.
    baseline : str, optional
    bootstrap : Bootstrap

    Returns
    -------
    Dataset
        ``mean``, ``low``, ``high`` (part, average). ``part`` is "gain" (of `own` over `baseline`), "generic" (of
        `wrong` over `baseline`) or "net", the first minus the second, paired token by token.
    """
    for name in (own, wrong):
        require_reader(trace, name)
    both = gain(trace, baseline)
    mine, generic = (both.sel({READER: name}).values for name in (own, wrong))
    parts = xr.DataArray(
        np.stack([mine, generic, mine - generic]),
        dims=(READER, TOKEN),
        coords={READER: text_array([GAIN, GENERIC, NET]), DOCUMENT: trace[DOCUMENT]},
    )
    return averages(parts, baseline=both.attrs[BASELINE], bootstrap=bootstrap).rename({READER: PART})


def key_token_perplexity(
    trace: xr.Dataset, *, long: str = MORE_CONTEXT, short: str | None = None, saved: float = 2.0, likely: float = 2.0
) -> xr.Dataset:
    """Compute perplexity over the tokens for which a longer context matters (LongPPL; Fang et al. 2024, eqs. 4 to 7).

    Key tokens are those whose NLL by the reader `long` is lower than by `short` by more than `saved` nats, and less
    than `likely` nats; 2 and 2 are the paper's. This choice favours `long` over `short` by construction: compare the
    other readers.

    Parameters
    ----------
    trace : Dataset
    long, short : str
        Names of a reader with more context and one with less; `short` None: `default_baseline` of the trace.
    saved, likely : float
        Nats.

    Returns
    -------
    Dataset
        ``nats_per_token`` and ``token_perplexity`` (reader) over key tokens, NaN if there are none; attribute
        ``tokens``, their number.
    """
    short = default_baseline(trace) if short is None else short
    for name in (long, short):
        require_reader(trace, name)
    nll = trace[NLL].transpose(READER, TOKEN)
    easier, harder = nll.sel({READER: long}).values, nll.sel({READER: short}).values
    key = (harder - easier > saved) & (easier < likely)
    nats = nll.values[:, key].mean(axis=1) if key.any() else np.full(nll.sizes[READER], np.nan)
    return xr.Dataset(
        {
            NATS_PER_TOKEN: (READER, nats, {UNITS: f"{NAT}/{TOKENS}"}),
            TOKEN_PERPLEXITY: (READER, perplexity(nats), {UNITS: ONE}),
        },
        coords={READER: trace[READER].values},
        attrs={TOKEN_COUNT: int(key.sum()), "long": long, "short": short, "saved": saved, "likely": likely},
    )


def cost_frontier(trace: xr.Dataset, baseline: str | None = None, *, bootstrap: Bootstrap = DEFAULT) -> xr.Dataset:
    """Compare the bits that each reader saves per token with its costs; the baseline saves none.

    Returns
    -------
    Dataset
        ``bits_per_token``, ``low``, ``high`` (reader): gain / ln 2, micro average, with its interval.
        ``seconds_per_token``, ``flops_per_token``, ``peak_bytes`` (reader): NaN where the trace does not hold them.
        ``optimal`` (reader, cost): whether no other reader saves as much at less cost, or more at the same cost;
        False where the cost is unknown.
    """
    names, count = trace[READER].values, trace.sizes[TOKEN]
    result = paired_bootstrap(trace, baseline=baseline, bootstrap=bootstrap).sel({AVERAGE: MICRO}, drop=True)
    bits = (result[[MEAN, LOW, HIGH]] / np.log(2)).reindex({READER: names}, fill_value=0.0)
    seconds, flops, memory = (
        trace[name].values.astype(np.float64) if name in trace else np.full(len(names), np.nan)
        for name in (SECONDS, FLOPS_PER_TOKEN, PEAK_BYTES)
    )
    # A time of 0 was not measured.
    costs = dict(zip(COSTS, (np.where(seconds > 0, seconds, np.nan) / count, flops, memory), strict=True))
    units = dict(zip(COSTS, (f"{SECOND}/{TOKENS}", FLOP, BYTE), strict=True))
    saved = {BITS_PER_TOKEN: bits[MEAN].values, LOW: bits[LOW].values, HIGH: bits[HIGH].values}
    optimal = np.stack([_optimal(saved[BITS_PER_TOKEN], cost) for cost in costs.values()], axis=1)
    return xr.Dataset(
        {name: (READER, values, {UNITS: f"bit/{TOKENS}"}) for name, values in saved.items()}
        | {name: (READER, values, {UNITS: units[name]}) for name, values in costs.items()}
        | {OPTIMAL: ((READER, COST), optimal)},
        coords={READER: names, COST: text_array(COSTS)},
        attrs=result.attrs,
    )


def _optimal(saved: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return which readers (R,) are not dominated by another that is as good in both and better in one."""
    as_good = (saved[:, None] >= saved) & (cost[:, None] <= cost)  # (other, reader)
    better = (saved[:, None] > saved) | (cost[:, None] < cost)
    return np.isfinite(cost) & ~(as_good & better).any(axis=0)
