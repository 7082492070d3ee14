"""Checkpoint the gradient of a recurrence: keep about √n of n states, recompute the rest in the backward pass."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, TypeVarTuple

import torch
from torch.utils.checkpoint import checkpoint

Item = TypeVar("Item")
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
Kept = TypeVar("Kept")
FEWEST_STEPS = 4  # fewer hold too little memory for a second computation to pay


def groups(steps: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the n steps of a recurrence in groups of ⌈√n⌉, each to be :func:`recomputed`.

    A graph then holds the carried state once a group and, during the backward pass, the tensors of one group: 2√n in
    place of n. Where no graph is recorded, or n < 4, there is one group.
    """
    recorded = torch.is_grad_enabled() and len(steps) >= FEWEST_STEPS
    size = math.isqrt(len(steps) - 1) + 1 if recorded else max(1, len(steps))
    return (steps[start : start + size] for start in range(0, len(steps), size))


def recomputed(function: Callable[..., Result], *arguments: object, only: bool) -> Result:
    """Call `function`; with gradients recorded and unless it is the `only` group, recompute it in the backward pass."""
    if only or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def recomputed_with(
    function: Callable[[*Arguments, Kept | None], tuple[Result, Kept]],
    *arguments: *Arguments,
    only: bool,
) -> Result:
    """Call as :func:`recomputed`, but pass what the first call kept to the recomputation.

    Parameters
    ----------
    function : callable
        `function(*arguments, None)` returns a result and what to keep, without a graph; `function(*arguments, kept)`
        is its repetition.
    """
    if only or not torch.is_grad_enabled():
        return function(*arguments, None)[0]
    kept: Kept | None = None

    def run(*arguments: *Arguments) -> Result:
        nonlocal kept
        result, found = function(*arguments, kept)
        kept = found if kept is None else kept
        return result

    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
