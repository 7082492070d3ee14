"""Compute bootstrap intervals of ratios of sums, resampling whole documents, or blocks of a single one.

Symbols: U units (documents, or strides of one document), R readers, K buckets, B replicates.
"""

from dataclasses import dataclass

import numpy as np

_STRIDES_PER_BLOCK = 8


@dataclass(frozen=True)
class Bootstrap:
    """Options of an interval: number of replicates, coverage, seed."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError(f"resamples must be at least 1 and level between 0 and 1, not {self}")


DEFAULT = Bootstrap()


@dataclass(frozen=True)
class Units:
    """Gains summed by resampling unit: a document, or a stride of the only document.

    Attributes
    ----------
    sums : (U, R, K) float
        Gain of a unit in a bucket.
    counts : (U, K) int
        Tokens of a unit in a bucket.
    blocks : bool
        Whether units are strides of one document, which are drawn in runs and not one by one.
    """

    sums: np.ndarray
    counts: np.ndarray
    blocks: bool

    @classmethod
    def of(cls, gains: np.ndarray, document: np.ndarray, bucket: np.ndarray, buckets: int) -> "Units":
        """Add up gains (R, T) by document and bucket; one document alone is cut into strides."""
        _, unit = np.unique(document, return_inverse=True)
        blocks = unit[-1] == 0
        if blocks:
            unit = np.arange(len(unit)) // max(1, block_length(len(unit)) // _STRIDES_PER_BLOCK)
        units, cell = unit[-1] + 1, unit * buckets + bucket
        counts = np.bincount(cell, minlength=units * buckets).reshape(units, buckets)
        sums = [np.bincount(cell, row, minlength=units * buckets).reshape(units, buckets) for row in gains]
        return cls(np.stack(sums, axis=1) if sums else np.zeros((units, 0, buckets)), counts, bool(blocks))

    def averaged(self) -> "Units":
        """Replace each unit's sum by its mean, so that every unit counts the same."""
        return Units(self.sums / self.counts[:, None], np.ones_like(self.counts), self.blocks)

    def intervals(self, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, low and high, each (R, K); low and high are NaN in a bucket of only one of several units."""
        known = np.full(self.counts.shape[1], self.blocks) | ((self.counts > 0).sum(axis=0) > 1)
        return self._ratio(self.counts[:, None], known, bootstrap)

    def shares(self, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each bucket's share of the gain of all buckets, low and high, each (R, K); shares add up to 1.

        A share may be negative or above 1 where some buckets gain and others lose; its interval is meaningful only
        where the gain of all buckets is well above 0.
        """
        known = np.full(self.counts.shape[1], self.blocks or len(self.counts) > 1)
        return self._ratio(self.sums.sum(axis=2, keepdims=True), known, bootstrap)

    def _ratio(
        self, parts: np.ndarray, known: np.ndarray, bootstrap: Bootstrap
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Divide the sums by `parts` (U, R or 1, K or 1), with percentile intervals in the buckets `known` (K,).

        Returns
        -------
        ratio, low, high : (R, K)
            Low and high are NaN in all other buckets.
        """
        rng = np.random.default_rng(bootstrap.seed)
        weights = self._weights(rng, bootstrap.resamples)  # (B, U)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0/0: a replicate without the bucket
            ratio = self.sums.sum(axis=0) / parts.sum(axis=0)
            replicates = np.tensordot(weights, self.sums, 1) / np.tensordot(weights, parts, 1)  # (B, R, K)
        tail = (1 - bootstrap.level) / 2
        low, high = np.full(ratio.shape, np.nan), np.full(ratio.shape, np.nan)
        known = known & np.isfinite(ratio)
        if known.any():
            low[known], high[known] = np.nanquantile(replicates[:, known], [tail, 1 - tail], axis=0)
        return ratio, low, high

    def _weights(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        """Draw how often each unit is in each replicate, (B, U) float."""
        units = len(self.counts)
        window = min(_STRIDES_PER_BLOCK, units) if self.blocks else 1
        draws = rng.multinomial(-(-units // window), np.full(units, 1 / units), size=resamples)
        # A block that starts at u also holds u+1, u+2, ...; past the last unit it wraps around to the first.
        return np.stack([np.roll(draws, shift, axis=1) for shift in range(window)]).sum(axis=0).astype(np.float64)


def block_length(tokens: int) -> int:
    """Return the tokens in a block: 64, or a 64th of a longer document, but never more than a quarter of it."""
    return max(1, min(max(64, tokens // 64), tokens // 4))
