"""What dynamic evaluation keeps of each document: its copy of the adapted parameters, its optimizer's, its place.

The copies of all documents lie in one stack (B, ...) per parameter, and a document's own tensors are its rows: any
optimizer can step one document alone, and documents can be read together without being copied first. Documents may
stand at unlike places of their segments, so that what else is kept of them is a tuple with an entry a row.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.models.context import Context
from fwl_lab.ops.state import Rows
from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationRMS, DynamicEvaluationSGD

CONSTANTS = ("theta0", "scale", "mean_scale")  # what a published rule keeps and never changes


class DocumentState(NamedTuple):
    """One document under way.

    Attributes
    ----------
    before : Context at the start of the segment
    now : Context after the last input read
    inputs, labels, token_weights : (1, n) of the segment so far
    optimizer : dict of tensors
        What the optimizer keeps of each parameter, by "index of the parameter.name"; constants are left out.
    """

    before: Context
    now: Context
    inputs: Tensor
    labels: Tensor
    token_weights: Tensor
    optimizer: dict[str, Tensor]

    @classmethod
    def begin(cls, device: torch.device, optimizer: Mapping[str, Tensor] | None = None) -> "DocumentState":
        """Return a document of which nothing has been read, with what the optimizer keeps from the one before."""
        context, none = Context.empty(1, device), torch.zeros(1, 0, dtype=torch.long, device=device)
        return cls(context, context, none, none, none.float(), dict(optimizer or {}))

    def place(self, rotary: bool) -> tuple[int, ...]:
        """Return what must be equal for documents to be read together: places in the segment and the KV caches."""
        begun, slots = self.inputs.shape[1], (self.before.positions.shape[1], self.now.positions.shape[1])
        # Rotary positions may differ from row to row; windows of absolute ones begin at fixed positions.
        return (begun, *slots) if rotary else (begun, *slots, int(self.now.seen))

    def extend(self, inputs: Tensor, labels: Tensor, token_weights: Tensor, now: Context) -> "DocumentState":
        """Return the document with tokens (1, n) added to its segment."""
        old, new = (self.inputs, self.labels, self.token_weights), (inputs, labels, token_weights)
        inputs, labels, token_weights = (torch.cat(pair, 1) for pair in zip(old, new, strict=True))
        return self._replace(now=now, inputs=inputs, labels=labels, token_weights=token_weights)

    def next_segment(self, context: Context, optimizer: dict[str, Tensor]) -> "DocumentState":
        """Return the document at the start of its next segment, having read `context`."""
        inputs, labels, token_weights = (x[:, :0] for x in (self.inputs, self.labels, self.token_weights))
        return DocumentState(context, context, inputs, labels, token_weights, optimizer)


class DynamicEvaluationState(NamedTuple):
    """All documents under way.

    Attributes
    ----------
    weights : dict of (B, ...)
        The adapted parameters of each document. Changed in place.
    documents : Rows of B DocumentState
    """

    weights: dict[str, Tensor]
    documents: Rows


class RowOptimizers:
    """Optimizers of single documents, over rows of a stack of weights: copies of one that was made at θ₀.

    Parameters
    ----------
    leaves : sequence of Tensor
        θ₀ of what adapts, as leaf tensors; they stay as they are.
    optimizer : Optimizer over them
    """

    def __init__(self, leaves: Sequence[Tensor], optimizer: Optimizer) -> None:
        self.leaves, self.optimizer = list(leaves), optimizer
        published = isinstance(optimizer, DynamicEvaluationSGD | DynamicEvaluationRMS)
        self.names = CONSTANTS if published else ()
        # One copy of what never changes serves all documents.
        states = optimizer.state.values()
        self.constants = {id(x): x for state in states for name, x in state.items() if name in self.names}

    def over(self, weights: Sequence[Tensor], kept: Mapping[str, Tensor]) -> Optimizer:
        """Return the optimizer of one document over its leaf tensors, with what it has `kept`."""
        memo = {id(old): new for old, new in zip(self.leaves, weights, strict=True)} | self.constants
        optimizer: Optimizer = copy.deepcopy(self.optimizer, memo)
        for key, value in kept.items():
            index, _, name = key.partition(".")
            optimizer.state[weights[int(index)]][name] = value.clone()
        return optimizer

    def kept(self, weights: Sequence[Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
        """Return what an optimizer of :meth:`over` keeps, without constants."""
        return {
            f"{index}.{name}": torch.as_tensor(value)
            for index, weight in enumerate(weights)
            for name, value in optimizer.state.get(weight, {}).items()
            if name not in self.names
        }


@torch.no_grad()
def take_step(
    weights: Sequence[Tensor], optimizer: Optimizer, gradients: Sequence[Tensor | None], scale: float
) -> None:
    """Let an optimizer take one step along the gradients of its weights, multiplied by `scale`; in place."""
    old = [] if scale == 1 else [weight.detach().clone() for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for weight, start in zip(weights, old, strict=False):
        weight.copy_(torch.lerp(start, weight, scale))


def leaves_of(state: DynamicEvaluationState, rows: list[int]) -> dict[str, Tensor]:
    """Return the weights (len(rows), ...) of some documents as leaf tensors; of neighbours without a copy."""
    together = rows[-1] - rows[0] == len(rows) - 1
    at = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
    return {name: stacked[at].detach().requires_grad_(True) for name, stacked in state.weights.items()}
