"""Observe a reading token by token: right for any kind of reader, and what cheaper ways are compared with."""

from typing import Any

from torch import Tensor

from fwl_lab.ops.observer import Observer
from fwl_lab.ops.state import map_state


def observe_token_by_token(
    reader: Any, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
) -> tuple[Tensor, Any]:
    """Take a reader's step, then go through the tokens again one by one for the observer.

    What was expected in each place is `logits` before the token is read; an update is complete where as many tokens
    were read as `update_every` says. Scores and state are those of the one step, recorded or not.

    Parameters
    ----------
    reader : Reader
        Stays as it is.
    state, inputs, labels, weights
        As for `Reader.step`.
    observer : Observer

    Returns
    -------
    nll : (B, T) nats
    state : NamedTuple
    """
    walk = map_state(Tensor.clone, state) if reader.in_place else state
    nll, after = reader.step(state, inputs, labels, weights)
    seen, every = reader.seen, reader.update_every
    for place in range(labels.shape[1]):
        at = slice(place, place + 1)
        expected = reader.logits(walk, inputs[:, at])[:, None]
        observer.expected(1, lambda part, expected=expected: expected[:, part])  # type: ignore[misc]
        _, walk = reader.step(walk, inputs[:, at], labels[:, at], weights[:, at])
        counted = weights[:, place] != 0
        seen = seen + counted
        if every is not None and reader.learning and bool((counted & (seen % every == 0)).any()):
            observer.updated(seen, lambda walk=walk: reader.fast_weights(walk))  # type: ignore[misc]
    return nll, after


def observes_its_own_step(kind: type) -> bool:
    """Return whether a kind's `observe` is of the class that defines its `step`, or of a subclass of that.

    Otherwise it redefines `step` alone, and its parent's cheaper way would tell of another step.
    """
    step, observe = (next(c for c in kind.__mro__ if name in vars(c)) for name in ("step", "observe"))
    return issubclass(observe, step)
