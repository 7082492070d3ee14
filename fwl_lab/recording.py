"""What is kept of a reading beside the scores. A recorder hooks on a reader while it reads, and copies."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from . import trace as schema
from .readers.base import Reader

Norms = dict[str, tuple[float, float]]  # per parameter: norm of the step since the last record, norm of Δθ


@dataclasses.dataclass(frozen=True)
class Recorder:
    """What to record.

    Attributes
    ----------
    norms : bool
        The L2 norms of Δθ and of its change, for each fast parameter, after each update.
    """

    norms: bool = True

    def __post_init__(self) -> None:
        if not self.norms:
            raise ValueError("Recorder(norms=False) records nothing; pass record=None instead.")


@dataclasses.dataclass
class Recording:
    """The norms of one reader over all documents.

    Attributes
    ----------
    updates : dict from token index in the trace to norms per parameter
    starts : dict from the token index at which a document begins to the norms it begins with (not 0 when carried)
    seconds : float
        Spent recording, so that it is not taken for reading.
    """

    updates: dict[int, Norms] = dataclasses.field(default_factory=dict)
    starts: dict[int, Norms] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def document(self, reader: Reader, start: int) -> Iterator[None]:
        """While inside, `reader` reads one document (one row) whose first token has index `start` in the trace."""
        # With carried fast weights a document begins where the last one ended.
        previous = {name: delta[0] for name, delta in reader.fast_weights().items()}
        self.starts[start] = {n: (0.0, float(torch.linalg.vector_norm(delta))) for n, delta in previous.items()}

        def observe(seen: Tensor, deltas: Callable[[], dict[str, Tensor]]) -> None:
            if seen.is_cuda:
                torch.cuda.synchronize(seen.device)  # what is still in the queue is reading, not recording
            began = time.perf_counter()
            norms: Norms = {}
            for name, rows in deltas().items():
                delta = rows[0].detach()
                step = torch.linalg.vector_norm(delta - previous[name])
                norms[name] = (float(step), float(torch.linalg.vector_norm(delta)))
                previous[name] = delta
            self.updates[start + int(seen[0]) - 1] = norms
            self.seconds += time.perf_counter() - began

        with reader.observed(observe):
            yield


def norms_dataset(recordings: dict[str, Recording], readers: Sequence[str]) -> xr.Dataset:
    """`update_norm` and `drift` of all readers on one grid of tokens.

    Between two updates of a reader its Δθ stands still: the step is 0 and the drift that of the last update.
    A parameter that a reader does not adapt is NaN.
    """
    tokens = sorted(set().union(*(r.updates for r in recordings.values())))
    names = list(dict.fromkeys(n for r in recordings.values() for norms in r.updates.values() for n in norms))
    values = np.full((2, len(readers), len(tokens), len(names)), np.nan)
    for i, reader in enumerate(readers):
        recording = recordings[reader]
        own = list(dict.fromkeys(n for norms in recording.updates.values() for n in norms))
        columns = [names.index(n) for n in own]
        begins = sorted(recording.starts)
        drift, begun = np.zeros(len(own)), -1
        for j, token in enumerate(tokens):
            now = int(np.searchsorted(begins, token, side="right")) - 1
            if now != begun:
                drift, begun = np.array([recording.starts[begins[now]].get(n, (0.0, 0.0))[1] for n in own]), now
            step = np.zeros(len(own))
            if token in recording.updates:
                step, drift = np.array([recording.updates[token][n] for n in own]).T
            values[0, i, j, columns], values[1, i, j, columns] = step, drift
    dims = (schema.READER, schema.UPDATE, schema.PARAMETER)
    return xr.Dataset(
        {schema.UPDATE_NORM: (dims, values[0]), schema.DRIFT: (dims, values[1])},
        {
            schema.UPDATE_TOKEN: (schema.UPDATE, np.array(tokens, dtype=np.int64)),
            schema.PARAMETER: (schema.PARAMETER, schema.text_array(names)),
        },
    )
