"""Cut a call into pieces that cross no inner batch's start in any row of the batch.

Rows of a batch may stand at unlike places of their inner batches (documents of unlike length, ragged calls). A
:class:`Span` is one piece for the rows that still have tokens: a slice where they agree, an index where they do not.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """One piece of a call: up to L tokens of each of b rows.

    Attributes
    ----------
    rows : (b,) long, or None
        Rows of the batch that have tokens in this span or after it; None: all.
    places : slice, or (b, L) long
        Positions in the call.
    real : (b, L) bool, or None
        False where a row's piece is shorter than L; None: nowhere.
    """

    rows: Tensor | None
    places: slice | Tensor
    real: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """Select the span's places from a tensor (B, T, ...): (b, L, ...)."""
        x = x if self.rows is None else x[self.rows]
        if isinstance(self.places, slice):
            return x[:, self.places]
        index = self.places.view(*self.places.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return x.gather(1, index)


def join(pieces: list[tuple[Span, Tensor]], like: Tensor) -> Tensor:
    """Put all pieces (b, L, n) of a call back in their places, (B, T, n); undoes `Span.take`. 0 where there is none."""
    rows, length = like.shape[:2]
    whole = all(span.rows is None and span.real is None for span, _ in pieces)
    if whole and sum(piece.shape[1] for _, piece in pieces) == length:
        return torch.cat([piece for _, piece in pieces], 1) if pieces else like
    at, values = [], []
    for span, piece in pieces:
        row = torch.arange(rows, device=like.device) if span.rows is None else span.rows
        columns = span.places
        if isinstance(columns, slice):
            columns = torch.arange(length, device=like.device)[columns]
        flat = row[:, None] * length + columns
        at.append(flat.flatten() if span.real is None else flat[span.real])
        values.append(piece.flatten(0, 1) if span.real is None else piece[span.real])
    width = pieces[0][1].shape[2] if pieces else like.shape[2]
    out = torch.zeros(rows * length, width, dtype=like.dtype, device=like.device)
    if pieces:
        out = out.index_copy(0, torch.cat(at), torch.cat(values))
    return out.view(rows, length, width)


def spans(counted: Tensor, seen: Tensor, inner_batch: int | None, longest: int) -> Iterator[Span]:
    """Yield the spans of a call, in order; none where nothing is counted.

    Parameters
    ----------
    counted : (B, T) bool
        Tokens that are learned from; each is one step of its row's inner batch.
    seen : (B,) long
        Tokens each row learned from before the call.
    inner_batch : int or None
        No span holds counted tokens of two inner batches.
    longest : int
        The most counted tokens of one span.
    """
    length = counted.shape[1]
    # Where a row's tokens end. Padding behind it is computed at most as far as the row's last span goes.
    last = (counted * torch.arange(1, length + 1, device=counted.device)).amax(1)
    if not bool(last.any()):
        return
    # That padding may lie in any span: it advances as positions do, so that rows of unlike length stay aligned.
    moving = counted | (torch.arange(length, device=counted.device) >= last[:, None])
    start = torch.where(last > 0, seen, seen[last > 0][:1])
    place = start[:, None] + moving.long().cumsum(1) - moving.long()  # (B, T), tokens before each
    inner = inner_batch or longest
    per_inner = -(-inner // longest)
    number = place // inner * per_inner + place % inner // longest
    number = number - number[:, :1]
    if bool((number == number[:1]).all()):
        cuts = [0, *(torch.nonzero(number[0].diff())[:, 0] + 1).tolist(), length]
        for begin, end in pairwise(cuts):
            if bool((last > begin).any()):
                yield Span(_rows(last > begin), slice(begin, end), None)
        return
    final = number.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]
    for k in range(int(final[last > 0].max()) + 1):
        live = (last > 0) & (final >= k)
        inside = (number == k)[live]
        first, count = inside.int().argmax(1), inside.sum(1)
        offset = torch.arange(int(count.max()), device=counted.device)
        real = offset < count[:, None]
        yield Span(_rows(live), (first[:, None] + offset).clamp(max=length - 1), real)


def _rows(live: Tensor) -> Tensor | None:
    return None if bool(live.all()) else live.nonzero()[:, 0]
