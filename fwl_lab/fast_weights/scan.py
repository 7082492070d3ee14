"""The scan over inner batches: gradients at each one's start, outputs with every token's own fast weights.

Symbols (the README of this folder derives them): x input, k₁ key of the first layer, z₁, h = relu(z₁)², z₂, o output;
δ_v = ∂ℓ/∂v; θ₀ trained parameters, θ_c those at the inner batch's start, M inner batch, η step sizes, w token weights.
b rows that still have tokens, L tokens of a span, D width, H = 4·size, S width of the norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fwl_lab.fast_weights.spans import Span, join, spans
from fwl_lab.fast_weights.state import FastWeightState
from fwl_lab.fast_weights.update_rule import PARAMETERS
from fwl_lab.ops.cross_entropy import Gathered, linear_cross_entropy
from fwl_lab.ops.linear_attention import CHUNK, add_outer, before, mixed
from fwl_lab.ops.observer import Observer
from fwl_lab.ops.recompute import groups, recomputed
from fwl_lab.ops.state import map_state

if TYPE_CHECKING:
    from fwl_lab.fast_weights.block import FastWeightBlock

LONGEST = 1024  # tokens of a span where inner batches are longer: bounds memory


@dataclasses.dataclass(frozen=True)
class Scan:
    """One call of a block.

    Attributes
    ----------
    block : FastWeightBlock
    hidden : (B, T, D)
    labels : (B, T) long, or None: look without learning
    weights : (B, T), 0 where a token does not count
    learning : (B, T), what each token's gradient is multiplied by, beside the step size
    steps : dict of scalars, or of (B, T): η per fast parameter, or per token too
    head : U (V, S), c (V,) or None, and what gathers the gradient of U
    limit : `FastWeightBlock.limit`, computed once
    observer : Observer or None
    """

    block: FastWeightBlock
    hidden: Tensor
    labels: Tensor | None
    weights: Tensor
    learning: Tensor
    steps: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor | None, Gathered | None]
    limit: Tensor | None
    observer: Observer | None = None

    def run(self, state: FastWeightState) -> tuple[Tensor, FastWeightState]:
        """Output (B, T, S) and the state after the call."""
        pieces: list[tuple[Span, Tensor]] = []
        live = torch.arange(len(self.hidden), device=self.hidden.device)
        # What only looks begins no inner batch on its way: all of it is read at the fast weights of the first token.
        now, fresh = self._relinearise(state, self.weights != 0) if self.labels is None else (state, False)
        ended: list[tuple[Tensor, FastWeightState]] = []
        every = list(spans(self.weights != 0, state.seen, self.block.rule.inner_batch, LONGEST))
        # Rows that have ended are put aside; each stretch of spans has one set of rows.
        for rows, stretch in groupby(every, key=lambda span: None if span.rows is None else span.rows.tolist()):
            if rows is not None and len(rows) < len(live):
                stay = torch.isin(live, torch.tensor(rows, device=live.device))
                ended.append((live[~stay], _select(now, ~stay)))
                now, live = _select(now, stay), live[stay]
            parts = list(groups(list(stretch)))
            for part in parts:
                known: list[list[Tensor] | None] = [None if len(parts) == 1 else [] for _ in part]
                if self.labels is not None:  # out here, so that what the checkpoint keeps has nothing pending
                    now, fresh = self._relinearise(now, self._counted(part[0]))
                outputs, now = recomputed(self._spans, part, now, fresh, known, only=len(parts) == 1)
                pieces += zip(part, outputs, strict=True)
        if ended:
            ended.append((live, now))
            order = torch.cat([rows for rows, _ in ended]).argsort()
            now = _select(_concatenate([part for _, part in ended]), order)
        return join(pieces, self.hidden.new_zeros(*self.hidden.shape[:2], self.block.W2.shape[0])), now

    def _spans(
        self, part: Sequence[Span], state: FastWeightState, fresh: bool, known: list[list[Tensor] | None]
    ) -> tuple[list[Tensor], FastWeightState]:
        """Outputs of a group of spans; the first one's inner batch has begun, `fresh`: with nothing pending."""
        outputs = []
        for index, (span, found) in enumerate(zip(part, known, strict=True)):
            if index and self.labels is not None:
                state, fresh = self._relinearise(state, self._counted(span))
            output, after = self._span(span, state, fresh, found)
            outputs.append(output)
            state = state if self.labels is None else after
        return outputs, state

    def _counted(self, span: Span) -> Tensor:
        """Which of a span's places hold tokens that are learned from, (b, L) bool."""
        counted = span.take(self.weights) != 0
        return counted if span.real is None else counted & span.real

    def _relinearise(self, state: FastWeightState, counted: Tensor) -> tuple[FastWeightState, bool]:
        """Begin a new inner batch in the rows that stand at one's start: gradients are from now on taken at θ now.

        Also says whether all rows did, so that nothing is pending anywhere.
        """
        rule = self.block.rule
        rows = state.seen < 0
        if rule.inner_batch is not None:
            rows = (state.seen % rule.inner_batch == 0) & counted.any(1)
        if not bool(rows.any()):
            return state, False
        now = state.fast_weights()
        keep = self.block.retention(now, self.limit)
        if keep is not None and self.observer is not None and self.labels is not None:
            self.observer.retained(keep.detach().masked_fill(~rows, 1.0))
        delta, pending, everywhere = {}, {}, bool(rows.all())
        for name, old in state.delta.items():
            shape = (-1, *[1] * (old.ndim - 1))
            new = now[name] if keep is None else now[name] * keep.view(shape)
            row = rows.view(shape)
            delta[name] = new if everywhere else torch.where(row, new, old)
            # Where all begin anew, zeros that take no memory: the span says what is pending before it is asked.
            pending[name] = old.new_zeros(()).expand_as(old) if everywhere else state.pending[name].masked_fill(row, 0)
        return state._replace(delta=delta, pending=pending), everywhere

    def _span(
        self, span: Span, state: FastWeightState, fresh: bool, known: list[Tensor] | None
    ) -> tuple[Tensor, FastWeightState]:
        """Gradients at θ_c, then outputs at θ_c + pending + the updates of the span's own earlier tokens.

        `fresh`: nothing is pending. Returns output (b, L, S) and the state.
        """
        block, x, counted, again = self.block, span.take(self.hidden), self._counted(span), bool(known)
        theta: dict[str, Tensor] = {}
        for name in PARAMETERS:
            slow = getattr(block, name)
            if slow is not None:
                row = slow if name not in state.delta else slow + state.delta[name]
                theta[name] = row if slow.ndim == 2 else row.unsqueeze(-2)  # vectors broadcast over tokens: (b, 1, n)
        through = x if block.attached else 0.0
        k1 = block.keys(x)
        z1 = k1 @ theta["W1"].mT + theta["b1"]
        updates: dict[str, Tensor] = {}
        keys: dict[str, Tensor] = {}
        if self.labels is not None:
            positive = z1.relu()
            h = positive.square()
            normed, scale = block.normalise(h @ theta["W2"].mT + theta["b2"] + through)
            out = normed * theta["g"] + theta.get("b", 0.0)
            weight, bias, gathered = self.head
            weights = span.take(self.learning).where(counted, 0.0)
            _, d_out = linear_cross_entropy(
                out, weight, bias, span.take(self.labels), weights, gathered=gathered, known=known
            )
            d_z2 = block.normalise_backward(d_out * theta["g"], normed, scale)
            d_z1 = d_z2 @ theta["W2"] * (2 * positive)
            gradients = {"W1": d_z1, "b1": d_z1, "W2": d_z2, "b2": d_z2, "g": d_out * normed, "b": d_out}
            updates = {
                name: -(eta if eta.ndim == 0 else span.take(eta)[..., None]) * gradients[name]
                for name, eta in self.steps.items()
            }
            keys = {"W1": k1, "W2": h}
        pending = dict(state.pending)

        def adapted(name: str, queries: Tensor | None = None) -> Tensor | float:
            """What the updates since θ_c add: to a layer's output for its queries, or to a vector parameter."""
            if name not in state.delta:
                return 0.0
            earlier = None if fresh else state.pending[name]
            if not updates:
                if earlier is None:
                    return 0.0
                return earlier.unsqueeze(-2) if queries is None else queries @ earlier.mT
            if queries is not None:
                out, pending[name] = mixed(queries, keys[name], updates[name], earlier)
                return out
            total = updates[name].sum(1)
            pending[name] = total if earlier is None else earlier + total
            inside = before(updates[name])
            return inside if earlier is None else inside + earlier.unsqueeze(-2)

        hf = (z1 + adapted("W1", k1) + adapted("b1")).relu().square()
        z2f = hf @ theta["W2"].mT + theta["b2"] + through + adapted("W2", hf) + adapted("b2")
        output = block.normalise(z2f)[0] * (theta["g"] + adapted("g")) + (theta.get("b", 0.0) + adapted("b"))
        after = FastWeightState(state.delta, pending, state.seen + counted.sum(1))
        if self.observer is not None and updates and not again:  # a checkpoint's repetition has been seen
            self.observer.learned({name: (keys.get(name), update) for name, update in updates.items()})
            self._show(self.observer, state, counted, keys, updates)
        return output, after

    @torch.no_grad()
    def _show(
        self,
        observer: Observer,
        state: FastWeightState,
        counted: Tensor,
        keys: dict[str, Tensor],
        updates: dict[str, Tensor],
    ) -> None:
        """Let the observer see the state after each inner batch, or each chunk, that ends in a span."""
        seen = state.seen[:, None] + counted.cumsum(1)  # (b, L)
        ends = (seen % (self.block.rule.inner_batch or CHUNK) == 0) & counted
        for end in (ends.any(0).nonzero()[:, 0] + 1).tolist():
            pending = {}
            for name, update in updates.items():
                part, earlier = update[:, :end], state.pending[name]
                pending[name] = add_outer(earlier, keys[name][:, :end], part) if name in keys else earlier + part.sum(1)
            observer.updated(seen[:, end - 1], FastWeightState(state.delta, pending, seen).fast_weights)


def _select(state: FastWeightState, rows: Tensor) -> FastWeightState:
    return map_state(lambda x: x[rows], state)


def _concatenate(states: list[FastWeightState]) -> FastWeightState:
    def join_parameters(field: str) -> dict[str, Tensor]:
        parts = [getattr(state, field) for state in states]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    seen = torch.cat([state.seen for state in states])
    return FastWeightState(join_parameters("delta"), join_parameters("pending"), seen)
