"""Fast weights that a block carries from call to call, and the result of a call.

B rows, T tokens, S width of the output.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from fwl_lab.ops.state import map_state


class FastWeightState(NamedTuple):
    """Fast weights of documents under way, one row a document.

    Attributes
    ----------
    delta : dict of (B, ...) tensors
        Δθ at the inner batch's start, per fast parameter. Gradients are taken at θ₀ + delta.
    pending : dict of (B, ...) tensors
        The sum of the updates since. Outputs are computed at θ₀ + delta + pending.
    seen : (B,) long
        Tokens learned from, padding not counted.
    """

    delta: dict[str, Tensor]
    pending: dict[str, Tensor]
    seen: Tensor

    def fast_weights(self) -> dict[str, Tensor]:
        """Return Δθ now, per fast parameter, (B, ...)."""
        return {name: self.delta[name] + self.pending[name] for name in self.delta}

    def reset_rows(self, fresh: Tensor) -> "FastWeightState":
        """Return the state with the rows where `fresh` (B,) is True back at θ₀."""
        return map_state(lambda x: x.masked_fill(fresh.view(-1, *[1] * (x.ndim - 1)), 0), self)


@dataclasses.dataclass(frozen=True)
class BlockOutput:
    """Result of a block's call with T tokens.

    Attributes
    ----------
    nll : (B, T) nats, or None without labels
        Of each label, given the fast weights after the tokens before it; 0 where the weight is 0.
    hidden : (B, T, S)
        Adapted output; `block.logits(hidden)` is (B, T, V).
    state : FastWeightState
        After the last token.
    slow : callable
        Computes output and NLL at θ₀.
    """

    nll: Tensor | None
    hidden: Tensor
    state: FastWeightState
    slow: Callable[[], tuple[Tensor, Tensor | None]] = dataclasses.field(repr=False)

    @cached_property
    def slow_hidden(self) -> Tensor:
        """Output at θ₀, (B, T, S); computed when asked for."""
        return self.slow()[0]

    @cached_property
    def slow_nll(self) -> Tensor | None:
        """NLL at θ₀, (B, T) nats, 0 where the weight is 0, or None without labels; computed when asked for."""
        return self.slow()[1]
