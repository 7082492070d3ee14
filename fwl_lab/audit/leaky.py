"""Provide a reader that scores tokens after learning from them, to show that an audit finds it."""

import torch
from torch import Tensor

from fwl_lab.ops.observer import Observer
from fwl_lab.readers.fast_weights import FastWeightReader, FastWeightReaderState


class LeakyReader(FastWeightReader):
    """Learn from each segment of a call before scoring it, a common bug in evaluation loops. Its scores are invalid.

    A segment is as long as an inner batch of the block and begins with the call. Everything else is that of
    `FastWeightReader`, `next_log_probs` too: what it declares before a token is read is right, and the score that it
    returns afterwards is not. It fails :func:`fwl_lab.certify`.
    """

    label = "leaky FWL"

    def step(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Learn from each segment of a call, then score it."""
        return self._leak(state, inputs, labels, weights, None)

    def observe(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Do as `step` does, and tell an observer what `FastWeightReader` would have expected, and what was learned."""
        return self._leak(state, inputs, labels, weights, observer)

    def _leak(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Score each segment with the state after it."""
        if not (self.learning and self.step_scale):
            return self._learn(state, inputs, labels, weights, observer)
        found = []
        for start in range(0, labels.shape[1], self.update_every):
            ids, own, weight = (x[:, start : start + self.update_every] for x in (inputs, labels, weights))
            residual, _ = self.model.read(ids, state.context, weight != 0)
            _, state = self._learn(state, ids, own, weight, observer)
            # Without labels the block only applies its state, which has learned from these labels by now.
            found.append(self.model.nll(self.block(residual, None, weight, state.block).hidden, own))
        return torch.cat(found, 1), state
