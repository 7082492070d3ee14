"""Strictly causal, unnormalised linear attention: how a sum of outer products is applied without being formed.

A dense layer's gradient at token i is an outer product v_i k_iᵀ. Applying the sum over the tokens before t to a
query q_t is

    out_t = Σ_{i<t} v_i (k_i · q_t) + S q_t,        S = Σ of what came before the call

All functions have one signature. `naive` is the definition; `chunked` is the one to use.

Shapes: queries, keys (B, T, K); values (B, T, E); state S (B, E, K).
"""

import torch
from torch import Tensor


def naive(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token: O(T·K·E).

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


def chunked(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """The same as :func:`naive`, `chunk` tokens at a time: quadratic inside a chunk, a matrix state across chunks."""
    out = []
    for q, k, v in zip(queries.split(chunk, 1), keys.split(chunk, 1), values.split(chunk, 1), strict=True):
        out.append(q @ state.mT + within(q, k, v))
        state = state + v.mT @ k
    return torch.cat(out, 1), state


def within(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Σ_{i<t} v_i (k_i · q_t) inside one chunk, (B, T, E).

    Future tokens enter with a weight of exactly 0, so they change no bit of the sum.
    """
    return (queries @ keys.mT).tril(-1) @ values


def before(values: Tensor) -> Tensor:
    """Exclusive sum Σ_{i<t} v_i along dimension 1, (B, T, E).

    A zero is put in front and the last token left out. Never `cumsum − self`: its rounding carries a token's own
    label into its own score.
    """
    shifted = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
    return shifted.cumsum(1)
