"""Plan the arrays that a recorder writes for given readers and documents, before anything is read."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fwl_lab.inference.recorder import Recorder, size_text
from fwl_lab.readers.base import Reader
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import Array

ANCHOR = 4096  # tokens between two dense Δθ of a reader whose factors are kept
#: Variables (reader, update, parameter) that are recorded of every reader with fast weights.
PER_UPDATE = (schema.UPDATE_NORM, schema.DRIFT, schema.UPDATE_COSINE)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arrays, grid of updates and places of snapshots that a recorder will write.

    The grid of updates is common to all readers of a trace: every token at which one of them completes an update.

    Attributes
    ----------
    recorder : Recorder
        Options of the recording.
    readers : mapping from name to Reader
        In the order of the trace's rows.
    starts : (documents + 1,) int
        Trace index of each document's first token, and the number of all tokens.
    update_token : (updates,) int
        The grid: trace index of the last token of each update of any reader, rising.
    own : dict of (updates,) bool
        By reader, where on the grid it completes an update.
    anchored : dict of (updates,) bool
        By reader, where on the grid its dense Δθ is kept.
    parameters : list of str
        Names of the parameters that adapt in at least one reader.
    factored : str or None
        Name of the reader whose factors are kept, if there is one.
    kept : dict of dict of tuple
        By reader and parameter, the shape of each parameter whose factors or dense Δθ are kept.
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
        """Make the plan of a recorder for some readers and documents.

        Parameters
        ----------
        recorder : Recorder
        readers : mapping from name to Reader
        lengths : sequence of int
            Tokens of each document.
        carry : bool
            Whether fast weights are carried from one document to the next.

        Raises
        ------
        ValueError
            The arrays would exceed the byte budget; the recorder names a parameter that adapts in no reader; `top`
            exceeds the vocabulary; factors are asked for and the only reader that updates with every token is one
            whose factors do not add up to its Δθ; or a parameter has different shapes in two readers.
        """
        starts = np.cumsum([0, *lengths])
        slow = {name: reader.slow_weights() for name, reader in readers.items()}
        parameters = list(dict.fromkeys(p for weights in slow.values() for p in weights))
        unknown = [p for p in recorder.parameters or () if p not in parameters]
        if unknown:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"the recorder asks for {', '.join(unknown)}; what adapts in these readers: {known}.")
        vocabulary = min((reader.model.vocab_size for reader in readers.values()), default=recorder.top)
        if recorder.top > vocabulary:
            raise ValueError(f"top is {recorder.top}; expected at most {vocabulary}, the size of the vocabulary.")
        factored = next((name for name, reader in readers.items() if reader.factors), None)
        partial = next((name for name, reader in readers.items() if reader.every_token and not reader.factors), None)
        if recorder.factors and factored is None and partial is not None:
            raise ValueError(
                f"the factors of reader {partial!r} would not add up to its Δθ; expected Recorder(factors=False, "
                "snapshots_every=...), or a plain fast-weight reader beside it."
            )
        timeless = [name for name, reader in readers.items() if slow[name] and reader.update_every is None]
        if timeless:
            raise ValueError(
                f"reader {timeless[0]!r} has fast weights and no `update_every`; expected the tokens between updates."
            )
        tokens, positions = {}, {}
        for name, reader in readers.items():
            every = reader.update_every or starts[-1] + 1
            ends = [np.arange(every, length + 1, every) for length in lengths]
            positions[name] = np.concatenate(ends)  # tokens read of the document when each update is complete
            tokens[name] = np.concatenate([end + start - 1 for end, start in zip(ends, starts, strict=False)])
        # Where fast weights are carried, a decay or a cap also acts at the boundary between two documents.
        forgetful = any(reader.forgets for reader in readers.values())
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
        """Return the sizes and dtype of every variable that will be written, by name.

        Raises
        ------
        ValueError
            A parameter whose dense Δθ is kept has different shapes in two readers.
        """
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
                for name, sides in self._snapshot(reader, parameter, shape).items():
                    sizes, blocks = grid | sides, int(self.anchored[reader].sum())
                    if name in arrays:
                        if arrays[name].sizes != sizes:
                            raise ValueError(f"{parameter} has shape {shape} in {reader!r}, and another one elsewhere.")
                        blocks += arrays[name].blocks or 0
                    arrays[name] = Array(sizes, "float32", blocks=blocks)
        return arrays

    def low_rank(self, reader: str, shape: tuple[int, ...]) -> bool:
        """Return whether a reader's snapshots of a parameter of this shape hold leading directions only."""
        rank = self.recorder.rank
        return rank is not None and reader != self.factored and len(shape) == 2 and rank < min(shape)

    def _snapshot(self, reader: str, parameter: str, shape: tuple[int, ...]) -> dict[str, dict[str, int]]:
        """Return the variables that hold one snapshot of a parameter, with the sizes of their own dimensions."""
        sides = _sides(parameter, shape)
        if not self.low_rank(reader, shape):
            return {schema.fast_weight_name(parameter): sides}
        rows, columns, directions = *({dim: n} for dim, n in sides.items()), {schema.DIRECTION: self.recorder.rank or 0}
        return {schema.left_name(parameter): rows | directions, schema.right_name(parameter): directions | columns}

    def _check_budget(self) -> None:
        """Raise ValueError where the arrays exceed the byte budget; the message names the largest ones."""
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


def _sides(parameter: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the dimensions of a parameter and their lengths: rows, and columns if it is a matrix."""
    return dict(zip((schema.row_dim(parameter), schema.col_dim(parameter)), shape, strict=False))
