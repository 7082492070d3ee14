"""Reading a text again after each change of it: only what follows the first changed token is read."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

#: Tokens that are read at once at most, and between two marks, from which a reading can go on later.
EVERY: Final = 256
#: Marks are also made where a text changed and at its end, at multiples of so many tokens. Each costs a copy.
NEAR: Final = 64
#: Bytes that the marks of one reader may take. Dynamic evaluation keeps a copy of all weights in each.
BUDGET: Final = 2**28


class LiveReading:
    """One reader over a text that changes. Its scores are those of a reading from the start, up to rounding.

    Parameters
    ----------
    reader : Reader
        Used for this alone.
    budget : int
        Bytes that marks may take; where there are more, they lie further apart, closest near the end.
    """

    def __init__(self, reader: Any, *, budget: int = BUDGET) -> None:
        reader.reset()
        self.reader, self.budget = reader, budget
        self.ids = torch.zeros(0, dtype=torch.long)
        self.nll = torch.zeros(0, dtype=torch.float64)
        self.seconds = 0.0  # spent on the tokens that stand
        self._marks = {0: (reader.fork(), 0.0)}
        self._size = 0  # bytes of one mark

    def unread(self, ids: Tensor) -> int:
        """How many of the tokens (T,) would be read."""
        return len(ids) - self._mark(ids)

    def read(self, ids: Tensor, advance: Callable[[int], bool]) -> bool:
        """Read the tokens (T,); afterwards `nll` (T,) are their scores, in nats.

        `advance` is told how many more were read, and returns False to stop; then so does this, and what was read so
        far is kept.
        """
        at = self._mark(ids)
        # The next change will be near this one, or at the end.
        near = {place // NEAR * NEAR for place in (self._same(ids), len(ids))}
        ends = [place for place in sorted({*range(0, len(ids), EVERY), *near, len(ids)}) if place > at]
        self._marks = {place: mark for place, mark in self._marks.items() if place <= at}
        mark, self.seconds = self._marks[at]
        self.reader, self.ids, self.nll = mark.fork(), ids[:at], self.nll[:at]
        for start, end in pairwise([at, *ends]):
            began, piece = time.perf_counter(), ids[start:end]
            scores = self.reader.read(piece[None].to(self.reader.model.device)).nll[0]
            self.ids, self.nll = ids[:end], torch.cat([self.nll, scores.double().cpu()])
            self.seconds += time.perf_counter() - began
            if end % EVERY == 0 or end in near:
                self._marks[end] = self.reader.fork(), self.seconds
                self._thin()
            if not advance(len(piece)):
                return False
        return True

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The log-probabilities (V,) of what comes next, nats, and the ids (count,) of the likeliest."""
        log_probs = self.reader.next_log_probs()[0].cpu()
        best = log_probs.topk(min(count, len(log_probs))).indices
        return log_probs.float().numpy(), best.numpy()

    def _mark(self, ids: Tensor) -> int:
        """The last mark before these tokens differ from those read."""
        same = self._same(ids)
        return max(place for place in self._marks if place <= same)

    def _same(self, ids: Tensor) -> int:
        """How many of these tokens are those read, from the first on."""
        common = min(len(ids), len(self.ids))
        differ = (ids[:common] != self.ids[:common]).nonzero()
        return int(differ[0]) if len(differ) else common

    def _thin(self) -> None:
        self._size = self._size or sum(tensor.nbytes for tensor in self.reader.state_dict().values())
        most = max(self.budget // self._size, 3)
        if len(self._marks) > most:
            places = sorted(self._marks)
            for place in places[1:-1:2]:
                del self._marks[place]
