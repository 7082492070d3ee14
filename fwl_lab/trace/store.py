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

from fwl_lab.trace import schema as schema
from fwl_lab.trace.arrays import Array, create
from fwl_lab.trace.schema import PROGRESS, SCHEMA, SCHEMA_VERSION, TOKEN, UPDATE, parameter_fields, validate


def is_trace(path: str | Path) -> bool:
    """Whether a folder is a saved trace (of any version of the schema)."""
    try:
        metadata = json.loads((Path(path) / "zarr.json").read_text(encoding="utf-8"))
        return str(metadata["attributes"][SCHEMA_VERSION]).startswith(SCHEMA.partition("/")[0])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_trace(trace: xr.Dataset, path: str | Path) -> Path:
    """Validate and write a trace to the folder `path`, replacing a trace that is there; returns the path.

    The trace is written beside its destination and then renamed, so an interrupted save leaves the old one whole.

    Raises
    ------
    ValueError
        The trace is not valid, or `path` exists and is not a trace (it is left alone).
    """
    validate(trace)
    path = Path(path).expanduser().absolute()
    if path.exists() and not is_trace(path):
        raise ValueError(f"{path} exists and is not a trace; it is left as it is. Choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    dense = [n for n, field in parameter_fields(trace).items() if n in trace.variables and UPDATE in field.dims]
    try:
        # Encodings of the store a trace was opened from (chunk shapes) need not fit what it has become.
        trace.drop_vars(dense).drop_encoding().to_zarr(new, mode="w-", zarr_format=3, consolidated=False)
        write_dense(trace, dense, new)
        move(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def move(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; a folder that is there is deleted afterwards."""
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

    Of one that is still being written, or whose reading was cut short, what is complete: the attribute "progress"
    says so.

    Raises
    ------
    FileNotFoundError
        Nothing is at `path`.
    ValueError
        Something else is at `path`, or a trace of another version of the schema.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no trace at {path}: there is no such folder")
    if not is_trace(path):
        raise ValueError(f"{path} is not a trace: expected a Zarr 3 folder written by save_trace()")
    trace = complete_part(xr.open_zarr(path, consolidated=False, chunks=None), str(path))
    return validate(trace, values=False)


def complete_part(trace: xr.Dataset, name: str) -> xr.Dataset:
    """What is complete of a trace that is being written, or whose reading was cut short; `name` is for errors."""
    if PROGRESS not in trace.attrs:
        return trace
    done = json.loads(trace.attrs[PROGRESS])
    if not done[TOKEN]:
        raise ValueError(f"the reading that writes {name} has not finished its first block; there is nothing yet")
    return trace.isel({dim: slice(count) for dim, count in done.items() if dim in trace.dims})


def write_dense(trace: xr.Dataset, names: Sequence[str], path: Path) -> None:
    """Add the dense Δθ of a trace to the one in the folder `path`, matrix by matrix and only those that are there.

    Most of such a variable is empty; in memory as one array it would be many times its size on disk.
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
