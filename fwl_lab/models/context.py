"""Read documents of any length with a language model of limited context.

:func:`read_body` takes the next tokens and the :class:`Context` of the earlier ones, and returns the residual stream
and the new context, for both kinds of position:

- **Rotary** models: in every layer each query sees exactly the last `window` positions, itself included. The mask
  alone decides what a query sees; the cache holds the last W - 1 keys and values.
- **Absolute** positions (GPT-2): windows of W positions start at multiples of W/2; a token's residual stream is taken
  from the latest window that gives it at least W/2 of context (the first W/2 tokens have all there is). At each start
  the last W/2 tokens are read again, without gradient.

Symbols: B rows, T new tokens, S cached tokens, W window, D width of the residual stream.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from fwl_lab.ops.state import concatenate_rows, equal_rows, select_rows

# body(ids (B, T), positions (B, T), mask (B, 1, T, S + T) bool, cache) -> residual (B, T, D)
Body = Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor]


class Context(NamedTuple):
    """KV cache and positions of the tokens that a body has read. Its tensors are never changed in place.

    Attributes
    ----------
    keys, values : tuple of (B, heads, S, d) tensors, one per layer
        KV cache, as computed by the weights at the time of reading. Empty tuples before the first token.
    positions : (B, S) long
        Position of each cached key in its row; -1 where the slot was padding or the row was reset.
    recent : (B, <= W) long
        Absolute positions only: the tokens of the current window, from its start; -1 where the slot is empty.
    seen : (B,) long
        Number of tokens read, padding not counted.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Tensor
    recent: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device | str) -> "Context":
        """Return the context of `rows` documents of which nothing has been read."""
        none = torch.zeros(rows, 0, dtype=torch.long, device=device)
        return cls((), (), none, none, torch.zeros(rows, dtype=torch.long, device=device))

    def reset_rows(self, fresh: Tensor) -> "Context":
        """Return the context with the rows emptied where `fresh` (B,) is True."""
        column = fresh[:, None]
        return self._replace(
            positions=self.positions.masked_fill(column, -1),
            recent=self.recent.masked_fill(column, -1),
            seen=self.seen.masked_fill(fresh, 0),
        )


def read_body(
    body: Body, ids: Tensor, context: Context, *, window: int, rotary: bool, valid: Tensor | None = None
) -> tuple[Tensor, Context]:
    """Read the next tokens of each row.

    Parameters
    ----------
    body : callable
        Runs the layers on tokens, positions, mask and KV cache; see :data:`Body`.
    ids : (B, T) long
        Next tokens, T >= 1.
    context : Context
        Context of the tokens before.
    window : int
        Number of positions that a query sees at most, its own included (W).
    rotary : bool
        True for rotary positions, False for absolute ones.
    valid : (B, T) bool, optional
        False for padding, which is neither attended to nor counted.

    Returns
    -------
    residual : (B, T, D)
        Residual stream before the final norm. At padding its values are finite but have no meaning.
    context : Context
    """
    if valid is not None and bool(valid.all()):
        valid = None
    read = _read_rotary if rotary else _read_absolute
    pieces = []
    # A piece of at most W tokens keeps the mask, and so time and memory, linear in the length.
    for start in range(0, ids.shape[1], window):
        part = slice(start, start + window)
        out, context = read(body, ids[:, part], context, window, None if valid is None else valid[:, part])
        pieces.append(out)
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0], context


def _forward(
    body: Body, ids: Tensor, context: Context, positions: Tensor, mask: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run the body once; return the residual stream (B, T, D), and keys and values of all S + T tokens by layer."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(context.keys, context.values, strict=True)):
        cache.update(key, value, layer)
    residual = body(ids, positions, mask[:, None], cache)
    layers: list[Any] = cache.layers  # each with keys and values; the declared type covers other kinds too
    return residual, tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)


def _read_rotary(
    body: Body, ids: Tensor, context: Context, window: int, valid: Tensor | None
) -> tuple[Tensor, Context]:
    """Read at most W tokens with rotary positions, and keep the last W - 1 keys and values."""
    steps = torch.ones_like(ids) if valid is None else valid.long()
    queries = context.seen[:, None] + steps.cumsum(1) - 1  # (B, T)
    positions = torch.cat([context.positions, queries if valid is None else queries.where(valid, -1)], 1)  # (B, S + T)
    distance = queries[:, :, None] - positions[:, None, :]
    mask = (positions[:, None, :] >= 0) & (distance >= 0) & (distance < window)  # (B, T, S + T)
    if valid is not None:  # a padded query sees itself: a softmax over nothing would be NaN
        mask.diagonal(context.positions.shape[1], 1, 2).fill_(True)
    residual, keys, values = _forward(body, ids, context, queries.clamp(min=0), mask)
    surplus = positions.shape[1] - (window - 1)
    if surplus > 0:
        # Rows with different amounts of padding keep their own last positions each.
        order = positions.argsort(dim=1, stable=True)[:, surplus:] if bool((positions < 0).any()) else None
        keys, values = (tuple(_keep(x, surplus, order) for x in group) for group in (keys, values))
        positions = positions[:, surplus:] if order is None else positions.gather(1, order)
    return residual, Context(keys, values, positions, context.recent, context.seen + steps.sum(1))


def _keep(cached: Tensor, surplus: int, order: Tensor | None) -> Tensor:
    """Drop the first `surplus` slots of cached keys or values (B, heads, S, d), or keep those in `order` (B, kept)."""
    if order is None:
        return cached[:, :, surplus:].clone()  # a view would hold the whole past in memory
    return cached.gather(2, order[:, None, :, None].expand(-1, cached.shape[1], -1, cached.shape[3]))


def _read_absolute(
    body: Body, ids: Tensor, context: Context, window: int, valid: Tensor | None
) -> tuple[Tensor, Context]:
    """Read at most W tokens with absolute positions, rows at different positions one by one."""
    if valid is None and equal_rows(context.seen) and bool((context.recent >= 0).all()):
        return _read_absolute_aligned(body, ids, context, window)
    # Rows at different positions start their windows at different tokens.
    residuals, contexts = [], []
    for row in range(len(ids)):
        own = _without_padding(select_rows(context, slice(row, row + 1)))
        real = slice(None) if valid is None else valid[row]
        tokens = ids[row : row + 1, real]
        if tokens.shape[1]:
            out, own = _read_absolute_aligned(body, tokens, own, window)
            residuals.append((row, real, out[0]))
        contexts.append(own)
    # Where everything is padding, reading one token gives width and dtype.
    like = residuals[0][2] if residuals else _extend(body, ids[:1, :1], Context.empty(1, ids.device), 0)[0]
    residual = like.new_zeros(*ids.shape, like.shape[-1])
    for row, real, out in residuals:
        residual[row, real] = out
    return residual, concatenate_rows(_padded(contexts))


def _read_absolute_aligned(body: Body, ids: Tensor, context: Context, window: int) -> tuple[Tensor, Context]:
    """Read tokens of rows that all stand at the same position, without padding."""
    half, pieces = window // 2, []
    while ids.shape[1]:
        seen = int(context.seen[0])
        start = max(0, seen // half - 1) * half
        if start != seen - context.recent.shape[1]:  # a new window: its first tokens are read again
            again = context.recent[:, start - seen :]
            fresh = Context.empty(len(ids), ids.device)
            with torch.no_grad():
                context = _extend(body, again, fresh, start)[1]._replace(seen=context.seen)
        new = ids[:, : (seen // half + 1) * half - seen]
        ids = ids[:, new.shape[1] :]
        out, context = _extend(body, new, context, start)
        pieces.append(out)
    return torch.cat(pieces, 1), context


def _extend(body: Body, ids: Tensor, context: Context, start: int) -> tuple[Tensor, Context]:
    """Read tokens into the window that begins at position `start`; all rows aligned, nothing dropped."""
    old, new = context.recent.shape[1], ids.shape[1]
    positions = torch.arange(old + new, device=ids.device).expand(len(ids), -1)
    mask = positions[:, None, :] <= positions[:, old:, None]
    residual, keys, values = _forward(body, ids, context, positions[:, old:], mask)
    recent = torch.cat([context.recent, ids], 1)
    return residual, Context(keys, values, positions + start, recent, context.seen + new)


def _without_padding(context: Context) -> Context:
    """Return the context of a single row without the empty slots that :func:`_padded` put in front."""
    real = context.recent[0] >= 0
    keys, values = (tuple(x[:, :, real] for x in group) for group in (context.keys, context.values))
    if not bool(real.any()):
        keys, values = (), ()
    return Context(keys, values, context.positions[:, real], context.recent[:, real], context.seen)


def _padded(contexts: list[Context]) -> list[Context]:
    """Return contexts of single rows with equally many slots each: empty ones (position and token -1) in front."""
    longest = max(contexts, key=lambda context: context.recent.shape[1])
    slots = longest.recent.shape[1]

    def pad(x: Tensor, dim: int, value: int = 0) -> Tensor:
        shape = list(x.shape)
        shape[dim] = slots - x.shape[dim]
        return torch.cat([x.new_full(shape, value), x], dim)

    def cache(own: tuple[Tensor, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(pad(x, 2) for x in own) if own else tuple(map(torch.zeros_like, like))

    return [
        Context(
            cache(context.keys, longest.keys),
            cache(context.values, longest.values),
            pad(context.positions, 1, -1),
            pad(context.recent, 1, -1),
            context.seen,
        )
        for context in contexts
    ]
