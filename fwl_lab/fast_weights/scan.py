"""Scan over inner batches: carry the fast weights from span to span, and the rows of a batch side by side.

Symbols (the README of this folder derives them): θ₀ trained parameters, θ_c those at the inner batch's start, M inner
batch, η step sizes. B rows, T tokens of a call; b rows that still have tokens, L tokens of a span; D width, S width of
the norm.
"""

import dataclasses
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from fwl_lab.fast_weights.inner_batch import Head, Labels, Learned, first_layer, gradients, outputs
from fwl_lab.fast_weights.parameters import BlockParameters
from fwl_lab.fast_weights.spans import Span, join, spans
from fwl_lab.fast_weights.state import FastWeightState
from fwl_lab.ops.cross_entropy import TokenLosses
from fwl_lab.ops.linear_attention import CHUNK, add_outer
from fwl_lab.ops.observer import Observer
from fwl_lab.ops.recompute import groups, recomputed_with
from fwl_lab.ops.state import concatenate_rows, select_rows

LONGEST_SPAN = 1024  # tokens; bounds memory where inner batches are longer
Kept = list[TokenLosses | None]  # of each span of a group


@dataclasses.dataclass(frozen=True)
class Scan:
    """One call of a block.

    Inside a scan a state whose `pending` is an empty dict has nothing pending: its inner batch has just begun.

    Attributes
    ----------
    parameters : BlockParameters
    head : Head
    hidden : (B, T, D)
    weights : (B, T)
        0 where a token does not count.
    given : Labels or None
        Of the whole call: (B, T), steps () or (B, T). None: look without learning.
    limit : () or None
        `parameters.limit()`, computed once.
    observer : Observer or None
    """

    parameters: BlockParameters
    head: Head
    hidden: Tensor
    weights: Tensor
    given: Labels | None
    limit: Tensor | None
    observer: Observer | None = None

    def run(self, state: FastWeightState) -> tuple[Tensor, FastWeightState]:
        """Compute the output (B, T, S) and the state after the call."""
        pieces: list[tuple[Span, Tensor]] = []
        live = torch.arange(len(self.hidden), device=self.hidden.device)
        # Looking begins no inner batch on its way: all tokens are read at the fast weights of the first.
        now = self._begin(state, self.weights != 0, None) if self.given is None else state
        ended: list[tuple[Tensor, FastWeightState]] = []
        every = list(spans(self.weights != 0, state.seen, self.parameters.rule.inner_batch, LONGEST_SPAN))
        # Rows that have ended are put aside; each stretch of spans has one set of rows.
        for rows, stretch in groupby(every, key=lambda span: None if span.rows is None else span.rows.tolist()):
            if rows is not None and len(rows) < len(live):
                stay = torch.isin(live, torch.tensor(rows, device=live.device))
                ended.append((live[~stay], select_rows(now, ~stay)))
                now, live = select_rows(now, stay), live[stay]
            parts = list(groups(list(stretch)))
            for part in parts:
                if self.given is not None:  # out here, so that the state which the checkpoint keeps has nothing pending
                    now = self._begin(now, self._counted(part[0]), self.observer)
                outputs, now = recomputed_with(self._group, part, now, only=len(parts) == 1)
                pieces += zip(part, outputs, strict=True)
        if ended:
            ended.append((live, now))
            order = torch.cat([rows for rows, _ in ended]).argsort()
            now = select_rows(concatenate_rows([part for _, part in ended]), order)
        width = self.parameters.slow["W2"].shape[0]
        return join(pieces, self.hidden.new_zeros(*self.hidden.shape[:2], width)), now

    def _group(
        self, part: Sequence[Span], state: FastWeightState, kept: Kept | None
    ) -> tuple[tuple[list[Tensor], FastWeightState], Kept]:
        """Compute a group of spans, of which the first one's inner batch has begun; see `recomputed_with`."""
        observer = self.observer if kept is None else None  # which has seen what is repeated
        found, losses = [], []
        for index, span in enumerate(part):
            if index and self.given is not None:
                state = self._begin(state, self._counted(span), observer)
            output, state, own = self._span(span, state, None if kept is None else kept[index], observer)
            found.append(output)
            losses.append(own)
        return (found, state), losses

    def _counted(self, span: Span) -> Tensor:
        """Return which of a span's places hold tokens that are learned from, (b, L) bool."""
        counted = span.take(self.weights) != 0
        return counted if span.real is None else counted & span.real

    def _begin(self, state: FastWeightState, counted: Tensor, observer: Observer | None) -> FastWeightState:
        """Begin an inner batch in the rows that stand at one's start: gradients are from now on taken at θ now."""
        inner_batch = self.parameters.rule.inner_batch
        if inner_batch is None:
            return state
        rows = (state.seen % inner_batch == 0) & counted.any(1)
        if not bool(rows.any()):
            return state
        now = state.fast_weights()
        keep = self.parameters.retention(now, self.limit)
        if keep is not None and observer is not None:
            observer.retained(keep.detach().masked_fill(~rows, 1.0))
        delta, pending, everywhere = {}, {}, bool(rows.all())
        for name, old in state.delta.items():
            shape = (-1, *[1] * (old.ndim - 1))
            new = now[name] if keep is None else now[name] * keep.view(shape)
            if everywhere:
                delta[name] = new
            else:
                delta[name] = torch.where(rows.view(shape), new, old)
                pending[name] = state.pending[name].masked_fill(rows.view(shape), 0)
        return state._replace(delta=delta, pending=pending)

    def _span(
        self, span: Span, state: FastWeightState, losses: TokenLosses | None, observer: Observer | None
    ) -> tuple[Tensor, FastWeightState, TokenLosses | None]:
        """Compute the output (b, L, S) of a span, the state after it, and what a repetition needs not compute again."""
        counted, theta = self._counted(span), self.parameters.at(state.delta)
        layer = first_layer(self.parameters, theta, span.take(self.hidden))
        if self.given is None:
            return outputs(self.parameters, theta, layer, state.pending, None)[0], state, None
        given = Labels(
            span.take(self.given.labels),
            span.take(self.given.weights).where(counted, 0.0),
            {name: eta if eta.ndim == 0 else span.take(eta)[..., None] for name, eta in self.given.steps.items()},
        )
        learned, losses = gradients(self.parameters, theta, layer, given, self.head, losses)
        output, pending = outputs(self.parameters, theta, layer, state.pending, learned)
        if observer is not None:
            observer.learned({name: (learned.keys.get(name), update) for name, update in learned.updates.items()})
            self._show(observer, state, counted, learned)
        return output, FastWeightState(state.delta, pending, state.seen + counted.sum(1)), losses

    @torch.no_grad()
    def _show(self, observer: Observer, state: FastWeightState, counted: Tensor, learned: Learned) -> None:
        """Let the observer see the state after each inner batch, or each chunk, that ends in a span."""
        seen = state.seen[:, None] + counted.cumsum(1)  # (b, L)
        ends = (seen % (self.parameters.rule.inner_batch or CHUNK) == 0) & counted
        for end in (ends.any(0).nonzero()[:, 0] + 1).tolist():
            pending = {}
            for name, update in learned.updates.items():
                part, earlier = update[:, :end], state.pending.get(name)
                if name in learned.keys:
                    pending[name] = add_outer(earlier, learned.keys[name][:, :end], part)
                else:
                    pending[name] = part.sum(1) if earlier is None else earlier + part.sum(1)
            observer.updated(seen[:, end - 1], FastWeightState(state.delta, pending, seen).fast_weights)
