"""Is a reader honest? Checks that any reader can be given, and that say what was seen."""

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
    """Check a reader, a shipped one or your own, by reading one document again and again.

    ================= ============================================================================================
    each token once   one finite score a token; what was given and returned may be overwritten, bitwise
    determinism       two fresh readers give the same scores, bitwise
    causality         another token in one place, or other tokens from there on, change no score before, bitwise
    probabilities     `next_log_probs` adds up to 1 over the whole vocabulary, within 1e-4
    predictions       the score of each of the first 256 tokens and at the places, and of another token in their
                      place, is what `next_log_probs` declared just before it was read, within 1e-4 nats: nothing
                      is learned from a token, or from what follows it, before it is scored
    partition         however the document is cut into calls, within 1e-4 nats
    batch             beside two other documents as alone, within 5e-5 nats
    batch mates       what stands in the other rows changes nothing, bitwise
    padding           tokens of weight 0 between and beside score 0 and change nothing, within 5e-5 nats
    reset             after `reset()` as a fresh reader, bitwise
    fork, saved state a fork, or a reader that was given the state, goes on as the reader itself, bitwise
    step scale 0      `with_step_scale(0)` reads as `StaticReader(reader.model)`, bitwise
    base weights      `reader.model.weight_hash()` is after all this what it was before
    entropy floor     see below
    ================= ============================================================================================

    What a reader does not offer (`model`, `with_step_scale`, `reset`, `fork`, `state_dict`) is "not checked", which
    is not "passed". A check in which an exception is raised has failed, with its text. Places are 0, 1, the last, both
    sides of multiples of 64 and of the model's window, and random ones.

    The entropy floor. Of tokens drawn uniformly and independently from V, whatever was read says nothing of the next,
    so that each score has an expected value of at least ln V given all before it, and the mean of many of them falls
    k standard errors below ln V about as rarely as a normal variable k below its mean, or more so. It may lie at most
    5 below; the standard error is the scores' standard deviation over √n (1e-4 nats are added for rounding). A text
    with its words shuffled would not do: an honest reader learns which words a document has. For a model that is far
    above ln V on such tokens, small frauds stay above the floor; they are for the other checks.

    What no audit of this kind can see: weights that had learned this document, or one like it, before; a fraud that
    shows only beyond the tokens given, or only between the places once 256 tokens have been read.

    The limits are for scores in float32 or wider; half precision need not keep to them.

    Cost: about 45 times that of reading the document once (reading three rows counts as three), 35 times for a reader
    that does not offer the rest, 256 calls of one token, and one reading of `entropy_tokens`. On one core 22 s for the
    bundled model's fast weights and 1,024 tokens, 32 s for dynamic evaluation of it and 512.

    Parameters
    ----------
    make_reader : callable
        Returns a fresh reader: `read(tokens (B, T), weights (B, T) or None)`, which returns something with `nll`
        (B, T) in nats, and `next_log_probs()`, (B, V), which works before the first reading and then has one row.
    tokens : (T,) long
        The document, 16 tokens or more; a few segments, and more than the window, if those are to be seen.
    places : int
        How many random places are looked at.
    periods : sequence of int
        Lengths at whose multiples the reader does something: a segment, an inner batch.
    entropy_tokens : int
        n of the entropy floor.
    seed : int
        Of places, replacements and random tokens.

    Raises
    ------
    ValueError
        Tokens of another kind or shape, or too few; no positive `places`, `periods` or `entropy_tokens`; or
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
    """A reader, none of which is another."""
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
    """A check's line; what is raised in it is what it says."""
    try:
        found = rule.check(readings)
    except Exception as error:  # any: a reader may be anybody's
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
    return str(model.weight_hash()) if callable(getattr(model, "weight_hash", None)) else None


def _configuration(reader: Any) -> dict[str, Any] | None:
    return dict(reader.configuration()) if callable(getattr(reader, "configuration", None)) else None
