"""Define the static reader, which scores with the trained weights and does not adapt."""

from typing import NamedTuple

from torch import Tensor

from fwl_lab.models.context import Context
from fwl_lab.ops.observer import Observer
from fwl_lab.readers.base import Reader


class StaticState(NamedTuple):
    """State of a reader without fast weights.

    Attributes
    ----------
    context : Context
        KV cache and positions of the model's body.
    """

    context: Context


class StaticReader(Reader):
    """Reader that never adapts: a model's fast-weight block, if it has one, stays at θ₀.

    `StaticReader(model.base)` gives the log-probabilities of the plain language model.
    """

    label = "static"
    adapts = False

    def initial_state(self, rows: int) -> StaticState:
        """Return the state of `rows` documents before their first token."""
        return StaticState(Context.empty(rows, self.model.device))

    def step(self, state: StaticState, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, StaticState]:
        """Score the next tokens; see `Reader.step`."""
        return self._score(state, inputs, labels, weights, None)

    def observe(
        self, state: StaticState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, StaticState]:
        """Score the next tokens, and report the predicted distributions; see `Reader.observe`."""
        return self._score(state, inputs, labels, weights, observer)

    def _score(
        self, state: StaticState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, StaticState]:
        """Score the next tokens, and report the predicted distributions to an observer, if there is one."""
        valid = weights != 0
        residual, context = self.model.read(inputs, state.context, valid)
        hidden = self.model.slow_output(residual, state.context.seen, valid)
        if observer is not None:
            observer.expected(hidden.shape[1], lambda part: self.model.logits(hidden[:, part]))
        return self.model.nll(hidden, labels, valid), StaticState(context)

    def logits(self, state: StaticState, last: Tensor) -> Tensor:
        """Return the logits (B, V) of the token after `last` (B, 1)."""
        return self.model(last, state.context)[0][:, -1]
