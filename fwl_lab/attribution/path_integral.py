"""The integral of a slope along a path whose ends are known, refined until what it sums to agrees with them.

L(α) is the NLL of a token with all updates scaled by α. From a to b it falls by L(a) − L(b), whatever the slope does in
between, so that the error of each stretch of the path is known: L(a) − L(b) less the integral of the slope. A
Gauss–Legendre rule over the whole path mostly does. Where it doesn't, the worst stretch is halved, and the rule taken
over each half, until the errors are small together.
"""

import heapq
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

AGREEMENT = 1e-3  # nats between what a trace tells and another reading of it, at most
Parts = dict[str, np.ndarray]  # nats by source (n,), by parameter
Slope = Callable[[np.ndarray, np.ndarray], Parts]


@dataclass(frozen=True)
class Rule:
    """How finely to integrate."""

    nodes: int  # of the Gauss–Legendre rule over each stretch
    tolerance: float  # nats: of the stretches' errors, their sizes summed
    most: int  # evaluations of the slope, in all; the first rule is taken whole


class Integral(NamedTuple):
    """What a path is worth to each source."""

    parts: Parts
    ends: tuple[float, float]  # L(0), L(1)
    error: float  # nats: of all stretches, their sizes summed
    evaluations: int  # of the slope


def integrate(slope: Slope, value: Callable[[float], float], rule: Rule) -> Integral:
    """Split L(0) − L(1) over the sources.

    Parameters
    ----------
    slope : callable
        From places α (N,) in [0, 1] and weights w (N,) to −Σ w ⟨∇L(α), u_i⟩ of each source's update u_i, (n,) nats, by
        parameter.
    value : callable
        L(α), nats.
    rule : Rule
    """
    places, weights = gauss_legendre(rule.nodes)
    order, evaluations = count(), 0
    stretches: list[tuple[float, int, float, float, Parts]] = []  # the worst first; no two of the same number
    values = {end: value(end) for end in (0.0, 1.0)}

    def add(begin: float, end: float) -> None:
        nonlocal evaluations
        parts = slope(begin + (end - begin) * places, (end - begin) * weights)
        evaluations += rule.nodes
        error = abs(values[begin] - values[end] - sum(float(part.sum()) for part in parts.values()))
        heapq.heappush(stretches, (-error, next(order), begin, end, parts))

    add(0.0, 1.0)
    while _error(stretches) > rule.tolerance and evaluations + 2 * rule.nodes <= rule.most:
        _, _, begin, end, _ = heapq.heappop(stretches)
        middle = (begin + end) / 2
        values[middle] = value(middle)
        add(begin, middle)
        add(middle, end)
    every = [stretch[-1] for stretch in stretches]
    parts = {name: np.sum([each[name] for each in every], axis=0) for name in every[0]}
    return Integral(parts, (values[0.0], values[1.0]), _error(stretches), evaluations)


def warn_of_misses(token: int, integral: Integral, rule: Rule, told: tuple[float, float]) -> None:
    """Say where shares don't sum to the gain of a token, because of the path or of what the trace told of its ends."""
    if integral.error > rule.tolerance:
        warnings.warn(
            f"the shares of token {token} miss its gain by up to {integral.error:.1e} nats after "
            f"{integral.evaluations} evaluations (tolerance {rule.tolerance:g}): its NLL turns too sharply while the "
            "updates are scaled. Trust them no further than that; `held` and `replay` are exact all the same.",
            stacklevel=5,
        )
    if max(abs(there - here) for there, here in zip(told, integral.ends, strict=True)) > AGREEMENT:
        said, found = (f"{slow:.4f} at θ₀ and {fast:.4f} adapted" for slow, fast in (told, integral.ends))
        warnings.warn(
            f"the trace tells of token {token} an NLL of {said}, and reading it again gives {found}: its shares sum to "
            "the second gain. Was the trace edited, or read on another device or in another dtype? Score again.",
            stacklevel=5,
        )


def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return (places + 1) / 2, weights / 2


def _error(stretches: list[tuple[float, int, float, float, Parts]]) -> float:
    return sum(-stretch[0] for stretch in stretches)
