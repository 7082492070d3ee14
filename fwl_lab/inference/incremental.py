"""Score a text that is being edited: after each change, read again only from shortly before the first changed token."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

#: Most tokens in a call of `Reader.read`, and distance between two marks: forks of the reader to resume from.
EVERY: Final = 256
#: A mark is also made before the first change and before the end, at a multiple of this many tokens. Each is a copy.
NEAR: Final = 64
#: Bytes that the marks of one reader may take. A mark of dynamic evaluation holds a copy of all adapted weights.
MARK_BYTES: Final = 2**28


class LiveReading:
    """One reader's scores of a text that changes, equal to those of a reading from the start up to rounding.

    Parameters
    ----------
    reader : Reader
        Reset, and to be used by nothing else.
    budget : int
        Most bytes that marks may take. Where they would take more, every second mark is dropped, so that marks lie
        further apart, and closest near the end.

    Attributes
    ----------
    ids : (T,) long
        Tokens read.
    nll : (T,) float64
        Their scores, nats.
    seconds : float
        Time spent reading these tokens.
    """

    def __init__(self, reader: Any, *, budget: int = MARK_BYTES) -> None:
        reader.reset()
        self.reader, self.budget = reader, budget
        self.ids = torch.zeros(0, dtype=torch.long)
        self.nll = torch.zeros(0, dtype=torch.float64)
        self.seconds = 0.0
        self._marks = {0: (reader.fork(), 0.0)}  # by tokens read: the reader then, and the seconds spent until then
        self._size = 0  # bytes of one mark

    def unread(self, ids: Tensor) -> int:
        """Return how many of the tokens (T,) a call of :meth:`read` would read."""
        return len(ids) - self._mark(ids)

    def read(self, ids: Tensor, advance: Callable[[int], bool]) -> bool:
        """Make the text these tokens, and read those whose scores are not known.

        Parameters
        ----------
        ids : (T,) long
            All tokens of the text.
        advance : callable
            Called after each call of the reader with the number of tokens it read; returns False to stop.

        Returns
        -------
        bool
            True: `nll` holds the scores of all T tokens. False: `advance` stopped the reading; `ids` and `nll` hold
            what was read until then.
        """
        at = self._mark(ids)
        # The next change is likely to be near this one, or at the end.
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
        """Return the log-probabilities (V,) of the next token, nats, and the ids (count,) of the most likely ones."""
        log_probs = self.reader.next_log_probs()[0].cpu()
        best = log_probs.topk(min(count, len(log_probs))).indices
        return log_probs.float().numpy(), best.numpy()

    def _mark(self, ids: Tensor) -> int:
        """Return the place of the last mark before the first token that differs from those read."""
        same = self._same(ids)
        return max(place for place in self._marks if place <= same)

    def _same(self, ids: Tensor) -> int:
        """Return the length of the common prefix of these tokens and those read."""
        common = min(len(ids), len(self.ids))
        differ = (ids[:common] != self.ids[:common]).nonzero()
        return int(differ[0]) if len(differ) else common

    def _thin(self) -> None:
        """Drop every second mark but the first and the last, where marks take more than the budget."""
        self._size = self._size or sum(tensor.nbytes for tensor in self.reader.state_dict().values())
        most = max(self.budget // self._size, 3)
        if len(self._marks) > most:
            places = sorted(self._marks)
            for place in places[1:-1:2]:
                del self._marks[place]
