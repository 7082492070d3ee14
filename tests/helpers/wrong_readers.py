"""Readers that are wrong, each in one way, and what an audit must say of it; and a user's own reader that is right."""

import copy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab import FastWeightReader, Scores, StaticReader
from fwl_lab.models.context import Context
from fwl_lab.readers.static import StaticState
from tests.helpers.models import SEGMENT, VOCABULARY


class AdaptsBeforeScoring(FastWeightReader):
    """Learns a segment by heart, then scores it."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        if not self.step_scale:
            return super().step(state, inputs, labels, weights)
        found = []
        for part in zip(*(x.split(SEGMENT, 1) for x in (inputs, labels, weights)), strict=True):
            residual = self.model.read(part[0], state.context, part[2] != 0)[0]
            _, state = super().step(state, *part)
            found.append(self.model.nll(self.block(residual, None, part[2], state.block).hidden, part[1]))
        return torch.cat(found, 1), state


class UsesWholeGradient(StaticReader):
    """Corrects its logits by the gradient of the whole call's loss."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        if not self.step_scale:
            return super().step(state, inputs, labels, weights)
        residual, context = self.model.read(inputs, state.context, weights != 0)
        logits = self.model.logits(self.model.slow_output(residual))
        with torch.enable_grad():
            bias = torch.zeros_like(logits[:, :1]).requires_grad_()
            loss = (F.cross_entropy((logits + bias).mT, labels, reduction="none") * weights).sum()
            (gradient,) = torch.autograd.grad(loss, bias)
        return F.cross_entropy((logits - 0.01 * gradient).mT, labels, reduction="none"), StaticState(context)


class ScoresAnother(StaticReader):
    """Scores by a sharper distribution than it declares."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        residual, context = self.model.read(inputs, state.context, weights != 0)
        sharpness = 1 + 0.1 * self.step_scale
        return self.model.nll(self.model.slow_output(residual) * sharpness, labels), StaticState(context)


class KnowsItsLabels(StaticReader):
    """Is told the answer now and then, in places of its own choosing."""

    EVERY, AT = 20, 11

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        positions = state.context.seen[:, None] + (weights != 0).cumsum(1) - 1
        nll, state = super().step(state, inputs, labels, weights)
        return torch.where((positions % self.EVERY == self.AT) & bool(self.step_scale), nll / 2, nll), state


class PeeksAtRepeats(StaticReader):
    """Looks one token ahead, and gives itself a better score where that repeats the one to be scored."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        repeats = F.pad((labels[:, 1:] == labels[:, :-1]) & (weights[:, 1:] != 0), (0, 1))
        return torch.where(repeats & bool(self.step_scale), nll / 2, nll), state


class DividesByTheBatch(FastWeightReader):
    """Divides each gradient by the weights of the batch, as the published normaliser does."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        return super().step(state, inputs, labels, weights * weights.shape[1] / weights.sum())


class LooksAtMates(StaticReader):
    """Lets a trace of the other rows into a score; far less than any limit but 0."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll + 1e-9 * self.step_scale * (nll.mean(0) - nll), state


class AdaptsInPlace(StaticReader):
    """Learns by changing its model."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        counts = torch.bincount(labels.flatten(), minlength=self.model.vocab_size)
        self.model.unembedding.weight.mul_(1 + 1e-4 * counts[:, None])
        return nll, state


class Rolls(StaticReader):
    """Adds a little noise."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll + 1e-6 * torch.rand(labels.shape), state


class CountingState(NamedTuple):
    """The model's context, and how often each token came: (B, V)."""

    context: Context
    counts: Tensor


class AddsWithoutNormalising(StaticReader):
    """Makes what it has read more likely, and nothing less so."""

    def initial_state(self, rows: int) -> Any:
        counts = torch.zeros(rows, self.model.vocab_size, dtype=torch.float64)
        return CountingState(Context.empty(rows, self.model.device), counts)

    @property
    def bonus(self) -> float:
        return 0.1 * self.step_scale

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, after = super().step(state, inputs, labels, weights)
        ones = F.one_hot(labels, self.model.vocab_size) * weights[..., None]
        counts = torch.cat([state.counts[:, None], ones], 1).cumsum(1)
        bonus = self.bonus * counts[:, :-1].gather(2, labels[..., None])[..., 0]
        return nll - bonus, CountingState(after.context, counts[:, -1])

    def next_log_probs(self) -> Tensor:
        return super().next_log_probs() + self.bonus * self.state.counts


class ForgetsAfterCalls(StaticReader):
    """Begins each call without a context."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, _ = super().step(state, inputs, labels, weights)
        return nll, StaticState(Context.empty(len(labels), labels.device))


class ReadsPadding(StaticReader):
    """Attends to padding as if it were text."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        return super().step(state, inputs, labels, torch.ones_like(weights))


class IgnoresStepScale(FastWeightReader):
    """Learns whatever it is told."""

    def with_step_scale(self, scale: float) -> Self:
        return super().with_step_scale(self.step_scale)


class RemembersAfterReset(FastWeightReader):
    """Keeps its fast weights from one document to the next."""

    def reset(self, *, carry: bool = False) -> None:
        super().reset(carry=carry or hasattr(self, "_now"))


class ForksItself(FastWeightReader):
    """Its fork is the reader itself."""

    def fork(self) -> Self:
        return self

    def with_step_scale(self, scale: float) -> Self:
        return type(self)(self.model, step_scale=scale)


class SavesTooLittle(FastWeightReader):
    """Leaves what it has learned out of its state."""

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        reader: Any = self
        learned = reader.state.block
        super().load_state_dict(tensors)
        reader.state = reader.state._replace(block=learned)


class Boasts(StaticReader):
    """Says that it was hardly surprised."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll / 50, state


class HidesTokens(StaticReader):
    """Declares a distribution over only some of the vocabulary."""

    def next_log_probs(self) -> Tensor:
        return super().next_log_probs()[:, : VOCABULARY - 3].log_softmax(-1)


class GivesUp(StaticReader):
    """Raises where it should read."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
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
