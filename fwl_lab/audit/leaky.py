"""A reader that cheats, for showing what an audit catches. Its figures are worth nothing."""

import torch
from torch import Tensor

from fwl_lab.readers import FastWeightReader


class LeakyReader(FastWeightReader):
    """Learns each segment of a call before it scores it: a bug that many evaluation loops have had.

    A segment is as long as an inner batch of the block and begins with the call. Everything else is
    `FastWeightReader`'s, `next_log_probs` too, so that what it declares of a token before it is read is honest, and
    the score afterwards is not. :func:`fwl_lab.certify` fails it.
    """

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if not (self.learning and self.step_scale):
            return super()._read(inputs, labels, weights)
        parts = zip(*(x.split(self.update_every, 1) for x in (inputs, labels, weights)), strict=True)
        return torch.cat([self._learn_then_score(*part) for part in parts], 1)

    def _learn_then_score(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        residual, _ = self.model.read(inputs, self.context, weights != 0)
        super()._read(inputs, labels, weights)
        # Without labels the block scores by the state alone, which has seen these very labels.
        return self.model.nll(self.block(residual, None, weights, self.state).hidden, labels)
