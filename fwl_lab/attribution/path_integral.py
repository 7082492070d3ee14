"""Integrate the slope of a token's NLL along a path, refined until the integral agrees with the NLL at both ends.

L(α) is the NLL of a token with all updates scaled by α. Between a and b it falls by L(a) − L(b), whatever the slope
does there, so that the error of each interval of the path is known: L(a) − L(b) minus the integral of the slope. One
Gauss–Legendre rule over the whole path is mostly enough. Where it is not, the interval with the largest error is halved
and the rule applied to both halves, until the sum of the errors is small.
"""

import heapq
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

AGREEMENT = 1e-3  # nats, largest difference allowed between an NLL in the trace and the one computed for the path
Parts = dict[str, np.ndarray]  # by parameter, nats of each source (n,)
#: From places α (N,) and weights w (N,) to the weighted sum of slopes; see :func:`integrate`.
Slope = Callable[[np.ndarray, np.ndarray], Parts]


@dataclass(frozen=True)
class Quadrature:
    """Settings of the numerical integration.

    Attributes
    ----------
    nodes : int
        Nodes of the Gauss–Legendre rule over each interval.
    tolerance : float
        Nats. Intervals are halved while the sum of their absolute errors is above it.
    most : int
        Most evaluations of the slope in all; the first rule is applied even where it has more nodes.
    """

    nodes: int
    tolerance: float
    most: int


class Integral(NamedTuple):
    """Result of an integration.

    Attributes
    ----------
    parts : dict of (n,) float
        By parameter, the integral of each source's part of the slope, nats.
    ends : (float, float)
        L(0) and L(1), nats.
    error : float
        Sum of the intervals' absolute errors, nats.
    evaluations : int
        Number of evaluations of the slope.
    """

    parts: Parts
    ends: tuple[float, float]
    error: float
    evaluations: int


def integrate(slope: Slope, value: Callable[[float], float], quadrature: Quadrature) -> Integral:
    """Split L(0) − L(1) over the sources.

    Parameters
    ----------
    slope : callable
        Takes places α (N,) in [0, 1] and weights w (N,), and returns by parameter the array (n,), nats, of
        −Σ_α w ⟨∇L(α), u_i⟩ for the update u_i of each of n sources.
    value : callable
        Takes α and returns L(α), nats.
    quadrature : Quadrature
    """
    places, weights = gauss_legendre(quadrature.nodes)
    order, evaluations = count(), 0
    # A heap, largest error first; the second entry is unique, so that the arrays are never compared.
    intervals: list[tuple[float, int, float, float, Parts]] = []
    values = {end: value(end) for end in (0.0, 1.0)}

    def add(begin: float, end: float) -> None:
        nonlocal evaluations
        parts = slope(begin + (end - begin) * places, (end - begin) * weights)
        evaluations += quadrature.nodes
        error = abs(values[begin] - values[end] - sum(float(part.sum()) for part in parts.values()))
        heapq.heappush(intervals, (-error, next(order), begin, end, parts))

    add(0.0, 1.0)
    while _error(intervals) > quadrature.tolerance and evaluations + 2 * quadrature.nodes <= quadrature.most:
        _, _, begin, end, _ = heapq.heappop(intervals)
        middle = (begin + end) / 2
        values[middle] = value(middle)
        add(begin, middle)
        add(middle, end)
    every = [interval[-1] for interval in intervals]
    parts = {name: np.sum([each[name] for each in every], axis=0) for name in every[0]}
    return Integral(parts, (values[0.0], values[1.0]), _error(intervals), evaluations)


def warn_of_misses(token: int, integral: Integral, quadrature: Quadrature, recorded: tuple[float, float]) -> None:
    """Warn where a token's shares do not sum to its gain.

    Parameters
    ----------
    token : int
        Index in the trace.
    integral : Integral
        Of the path to the token.
    quadrature : Quadrature
        Settings it was computed with.
    recorded : (float, float)
        NLL of the token at θ₀ and adapted, as the trace holds them, nats.

    Warns
    -----
    UserWarning
        The error of the integral is above the tolerance, or an end of the path differs from the recorded NLL by more
        than 1e-3 nats.
    """
    if integral.error > quadrature.tolerance:
        warnings.warn(
            f"the shares of token {token} miss its gain by up to {integral.error:.1e} nats after "
            f"{integral.evaluations} evaluations (tolerance {quadrature.tolerance:g}): its NLL turns too sharply while "
            "the updates are scaled. Trust them no further than that; `held` and `replay` are exact all the same.",
            stacklevel=5,
        )
    if max(abs(there - here) for there, here in zip(recorded, integral.ends, strict=True)) > AGREEMENT:
        said, found = (f"{slow:.4f} at θ₀ and {fast:.4f} adapted" for slow, fast in (recorded, integral.ends))
        warnings.warn(
            f"the trace tells of token {token} an NLL of {said}, and reading it again gives {found}: its shares sum to "
            "the second gain. Was the trace edited, or read on another device or in another dtype? Score again.",
            stacklevel=5,
        )


def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes (N,) and weights (N,) of the Gauss–Legendre rule on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return (places + 1) / 2, weights / 2


def _error(intervals: list[tuple[float, int, float, float, Parts]]) -> float:
    """Return the sum of the intervals' absolute errors, nats."""
    return sum(-interval[0] for interval in intervals)
