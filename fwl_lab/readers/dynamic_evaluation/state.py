"""Define the state of dynamic evaluation: each document's adapted weights, optimizer state and place in its segment.

The weights of all documents are stacked, (B, ...) per parameter, and a document's own weights are a row of each stack.
Any optimizer can thus step one document alone, and documents can be read together without being copied first.
Documents may be at different places in their segments, so everything else is a tuple with one entry per row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fwl_lab.models.context import Context
from fwl_lab.ops.state import Rows


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


def leaves_of(state: DynamicEvaluationState, rows: list[int]) -> dict[str, Tensor]:
    """Return the weights (len(rows), ...) of some documents as leaf tensors; views where the rows are consecutive."""
    together = rows[-1] - rows[0] == len(rows) - 1
    at = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
    return {name: stacked[at].detach().requires_grad_(True) for name, stacked in state.weights.items()}


def row_of(state: DynamicEvaluationState, row: int) -> dict[str, Tensor]:
    """Return the weights of one document as leaf tensors: rows of the stack, not copies."""
    return {name: stacked[row].detach().requires_grad_(True) for name, stacked in state.weights.items()}
