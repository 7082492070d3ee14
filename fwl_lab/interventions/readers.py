"""Make readers whose updates are changed by a surgery; see `fwl_lab.Surgery` for what can be changed.

Symbols: θ₀ slow weights, Δθ fast weights minus θ₀, B rows, T tokens, M tokens of an inner batch, R and C rows and
columns of a matrix.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.fast_weights import FastWeightBlock, FastWeightState
from fwl_lab.interventions.surgery import Surgery
from fwl_lab.ops.observer import Deltas, Observer, Observers
from fwl_lab.readers.base import Reader
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader
from fwl_lab.readers.dynamic_evaluation.row_optimizers import take_step
from fwl_lab.readers.fast_weights import FastWeightReader, FastWeightReaderState


def operate(reader: Reader, surgery: Surgery) -> Reader:
    """Make a fresh reader with the settings of `reader` whose updates are changed by a surgery.

    It keeps the whole contract of readers (`fwl_lab.readers.base`).

    Parameters
    ----------
    reader : FastWeightReader or DynamicEvaluationReader
        Unchanged.
    surgery : Surgery
        Its tokens are positions in a document, the same in every document that is read.

    Raises
    ------
    ValueError
        Another kind of reader; a parameter that does not adapt in it, or is not a matrix where directions are removed;
        directions that the matrix does not have; or, for dynamic evaluation, a part of a segment.
    """
    return operate_on_each(reader, surgery, [surgery.token_factors])


def operate_on_each(reader: Reader, surgery: Surgery, documents: Sequence[Mapping[int, float]]) -> Reader:
    """Make a reader as :func:`operate` does, with different token factors in each document.

    Parameters
    ----------
    reader : FastWeightReader or DynamicEvaluationReader
        Unchanged.
    surgery : Surgery
        Its own token factors are not used.
    documents : sequence of mapping from position to factor
        One mapping for all documents, or one for each in the order in which they are read; later documents have
        no factors.

    Raises
    ------
    ValueError
        As for :func:`operate`.
    """
    if not isinstance(reader, Reader) or not isinstance(surgery, Surgery):
        raise ValueError(
            f"given are a {type(reader).__name__} and a {type(surgery).__name__}; expected a Reader, such as "
            "FastWeightReader(model), and a Surgery(...)."
        )
    _check(reader, surgery)
    operated: OperatedFastWeightReader | OperatedDynamicEvaluationReader
    if reader.learns == "block":
        operated = OperatedFastWeightReader(cast(FastWeightReader, reader), surgery)
    elif reader.learns == "model":
        operated = OperatedDynamicEvaluationReader(cast(DynamicEvaluationReader, reader), surgery)
        documents = [_by_segments(factors, operated.update_every) for factors in documents]
    else:
        raise ValueError(
            f"the reader is a {type(reader).__name__}; surgery knows the updates of FastWeightReader and "
            "DynamicEvaluationReader alone. (Of one that is operated on already: say all of it in one Surgery.)"
        )
    tables = [_table(factors) for factors in documents]
    operated.table = tables[0]
    if len(tables) > 1:
        operated.table, operated.tables = _table({}), iter([*tables, _table({})])
    return operated


def _check(reader: Reader, surgery: Surgery) -> None:
    """Raise ValueError where a surgery names parameters or directions that the reader does not have."""
    slow = reader.slow_weights()
    matrices = [name for name, weight in slow.items() if weight.ndim == 2]
    for field, known in (("scale", list(slow)), ("remove_directions", matrices)):
        for name in getattr(surgery, field):
            if slow and name not in known:
                kind = "a fast parameter" if field == "scale" else "a fast matrix"
                few = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
                raise ValueError(f"{field} names {name!r}; expected {kind} of this reader: {few or 'it has none'}.")
    for name, which in surgery.remove_directions.items():
        if slow and which and which[-1] >= min(slow[name].shape):
            raise ValueError(
                f"direction {which[-1]} of {name} is to be removed, but {tuple(slow[name].shape)} has "
                f"{min(slow[name].shape)}; expected 0 to {min(slow[name].shape) - 1}."
            )


def _by_segments(factors: Mapping[int, float], segment: int) -> dict[int, float]:
    """Return the factors of segments, each at the position of its last token.

    Raises
    ------
    ValueError
        `factors` name a part of a segment, or give tokens of one segment different factors.
    """
    whole = {}
    for number in sorted({token // segment for token in factors}):
        first, last = number * segment, (number + 1) * segment - 1
        named = {token: factors[token] for token in range(first, last + 1) if token in factors}
        if not (last in named and len(set(named.values())) == 1 and len(named) in (1, segment)):
            raise ValueError(
                f"the surgery names position {min(named)} of a document, and dynamic evaluation learns from the "
                f"segment {first} to {last} at once; expected its last token, {last}, which stands for the whole "
                "segment, or all of its tokens with one factor."
            )
        whole[last] = named[last]
    return whole


def _table(factors: Mapping[int, float]) -> Tensor:
    """Return the factor of each position, (n,) float64; the last entry, 1, applies to all positions after it."""
    table = torch.ones(max(factors, default=-1) + 2, dtype=torch.float64)
    for position, factor in factors.items():
        table[position] = factor
    return table


def keep_directions(delta: Tensor, kept: list[int]) -> Tensor:
    """Return Δθ (..., R, C) projected on some of its singular directions."""
    wide = delta.to(torch.promote_types(delta.dtype, torch.float32))
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    return ((u[..., kept] * s[..., None, kept]) @ vh[..., kept, :]).to(delta.dtype)


class Operated(Reader):
    """Base of readers under surgery: keeps the surgery and the token factors of the current document.

    Attributes
    ----------
    surgery : Surgery
    table : (n,) float64
        Factor of each position of the current document; the last entry applies to all positions after it.
    tables : iterator of (n,) float64
        Tables of the documents that follow; when it is exhausted, `table` stays.
    """

    surgery: Surgery
    table: Tensor
    tables: Iterator[Tensor]

    def _under(self, surgery: Surgery) -> None:
        """Set the surgery, without token factors; to be called before the reader's own constructor."""
        self.surgery, self.tables, self.table = surgery, iter(()), _table({})

    def reset(self, *, carry: bool = False) -> None:
        """Begin new documents, with the next table of token factors; see `Reader.reset`."""
        super().reset(carry=carry)
        self.table = next(self.tables, self.table)

    def configuration(self) -> dict[str, Any]:
        """Return the reader's configuration with what the surgery changes, under the key "surgery"."""
        return super().configuration() | {"surgery": self.surgery.facts()}


class OperatedFastWeightReader(Operated, FastWeightReader):
    """Fast-weight reader under surgery.

    Factors of tokens and parameters multiply each token's own update. A decay is combined with the rule's. Singular
    directions are removed from Δθ at the end of each inner batch of M tokens; where M is None every 64 tokens, and
    gradients are still those at θ₀.

    Parameters
    ----------
    reader : FastWeightReader
        Gives model, step scale and rule; unchanged.
    surgery : Surgery

    Raises
    ------
    ValueError
        The surgery has a decay, and the block's inner batch is None.
    """

    def __init__(self, reader: FastWeightReader, surgery: Surgery) -> None:
        self._under(surgery)
        self.kept: dict[str, list[int]] = {}
        super().__init__(reader.model, step_scale=reader.step_scale, rule=reader.block.rule)
        if surgery.decay:
            self.block = _forgetting(self.block, surgery.decay)
        shapes = {name: weight.shape for name, weight in self.slow_weights().items()}
        found = {name: surgery.kept_directions(name, shape) for name, shape in shapes.items()}
        self.kept = {name: kept for name, kept in found.items() if kept is not None}

    def _scales(self, state: FastWeightReaderState, weights: Tensor) -> float | dict[str, Tensor]:
        """Return the factor of each token's update (B, T), by parameter; one number where no factor was given."""
        if len(self.table) == 1 and not self.surgery.scale:
            return self.step_scale
        counted = (weights != 0).long()
        places = state.block.seen[:, None] + counted.cumsum(1) - counted  # (B, T), positions in the documents
        table = self.table.to(self.block.W1)
        factors = self.step_scale * table[places.clamp(max=len(table) - 1)]
        return {name: factors * self.surgery.scale.get(name, 1.0) for name in self.block.fast_parameters}

    def _learn(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Score and learn; where directions are removed, stop at each complete update to edit Δθ and report it."""
        if not (self.kept and self.learning and self.step_scale != 0):
            return super()._learn(state, inputs, labels, weights, observer)
        # An update is complete only when it has been edited, so the block must not report it to observers.
        unfinished = None if observer is None else _Unfinished([observer])
        counted = weights != 0
        places = state.block.seen[:, None] + counted.cumsum(1)
        ends = (places % self.update_every == 0) & counted  # (B, T), tokens that complete an update
        nll = []
        for start, stop in pairwise(sorted({0, *(ends.any(0).nonzero()[:, 0] + 1).tolist(), labels.shape[1]})):
            at = slice(start, stop)
            found, state = super()._learn(state, inputs[:, at], labels[:, at], weights[:, at], unfinished)
            nll.append(found)
            if bool((complete := ends[:, stop - 1]).any()):
                state = state._replace(block=self._edited(state.block, complete))
                if observer is not None:
                    observer.updated(state.block.seen, state.block.fast_weights)
        return torch.cat(nll, 1), state

    @property
    def factors(self) -> bool:
        """Whether each token's factors add up to Δθ: not where directions are removed from it."""
        return not self.kept

    def _edited(self, state: FastWeightState, rows: Tensor) -> FastWeightState:
        """Return the state with directions removed from Δθ in some rows, a mask (B,), which are at an update's end."""
        delta, pending = dict(state.delta), dict(state.pending)
        for name, kept in self.kept.items():
            old, since = delta[name], pending[name]
            new, row = keep_directions(old + since, kept), rows.view(-1, 1, 1)
            if self.block.rule.inner_batch is None:
                pending[name] = torch.where(row, new - old, since)
            else:
                delta[name], pending[name] = torch.where(row, new, old), since.masked_fill(row, 0)
        return state._replace(delta=delta, pending=pending)


class _Unfinished(Observers):
    """Observers that are told everything but the completion of updates."""

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """Ignore the call: the reader reports the update itself, once it has been edited."""


def _forgetting(block: FastWeightBlock, decay: float) -> FastWeightBlock:
    """Return a block over the same weights whose rule has a further decay; ValueError where it has no inner batch."""
    if block.rule.inner_batch is None:
        raise ValueError(
            "the block's inner batch is None, so its rule never forgets, and a decay would not act; expected decay 0."
        )
    own = block.decay()
    own = own.item() if isinstance(own, Tensor) else own
    return block.with_rule(dataclasses.replace(block.rule, decay=1 - (1 - own) * (1 - decay), learn_decay=False))


class OperatedDynamicEvaluationReader(Operated, DynamicEvaluationReader):
    """Dynamic-evaluation reader under surgery.

    A factor multiplies the whole change of an update, the optimizer's own decay included. A dropped update is not made
    at all: the optimizer takes no step, so that its state does not change either, and Δθ is not edited after it.

    Parameters
    ----------
    reader : DynamicEvaluationReader
        Gives model, optimizer, segment, parameters and step scale; unchanged.
    surgery : Surgery
    """

    def __init__(self, reader: DynamicEvaluationReader, surgery: Surgery) -> None:
        self._under(surgery)
        super().__init__(
            reader.model, reader.make_optimizer, reader.segment, reader.parameters, step_scale=reader.step_scale
        )
        found = {name: surgery.kept_directions(name, weight.shape) for name, weight in self.slow.items()}
        self.kept = {name: kept for name, kept in found.items() if kept is not None}

    def _update(
        self, place: int, weights: dict[str, Tensor], optimizer: Optimizer, gradients: Sequence[Tensor | None]
    ) -> None:
        """Take one step under the surgery; see `DynamicEvaluationReader._update`."""
        factor = float(self.table[min(place, len(self.table) - 1)])
        if not factor:
            return
        scale, decay = self.surgery.scale, self.surgery.decay
        with torch.no_grad():
            old = {name: weights[name].detach().clone() for name in scale}
            take_step(list(weights.values()), optimizer, gradients, self.step_scale * factor)
            for name, start in old.items():
                weights[name].copy_(torch.lerp(start, weights[name], scale[name]))
            for name in weights if decay else self.kept:
                slow, kept = self.slow[name], self.kept.get(name)
                delta = weights[name] - slow
                delta = delta if kept is None else keep_directions(delta, kept)
                weights[name].copy_(slow + (1 - decay) * delta)
