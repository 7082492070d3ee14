"""What each document under dynamic evaluation keeps: its copy of the adapted parameters, its optimizer, its place.

The copies of all documents lie in one stack (B, ...) per parameter, and a document's own tensors are its rows: any
optimizer can step one document alone, and documents can be read together without being copied first.
"""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from fwl_lab.models.context import Context
from fwl_lab.ops.state import from_tensors, map_state, to_tensors
from fwl_lab.readers.dynamic_evaluation.optimizers import (
    DynamicEvaluationRMS,
    DynamicEvaluationSGD,
    MakeOptimizer,
)

CONSTANTS = ("theta0", "scale", "mean_scale")  # what a published rule keeps and never changes
SEGMENT_FIELDS = ("inputs", "labels", "token_weights")


@dataclasses.dataclass
class DocumentState:
    """One document under way.

    Attributes
    ----------
    weights : dict of leaf tensors, the adapted parameters: rows of the stack
    optimizer : over them
    before : Context at the start of the segment
    now : Context after the last input read
    inputs, labels, token_weights : (1, n) of the segment so far
    """

    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    before: Context
    now: Context
    inputs: Tensor
    labels: Tensor
    token_weights: Tensor

    @classmethod
    def begin(cls, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> "DocumentState":
        """A document of which nothing has been read."""
        device = next(iter(weights.values())).device
        context, none = Context.empty(1, device), torch.zeros(1, 0, dtype=torch.long, device=device)
        return cls(weights, optimizer, context, context, none, none, none.float())

    def place(self, rotary: bool) -> tuple[int, ...]:
        """Documents can be read together where this is equal: tokens in the segment, slots in the caches, position."""
        begun, slots = self.inputs.shape[1], (self.before.positions.shape[1], self.now.positions.shape[1])
        # Rotary positions may differ from row to row; windows of absolute ones begin at fixed positions.
        return (begun, *slots) if rotary else (begun, *slots, int(self.now.seen))

    def extend(self, inputs: Tensor, labels: Tensor, token_weights: Tensor) -> None:
        """Add tokens (1, n) to the segment."""
        for name, new in zip(SEGMENT_FIELDS, (inputs, labels, token_weights), strict=True):
            setattr(self, name, torch.cat([getattr(self, name), new], 1))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], scale: float) -> None:
        """One step of the optimizer, multiplied by `scale`."""
        old = [] if scale == 1 else [p.detach().clone() for p in self.weights.values()]
        for parameter, gradient in zip(self.weights.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, start in zip(self.weights.values(), old, strict=False):
            parameter.copy_(torch.lerp(start, parameter, scale))

    def end_segment(self, context: Context) -> None:
        """Begin the next segment, having read `context`."""
        self.before = self.now = context
        for name in SEGMENT_FIELDS:
            setattr(self, name, getattr(self, name)[:, :0])

    def tensors(self) -> dict[str, Tensor]:
        """All of it as a flat dict."""
        tensors = to_tensors(self.before, "before.") | to_tensors(self.now, "now.")
        tensors |= {name: getattr(self, name).clone() for name in SEGMENT_FIELDS}
        tensors |= {f"weights.{n}": p.detach().clone(memory_format=torch.contiguous_format)
                    for n, p in self.weights.items()}  # fmt: skip
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; ValueError where other parameters were adapted."""
        saved = {n.removeprefix("weights."): tuple(x.shape) for n, x in tensors.items() if n.startswith("weights.")}
        own = {name: tuple(p.shape) for name, p in self.weights.items()}
        if saved != own:
            odd = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
            raise ValueError(
                f"the state holds {len(saved)} adapted parameters, this reader adapts {len(own)}; they differ in "
                f"{odd[0]}: load it into a reader of the same `parameters`."
            )
        self.before, self.now = (from_tensors(self.now, tensors, f"{name}.") for name in ("before", "now"))
        for name in SEGMENT_FIELDS:
            setattr(self, name, tensors[name].to(self.now.seen.device))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                states.setdefault(int(index), {})[name] = value.clone()
        for name, parameter in self.weights.items():
            parameter.copy_(tensors[f"weights.{name}"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})


class Copies:
    """The documents of a batch and the stack of their weights.

    Attributes
    ----------
    stack : dict of (B, ...)
    documents : list of B DocumentState
    """

    def __init__(self, slow: dict[str, Tensor], make_optimizer: MakeOptimizer) -> None:
        self.stack = {name: p.detach()[None].clone(memory_format=torch.contiguous_format) for name, p in slow.items()}
        weights = self._row(0)
        self.documents = [DocumentState.begin(weights, make_optimizer(list(weights.values())))]

    def _row(self, row: int) -> dict[str, Tensor]:
        return {name: stacked[row].detach().requires_grad_(True) for name, stacked in self.stack.items()}

    def expand(self, rows: int) -> None:
        """Turn the one document into `rows` equal ones: weights carried from the document before serve them all."""
        (first,) = self.documents
        self.stack = {name: x.repeat(rows, *[1] * (x.ndim - 1)) for name, x in self.stack.items()}
        constant = self._constant()
        self.documents = []
        for row in range(rows):
            weights = self._row(row)
            # Deep copies find the new tensors in place of the old ones, the optimizer's among them.
            memo = {id(old): weights[name] for name, old in first.weights.items()} | constant
            self.documents.append(copy.deepcopy(first, memo))

    def fork(self) -> "Copies":
        """The same, to go its own way; one deep copy of everything keeps the optimizers on the copied tensors."""
        return copy.deepcopy(self, self._constant())

    def _constant(self) -> dict[int, Tensor]:
        """What the published rules keep and never change, by identity: one copy of it serves all documents."""
        published = (DynamicEvaluationSGD, DynamicEvaluationRMS)
        states = [s for d in self.documents if isinstance(d.optimizer, published) for s in d.optimizer.state.values()]
        return {id(x): x for state in states for name, x in state.items() if name in CONSTANTS}

    def carry(self) -> None:
        """Begin new documents with the weights, and the optimizers, of those before."""
        self.documents = [DocumentState.begin(d.weights, d.optimizer) for d in self.documents]

    def leaves(self, rows: list[int]) -> dict[str, Tensor]:
        """The weights (len(rows), ...) of some documents as leaf tensors; of neighbours without a copy."""
        together = rows[-1] - rows[0] == len(rows) - 1
        at = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
        return {name: stacked[at].detach().requires_grad_(True) for name, stacked in self.stack.items()}


def join(contexts: Sequence[Context]) -> Context:
    """Contexts of single documents with equally many slots as one batch."""
    keys, values = (
        tuple(torch.cat(layer) for layer in zip(*group, strict=True))
        for group in ([c.keys for c in contexts], [c.values for c in contexts])
    )
    rest = (torch.cat([getattr(c, name) for c in contexts]) for name in ("positions", "recent", "seen"))
    return Context(keys, values, *rest)


def part(context: Context, row: int) -> Context:
    """One document's context."""
    return map_state(lambda x: x[row : row + 1], context)
