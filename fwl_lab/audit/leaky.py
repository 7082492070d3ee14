"""A reader that cheats, for showing what an audit catches. Its figures are worth nothing."""

import torch
from torch import Tensor

from fwl_lab.ops.observer import Observer
from fwl_lab.readers.fast_weights import FastWeightReader, FastWeightReaderState


class LeakyReader(FastWeightReader):
    """Learns each segment of a call before it scores it: a bug that many evaluation loops have had.

    A segment is as long as an inner batch of the block and begins with the call. Everything else is
    `FastWeightReader`'s, `next_log_probs` too, so that what it declares of a token before it is read is honest, and
    the score afterwards is not. :func:`fwl_lab.certify` fails it.
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
        """Do as `step` does, and tell what an honest reader would have expected, and what was learned."""
        return self._leak(state, inputs, labels, weights, observer)

    def _leak(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, FastWeightReaderState]:
        if not (self.learning and self.step_scale):
            return self._learn(state, inputs, labels, weights, observer)
        found = []
        for start in range(0, labels.shape[1], self.update_every):
            ids, own, weight = (x[:, start : start + self.update_every] for x in (inputs, labels, weights))
            residual, _ = self.model.read(ids, state.context, weight != 0)
            _, state = self._learn(state, ids, own, weight, observer)
            # Without labels the block scores by the state alone, which has seen these very labels.
            found.append(self.model.nll(self.block(residual, None, weight, state.block).hidden, own))
        return torch.cat(found, 1), state
