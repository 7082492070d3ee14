"""Strictly causal, unnormalised linear attention: apply a sum of outer products without forming it.

A dense layer's gradient at token i is an outer product v_i k_iᵀ. Applying the sum over the tokens before t to a
query q_t is

    out_t = Σ_{i<t} v_i (k_i · q_t) + S q_t,        S = Σ of what came before the call

`naive` is the definition; `chunked` has its signature; `mixed` is the one to use.

Shapes: queries, keys (B, T, K); values (B, T, E); state S (B, E, K).
"""

import torch
from torch import Tensor

from fwl_lab.ops.recompute import groups, recomputed

CHUNK = 64  # tokens of a call between two matrix states


def naive(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the definition, token by token: O(T·K·E).

    Returns
    -------
    out : (B, T, E)
    state : (B, E, K), with the T tokens added
    """
    out = []
    for t in range(queries.shape[1]):
        out.append(torch.einsum("bek,bk->be", state, queries[:, t]))
        state = state + torch.einsum("be,bk->bek", values[:, t], keys[:, t])
    return torch.stack(out, 1), state


def chunked(
    queries: Tensor, keys: Tensor, values: Tensor, state: Tensor | None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Compute :func:`naive` in chunks of tokens: quadratic inside a chunk, one matrix state across chunks.

    None for a state is 0. In training all but one in √(number of chunks) states are computed again backward.
    """
    pieces = list(zip(queries.split(chunk, 1), keys.split(chunk, 1), values.split(chunk, 1), strict=True))
    out: list[Tensor] = []
    parts = list(groups(pieces))
    for part in parts:
        done, state = recomputed(_chunks, part, state, only=len(parts) == 1)
        out += done
    assert state is not None
    return torch.cat(out, 1), state


def _chunks(pieces: list[tuple[Tensor, ...]], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    out = []
    for q, k, v in pieces:
        inside = within(q, k, v)
        out.append(inside if state is None else inside + q @ state.mT)
        state = add_outer(state, k, v)
    return out, state


def mixed(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute :func:`naive`, quadratically in the whole call or :func:`chunked`, whichever multiplies less.

    Multiply-adds a token: quadratic T (K + E), chunked C (K + E) + 2KE. The choice is a function of the shape alone.
    """
    length, width = queries.shape[1], queries.shape[2] + values.shape[2]
    whole = length * width <= CHUNK * width + 2 * queries.shape[2] * values.shape[2]
    return chunked(queries, keys, values, state, length if whole else CHUNK)


def within(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute Σ_{i<t} v_i (k_i · q_t) inside one chunk, (B, T, E).

    Future tokens enter with a weight of exactly 0, so they change no bit of the sum.
    """
    return (queries @ keys.mT).tril(-1) @ values


def before(values: Tensor) -> Tensor:
    """Compute the exclusive sum Σ_{i<t} v_i along dimension 1, (B, T, E).

    A zero is put in front and the last token left out. Never `cumsum − self`: its rounding carries a token's own
    label into its own score.
    """
    shifted = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
    return shifted.cumsum(1)


def add_outer(state: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
    """Compute S + Σ v_i k_iᵀ, (B, E, K), in the dtype of the values: the state stays float32 under autocast."""
    total = (values.mT @ keys).to(values.dtype)
    return total if state is None else state + total
