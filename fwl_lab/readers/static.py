"""The reader that does not adapt."""

from torch import Tensor

from fwl_lab.models.context import Context
from fwl_lab.ops.state import expand_rows, from_tensors, to_tensors
from fwl_lab.readers.base import Reader


class StaticReader(Reader):
    """Reads with the trained weights; a model's block, if it has one, stays at θ₀.

    `StaticReader(model.base)` gives the plain language model's log-probabilities.
    """

    def _start(self) -> None:
        self.context = Context.empty(1, self.model.device)

    def _carry(self) -> None:
        self.context = Context.empty(len(self.last), self.model.device)

    def _expand(self, rows: int) -> None:
        self.context = expand_rows(self.context, rows)

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        valid, seen = weights != 0, self.context.seen
        residual, self.context = self.model.read(inputs, self.context, valid)
        hidden = self.model.slow_output(residual, seen, valid)
        if self._observer is not None:
            self._observer.expected(hidden.shape[1], lambda part: self.model.logits(hidden[:, part]))
        return self.model.nll(hidden, labels, valid)

    def _logits(self, last: Tensor) -> Tensor:
        return self.model(last, self.context)[0][:, -1]

    def _tensors(self) -> dict[str, Tensor]:
        return to_tensors(self.context, "context.")

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.context = from_tensors(self.context, tensors, "context.")
