"""Look up what a trace holds, with errors that say what it does hold."""

import xarray as xr

from fwl_lab.trace import schema as schema
from fwl_lab.trace.schema import READER


def require_reader(trace: xr.Dataset, name: str) -> str:
    """`name`, if the trace has that reader.

    Raises
    ------
    ValueError
        It has not; the message lists those it has.
    """
    known = [str(reader) for reader in trace[READER].values]
    if name not in known:
        raise ValueError(f"no reader {name!r} in this trace; it holds {', '.join(known)}")
    return name


def require_parameter(trace: xr.Dataset, parameter: str) -> None:
    """ValueError: the trace holds no such fast parameter; says which it holds, or how to record them."""
    known = [str(name) for name in trace[schema.PARAMETER].values] if schema.PARAMETER in trace.variables else []
    if parameter not in known:
        hint = "" if known else " Record Δθ: score(..., record=Recorder(factors=True))."
        raise ValueError(
            f"no parameter {parameter!r} was recorded; this trace holds {', '.join(known) or 'none'}.{hint}"
        )
