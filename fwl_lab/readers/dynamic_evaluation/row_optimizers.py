"""Optimizers of single documents over rows of a stack of weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationRMS, DynamicEvaluationSGD
from fwl_lab.readers.dynamic_evaluation.state import DynamicEvaluationState, row_of

CONSTANTS = ("theta0", "scale", "mean_scale")  # entries of a published rule's state that never change
OPTIMIZER = "optimizer"  # key of a state dict: the optimizer's name, as bytes
SAVEABLE = (Tensor, bool, int, float)  # of an optimizer's state
Live = tuple[dict[str, Tensor], Optimizer]  # a document's weights, leaf tensors, and the optimizer over them


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
        self._bound: dict[str, Tensor] | None = None  # the stack of weights that the live ones are over
        self._live: list[Live] = []

    def fresh(self) -> "RowOptimizers":
        """Return the same without any document's optimizer; readers never share one object."""
        other = copy.copy(self)
        other._bound, other._live = None, []
        return other

    def of(self, state: DynamicEvaluationState) -> list[Live]:
        """Return each document's weights and its optimizer over them, made where this state has none yet."""
        if self._bound is not state.weights:
            # Weights carried from a document before serve several now: so does their optimizer, as it stands.
            carried = self._live[0] if len(self._live) == 1 and len(state.documents) > 1 else None
            self._live = []
            for row, document in enumerate(state.documents):
                own = row_of(state, row)
                optimizer = self.over(list(own.values()), document.optimizer)
                self._live.append((own, optimizer) if carried is None else self.copy(carried, own))
            self._bound = state.weights
        return self._live

    def fork(self, state: DynamicEvaluationState, twin: DynamicEvaluationState) -> "RowOptimizers":
        """Return the same for a copy of a state, each document's optimizer as it stands."""
        other = self.fresh()
        if self._bound is state.weights:
            other._live = [self.copy(live, row_of(twin, row)) for row, live in enumerate(self._live)]
            other._bound = twin.weights
        return other

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

    def copy(self, live: Live, weights: dict[str, Tensor]) -> Live:
        """Return a document's optimizer as it stands, hyperparameters and all, over other leaf tensors."""
        own, optimizer = live
        memo = {id(old): weights[name] for name, old in own.items()} | self.constants
        return weights, copy.deepcopy(optimizer, memo)

    def facts(self) -> dict[str, Tensor]:
        """Return the optimizer's name as a tensor, for a state dict.

        Raises
        ------
        ValueError
            A document's optimizer keeps what a state dict of tensors cannot hold.
        """
        for weight, optimizer in ((weight, optimizer) for own, optimizer in self._live for weight in own.values()):
            for name, value in optimizer.state.get(weight, {}).items():
                if not isinstance(value, SAVEABLE):
                    raise ValueError(
                        f"{type(optimizer).__name__} keeps {name!r}, a {type(value).__name__}; expected tensors or "
                        "numbers, which a saved state can hold."
                    )
        return {OPTIMIZER: torch.tensor(list(type(self.optimizer).__name__.encode()))}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError where a state dict was saved with another optimizer than this."""
        ours = type(self.optimizer).__name__
        theirs = bytes(tensors[OPTIMIZER].tolist()).decode() if OPTIMIZER in tensors else ours
        if theirs != ours:
            raise ValueError(f"the state was saved by a reader that steps with {theirs}, this one steps with {ours}.")

    def kept(self, weights: Sequence[Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the state of an optimizer of :meth:`over`, without constants; see `DocumentState.optimizer`."""
        return {
            f"{index}.{name}": torch.as_tensor(value)
            for index, weight in enumerate(weights)
            for name, value in optimizer.state.get(weight, {}).items()
            if name not in self.names and isinstance(value, SAVEABLE)
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
