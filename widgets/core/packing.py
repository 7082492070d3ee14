"""Arrays on their way to the browser: laid end to end in one piece of bytes, small enough for a first message."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

#: What stands for "not a number" among quantised values.
MISSING: Final = 65535
_ALIGNED: Final = 8


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, list[Any]], bytes]:
    """Lay numbers end to end, each array at a multiple of 8 bytes.

    Parameters
    ----------
    arrays
        Of kinds that a browser has: (u)int8, 16, 32, float32, float64; in row-major order, little-endian.

    Returns
    -------
    layout
        Of each array by name: numpy's name of its type, its first byte, its shape. Plain JSON.
    data
        Read again by `unpack` of ``js/common.js``.
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
        pieces += [data, bytes(-len(data) % _ALIGNED)]
        size += len(data) + -len(data) % _ALIGNED
    return layout, b"".join(pieces)


def quantise(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Numbers as 16 bits: ``values ≈ low + step · codes``, off by at most half a step; not finite is `MISSING`.

    Returns
    -------
    codes : as values, uint16
    low, step : float
    """
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    step = (high - low) / (MISSING - 1) or 1.0
    codes = np.full(values.shape, MISSING, dtype=np.uint16)
    codes[finite] = np.rint((values[finite] - low) / step)
    return codes, low, step


def pack_texts(texts: list[str]) -> dict[str, np.ndarray]:
    """Texts as one piece of UTF-8 (`text`, uint8) and the number of bytes of each (`text_bytes`, uint16)."""
    encoded = [text.encode("utf-8")[:MISSING] for text in texts]
    return {
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "text_bytes": np.array([len(text) for text in encoded], dtype=np.uint16),
    }
