"""Save a trace as a zarr folder, and open one."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from fwl_lab.trace import schema
from fwl_lab.trace.arrays import Array, create


def is_trace(path: str | Path) -> bool:
    """Return whether a folder is a saved trace, of any version of the schema."""
    try:
        metadata = json.loads((Path(path) / "zarr.json").read_text(encoding="utf-8"))
        return str(metadata["attributes"][schema.SCHEMA_VERSION]).startswith(schema.SCHEMA.partition("/")[0])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_trace(trace: xr.Dataset, path: str | Path) -> Path:
    """Validate a trace and write it to the folder `path`, in place of a trace that is there; return the path.

    The trace is written beside its destination and then renamed, so an interrupted save leaves the old one unchanged.

    Raises
    ------
    ValueError
        The trace is not valid, or `path` exists and is not a trace (it is not touched).
    """
    schema.validate(trace)
    path = Path(path).expanduser().absolute()
    if path.exists() and not is_trace(path):
        raise ValueError(f"{path} exists and is not a trace; it is left as it is. Choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    fields = schema.parameter_fields(trace)
    dense = [n for n, field in fields.items() if n in trace.variables and schema.UPDATE in field.dims]
    try:
        # The encoding of the store that a trace was opened from (its chunks) may not fit the trace as it is now.
        trace.drop_vars(dense).drop_encoding().to_zarr(new, mode="w-", zarr_format=3, consolidated=False)
        write_dense(trace, dense, new)
        move(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def move(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; a folder that was at `path` is deleted once `new` is in its place."""
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def open_trace(path: str | Path) -> xr.Dataset:
    """Open a saved trace; its arrays are read when they are used.

    Of a trace that is still being written, or whose reading was interrupted, only the complete part is returned; it has
    the attribute "progress".

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    ValueError
        `path` is not a trace, or one of another version of the schema; or nothing of it is complete.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no trace at {path}: there is no such folder")
    if not is_trace(path):
        raise ValueError(f"{path} is not a trace: expected a Zarr 3 folder written by save_trace()")
    trace = complete_part(xr.open_zarr(path, consolidated=False, chunks=None), str(path))
    return schema.validate(trace, values=False)


def complete_part(trace: xr.Dataset, name: str) -> xr.Dataset:
    """Return the complete part of a trace that is being written, or whose reading was interrupted.

    Parameters
    ----------
    trace : Dataset
    name : str
        Name of the trace in an error.

    Raises
    ------
    ValueError
        No token is complete.
    """
    if schema.PROGRESS not in trace.attrs:
        return trace
    done = json.loads(trace.attrs[schema.PROGRESS])
    if not done[schema.TOKEN]:
        raise ValueError(f"the reading that writes {name} has not finished its first block; there is nothing yet")
    return trace.isel({dim: slice(count) for dim, count in done.items() if dim in trace.dims})


def write_dense(trace: xr.Dataset, names: Sequence[str], path: Path) -> None:
    """Add variables with dense Δθ (`names`) of a trace to the one in the folder `path`, one matrix at a time.

    Only matrices that were recorded are written. Most of such a variable is empty; as one array in memory it would take
    many times its size on disk.
    """
    group = zarr.open_group(path, mode="r+")
    for name in names:
        variable = trace[name].transpose(schema.READER, schema.UPDATE, ...)
        sizes = {str(dim): length for dim, length in variable.sizes.items()}
        array = create(group, name, Array(sizes, str(variable.dtype), blocks=1), dict(variable.attrs))
        there = np.ones(variable.shape[:2], dtype=bool)
        if schema.ANCHORED in trace:
            there = trace[schema.ANCHORED].transpose(schema.READER, schema.UPDATE).values
        for reader, update in np.argwhere(there):
            block = variable[reader, update].values
            if not np.isnan(block).all():
                array[int(reader), int(update)] = block
