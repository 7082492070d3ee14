"""Define the state of dynamic evaluation: each document's adapted weights, optimizer state and place in its segment.

The weights of all documents are stacked, (B, ...) per parameter, and a document's own weights are a row of each stack.
Any optimizer can thus step one document alone, and documents can be read together without being copied first.
Documents may be at different places in their segments, so everything else is a tuple with one entry per row.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.models.context import Context
from fwl_lab.ops.state import Rows
from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationRMS, DynamicEvaluationSGD

CONSTANTS = ("theta0", "scale", "mean_scale")  # entries of a published rule's state that never change


class DocumentState(NamedTuple):
    """State of one document.

    Attributes
    ----------
    before : Context
        At the start of the current segment.
    now : Context
        After the last input read.
    inputs, labels, token_weights : (1, n)
        Of the tokens read in the current segment.
    optimizer : dict of Tensor
        The optimizer's state of each parameter, by "<index of the parameter>.<name>", without constants.
    """

    before: Context
    now: Context
    inputs: Tensor
    labels: Tensor
    token_weights: Tensor
    optimizer: dict[str, Tensor]

    @classmethod
    def begin(cls, device: torch.device, optimizer: Mapping[str, Tensor] | None = None) -> "DocumentState":
        """Return the state before the first token; `optimizer` is the optimizer's state of the document before."""
        context, none = Context.empty(1, device), torch.zeros(1, 0, dtype=torch.long, device=device)
        return cls(context, context, none, none, none.float(), dict(optimizer or {}))

    def place(self, rotary: bool) -> tuple[int, ...]:
        """Return the numbers that must be equal for documents to be read together.

        These are the tokens read in the segment, the lengths of the two contexts' KV caches, and for absolute
        positions the tokens read in the document.
        """
        begun, slots = self.inputs.shape[1], (self.before.positions.shape[1], self.now.positions.shape[1])
        # Rotary positions may differ between rows; with absolute positions, windows begin at fixed places.
        return (begun, *slots) if rotary else (begun, *slots, int(self.now.seen))

    def extend(self, inputs: Tensor, labels: Tensor, token_weights: Tensor, now: Context) -> "DocumentState":
        """Return the state with tokens (1, n) added to its segment, and the context after them."""
        old, new = (self.inputs, self.labels, self.token_weights), (inputs, labels, token_weights)
        inputs, labels, token_weights = (torch.cat(pair, 1) for pair in zip(old, new, strict=True))
        return self._replace(now=now, inputs=inputs, labels=labels, token_weights=token_weights)

    def next_segment(self, context: Context, optimizer: dict[str, Tensor]) -> "DocumentState":
        """Return the state at the start of the next segment, with the context and the optimizer's state there."""
        inputs, labels, token_weights = (x[:, :0] for x in (self.inputs, self.labels, self.token_weights))
        return DocumentState(context, context, inputs, labels, token_weights, optimizer)


class DynamicEvaluationState(NamedTuple):
    """State of all documents.

    Attributes
    ----------
    weights : dict of (B, ...)
        The adapted parameters of each document. Changed in place.
    documents : Rows of B DocumentState
        Everything else.
    """

    weights: dict[str, Tensor]
    documents: Rows


class RowOptimizers:
    """Maker of optimizers for single documents, over rows of stacked weights: copies of one optimizer made at θ₀.

    Parameters
    ----------
    leaves : sequence of Tensor
        θ₀ of the adapted parameters, as leaf tensors; unchanged.
    optimizer : Optimizer
        Over `leaves`; it is only copied, and takes no step.
    """

    def __init__(self, leaves: Sequence[Tensor], optimizer: Optimizer) -> None:
        self.leaves, self.optimizer = list(leaves), optimizer
        published = isinstance(optimizer, DynamicEvaluationSGD | DynamicEvaluationRMS)
        self.names = CONSTANTS if published else ()
        # All documents share one copy of the constants.
        states = optimizer.state.values()
        self.constants = {id(x): x for state in states for name, x in state.items() if name in self.names}

    def hyperparameters(self) -> dict[str, Any]:
        """Return the optimizer's name and hyperparameters, as JSON values; those that are none are left out."""
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.optimizer.param_groups[0].items()}
        values = {
            name: value
            for name, value in settings.items()
            if all(isinstance(x, int | float | str) for x in (value if isinstance(value, list) else [value]))
        }
        return {"optimizer": type(self.optimizer).__name__, **values}

    def over(self, weights: Sequence[Tensor], kept: Mapping[str, Tensor]) -> Optimizer:
        """Return the optimizer of one document, over its leaf tensors `weights` and with its state `kept`."""
        memo = {id(old): new for old, new in zip(self.leaves, weights, strict=True)} | self.constants
        optimizer: Optimizer = copy.deepcopy(self.optimizer, memo)
        for key, value in kept.items():
            index, _, name = key.partition(".")
            optimizer.state[weights[int(index)]][name] = value.clone()
        return optimizer

    def kept(self, weights: Sequence[Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the state of an optimizer of :meth:`over`, without constants; see `DocumentState.optimizer`."""
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
    """Update weights in place by one step of an optimizer, with the whole change multiplied by `scale`.

    Parameters
    ----------
    weights : sequence of Tensor
        Leaf tensors that the optimizer updates.
    optimizer : Optimizer
    gradients : sequence of Tensor or None
        Of each weight.
    scale : float
        Factor of the change, the optimizer's own decay included.
    """
    old = [] if scale == 1 else [weight.detach().clone() for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for weight, start in zip(weights, old, strict=False):
        weight.copy_(torch.lerp(start, weight, scale))


def leaves_of(state: DynamicEvaluationState, rows: list[int]) -> dict[str, Tensor]:
    """Return the weights (len(rows), ...) of some documents as leaf tensors; views where the rows are consecutive."""
    together = rows[-1] - rows[0] == len(rows) - 1
    at = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
    return {name: stacked[at].detach().requires_grad_(True) for name, stacked in state.weights.items()}
