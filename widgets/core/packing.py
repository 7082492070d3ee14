"""Pack arrays for the browser: end to end in one piece of bytes, small enough for a first message."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

#: Code of a quantised value that is not finite.
MISSING: Final = 65535
_ALIGNMENT: Final = 8  # bytes; every type's own divides it


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, list[Any]], bytes]:
    """Lay arrays end to end, each at a multiple of 8 bytes.

    Parameters
    ----------
    arrays : mapping from name to array
        Of types that a browser has: (u)int8, 16, 32, float32, float64. They are written row by row, little-endian.

    Returns
    -------
    layout : dict of JSON values
        Of each array by name: numpy's name of its type, its first byte, its shape.
    data : bytes
        Read again by `unpack` of the views' shared JavaScript.

    Raises
    ------
    ValueError
        An array of another type.
    """
    layout: dict[str, list[Any]] = {}
    pieces: list[bytes] = []
    size = 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if array.dtype.name not in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"):
            raise ValueError(f"{name} is {array.dtype.name}; a browser has (u)int8, 16, 32, float32 and float64")
        layout[name] = [array.dtype.name, size, list(array.shape)]
        data = array.tobytes()
        pieces += [data, bytes(-len(data) % _ALIGNMENT)]
        size += len(data) + -len(data) % _ALIGNMENT
    return layout, b"".join(pieces)


def quantise(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Round numbers to 16 bits: ``values ≈ low + step · codes``, off by at most half a step.

    Returns
    -------
    codes : as values, uint16
        `MISSING` where the value is not finite.
    low, step : float
    """
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    step = (high - low) / (MISSING - 1) or 1.0
    codes = np.full(values.shape, MISSING, dtype=np.uint16)
    codes[finite] = np.rint((values[finite] - low) / step)
    return codes, low, step


def pack_texts(texts: list[str]) -> dict[str, np.ndarray]:
    """Encode texts as one piece of UTF-8 (`text`, uint8) and the number of bytes of each (`text_bytes`, uint16)."""
    encoded = [text.encode("utf-8")[:MISSING] for text in texts]
    return {
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "text_bytes": np.array([len(text) for text in encoded], dtype=np.uint16),
    }
