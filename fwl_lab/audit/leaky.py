"""A reader that cheats, for showing what an audit catches. Its figures are worth nothing."""

import torch
from torch import Tensor

from fwl_lab.readers.fast_weights import FastWeightReader, FastWeightReaderState


class LeakyReader(FastWeightReader):
    """Learns each segment of a call before it scores it: a bug that many evaluation loops have had.

    A segment is as long as an inner batch of the block and begins with the call. Everything else is
    `FastWeightReader`'s, `next_log_probs` too, so that what it declares of a token before it is read is honest, and
    the score afterwards is not. :func:`fwl_lab.certify` fails it.
    """

    label = "leaky FWL"
    every_token = False

    def step(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Learn from each segment of a call, then score it."""
        if not (self.learning and self.step_scale):
            return super().step(state, inputs, labels, weights)
        found = []
        for part in zip(*(x.split(self.update_every, 1) for x in (inputs, labels, weights)), strict=True):
            residual, _ = self.model.read(part[0], state.context, part[2] != 0)
            _, state = super().step(state, *part)
            # Without labels the block scores by the state alone, which has seen these very labels.
            found.append(self.model.nll(self.block(residual, None, part[2], state.block).hidden, part[1]))
        return torch.cat(found, 1), state
