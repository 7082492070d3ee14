"""Certify that a reader's scores use only the past, are normalised, and do not depend on calls or batches."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fwl_lab.audit.certificate import CONFIGURATION, Certificate, Check
from fwl_lab.audit.checks import RULES, Rule, base_weights, entropy_floor
from fwl_lab.audit.probes import ReaderLike, Readings

SHORTEST = 16  # tokens
BASE_WEIGHTS, ENTROPY_FLOOR = "base weights", "entropy floor"
LONGEST_DETAIL = 400  # characters of an exception's text


def certify(
    make_reader: Callable[[], ReaderLike],
    tokens: Tensor | np.ndarray,
    *,
    places: int = 4,
    periods: Sequence[int] = (64,),
    entropy_tokens: int = 1024,
    seed: int = 0,
) -> Certificate:
    """Check any reader, of this library or not, by reading one document many times in different ways.

    ================= ============================================================================================
    each token once   one finite score per token, also if arguments and results are overwritten later, bitwise
    determinism       two fresh readers give the same scores, bitwise
    causality         another token in one place, or other tokens from there on, change no score before, bitwise;
                      and some changed token has another score
    probabilities     `next_log_probs` adds up to 1 over the whole vocabulary, within 1e-4
    predictions       the score of each of the first 256 tokens and at the places, and of another token in their
                      place, is what `next_log_probs` declared just before it was read, within 1e-4 nats: nothing
                      is learned from a token, or from what follows it, before it is scored
    partition         the same scores however the document is cut into calls, within 1e-4 nats
    batch             the same scores in a batch with two other documents as alone, within 5e-5 nats
    batch mates       other tokens in the other rows change no score, bitwise
    padding           tokens of weight 0 between and beside score 0 and change no other score, within 5e-5 nats
    reset             after `reset()` the same scores as from a fresh reader, bitwise
    fork, saved state a fork, and a reader that loaded the state, go on with the same scores, bitwise
    step scale 0      `with_step_scale(0)` gives the scores of `StaticReader(reader.model)`, bitwise
    base weights      `reader.model.weight_hash()` is the same before and after all readings
    entropy floor     see below
    ================= ============================================================================================

    A check of something that a reader does not offer (`model`, `with_step_scale`, `reset`, `fork`, `state_dict` and
    `load_state_dict`) is "not checked", which is not "passed". A check that raises an exception has failed, with the
    exception's text. Places are 0, 1, the last, both sides of the first and of one random multiple of each of `periods`
    and of the model's window, and random ones.

    The entropy floor. If tokens are drawn uniformly and independently from V, the past says nothing about the next one.
    Each score then has an expected value of at least ln V given all tokens before it, and the mean of many scores falls
    k standard errors below ln V at most about as often as a normal variable falls k below its mean. It may lie at most
    5 standard errors below (the scores' standard deviation over √n; 1e-4 nats are added for rounding). A text with its
    words shuffled would not do, since a correct reader learns which words a document has. If a model scores far above
    ln V on such tokens, a small error stays above the floor; the other checks are for that.

    An audit of this kind cannot see weights that had been trained on this document, or on one like it; nor an error
    that shows only after the tokens given, or only between the places once 256 tokens have been read.

    The limits are for scores in float32 or wider; half precision may exceed them.

    Cost: about 45 readings of the document (a reading of three rows counts as three), 35 for a reader that offers
    nothing optional, 256 calls of one token, and one reading of `entropy_tokens`. On one core 22 s for the bundled
    model's fast weights and 1,024 tokens, 32 s for dynamic evaluation of it and 512.

    Parameters
    ----------
    make_reader : callable
        Returns a fresh reader: `read(tokens (B, T), weights (B, T) or None)`, which returns something with `nll`
        (B, T) in nats, and `next_log_probs()`, (B, V), which works before the first reading and then has one row.
    tokens : (T,) long
        The document, 16 tokens or more; longer than a few segments and than the window, so that their ends are checked.
    places : int
        Number of random places.
    periods : sequence of int
        Lengths at whose multiples the reader makes an update: a segment, an inner batch.
    entropy_tokens : int
        n of the entropy floor.
    seed : int
        Seed of places, replacements and random tokens.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        Tokens have another type or shape, or are too few; `places`, `periods` or `entropy_tokens` are too small; or
        `make_reader` returns no reader, or the same one again.
    """
    tokens = _document(tokens)
    if places < 0 or entropy_tokens < 2 or any(period < 1 for period in periods):
        raise ValueError(
            f"places is {places}, entropy_tokens {entropy_tokens}, periods {tuple(periods)}; expected at least 0, 2 "
            "and 1 each."
        )
    first = _fresh(make_reader)
    model = getattr(first, "model", None)
    lengths = {*periods, *(x for x in (getattr(model, "window", None),) if isinstance(x, int) and x > 0)}
    readings = Readings(make_reader, tokens, places=places, periods=sorted(lengths), seed=seed)
    before = _hash(model)
    checks = [_judge(name, rule, readings) for name, rule in RULES.items()]
    floor = Rule(partial(entropy_floor, count=entropy_tokens), 0.0, "nat")
    checks.append(_judge(ENTROPY_FLOOR, floor, readings))
    checks.append(
        _judge(BASE_WEIGHTS, Rule(partial(base_weights, model=model, before=before), 0.0, "changes"), readings)
    )
    about = {"tokens": len(tokens), "seed": seed, "places": readings.places, "entropy_tokens": entropy_tokens,
             "model_hash": before, CONFIGURATION: _configuration(first)}  # fmt: skip
    return Certificate(tuple(checks), about)


def _document(tokens: Any) -> Tensor:
    """Check that the tokens are one document, and return a copy of them on the CPU."""
    if isinstance(tokens, np.ndarray):
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens are an array of {tokens.dtype}; expected whole numbers.")
        tokens = torch.from_numpy(tokens.astype(np.int64))
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.ndim != 1:
        given = f"{tuple(tokens.shape)} of {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens are {given}; expected one document, a long tensor (T,), such as model.encode(text).")
    if len(tokens) < SHORTEST:
        raise ValueError(f"tokens hold {len(tokens)}; expected at least {SHORTEST}, better a few hundred.")
    return tokens.detach().to("cpu", torch.long, copy=True)


def _fresh(make_reader: Callable[[], Any]) -> Any:
    """Return a fresh reader, after checking that each call of `make_reader` makes another one that can read."""
    if not callable(make_reader):
        raise ValueError(
            f"make_reader is a {type(make_reader).__name__}; expected a function that returns a fresh reader, such as "
            "lambda: FastWeightReader(model)."
        )
    first, second = make_reader(), make_reader()
    for name in ("read", "next_log_probs"):
        if not callable(getattr(first, name, None)):
            raise ValueError(f"make_reader returned a {type(first).__name__}, which has no {name}().")
    if first is second:
        raise ValueError("make_reader returned the same reader twice; expected a fresh one each time.")
    return first


def _judge(name: str, rule: Rule, readings: Readings) -> Check:
    """Run a check and return its line; an exception fails the check, with the exception's text as detail."""
    try:
        found = rule.check(readings)
    except Exception as error:  # the reader may be anybody's and raise anything
        text = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        return Check(name, False, None, rule.limit, rule.unit, text[:LONGEST_DETAIL])
    limit = rule.limit if found.limit is None else found.limit
    if found.worst is None:
        return Check(name, False if found.failed else None, None, limit, rule.unit, found.said)
    passed = not found.failed and found.worst <= limit
    worst = found.worst if math.isfinite(found.worst) else None
    return Check(
        name, passed, worst, limit, rule.unit, found.said if worst is not None else f"{found.said} (no number)"
    )


def _hash(model: Any) -> str | None:
    """Return a model's weight hash, None where it has none."""
    return str(model.weight_hash()) if callable(getattr(model, "weight_hash", None)) else None


def _configuration(reader: Any) -> dict[str, Any] | None:
    """Return a reader's configuration, None where it has none."""
    return dict(reader.configuration()) if callable(getattr(reader, "configuration", None)) else None
