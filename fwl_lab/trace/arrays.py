"""Arrays of a trace in a zarr group, and texts as arrays."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import zarr

from fwl_lab.trace import schema as schema

BLOCK = 1024  # tokens, or updates, in a chunk on disk
EMPTY = {"f": np.nan, "i": -1, "b": False}  # where nothing was written


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape of a variable that is written bit by bit.

    Attributes
    ----------
    sizes : dict from dimension to length
    dtype : str
    blocks : int, optional
        How many matrices (reader, update) of it will be written; the others take no space. None: all of it will.
    """

    sizes: Mapping[str, int]
    dtype: str
    blocks: int | None = None

    @property
    def nbytes(self) -> int:
        """What will be written of it, bytes."""
        sizes = self.sizes
        if self.blocks is not None:
            sizes = {dim: n for dim, n in sizes.items() if dim not in (schema.READER, schema.UPDATE)}
        return math.prod(sizes.values()) * np.dtype(self.dtype).itemsize * (1 if self.blocks is None else self.blocks)

    @property
    def chunks(self) -> tuple[int, ...]:
        """One reader at a time, and a thousand tokens or updates; a dense Δθ by itself."""
        limits = {schema.READER: 1, schema.TOKEN: BLOCK, schema.UPDATE: BLOCK if self.blocks is None else 1}
        return tuple(max(1, min(n, limits.get(dim, n))) for dim, n in self.sizes.items())


def create(group: zarr.Group, name: str, array: Array, attributes: Mapping[str, str]) -> zarr.Array:
    """An empty array in a group, which takes no space."""
    return group.create_array(
        name,
        shape=tuple(array.sizes.values()),
        chunks=array.chunks,
        dtype=array.dtype,
        fill_value=EMPTY[np.dtype(array.dtype).kind],
        dimension_names=list(array.sizes),
        attributes=dict(attributes),
        # Factors and weights are noise to a compressor.
        compressors=None if array.dtype == "float32" else "auto",
    )


def text_array(texts: Iterable[str]) -> np.ndarray:
    """Strings as a variable-length numpy array, which (unlike ``<U``) keeps trailing NULs.

    Raises
    ------
    ValueError
        A text holds a lone surrogate, which no UTF-8 file can store.
    """
    texts = list(texts)
    try:
        return np.array(texts, dtype=np.dtypes.StringDType())
    except UnicodeEncodeError:
        index, text = next((i, text) for i, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text))
        raise ValueError(
            f"text {index} ({text!r}) holds a lone surrogate, which cannot be stored as UTF-8; "
            "decode with errors='replace'"
        ) from None
