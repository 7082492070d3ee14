"""Check what a reader is given, and what it gives back."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_call(tokens: Any, weights: Tensor | None, vocabulary: int, rows: int | None) -> Tensor:
    """Check the arguments of a call of `Reader.read`; return the weights (B, T), ones where none were given.

    Parameters
    ----------
    tokens, weights : (B, T)
    vocabulary : int
        V of the model.
    rows : int or None
        How many documents are being read; None: any number may begin.

    Raises
    ------
    ValueError
        Says which argument is wrong, what was expected and what to do.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens are {shape}; expected a long tensor (documents, tokens): use tokens[None] for one.")
    if weights is None:
        weights = torch.ones(tokens.shape, device=tokens.device)
    elif weights.shape != tokens.shape or not bool(weights.isfinite().all()):
        raise ValueError(
            f"weights are {tuple(weights.shape)}; expected finite numbers {tuple(tokens.shape)}, as tokens."
        )
    if not len(tokens) or rows not in (None, len(tokens)):
        raise ValueError(
            f"tokens hold {len(tokens)} documents, but this reader is reading {rows or 1}; "
            "expected the same rows as before, or reset() first."
        )
    outside = ((tokens < 0) | (tokens >= vocabulary)) & (weights != 0)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"token {column} of document {row} is {int(tokens[row, column])}; expected 0 to {vocabulary - 1}, the "
            "model's vocabulary, or a weight of 0."
        )
    return weights


def check_finite(nll: Tensor, fast_weights: Callable[[], dict[str, Tensor]]) -> None:
    """Raise FloatingPointError where a score (B, T) is not finite, with the fast weights that are not."""
    if bool(nll.isfinite().all()):
        return
    row, column = (~nll.isfinite()).nonzero()[0].tolist()
    broken = [name for name, delta in fast_weights().items() if not bool(delta.isfinite().all())]
    raise FloatingPointError(
        f"the score of token {column} of this call in document {row} is {float(nll[row, column])}; "
        f"fast weights that are not finite: {', '.join(broken) or 'none'}. A smaller step or inner batch helps."
    )


def finite_number(value: Any, name: str) -> float:
    """Return a number as float, or raise ValueError where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number.")
    return float(value)
