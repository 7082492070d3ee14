"""Readers that are wrong, each in one way, and what an audit must say of it; and a user's own reader that is right."""

import copy
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab import FastWeightReader, FastWeightState, Scores, StaticReader
from fwl_lab.models.context import Context
from tests.helpers.models import SEGMENT, VOCABULARY


class AdaptsBeforeScoring(FastWeightReader):
    """Learns a segment by heart, then scores it."""

    context: Context

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if not self.step_scale:
            return super()._read(inputs, labels, weights)
        parts = (slice(start, start + SEGMENT) for start in range(0, labels.shape[1], SEGMENT))
        return torch.cat([self._segment(inputs[:, p], labels[:, p], weights[:, p]) for p in parts], 1)

    def _segment(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        residual = self.model.read(inputs, self.context, weights != 0)[0]
        super()._read(inputs, labels, weights)
        return self.model.nll(self.block(residual, None, weights, self.state).hidden, labels)


class UsesWholeGradient(StaticReader):
    """Corrects its logits by the gradient of the whole call's loss."""

    context: Context

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if not self.step_scale:
            return super()._read(inputs, labels, weights)
        residual, self.context = self.model.read(inputs, self.context, weights != 0)
        logits = self.model.logits(self.model.slow_output(residual))
        with torch.enable_grad():
            bias = torch.zeros_like(logits[:, :1]).requires_grad_()
            loss = (F.cross_entropy((logits + bias).mT, labels, reduction="none") * weights).sum()
            (gradient,) = torch.autograd.grad(loss, bias)
        return F.cross_entropy((logits - 0.01 * gradient).mT, labels, reduction="none")


class ScoresAnother(StaticReader):
    """Scores by a sharper distribution than it declares."""

    context: Context

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        residual, self.context = self.model.read(inputs, self.context, weights != 0)
        sharpness = 1 + 0.1 * self.step_scale
        return self.model.nll(self.model.slow_output(residual) * sharpness, labels)


class KnowsItsLabels(StaticReader):
    """Is told the answer now and then, in places of its own choosing."""

    EVERY, AT = 20, 11
    context: Context

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        positions = self.context.seen[:, None] + (weights != 0).cumsum(1) - 1
        nll = super()._read(inputs, labels, weights)
        return torch.where((positions % self.EVERY == self.AT) & bool(self.step_scale), nll / 2, nll)


class PeeksAtRepeats(StaticReader):
    """Looks one token ahead, and gives itself a better score where that repeats the one to be scored."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        nll = super()._read(inputs, labels, weights)
        repeats = F.pad((labels[:, 1:] == labels[:, :-1]) & (weights[:, 1:] != 0), (0, 1))
        return torch.where(repeats & bool(self.step_scale), nll / 2, nll)


class DividesByTheBatch(FastWeightReader):
    """Divides each gradient by the weights of the batch, as the published normaliser does."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return super()._read(inputs, labels, weights * weights.shape[1] / weights.sum())


class LooksAtMates(StaticReader):
    """Lets a trace of the other rows into a score; far less than any limit but 0."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        nll = super()._read(inputs, labels, weights)
        return nll + 1e-9 * self.step_scale * (nll.mean(0) - nll)


class AdaptsInPlace(StaticReader):
    """Learns by changing its model."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        nll = super()._read(inputs, labels, weights)
        counts = torch.bincount(labels.flatten(), minlength=self.model.vocab_size)
        self.model.unembedding.weight.mul_(1 + 1e-4 * counts[:, None])
        return nll


class Rolls(StaticReader):
    """Adds a little noise."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return super()._read(inputs, labels, weights) + 1e-6 * torch.rand(labels.shape)


class AddsWithoutNormalising(StaticReader):
    """Makes what it has read more likely, and nothing less so."""

    def _start(self) -> None:
        super()._start()
        self.counts = torch.zeros(1, self.model.vocab_size, dtype=torch.float64)

    def _expand(self, rows: int) -> None:
        super()._expand(rows)
        self.counts = self.counts.expand(rows, -1)

    @property
    def bonus(self) -> float:
        return 0.1 * self.step_scale

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        nll = super()._read(inputs, labels, weights)
        ones = F.one_hot(labels, self.model.vocab_size) * weights[..., None]
        counts = torch.cat([self.counts[:, None], ones], 1).cumsum(1)
        self.counts = counts[:, -1]
        return nll - self.bonus * counts[:, :-1].gather(2, labels[..., None])[..., 0]

    def next_log_probs(self) -> Tensor:
        return super().next_log_probs() + self.bonus * self.counts

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | {"counts": self.counts.clone()}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        self.counts = tensors["counts"]


class ForgetsAfterCalls(StaticReader):
    """Begins each call without a context."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        nll = super()._read(inputs, labels, weights)
        self.context = Context.empty(len(labels), labels.device)
        return nll


class ReadsPadding(StaticReader):
    """Attends to padding as if it were text."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return super()._read(inputs, labels, torch.ones_like(weights))


class IgnoresStepScale(FastWeightReader):
    """Learns whatever it is told."""

    def with_step_scale(self, scale: float) -> Self:
        return super().with_step_scale(self.step_scale)


class RemembersAfterReset(FastWeightReader):
    """Keeps its fast weights from one document to the next."""

    def reset(self, *, carry: bool = False) -> None:
        super().reset(carry=carry or hasattr(self, "state"))


class ForksItself(FastWeightReader):
    """Its fork is the reader itself."""

    def fork(self) -> Self:
        return self

    def with_step_scale(self, scale: float) -> Self:
        return type(self)(self.model, step_scale=scale)


class SavesTooLittle(FastWeightReader):
    """Leaves what it has learned out of its state."""

    state: FastWeightState

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        learned = self.state
        super()._restore(tensors)
        self.state = learned


class Boasts(StaticReader):
    """Says that it was hardly surprised."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return super()._read(inputs, labels, weights) / 50


class HidesTokens(StaticReader):
    """Declares a distribution over only some of the vocabulary."""

    def next_log_probs(self) -> Tensor:
        return super().next_log_probs()[:, : VOCABULARY - 3].log_softmax(-1)


class GivesUp(StaticReader):
    """Raises where it should read."""

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        raise RuntimeError("out of patience \ud800")


class Counts:
    """A user's own reader, and a right one: how often each token came, plus one. It offers nothing else."""

    def __init__(self) -> None:
        self.counts = torch.ones(1, VOCABULARY, dtype=torch.float64)

    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        weights = torch.ones(tokens.shape) if weights is None else weights
        ones = F.one_hot(tokens, VOCABULARY) * weights[..., None].double()  # (B, T, V)
        before = torch.cat([self.counts.expand(len(tokens), -1)[:, None], ones], 1).cumsum(1)
        self.counts = before[:, -1]
        shares = before[:, :-1].gather(2, tokens[..., None])[..., 0] / before[:, :-1].sum(2)
        return Scores((-shares.log()).where(weights != 0, 0.0))

    def next_log_probs(self) -> Tensor:
        return (self.counts / self.counts.sum(1, keepdim=True)).log()


class KeepsWhatItWasGiven(Counts):
    """Counts a call's tokens only when the next one comes, from the tensor that it was given."""

    late: tuple[Tensor, Tensor | None] | None = None

    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        self._catch_up()
        before = self.counts
        scores = super().read(tokens, weights)
        self.counts, self.late = before.expand(len(tokens), -1), (tokens, weights)
        return scores

    def _catch_up(self) -> None:
        if self.late is not None:
            super().read(*self.late)
            self.late = None

    def next_log_probs(self) -> Tensor:
        twin = copy.copy(self)
        twin._catch_up()
        return Counts.next_log_probs(twin)


class ScoresOnlyTheLast(Counts):
    """Returns one score a call."""

    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        return Scores(super().read(tokens, weights).nll[:, -1:])


class Constant(Counts):
    """Finds every token equally likely, whatever it is: nothing can be seen of when it learns."""

    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        return Scores(torch.full(tokens.shape, 3.0) * (1 if weights is None else weights))
