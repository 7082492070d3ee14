"""Observe one reader while it reads, copy what the plan asks for, and write it to the trace."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fwl_lab.inference.plan import PER_UPDATE, Plan
from fwl_lab.ops.observer import Deltas, Observer
from fwl_lab.readers.base import Reader
from fwl_lab.trace import schema
from fwl_lab.trace.writer import TraceWriter

DISTRIBUTIONS_AT_ONCE = 256  # tokens whose log-probabilities (V,) are in memory together


class Recording(Observer):
    """Observer of one reader that collects what its plan keeps, and writes it after each block of tokens.

    Parameters
    ----------
    plan : Plan
    name : str
        Name of the reader in the trace.
    writer : TraceWriter
        Receives the arrays. The norms of the slow weights and the places of snapshots are written at once.

    Attributes
    ----------
    seconds : float
        Time spent recording, to be subtracted from the time of the reading.
    """

    def __init__(self, plan: Plan, name: str, writer: TraceWriter) -> None:
        self.plan, self.name, self.writer = plan, name, writer
        self.row = list(plan.readers).index(name)
        self.seconds = 0.0
        self.device = plan.readers[name].model.device
        slow = plan.readers[name].slow_weights()
        # Column of each of its parameters; the others' stay NaN, as do all where the reader has no fast weights.
        self.columns = {parameter: plan.parameters.index(parameter) for parameter in slow}
        shape = (len(plan.update_token), len(plan.parameters))
        self.updates = {variable: np.full(shape, np.nan) for variable in PER_UPDATE}
        self.retention = np.full(len(plan.update_token), 1.0 if slow else np.nan)
        self.norms = np.full(len(plan.parameters), np.nan)  # of Δθ after the last update
        self.tokens: dict[str, list[np.ndarray]] = {}  # by variable, values of the tokens since the last flush
        self.done, self.flushed = 0, 0  # updates that `updates` holds; tokens that are written
        self.told = 0  # updates that the reader told of since the last flush
        if slow:
            norms = self.norms.copy()
            for parameter, weight in slow.items():
                norms[self.columns[parameter]] = _norm(weight)
            writer.put(schema.SLOW_NORM, norms, self.row)
            writer.put(schema.ANCHORED, plan.anchored[name], self.row)

    @contextmanager
    def document(self, reader: Reader, start: int) -> Iterator[None]:
        """Observe `reader` inside the context, while it reads one document whose first token is `start` in the trace.

        The reader must read with a batch of one document.
        """
        # With carried fast weights a document begins with the Δθ that the last one ended with.
        self.start = self.learnt = start
        self.reader = reader
        self.previous = {name: self._own(delta[0]) for name, delta in reader.fast_weights(reader.state).items()}
        self.steps: dict[str, Tensor] = {}
        for name, delta in self.previous.items():
            self.norms[self.columns[name]] = _norm(delta)
        with reader.observed(self):
            yield

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time spent inside the context to `seconds`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # work still queued belongs to the reading, not to the recording
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        """Keep the most likely tokens at each of the next `count` places, and the rank of the label among all."""
        top = self.plan.recorder.top
        with self._timed():
            scored = self.flushed + sum(map(len, self.tokens.get(schema.LABEL_RANK, [])))
            for begin in range(0, count if top else 0, DISTRIBUTIONS_AT_ONCE):
                part = slice(begin, min(begin + DISTRIBUTIONS_AT_ONCE, count))
                log_probs = logits(part)[0].float().log_softmax(-1)  # one document: row 0
                ids = self.writer.token_id[scored + part.start : scored + part.stop]
                own = log_probs.gather(1, torch.as_tensor(ids, device=log_probs.device)[:, None])
                found = log_probs.topk(top)
                self._keep(schema.LABEL_RANK, (log_probs > own).sum(1, dtype=torch.int32))
                self._keep(schema.TOP_ID, found.indices.int())
                self._keep(schema.TOP_LOG_PROB, found.values)

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        """Keep the factors of the tokens just learned, where the plan keeps this reader's; count the tokens."""
        with self._timed():
            self.learnt += next(iter(factors.values()))[1].shape[1]
            for parameter in self.plan.kept.get(self.name, {}) if self.name == self.plan.factored else ():
                key, delta = factors[parameter]
                self._keep(schema.delta_name(parameter), delta[0])
                if key is not None:
                    self._keep(schema.key_name(parameter), key[0])

    def retained(self, keep: Tensor) -> None:
        """Keep the factor `keep` (1,) by which a decay or a cap has multiplied Δθ."""
        at = np.flatnonzero(self.plan.update_token == self.learnt - 1)
        # No place of the grid matches before the first token, when Δθ is still 0.
        self.retention[at] = float(keep[0])

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """Keep norms, cosine and drift of an update that is complete after `seen` (1,) tokens, and a snapshot of Δθ.

        Raises
        ------
        ValueError
            The reader's `update_every` foresees no update there.
        """
        with self._timed():
            token = self.start + int(seen[0]) - 1
            index = int(np.searchsorted(self.plan.update_token, token))
            if not (self.plan.own[self.name] & (self.plan.update_token == token)).any():
                raise ValueError(
                    f"reader {self.name!r} made an update after {int(seen[0])} tokens of a document, and its "
                    f"`update_every` is {self.plan.readers[self.name].update_every}; expected that to tell where."
                )
            self._fill_unchanged(index)
            for name, rows in fast_weights().items():
                delta, column = self._own(rows[0]), self.columns[name]
                step = delta - self.previous[name]
                length, last = _norm(step), self.steps.get(name)
                self.updates[schema.UPDATE_NORM][index, column] = length
                if last is not None and (scale := length * _norm(last)):
                    self.updates[schema.UPDATE_COSINE][index, column] = float(step.flatten() @ last.flatten()) / scale
                self.previous[name], self.steps[name] = delta, step
                self.norms[column] = _norm(delta)
                if self.plan.anchored[self.name][index] and name in self.plan.kept[self.name]:
                    self._snapshot(name, delta, index)
            self.updates[schema.DRIFT][index] = self.norms
            self.done, self.told = index + 1, self.told + 1

    def flush(self, stop: int) -> None:
        """Write what was collected of all tokens before the trace index `stop`, which have been read."""
        with self._timed():
            self._check_complete(stop)
            self._fill_unchanged(int(np.searchsorted(self.plan.update_token, stop)))
            for variable, parts in self.tokens.items():
                at = slice(self.flushed, stop)
                where = (self.row, at) if schema.READER in self.writer.layout[variable].sizes else (at,)
                self.writer.put(variable, np.concatenate(parts), *where)
            self.tokens.clear()
            # Begin one update earlier: its retention is known only when the next inner batch begins.
            first = max(0, int(np.searchsorted(self.plan.update_token, self.flushed)) - 1)
            if self.columns and self.done > first:
                at = slice(first, self.done)
                for variable, values in self.updates.items():
                    self.writer.put(variable, values[at], self.row, at)
                self.writer.put(schema.RETENTION, self.retention[at], self.row, at)
            self.flushed, self.told = stop, 0

    def _check_complete(self, stop: int) -> None:
        """Check that the reader told of every token and update since the last flush.

        Raises
        ------
        RuntimeError
            It did not: its `observe` leaves something out, and the trace would hold a gap that looks like a fact.
        """
        counts = {variable: sum(map(len, parts)) for variable, parts in self.tokens.items()}
        learns = self.reader.learning and self.reader.step_scale != 0 and bool(self.columns)
        kept = self.plan.kept.get(self.name, {}) if learns and self.name == self.plan.factored else ()
        expected = [schema.TOP_ID] * bool(self.plan.recorder.top) + [schema.delta_name(parameter) for parameter in kept]
        wrong = {name: (counts.get(name, 0), stop - self.flushed) for name in expected}
        grid = self.plan.update_token[self.plan.own[self.name]]
        if learns:
            due = int(((grid >= self.flushed) & (grid < stop)).sum())
            wrong["updates"] = (self.told, due)
        for name, (told, due) in wrong.items():
            if told != due:
                raise RuntimeError(
                    f"reader {self.name!r} told its observer of {told} of {due} values of {name!r}; its `observe` must "
                    "tell of each token and update, or be left to `Reader`, which goes token by token."
                )

    def _own(self, delta: Tensor) -> Tensor:
        """Return Δθ of a parameter, a copy where the reader may change its own in place."""
        return delta.detach().clone() if self.reader.in_place else delta.detach()

    def _snapshot(self, parameter: str, delta: Tensor, index: int) -> None:
        """Write Δθ of a parameter at a place of the grid, whole or as its leading singular directions."""
        if not self.plan.low_rank(self.name, tuple(delta.shape)):
            self.writer.put(schema.fast_weight_name(parameter), _copy(delta), self.row, index)
            return
        rank = self.plan.recorder.rank
        left, values, right = torch.linalg.svd(delta.float(), full_matrices=False)
        self.writer.put(schema.left_name(parameter), _copy(left[:, :rank] * values[:rank]), self.row, index)
        self.writer.put(schema.right_name(parameter), _copy(right[:rank]), self.row, index)

    def _keep(self, variable: str, values: Tensor) -> None:
        """Copy values of the next tokens of a variable until the next flush."""
        self.tokens.setdefault(variable, []).append(_copy(values))

    def _fill_unchanged(self, stop: int) -> None:
        """Fill the grid up to `stop` where this reader made no update: steps of norm 0, and an unchanged Δθ."""
        if stop > self.done:
            unchanged = slice(self.done, stop)
            self.updates[schema.UPDATE_NORM][unchanged, list(self.columns.values())] = 0.0
            self.updates[schema.DRIFT][unchanged] = self.norms
            self.done = stop


def _norm(x: Tensor) -> float:
    """Return the Euclidean (Frobenius) norm."""
    return float(torch.linalg.vector_norm(x.detach()))


def _copy(x: Tensor) -> np.ndarray:
    """Return a copy on the CPU, which later changes of the tensor in place do not reach."""
    return x.detach().to("cpu", copy=True).numpy()
