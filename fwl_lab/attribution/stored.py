"""Write receipts into a trace: of each token the strongest sources, and the sums over all. Imports no torch."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from fwl_lab.attribution.summary import HELD, SHARE, SOURCE
from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_names


def with_receipts(trace: xr.Dataset, reader: str, receipts: Sequence[xr.Dataset], top: int) -> xr.Dataset:
    """Return the trace with receipts of a reader added; receipts that it held of other tokens or readers stay.

    Parameters
    ----------
    trace : Dataset
    reader : str
        Name of the reader in the trace.
    receipts : sequence of Dataset
        From `receipts_of`, with ``held``.
    top : int
        Number of sources to keep of each, those whose shares are largest in absolute value.
    """
    row = reader_names(trace).index(reader)
    arrays = _arrays(trace, top)
    for one in receipts:
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


def _arrays(trace: xr.Dataset, top: int) -> dict[str, np.ndarray]:
    """Return the arrays of receipts for a trace, filled with those that it holds already; -1 and NaN elsewhere."""
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
