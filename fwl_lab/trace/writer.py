"""Write a trace while documents are read, so that an interrupted reading leaves what was complete. Imports no torch."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from fwl_lab.trace import schema
from fwl_lab.trace.arrays import Array, create
from fwl_lab.trace.store import complete_part, is_trace, move, open_trace


class TraceWriter:
    """Write a trace part by part, in memory or in a folder; a context manager.

    All arrays have their full size from the start, and :meth:`commit` records how much of them is complete. In a folder
    that did not exist the trace can be opened at any time. A trace that is already there is replaced on leaving the
    context, and stays if there was an exception.

    Parameters
    ----------
    skeleton : Dataset
        All coordinates and attributes of the trace.
    arrays : mapping from name to Array
        The variables that will be written.
    path : path, optional
        Folder of the trace; None: in memory.

    Raises
    ------
    ValueError
        `path` exists and is not a trace.
    """

    def __init__(self, skeleton: xr.Dataset, arrays: Mapping[str, Array], path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.place = self.path
        if self.path is not None:
            if self.path.exists() and not is_trace(self.path):
                raise ValueError(f"{path} exists and is not a trace; nothing was read. Choose another path")
            if self.path.exists():
                self.place = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.new")
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.store = MemoryStore() if self.place is None else str(self.place)
        self.token_id = skeleton[schema.TOKEN_ID].values
        self.sizes = {schema.TOKEN: len(self.token_id), schema.UPDATE: skeleton.sizes.get(schema.UPDATE, 0)}
        skeleton = skeleton.assign_attrs({schema.PROGRESS: json.dumps({schema.TOKEN: 0, schema.UPDATE: 0})})
        skeleton.drop_encoding().to_zarr(self.store, mode="w-", zarr_format=3, consolidated=False)
        self.group = zarr.open_group(self.store, mode="r+")
        fields = schema.FIELDS | schema.parameter_fields(skeleton)
        units = {name: field.units for name, field in fields.items()}
        self.layout = dict(arrays)
        self.committed = 0  # tokens
        self.arrays = {
            name: create(self.group, name, array, {schema.UNITS: unit} if (unit := units.get(name)) else {})
            for name, array in arrays.items()
        }

    def put(self, name: str, values: np.ndarray, *at: int | slice) -> None:
        """Write values of the variable `name` at a place: an index or a slice for each leading dimension."""
        self.arrays[name][at] = values

    def commit(self, tokens: int, updates: int) -> None:
        """Declare the first `tokens` tokens and `updates` updates complete; they are part of the trace from now on."""
        self.group.update_attributes({schema.PROGRESS: json.dumps({schema.TOKEN: tokens, schema.UPDATE: updates})})
        self.committed = tokens

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the trace and move it to its place; after an exception keep the trace that was there before."""
        if kind is None:
            if self.committed == self.sizes[schema.TOKEN]:
                done = {name: value for name, value in self.group.attrs.items() if name != schema.PROGRESS}
                self.group.attrs.put(done)
            if self.place is not None and self.place != self.path:
                move(self.place, cast(Path, self.path))
        elif self.place is not None and self.place != self.path:
            shutil.rmtree(self.place, ignore_errors=True)

    def trace(self) -> xr.Dataset:
        """Return what was committed; where it lies in a folder, arrays are read when they are used."""
        if self.path is None:
            trace = complete_part(xr.open_zarr(self.store, consolidated=False, chunks=None), "this trace")
            large = schema.parameter_fields(trace)  # factors and dense Δθ stay compressed until they are used
            return trace.assign({name: v.load() for name, v in trace.variables.items() if name not in large})
        return open_trace(self.path)
