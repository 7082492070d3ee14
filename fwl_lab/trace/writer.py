"""Write a trace while a document is read: what was committed can be opened, whatever happens next. No torch."""

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

from fwl_lab.trace import schema as schema
from fwl_lab.trace.arrays import Array, create
from fwl_lab.trace.store import complete_part, is_trace, move, open_trace


class TraceWriter:
    """A trace that grows.

    All arrays have their full size from the start, and :meth:`commit` says how much of it is there. In a folder that is
    free the trace can be opened at any time. Where a trace is already, that one stays until the new one is complete.

    Parameters
    ----------
    skeleton : Dataset
        Coordinates and attributes, whole.
    arrays : mapping from name to Array
        What will be written bit by bit.
    path : path, optional
        None: in memory.
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
        """Write one variable in a place: an index or a slice per leading dimension."""
        self.arrays[name][at] = values

    def commit(self, tokens: int, updates: int) -> None:
        """What was put for so many tokens and updates is now part of the trace."""
        self.group.update_attributes({schema.PROGRESS: json.dumps({schema.TOKEN: tokens, schema.UPDATE: updates})})
        self.committed = tokens

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """All is there, or what was committed; after an exception a trace that was there before stays."""
        if kind is None:
            if self.committed == self.sizes[schema.TOKEN]:
                done = {name: value for name, value in self.group.attrs.items() if name != schema.PROGRESS}
                self.group.attrs.put(done)
            if self.place is not None and self.place != self.path:
                move(self.place, cast(Path, self.path))
        elif self.place is not None and self.place != self.path:
            shutil.rmtree(self.place, ignore_errors=True)

    def trace(self) -> xr.Dataset:
        """What was written; from a folder it is read when it is used."""
        if self.path is None:
            trace = complete_part(xr.open_zarr(self.store, consolidated=False, chunks=None), "this trace")
            large = schema.parameter_fields(trace)  # read when they are used
            return trace.assign({name: v.load() for name, v in trace.variables.items() if name not in large})
        return open_trace(self.path)
