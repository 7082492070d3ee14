"""A recurrence in training: what is kept for the backward pass, and what is computed again."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Item = TypeVar("Item")
Result = TypeVar("Result")
FEWEST = 4  # steps; fewer hold too little for a second computation to pay


def groups(steps: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The n steps of a recurrence in groups of ⌈√n⌉, each to be :func:`recomputed`.

    A graph then holds the carried state once a group and, while it is differentiated, what one group makes: 2√n in
    place of n. Where nothing is recorded, or n < 4, there is one group.
    """
    recorded = torch.is_grad_enabled() and len(steps) >= FEWEST
    size = math.isqrt(len(steps) - 1) + 1 if recorded else max(1, len(steps))
    return (steps[start : start + size] for start in range(0, len(steps), size))


def recomputed(function: Callable[..., Result], *arguments: object, only: bool) -> Result:
    """`function(*arguments)`; where gradients are recorded and it is not the `only` group, computed again backward."""
    if only or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
