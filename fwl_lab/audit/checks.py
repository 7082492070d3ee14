"""Define the checks of an audit, one function each, from readings to the largest error and a sentence about it.

Symbols: T tokens of the document, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwl_lab.audit.probes import SINGLY, Readings, difference
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers import StaticReader

SUM_LIMIT = 1e-4  # error of the sum of all probabilities; float32 sums of 50,000 are off by about 1e-6
SCORE_LIMIT = 1e-4  # nats; rounding errors of float32 are carried on by fast weights
BATCH_LIMIT = 5e-5  # nats
ERRORS = 5  # standard errors that the mean may lie below ln V
NAT, ONE = "nat", "1"


class Finding(NamedTuple):
    """Result of a check.

    Attributes
    ----------
    worst : float or None
        The largest error; None where nothing was checked, or the check failed without a number.
    said : str
        What was done, or what went wrong and where.
    limit : float, optional
        Limit of `worst` where it depends on the readings; None: that of the rule.
    failed : bool
        Whether the check failed whatever `worst` is.
    """

    worst: float | None
    said: str
    limit: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Rule:
    """A check, the largest error with which it passes, and the error's unit."""

    check: Callable[[Readings], Finding]
    limit: float
    unit: str


def _worst(found: list[tuple[float, str]], passed: str, limit: float) -> Finding:
    """Return the largest of some errors, with its own sentence if it exceeds `limit`, else with `passed`."""
    worst, said = max(found, key=lambda one: one[0])
    return Finding(worst, passed if worst <= limit else said)


def once(readings: Readings) -> Finding:
    """Check that each token has one finite score, also if tokens and scores of earlier calls are overwritten."""
    for name, nll in (("one call", readings.whole), ("ragged calls", readings.ragged)):
        if not bool(nll.isfinite().all()):
            at = int((~nll.isfinite()).nonzero()[0])
            return Finding(None, f"read in {name}, token {at} has the score {float(nll[at])}", failed=True)
    spoilt = readings.read(readings.tokens[None], readings.cuts, spoil=True)[0]
    worst, at = difference(spoilt, readings.ragged)
    said = f"token {at} is scored otherwise once what earlier calls were given and returned is overwritten"
    passed = f"{readings.length:,} tokens, as many finite scores; no earlier argument or result is used again"
    return _worst([(worst, said)], passed, 0)


def determinism(readings: Readings) -> Finding:
    """Check that two fresh readers give the same scores in the same calls, bitwise."""
    first = readings.whole
    worst, at = difference(readings.read(readings.tokens[None])[0], first)
    return _worst([(worst, f"a second fresh reader scores token {at} otherwise")], "two fresh readers", 0)


def causality(readings: Readings) -> Finding:
    """Check that changing later tokens changes no score before them, bitwise.

    Fails too if no changed token changes its own score.
    """
    found, moved = [], False
    for change in readings.changes:
        worst, at = difference(change.nll[: change.place], readings.whole[: change.place])
        what = f"all tokens from {change.place} on" if change.rest else f"token {change.place}"
        found.append((worst, f"changing {what} changes the score of token {at}, before it"))
        moved |= bool(change.nll[change.place] != readings.whole[change.place])
    if not moved:
        return Finding(None, "no changed token has another score: the scores ignore the tokens", failed=True)
    ones = sum(not change.rest for change in readings.changes)
    return _worst(found, f"{ones} single tokens changed, {len(found) - ones} endings replaced", 0)


def probabilities(readings: Readings) -> Finding:
    """Check that `next_log_probs` adds up to 1 over the whole vocabulary."""
    model = getattr(readings.make_reader(), "model", None)
    size = getattr(model, "vocab_size", readings.vocabulary)
    if isinstance(size, int) and size != readings.vocabulary:
        return Finding(
            None, f"next_log_probs() is over {readings.vocabulary} tokens, the model's are {size}", None, True
        )
    steps = readings.steps
    worst, at = difference(steps.totals, torch.ones_like(steps.totals))
    said = f"before token {steps.asked[at]} the probabilities add up to {float(steps.totals[at]):.6g}"
    return _worst([(worst, said)], f"before {len(steps.asked)} tokens, over {readings.vocabulary:,}", SUM_LIMIT)


def predictions(readings: Readings) -> Finding:
    """Check that a score, of the token read and of another one, was declared by `next_log_probs` before it.

    Only the first 256 tokens and the places are checked; other tokens are put at the places only.
    """
    steps, found = readings.steps, []
    if steps.unsteady:
        return Finding(None, f"next_log_probs() before token {steps.unsteady[0]}, asked twice, differs", failed=True)
    for how, nll in (("read right after", steps.nll), ("read in one call", readings.whole)):
        worst, at = difference(nll[steps.asked], steps.declared)
        place = steps.asked[at]
        said = f"token {place}, {how}, has the score {float(nll[place]):.4f}; declared was {steps.declared[at]:.4f}"
        found.append((worst, said))
    for change in readings.changes:
        if not change.rest:
            declared, nll = -steps.expected[change.place][change.token], change.nll[change.place]
            said = f"{change.token} as token {change.place} has the score {nll:.4f}; declared was {declared:.4f}"
            found.append((difference(nll[None], declared[None])[0], said))
    said = f"{len(steps.asked)} tokens, the first {min(SINGLY, readings.length)} among them; {len(found) - 2} others"
    return _worst(found, said, SCORE_LIMIT)


def partition(readings: Readings) -> Finding:
    """Check that scores do not depend on how the document is cut into calls."""
    tokens, found = readings.tokens[None], []
    ways = {
        "calls of 64": readings.read(tokens, range(64, readings.length, 64))[0] if readings.length > 64 else None,
        "ragged calls": readings.ragged,
        "calls of one token": readings.steps.nll,
    }
    for name, nll in ways.items():
        if nll is not None:
            worst, at = difference(nll, readings.whole)
            found.append((worst, f"read in {name}, token {at} has another score than read in one call"))
    return _worst(found, "; ".join(name for name, nll in ways.items() if nll is not None), SCORE_LIMIT)


def batch(readings: Readings) -> Finding:
    """Check that scores in a batch with other documents are those of the document alone."""
    worst, at = difference(readings.beside[1], readings.whole)
    said = f"beside two others, token {at} has another score than alone"
    return _worst([(worst, said)], "beside 2 others", BATCH_LIMIT)


def mates(readings: Readings) -> Finding:
    """Check that neither tokens in other rows nor a row's own later tokens change a score, bitwise."""
    place, changed = readings.length // 2, readings.mates.clone()
    changed[0, place:] = readings.other_than(changed[0, place:])
    changed[2] = readings.other_than(changed[2])
    after, found = readings.read(changed), []
    for row, until in ((1, readings.length), (0, place)):
        worst, at = difference(after[row, :until], readings.beside[row, :until])
        found.append(
            (worst, f"changing all of row 2, and row 0 from token {place} on, changes token {at} of row {row}")
        )
    return _worst(found, "all of one mate replaced, half of another", 0)


def padding(readings: Readings) -> Finding:
    """Check that right padding between a document's halves, in a batch of three lengths, changes no score.

    Fails too if a token of weight 0 has a score other than 0, or other tokens of weight 0 change a score, bitwise.
    """
    first = min(readings.length // 2 + 3, readings.length - 1)
    lengths = (min(first + 9, readings.length), first, min(7, first))  # the document is the second
    found, again = [], None
    for _ in range(2):
        reader, scores = readings.make_reader(), []
        for begins, ends in (((0,) * 3, lengths), (lengths, (readings.length, readings.length, lengths[2]))):
            width = max(end - begin for begin, end in zip(begins, ends, strict=True)) + 2
            tokens = readings.other_than(torch.zeros(3 * width, dtype=torch.long)).view(3, width)
            weights = torch.zeros(3, width)
            for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                tokens[row, : end - begin] = readings.mates[row, begin:end]
                weights[row, : end - begin] = 1.0
            nll = readings.read(tokens, weights=weights, reader=reader)
            if bool(nll[weights == 0].any()):
                return Finding(None, "a token of weight 0 has a score other than 0", failed=True)
            scores.append(nll[1, : ends[1] - begins[1]])
        nll = torch.cat(scores)
        worst, at = difference(nll, readings.whole)
        found.append((worst, f"with padding, token {at} has another score than without"))
        # Shapes are the same as in the first round and only the padding differs, so scores must be equal bitwise.
        if again is not None and (apart := difference(nll, again))[0]:
            said = f"other tokens of weight 0 change the score of token {apart[1]}"
            return Finding(apart[0] if math.isfinite(apart[0]) else None, said, failed=True)
        again = nll
    return _worst(found, f"padding after token {first - 1} and at the end, twice", BATCH_LIMIT)


def reset(readings: Readings) -> Finding:
    """Check that a reader scores as a fresh one after `reset()`, bitwise."""
    reader = readings.make_reader()
    if not callable(getattr(reader, "reset", None)):
        return Finding(None, "the reader has no reset()")
    readings.read(readings.tokens[None], reader=reader)
    reader.reset()
    worst, at = difference(readings.read(readings.tokens[None], reader=reader)[0], readings.whole)
    return _worst([(worst, f"read again after reset(), token {at} has another score")], "read twice", 0)


def fork(readings: Readings) -> Finding:
    """Check that a fork goes on with the scores of its reader, and does not change it."""
    reader, half = readings.make_reader(), readings.length // 2
    if not callable(getattr(reader, "fork", None)):
        return Finding(None, "the reader has no fork()")
    readings.read(readings.tokens[None, :half], reader=reader)
    expected = readings.read(readings.tokens[None], (half,))[0, half:]
    twin, other = reader.fork(), reader.fork()
    readings.read(readings.other_than(readings.tokens[half:])[None], reader=other)
    found = []
    for name, one in (("the reader, after a fork of it read on,", reader), ("a fork", twin)):
        worst, at = difference(readings.read(readings.tokens[None, half:], reader=one)[0], expected)
        found.append((worst, f"{name} scores token {half + at} otherwise"))
    return _worst(found, f"after token {half - 1}", 0)


def saved_state(readings: Readings) -> Finding:
    """Check that a fresh reader with the state loaded goes on with the scores of the one that saved it."""
    reader, half = readings.make_reader(), readings.length // 2
    if not callable(getattr(reader, "state_dict", None)) or not callable(getattr(reader, "load_state_dict", None)):
        return Finding(None, "the reader has no state_dict() and load_state_dict()")
    readings.read(readings.tokens[None, :half], reader=reader)
    twin = readings.make_reader()
    twin.load_state_dict(reader.state_dict())
    expected = readings.read(readings.tokens[None, half:], reader=reader)[0]
    worst, at = difference(readings.read(readings.tokens[None, half:], reader=twin)[0], expected)
    said = f"a reader that was given the state scores token {half + at} otherwise"
    return _worst([(worst, said)], f"after token {half - 1}", 0)


def step_zero(readings: Readings) -> Finding:
    """Check that a reader with a step scale of 0 gives the scores of the static model, bitwise."""
    reader = readings.make_reader()
    model = getattr(reader, "model", None)
    if not callable(getattr(reader, "with_step_scale", None)):
        return Finding(None, "the reader has no with_step_scale()")
    if not isinstance(model, LanguageModel):
        return Finding(None, f"the reader's model is a {type(model).__name__}, which StaticReader does not read")
    still = readings.read(readings.tokens[None], reader=reader.with_step_scale(0.0))[0]
    static = readings.read(readings.tokens[None], reader=StaticReader(model))[0]
    worst, at = difference(still, static)
    return _worst([(worst, f"with a step scale of 0, token {at} has another score than read statically")],
                  "as StaticReader, bitwise", 0)  # fmt: skip


def base_weights(readings: Readings, model: Any, before: str | None) -> Finding:
    """Check that a reading changes no weights, and that all readings changed none since `model` had hash `before`.

    `worst` is the number of hashes, of three, that differ from `before`.
    """
    reader: Any = readings.make_reader()
    own: Any = getattr(reader, "model", None)
    if before is None or not callable(getattr(own, "weight_hash", None)):
        return Finding(None, "the reader has no model with weight_hash()")
    hashes = [str(own.weight_hash())]
    readings.read(readings.tokens[None], reader=reader)
    hashes += [str(own.weight_hash()), str(model.weight_hash())]
    changes = sum(one != before for one in hashes)
    said = f"the model's hash was {before}, and became {hashes[-1] if hashes[-1] != before else hashes[1]}"
    return Finding(float(changes), said if changes else f"hash {before} before, between and after")


def entropy_floor(readings: Readings, count: int) -> Finding:
    """Check that random tokens are not scored better than chance, ln V; see `certify`."""
    tokens: Tensor = torch.randint(0, readings.vocabulary, (1, count), generator=readings.generator)
    nll = readings.read(tokens)[0]
    mean, error, chance = float(nll.mean()), float(nll.std()) / math.sqrt(count), math.log(readings.vocabulary)
    if not math.isfinite(mean):
        return Finding(None, f"the mean score of random tokens is {mean}", failed=True)
    # Where all scores are equal the standard error is 0 and rounding alone may lie below ln V.
    limit = ERRORS * error + SCORE_LIMIT
    said = f"{count:,} random tokens: mean {mean:.3f}, ln V {chance:.3f}, standard error {error:.3f}"
    below = chance - mean
    return Finding(below, said if below <= limit else f"{said}: nobody can know so much", limit)


RULES = {
    "each token once": Rule(once, 0, NAT),
    "determinism": Rule(determinism, 0, NAT),
    "causality": Rule(causality, 0, NAT),
    "probabilities": Rule(probabilities, SUM_LIMIT, ONE),
    "predictions": Rule(predictions, SCORE_LIMIT, NAT),
    "partition": Rule(partition, SCORE_LIMIT, NAT),
    "batch": Rule(batch, BATCH_LIMIT, NAT),
    "batch mates": Rule(mates, 0, NAT),
    "padding": Rule(padding, BATCH_LIMIT, NAT),
    "reset": Rule(reset, 0, NAT),
    "fork": Rule(fork, 0, NAT),
    "saved state": Rule(saved_state, 0, NAT),
    "step scale 0": Rule(step_zero, 0, NAT),
}
