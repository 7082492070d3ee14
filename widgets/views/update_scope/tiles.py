"""Make pictures of large matrices that are small enough to send: pooled to a few cells a side, a byte a cell.

A cell shows the entry behind it that is largest in size, with its sign, so that no large entry is lost in a mean. Also
computes a matrix' histogram, its singular values and the order of its rows.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

#: Cells along either side of a picture, at most.
SIDE_CELLS: Final = 256
#: Bars of a histogram; odd, so that one of them is about zero.
BARS: Final = 61
#: Code of a cell that holds a value which is not finite.
NOT_FINITE: Final = -128
#: Share of cells whose size stays within a picture's colours; what is beyond has the last colour.
WITHIN: Final = 0.995


def pool(values: np.ndarray, most: int = SIDE_CELLS) -> np.ndarray:
    """Shrink values to at most `most` a side, of each cell the entry largest in size; NaN where one is NaN.

    Parameters
    ----------
    values : (R,) or (R, C)

    Returns
    -------
    (min(R, most),) or (min(R, most), min(C, most)), of the same dtype; cell i begins at row ``i * R // most``.
    """
    for axis, length in enumerate(values.shape):
        if length > most:
            starts = starts_of(length, most)
            high = np.maximum.reduceat(values, starts, axis=axis)
            low = np.minimum.reduceat(values, starts, axis=axis)
            values = np.where(low > -high, high, np.where(np.isnan(low), low, np.where(high >= -low, high, low)))
    return values


def starts_of(length: int, most: int = SIDE_CELLS) -> np.ndarray:
    """Return the first row behind each cell, (min(length, most),) int."""
    cells = min(length, most)
    return np.arange(cells) * length // cells


def squeeze(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Round values to bytes: ``values ≈ sign(codes) · (codes / 127)² · size``; small ones keep more of their figures.

    Returns
    -------
    codes : as values, int8; `NOT_FINITE` where the value is not finite
    size : float, of the largest finite value
    """
    finite = np.isfinite(values)
    sizes = np.abs(values) if finite.all() else np.where(finite, np.abs(values), 0)
    size = float(sizes.max(initial=0.0))
    codes = np.rint(np.sqrt(sizes / (size or 1.0)) * 127)
    return np.where(finite, np.copysign(codes, values), NOT_FINITE).astype(np.int8), size


def colour_limit(cells: np.ndarray) -> float:
    """Return the size that all but the largest few cells stay within; 0 where there is no cell."""
    sizes = np.abs(cells[np.isfinite(cells)])
    return float(np.quantile(sizes, WITHIN)) if sizes.size else 0.0


def histogram(values: np.ndarray, size: float) -> np.ndarray:
    """Count the finite values in equal bars from −size to size, (BARS,) uint32."""
    flat = values[np.isfinite(values)]
    bars = np.clip((flat / (size or 1.0) + 1) * (BARS / 2), 0, BARS - 1).astype(np.intp)
    return np.bincount(bars, minlength=BARS).astype(np.uint32)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return all singular values, largest first, float64, from the smaller Gram matrix.

    Those below 1e-8 of the first are rounding errors.
    """
    wide = matrix.astype(np.float64)
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))[::-1]


def longest_first(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sort rows, and columns, by their norms, the longest first; int32 each. Of a vector its entries."""
    squares = np.square(values, dtype=np.float64)
    norms = (squares,) if values.ndim == 1 else (squares.sum(1), squares.sum(0))
    return tuple(np.argsort(-norm, kind="stable").astype(np.int32) for norm in norms)


@dataclass(frozen=True)
class NotFinite:
    """Number of values of an array that are not finite, and the place of the first."""

    count: int
    first: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> "NotFinite | None":
        """Look for such values; None where all are finite."""
        finite = np.isfinite(values)
        if finite.all():
            return None
        first = np.unravel_index(int(finite.ravel().argmin()), values.shape)
        return cls(int((~finite).sum()), tuple(map(int, first)))
