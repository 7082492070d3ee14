"""Which tokens are computed together: pieces of a call that cross no inner batch's start, row by row.

Rows of a batch may stand at unlike places of their inner batches (documents of unlike length, ragged calls). A
:class:`Span` is one piece for all rows: a slice where they agree, an index where they do not.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """One piece of a call: `length` tokens of each row.

    Attributes
    ----------
    places : slice, or (B, L) long
        Positions in the call.
    real : (B, L) bool, or None
        False where a row's piece is shorter than L; None: nowhere.
    """

    places: slice | Tensor
    real: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, L, ...)."""
        if isinstance(self.places, slice):
            return x[:, self.places]
        index = self.places.view(*self.places.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return x.gather(1, index)

    def put(self, x: Tensor, piece: Tensor) -> Tensor:
        """The inverse for pieces that are indexed: `x` (B, T, ...) with the piece written to its places."""
        assert isinstance(self.places, Tensor) and self.real is not None
        rows, columns = self.real.nonzero(as_tuple=True)
        return x.index_put((rows, self.places[rows, columns]), piece[rows, columns])


def spans(counted: Tensor, seen: Tensor, inner_batch: int | None, chunk: int) -> Iterator[Span]:
    """Cut a call into spans.

    Parameters
    ----------
    counted : (B, T) bool
        Tokens that are learned from, and so move a row on in its inner batch.
    seen : (B,) long
        Tokens each row learned from before the call.
    inner_batch : int or None
        No span holds counted tokens of two inner batches.
    chunk : int
        The most tokens of one span, where it is no longer than an inner batch.
    """
    length = counted.shape[1]
    any_counted = counted.any(1)
    # Padding at a row's end may go anywhere: it follows the positions, so that rows of unlike length stay aligned.
    last = (counted * torch.arange(1, length + 1, device=counted.device)).amax(1, keepdim=True)
    moving = counted | (torch.arange(length, device=counted.device) >= last)
    start = torch.where(any_counted, seen, seen[any_counted][:1] if bool(any_counted.any()) else seen[:1])
    place = start[:, None] + moving.long().cumsum(1) - moving.long()  # (B, T), tokens before each
    inner = inner_batch or chunk
    per_inner = -(-inner // chunk)
    number = place // inner * per_inner + place % inner // chunk
    number = number - number[:, :1]
    if bool((number == number[:1]).all()):
        cuts = [0, *(torch.nonzero(number[0].diff())[:, 0] + 1).tolist(), length]
        yield from (Span(slice(a, b), None) for a, b in pairwise(cuts) if b > a)
        return
    for k in number.unique().tolist():
        inside = number == k
        first, count = inside.int().argmax(1), inside.sum(1)
        offset = torch.arange(int(count.max()), device=counted.device)
        real = offset < count[:, None]
        yield Span((first[:, None] + offset).clamp(max=length - 1), real)
