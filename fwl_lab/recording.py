"""What is kept of a reading beside the scores. A recorder watches a reader while it reads, and copies."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from . import trace as schema
from .observing import Deltas, Observer
from .readers import FastWeightReader, Reader
from .writing import Array, TraceWriter

ANCHOR = 4096  # tokens between two dense Δθ of a reader whose factors are kept
PIECE = 256  # tokens whose distributions are held at once
PER_UPDATE = (schema.UPDATE_NORM, schema.DRIFT, schema.UPDATE_COSINE)
BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True)
class Recorder:
    """What to record.

    Norms of every update, and what a decay or a cap left of the past, are always kept.

    Attributes
    ----------
    factors : bool
        Keep the exact factors of a `FastWeightReader` (keys and updates, each token) and a dense Δθ every 4,096 tokens,
        so that Δθ at any token is a product; see `fwl_lab.fast_weight`. A trace holds the factors of one reader:
        the first of that kind.
    snapshots_every : int, optional
        Tokens, counted from a document's start, between two dense Δθ of every reader that adapts. Each is taken at
        the first update that many tokens, or more, after the last.
    parameters : sequence of str, optional
        Whose factors and dense Δθ are kept. None: all that are fast.
    top : int
        How many of the likeliest tokens to keep of what a reader expected in each place; 0: none, nor the label's rank.
    byte_budget : str or int
        The most that may be written beside the scores, such as "1 GiB" or "200 MB", or a number of bytes.
    """

    factors: bool = True
    snapshots_every: int | None = None
    parameters: Sequence[str] | None = None
    top: int = 10
    byte_budget: str | int = "1 GiB"

    def __post_init__(self) -> None:
        every = self.snapshots_every
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"snapshots_every is {every!r}; expected a whole number of tokens from 1, or None.")
        if isinstance(self.parameters, str):
            raise ValueError(f"parameters is {self.parameters!r}; expected a list of names, such as ['W2'].")
        if not isinstance(self.top, int) or self.top < 0:
            raise ValueError(f"top is {self.top!r}; expected a whole number of tokens, 0 for none.")
        self.budget()

    def budget(self) -> int:
        """The byte budget as a number."""
        found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", str(self.byte_budget).strip())
        try:
            assert found is not None
            return int(float(found[1]) * BYTES[found[2]])
        except (AssertionError, KeyError, ValueError):
            raise ValueError(
                f"byte_budget is {self.byte_budget!r}; expected a size such as '1 GiB', '200 MB' or a number of bytes."
            ) from None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a recorder will write for some readers and documents: known before anything is read.

    Attributes
    ----------
    recorder : Recorder
    readers : dict of Reader
    starts : (documents + 1,) token index at which each document begins, and the end
    update_token : (updates,) the grid of all readers
    own : per reader the (updates,) bool, where it makes an update
    anchored : per reader the (updates,) bool, where its dense Δθ is kept
    parameters : names of all that adapts anywhere
    factored : name of the reader whose factors are kept, or None
    kept : per reader the shapes of the parameters whose factors or dense Δθ are kept
    """

    recorder: Recorder
    readers: Mapping[str, Reader]
    starts: np.ndarray
    update_token: np.ndarray
    own: dict[str, np.ndarray]
    anchored: dict[str, np.ndarray]
    parameters: list[str]
    factored: str | None
    kept: dict[str, dict[str, tuple[int, ...]]]

    @classmethod
    def of(cls, recorder: Recorder, readers: Mapping[str, Reader], lengths: Sequence[int], *, carry: bool) -> "Plan":
        """Raises ValueError where the byte budget is too small, or a parameter is nobody's."""
        starts = np.cumsum([0, *lengths])
        slow = {name: reader.slow_weights() for name, reader in readers.items()}
        parameters = list(dict.fromkeys(p for weights in slow.values() for p in weights))
        unknown = [p for p in recorder.parameters or () if p not in parameters]
        if unknown:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"the recorder asks for {', '.join(unknown)}; what adapts in these readers: {known}.")
        factored = next((n for n, r in readers.items() if isinstance(r, FastWeightReader)), None)
        tokens, positions = {}, {}
        for name, reader in readers.items():
            every = reader.update_every or starts[-1] + 1
            ends = [np.arange(every, length + 1, every) for length in lengths]
            positions[name] = np.concatenate(ends)  # tokens read of the document when the update is complete
            tokens[name] = np.concatenate([end + start - 1 for end, start in zip(ends, starts, strict=False)])
        # Where fast weights are carried on, a decay or a cap acts between documents too.
        forgetful = any(isinstance(r, FastWeightReader) and r.block.forgets for r in readers.values())
        between = starts[1:-1] - 1 if carry and forgetful else starts[:0]
        grid = np.unique(np.concatenate([*tokens.values(), between])).astype(np.int64)
        own = {name: np.isin(grid, tokens[name]) for name in readers}
        anchored = {}
        for name, reader in readers.items():
            distance = recorder.snapshots_every if slow[name] else None
            if recorder.factors and name == factored:
                distance = min(ANCHOR, distance or ANCHOR)
            anchored[name] = np.zeros(len(grid), dtype=bool)
            if distance is not None:
                before = positions[name] - (reader.update_every or 1)
                anchored[name][own[name]] = positions[name] // distance > before // distance
        factored = factored if recorder.factors else None
        chosen = recorder.parameters
        kept = {
            name: {p: tuple(w.shape) for p, w in slow[name].items() if chosen is None or p in chosen}
            for name in readers
            if name == factored or anchored[name].any()
        }
        plan = cls(recorder, readers, starts, grid, own, anchored, parameters, factored, kept)
        plan._check_budget()
        return plan

    def arrays(self) -> dict[str, Array]:
        """What will be written, variable by variable."""
        readers, tokens, updates = len(self.readers), int(self.starts[-1]), len(self.update_token)
        grid = {schema.READER: readers, schema.UPDATE: updates}
        arrays: dict[str, Array] = {}
        if self.parameters:
            each = {schema.PARAMETER: len(self.parameters)}
            arrays |= {name: Array(grid | each, "float64") for name in PER_UPDATE}
            arrays[schema.SLOW_NORM] = Array({schema.READER: readers} | each, "float64")
            arrays[schema.RETENTION] = Array(grid, "float64")
            arrays[schema.ANCHORED] = Array(grid, "bool")
        if self.recorder.top:
            each = {schema.READER: readers, schema.TOKEN: tokens}
            arrays[schema.LABEL_RANK] = Array(each, "int32")
            arrays[schema.TOP_ID] = Array(each | {schema.TOP: self.recorder.top}, "int32")
            arrays[schema.TOP_LOG_PROB] = Array(each | {schema.TOP: self.recorder.top}, "float32")
        for parameter, shape in self.kept.get(self.factored or "", {}).items():
            sides = _sides(parameter, shape)
            for name, side in zip((schema.delta_name(parameter), schema.key_name(parameter)), sides, strict=False):
                arrays[name] = Array({schema.TOKEN: tokens, side: sides[side]}, "float32")
        for reader, shapes in self.kept.items():
            for parameter, shape in shapes.items():
                name, sizes = schema.fast_weight_name(parameter), grid | _sides(parameter, shape)
                if name in arrays and arrays[name].sizes != sizes:
                    raise ValueError(f"{parameter} has shape {shape} in {reader!r} and another one in another reader.")
                blocks = int(self.anchored[reader].sum()) + ((arrays[name].blocks or 0) if name in arrays else 0)
                arrays[name] = Array(sizes, "float32", blocks=blocks)
        return arrays

    def _check_budget(self) -> None:
        sizes = {name: array.nbytes for name, array in self.arrays().items()}
        budget, needed = self.recorder.budget(), sum(sizes.values())
        if needed > budget:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            raise ValueError(
                f"the recording would take {size_text(needed)}, and the byte budget is {size_text(budget)}. Largest: "
                + ", ".join(f"{name} {size_text(sizes[name])}" for name in largest)
                + ". Nothing was read. Read fewer tokens (max_tokens), record less (factors=False, top=0, some "
                "parameters) or allow more (byte_budget)."
            )


class Recording(Observer):
    """One reader's part of a recording: collects while a block of tokens is read, then writes it.

    Attributes
    ----------
    seconds : float
        Spent recording, so that it is not taken for reading.
    """

    def __init__(self, plan: Plan, name: str, writer: TraceWriter) -> None:
        self.plan, self.name, self.writer = plan, name, writer
        self.row = list(plan.readers).index(name)
        self.seconds = 0.0
        self.device = plan.readers[name].model.device
        slow = plan.readers[name].slow_weights()
        # Column of each of its parameters; the others stay NaN, as does all of a reader that does not adapt.
        self.columns = {parameter: plan.parameters.index(parameter) for parameter in slow}
        shape = (len(plan.update_token), len(plan.parameters))
        self.updates = {variable: np.full(shape, np.nan) for variable in PER_UPDATE}
        self.retention = np.full(len(plan.update_token), 1.0 if slow else np.nan)
        self.norms = np.full(len(plan.parameters), np.nan)  # of Δθ, now
        self.tokens: dict[str, list[np.ndarray]] = {}
        self.done, self.flushed = 0, 0  # updates and tokens that are accounted for, and written
        if slow:
            norms = self.norms.copy()
            for parameter, weight in slow.items():
                norms[self.columns[parameter]] = _norm(weight)
            writer.put(schema.SLOW_NORM, norms, self.row)
            writer.put(schema.ANCHORED, plan.anchored[name], self.row)

    @contextmanager
    def document(self, reader: Reader, start: int) -> Iterator[None]:
        """While inside, `reader` reads one document (one row) whose first token has index `start` in the trace."""
        # With carried fast weights a document begins where the last one ended.
        self.start = self.learnt = start
        self.previous = {name: delta[0].detach() for name, delta in reader.fast_weights().items()}
        self.steps: dict[str, Tensor] = {}
        for name, delta in self.previous.items():
            self.norms[self.columns[name]] = _norm(delta)
        with reader.observed(self):
            yield

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is still in the queue is reading, not recording
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    # -- what it sees ---------------------------------------------------------------------------------------------

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        top = self.plan.recorder.top
        with self._timed():
            scored = self.flushed + sum(map(len, self.tokens.get(schema.LABEL_RANK, [])))
            for begin in range(0, count if top else 0, PIECE):
                part = slice(begin, min(begin + PIECE, count))
                log_probs = logits(part)[0].float().log_softmax(-1)  # one document: row 0
                ids = self.writer.token_id[scored + part.start : scored + part.stop]
                own = log_probs.gather(1, torch.as_tensor(ids, device=log_probs.device)[:, None])
                found = log_probs.topk(top)
                self._keep(schema.LABEL_RANK, (log_probs > own).sum(1, dtype=torch.int32))
                self._keep(schema.TOP_ID, found.indices.int())
                self._keep(schema.TOP_LOG_PROB, found.values)

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        with self._timed():
            self.learnt += next(iter(factors.values()))[1].shape[1]
            for parameter in self.plan.kept.get(self.name, {}) if self.name == self.plan.factored else ():
                key, delta = factors[parameter]
                self._keep(schema.delta_name(parameter), delta[0])
                if key is not None:
                    self._keep(schema.key_name(parameter), key[0])

    def retained(self, keep: Tensor) -> None:
        at = np.flatnonzero(self.plan.update_token == self.learnt - 1)
        # Before the first token there is nothing to keep.
        self.retention[at] = float(keep[0])

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        with self._timed():
            token = self.start + int(seen[0]) - 1
            index = int(np.searchsorted(self.plan.update_token, token))
            if not (self.plan.own[self.name] & (self.plan.update_token == token)).any():
                raise ValueError(
                    f"reader {self.name!r} made an update after {int(seen[0])} tokens of a document, and its "
                    f"`update_every` is {self.plan.readers[self.name].update_every}; expected that to tell where."
                )
            self._stand(index)
            for name, rows in fast_weights().items():
                delta, column = rows[0].detach(), self.columns[name]
                step = delta - self.previous[name]
                length, last = _norm(step), self.steps.get(name)
                self.updates[schema.UPDATE_NORM][index, column] = length
                if last is not None and (scale := length * _norm(last)):
                    self.updates[schema.UPDATE_COSINE][index, column] = float(step.flatten() @ last.flatten()) / scale
                self.previous[name], self.steps[name] = delta, step
                self.norms[column] = _norm(delta)
                if self.plan.anchored[self.name][index] and name in self.plan.kept[self.name]:
                    self.writer.put(schema.fast_weight_name(name), _copy(delta), self.row, index)
            self.updates[schema.DRIFT][index] = self.norms
            self.done = index + 1

    def flush(self, stop: int) -> None:
        """All tokens before `stop` have been read: write what was seen of them."""
        with self._timed():
            self._stand(int(np.searchsorted(self.plan.update_token, stop)))
            for variable, parts in self.tokens.items():
                at = slice(self.flushed, stop)
                where = (self.row, at) if schema.READER in self.writer.layout[variable].sizes else (at,)
                self.writer.put(variable, np.concatenate(parts), *where)
            self.tokens.clear()
            # One more than is new: what was kept of the past is known only when the next inner batch begins.
            first = max(0, int(np.searchsorted(self.plan.update_token, self.flushed)) - 1)
            if self.columns and self.done > first:
                at = slice(first, self.done)
                for variable, values in self.updates.items():
                    self.writer.put(variable, values[at], self.row, at)
                self.writer.put(schema.RETENTION, self.retention[at], self.row, at)
            self.flushed = stop

    def _keep(self, variable: str, values: Tensor) -> None:
        self.tokens.setdefault(variable, []).append(_copy(values))

    def _stand(self, stop: int) -> None:
        """Up to the grid's `stop` no more updates were made: the steps are 0 and Δθ is what it was."""
        if stop > self.done:
            still = slice(self.done, stop)
            self.updates[schema.UPDATE_NORM][still, list(self.columns.values())] = 0.0
            self.updates[schema.DRIFT][still] = self.norms
            self.done = stop


def _sides(parameter: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Dimensions of a parameter: rows, and columns if it is a matrix."""
    return dict(zip((schema.row_dim(parameter), schema.col_dim(parameter)), shape, strict=False))


def size_text(size: int) -> str:
    """A number of bytes for people: "1.5 GiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= BYTES[unit]:
            return f"{size / BYTES[unit]:.3g} {unit}"
    return f"{size} B"


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach()))


def _copy(x: Tensor) -> np.ndarray:
    """A copy in the memory of the CPU."""
    return x.detach().to("cpu", copy=True).numpy()
