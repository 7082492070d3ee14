"""Invent what a recorder, receipts and an audit add to a trace; for `make_trace`. Imports no torch.

Symbols: N tokens, U updates, V vocabulary, P parameters, R × C a parameter's rows and columns; p the probability of the
token that came; δ, k and Δθ as in `fwl_lab.analysis.fast_weights`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fwl_lab.audit.certificate import CONFIGURATION, Certificate, Check
from fwl_lab.trace import schema

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]

TOP = 10  # recorded alternatives, as a Recorder keeps by default
STEP = 64  # tokens between two updates
ANCHOR = 4096  # tokens between two dense Δθ, as a Recorder keeps beside factors
RANKS = 8  # listed sources of a receipt
RECEIPTS = 0.05  # fraction of tokens with a receipt
SHAPES = {"W1": (32, 16), "b1": (32,), "W2": (16, 32)}  # any other parameter is a vector of 16
#: Kinds of readers; a reader of any other kind adapts every `STEP` tokens and keeps no factors.
KINDS = (schema.BASE, schema.STATIC, schema.DYNAMIC_EVALUATION, schema.FWL)
STILL = (schema.BASE, schema.STATIC)  # kinds that do not adapt
_SOURCES = 64  # sources of a receipt with a share
_PER_UPDATE = (schema.UPDATE_NORM, schema.DRIFT, schema.UPDATE_COSINE)
_SUMS = (schema.RECEIPT_GAIN, schema.RECEIPT_GROSS, schema.RECEIPT_RESIDUAL)
_CHECKS: tuple[tuple[str, float, float, str, str], ...] = (
    ("each token once", 0.0, 0.0, "scores", "1,024 tokens, as many finite scores, none looked at again"),
    ("determinism", 0.0, 0.0, "nat", "two fresh readers"),
    ("causality", 0.0, 0.0, "nat", "12 single tokens changed, 12 endings replaced"),
    ("probabilities", 3.1e-7, 1e-4, "1", "12 places, 400 tokens"),
    ("predictions", 2.4e-6, 1e-4, "nat", "12 places, two tokens each"),
    ("partition", 1.9e-6, 1e-4, "nat", "one by one; in calls of 7; in one call"),
    ("padding", 0.0, 5e-5, "nat", "padding after token 511 and at the end, twice"),
    ("fork", 0.0, 0.0, "nat", "after token 511"),
)
_EXPONENTS = np.linspace(0.8, 1.6, 7)  # of Zipf's law, from flat to peaked distributions
_ORDERS = 16  # orders of the same alternatives that an adapting reader chooses from


def alternatives(
    rng: np.random.Generator, nll: np.ndarray, token_id: np.ndarray, vocab: int, adapts: np.ndarray
) -> Variables:
    """Invent each reader's distribution over V at each token, and list the most probable tokens.

    All tokens but the one that came share 1 − p by Zipf's law, so that p, its rank and the list agree with the NLL.

    Parameters
    ----------
    rng : Generator
    nll : (readers, N) nats
    token_id : (N,) int
    vocab : int
        V.
    adapts : (readers,) bool
        Readers that do not adapt list the same alternatives in the same order.
    """
    readers, count = nll.shape
    top, others = min(TOP, vocab), vocab - 1
    zipf = np.arange(1, others + 1, dtype=np.float64) ** -_EXPONENTS[:, None]
    zipf /= zipf.sum(1, keepdims=True)
    shape = rng.integers(len(_EXPONENTS), size=(count,))
    # Neighbours of the token on a shuffled ring are different from it and from each other.
    ring = rng.permutation(vocab)
    place = np.argsort(ring)[token_id]
    near = min(TOP + 3, others)
    first = rng.integers(max(others, 1), size=(count,))[:, None]
    candidates = ring[(place[:, None] + 1 + (first + np.arange(near)) % max(others, 1)) % vocab]  # (N, near)
    orders = (np.arange(near) + rng.normal(0, 2.0, (_ORDERS, near))).argsort(axis=1)
    orders[0] = np.arange(near)

    ranks = np.empty((readers, count), dtype=np.int32)
    ids = np.empty((readers, count, top), dtype=np.int32)
    log_probs = np.empty((readers, count, top), dtype=np.float32)
    slot = np.arange(top)
    for row in range(readers):
        if not others:
            ranks[row], ids[row], log_probs[row] = 0, token_id[:, None], -nll[row, :, None]
            continue
        rest = -np.expm1(-nll[row])  # 1 − p
        for index, law in enumerate(zipf):
            at = shape == index
            odds = np.exp(-nll[row, at]) / rest[at]
            ranks[row, at] = np.searchsorted(-law, -odds)  # number of more probable tokens
        order = orders[rng.integers(_ORDERS if adapts[row] else 1, size=(count,))]
        listed = np.take_along_axis(candidates, order, 1)
        own = slot == ranks[row, :, None]
        source = np.minimum(slot - (slot > ranks[row, :, None]), near - 1)
        ids[row] = np.where(own, token_id[:, None], np.take_along_axis(listed, source, 1))
        expected = np.log(rest)[:, None] + np.log(zipf)[shape[:, None], source]
        log_probs[row] = np.where(own, -nll[row, :, None], expected)
    dims = (schema.READER, schema.TOKEN)
    return {
        schema.LABEL_RANK: (dims, ranks),
        schema.TOP_ID: ((*dims, schema.TOP), ids),
        schema.TOP_LOG_PROB: ((*dims, schema.TOP), log_probs),
    }


def factors(
    rng: np.random.Generator, parameters: Sequence[str], token_id: np.ndarray, nll: np.ndarray, vocab: int
) -> Variables:
    """Invent δ and k of every token: similar for equal token ids, and δ small where the token was expected.

    Parameters
    ----------
    rng : Generator
    parameters : sequence of str
    token_id : (N,) int
    nll : (N,) nats
    vocab : int
        V.
    """
    found: Variables = {}
    for index, name in enumerate(parameters):
        rows, *cols = SHAPES.get(name, (16,))
        scale = 0.004 * 0.7**index * -np.expm1(-nll)
        delta = _of_ids(rng, token_id, vocab, rows) * scale[:, None]
        found[schema.delta_name(name)] = ((schema.TOKEN, schema.row_dim(name)), delta.astype(np.float32))
        for width in cols:
            # The input of W2 is relu², that of W1 is normalised.
            key = _of_ids(rng, token_id, vocab, width)
            key = np.maximum(key, 0) ** 2 if name == "W2" else key
            found[schema.key_name(name)] = ((schema.TOKEN, schema.col_dim(name)), key.astype(np.float32))
    return found


def fast_weights(
    made: Variables, parameters: Sequence[str], row: int, readers: int, update: np.ndarray, position: np.ndarray
) -> tuple[Variables, dict[str, np.ndarray]]:
    """Sum up factors: dense Δθ of the reader in `row` where a document has anchors, and exact norms.

    Parameters
    ----------
    made : dict
        From :func:`factors`.
    parameters : sequence of str
    row, readers : int
        Index of the reader, and the number of readers.
    update, position : (U,) int
        The token just read, and its place in the document.

    Returns
    -------
    variables : dict
        Dense Δθ, NaN where none is kept.
    norms : dict
        Drift, update_norm and update_cosine, (U, P) each.
    """
    first = position < STEP
    batch = update[:, None] + np.arange(1 - STEP, 1)  # (U, STEP) tokens
    starts = [*np.flatnonzero(first).tolist(), len(update)]
    dense: Variables = {}
    norms = {name: np.full((len(update), len(parameters)), np.nan) for name in _PER_UPDATE}
    for column, name in enumerate(parameters):
        delta = made[schema.delta_name(name)][1][batch].astype(np.float64)  # (U, STEP, R)
        key = made[schema.key_name(name)][1][batch].astype(np.float64) if schema.key_name(name) in made else None
        step = delta.sum(1) if key is None else delta.transpose(0, 2, 1) @ key  # (U, R) or (U, R, C)
        total = np.empty_like(step)
        for begin, end in pairwise(starts):
            total[begin:end] = step[begin:end].cumsum(0)
        entries = tuple(range(1, step.ndim))
        norms[schema.DRIFT][:, column] = np.sqrt((total**2).sum(entries))
        norms[schema.UPDATE_NORM][:, column] = length = np.sqrt((step**2).sum(entries))
        cosine = (step[1:] * step[:-1]).sum(entries) / (length[1:] * length[:-1])
        norms[schema.UPDATE_COSINE][1:, column] = np.where(first[1:], np.nan, cosine)
        values = np.full((readers, *total.shape), np.nan, dtype=np.float32)
        kept = anchors(position)
        values[row, kept] = total[kept]
        dims = (schema.row_dim(name), schema.col_dim(name))[: step.ndim - 1]
        dense[schema.fast_weight_name(name)] = ((schema.READER, schema.UPDATE, *dims), values)
    return dense, norms


def anchors(position: np.ndarray) -> np.ndarray:
    """Return after which updates a dense Δθ is kept, (U,) bool."""
    return (position + 1) % ANCHOR == 0


def receipts(
    rng: np.random.Generator, gain: np.ndarray, token_id: np.ndarray, position: np.ndarray, row: int, readers: int
) -> Variables:
    """Invent receipts of some tokens of the reader in `row`, laid out as by `add_receipts`.

    Tokens with large gains or losses are more likely to have one. Sources are earlier occurrences of the same token,
    and others near and far. Shares of both signs add up to the gain but for a small residual; dropping one source costs
    about its share.

    Parameters
    ----------
    rng : Generator
    gain : (N,) nats
    token_id, position : (N,) int
    row, readers : int
        Index of the reader, and the number of readers.
    """
    count = len(gain)
    shape = (readers, count, RANKS)
    source = np.full(shape, -1, dtype=np.int64)
    share, lost = np.full(shape, np.nan), np.full(shape, np.nan)
    sums = {name: np.full(shape[:2], np.nan) for name in _SUMS}
    taught = np.flatnonzero(position > 0)
    chance = (np.abs(gain) + 0.05) * (position > 0)
    some = min(len(taught), max(1, round(RECEIPTS * count)))
    for token in rng.choice(count, some, replace=False, p=chance / chance.sum()).tolist() if some else ():
        start = token - int(position[token])
        same = start + np.flatnonzero(token_id[start:token] == token_id[token])[-6:]
        others = rng.choice(token - start, min(_SOURCES - 6, token - start), replace=False) + start
        sources = np.union1d(same, others)
        near = 0.5 / np.log2(1 + token - sources) + 0.8 * np.isin(sources, same)
        raw = rng.normal(0.3, 1.0, len(sources)) * near
        residual = rng.normal(0, 1e-6)
        shares = raw + (gain[token] - residual - raw.sum()) * np.abs(raw) / np.abs(raw).sum()
        order = np.argsort(-np.abs(shares), kind="stable")[:RANKS]
        source[row, token, : len(order)] = sources[order]
        share[row, token, : len(order)] = shares[order]
        lost[row, token, : len(order)] = shares[order] * rng.lognormal(-0.1, 0.3, len(order))
        for name, value in zip(_SUMS, (gain[token], np.abs(shares).sum(), residual), strict=True):
            sums[name][row, token] = value
    dims = (schema.READER, schema.TOKEN)
    ranked = {schema.RECEIPT_SOURCE: source, schema.RECEIPT_SHARE: share, schema.RECEIPT_LEAVE_ONE_OUT: lost}
    return {name: ((*dims, schema.RANK), values) for name, values in ranked.items()} | {
        name: (dims, values) for name, values in sums.items()
    }


def configurations(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Invent the configurations of readers, given the kind of each by name; keys as in `Reader.configuration`."""
    return {name: _configuration(name, kind) for name, kind in kinds.items()}


def _configuration(name: str, kind: str) -> dict[str, Any]:
    """Invent the configuration of one reader."""
    still = kind in STILL
    facts = {
        "kind": "synthetic",
        "label": name,
        "adapts": not still,
        "update_every": None if still else STEP,
        "every_token": False,
        "forgets": False,
        "block": kind in (schema.STATIC, schema.FWL),
        "window": 512,
        "step_scale": 1.0,
    }
    own: dict[str, dict[str, Any]] = {
        schema.BASE: {"label": schema.STATIC},
        schema.STATIC: {"label": schema.STATIC},
        schema.DYNAMIC_EVALUATION: {"label": "dynamic evaluation", "segment": STEP, "lr": 0.05, "decay": 0.003},
        schema.FWL: {"label": "FWL", "every_token": True, "inner_batch": STEP},
    }
    return facts | own.get(kind, {})


def certificates(kinds: Mapping[str, str], failing: bool) -> dict[str, Certificate]:
    """Invent a certificate that passes, for readers of kind FWL.

    failing: readers of dynamic evaluation get one too, with a failed check, and static ones with a block one with a
    check that was not made.
    """
    passed = {name: Check(name, True, worst, limit, unit, said) for name, worst, limit, unit, said in _CHECKS}
    padding = Check("padding", False, 0.37, 5e-5, "nat", "padding after token 511: token 512 has another score")
    fork = Check("fork", None, None, 0.0, "nat", "the reader has no fork()")
    given = {schema.FWL: passed}
    if failing:
        given |= {schema.DYNAMIC_EVALUATION: passed | {"padding": padding}, schema.STATIC: passed | {"fork": fork}}
    about = {"tokens": 1024, "seed": 0, "entropy_tokens": 1024}
    return {
        name: Certificate(tuple(given[kind].values()), about | {CONFIGURATION: _configuration(name, kind)})
        for name, kind in kinds.items()
        if kind in given
    }


def _of_ids(rng: np.random.Generator, token_id: np.ndarray, vocab: int, width: int) -> np.ndarray:
    """Draw (N, width) values that scatter around one vector per token id."""
    return 0.3 * rng.normal(size=(vocab, width))[token_id] + rng.normal(size=(len(token_id), width))
