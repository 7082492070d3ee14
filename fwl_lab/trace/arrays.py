"""Lay out and create the arrays of a trace in a zarr group, and make arrays of texts."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import zarr

from fwl_lab.trace import schema

BLOCK = 1024  # tokens, or updates, in a chunk on disk
EMPTY = {"f": np.nan, "i": -1, "b": False}  # fill value of what was not written, by kind of dtype


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape, dtype and chunks of a variable that is written part by part.

    Attributes
    ----------
    sizes : mapping from dimension to length
    dtype : str
    blocks : int, optional
        Number of places (reader, update) at which it will be written; the others take no space. None: all of them.
    """

    sizes: Mapping[str, int]
    dtype: str
    blocks: int | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes of the part that will be written, uncompressed."""
        sizes = self.sizes
        if self.blocks is not None:
            sizes = {dim: n for dim, n in sizes.items() if dim not in (schema.READER, schema.UPDATE)}
        return math.prod(sizes.values()) * np.dtype(self.dtype).itemsize * (1 if self.blocks is None else self.blocks)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk: one reader, `BLOCK` tokens or updates; one update where each holds a dense Δθ."""
        limits = {schema.READER: 1, schema.TOKEN: BLOCK, schema.UPDATE: BLOCK if self.blocks is None else 1}
        return tuple(max(1, min(n, limits.get(dim, n))) for dim, n in self.sizes.items())


def create(group: zarr.Group, name: str, array: Array, attributes: Mapping[str, str]) -> zarr.Array:
    """Create an array in a group, filled with `EMPTY`; it takes no space until it is written."""
    return group.create_array(
        name,
        shape=tuple(array.sizes.values()),
        chunks=array.chunks,
        dtype=array.dtype,
        fill_value=EMPTY[np.dtype(array.dtype).kind],
        dimension_names=list(array.sizes),
        attributes=dict(attributes),
        # Factors and weights do not compress: their low bits are noise.
        compressors=None if array.dtype == "float32" else "auto",
    )


def text_array(texts: Iterable[str]) -> np.ndarray:
    """Return strings as a variable-length numpy array, which (unlike ``<U``) keeps trailing NULs.

    Raises
    ------
    ValueError
        A text holds a lone surrogate, which cannot be stored as UTF-8.
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
