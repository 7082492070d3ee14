"""Read a document in the different ways that an audit compares, and keep the readings that several checks share.

Symbols: T tokens of the document, B rows, V vocabulary. All scores are float64 on the CPU, so that equal means bitwise.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class ReaderLike(Protocol):
    """Methods that a reader must have.

    Optional are `model`, `with_step_scale`, `reset`, `fork`, `state_dict` and `load_state_dict`.
    """

    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Any:
        """Read the next tokens (B, T); return an object with their scores `nll` (B, T), nats."""

    def next_log_probs(self) -> Tensor:
        """Return log-probabilities of the next token, (B, V), nats."""


class Change(NamedTuple):
    """A reading of the document with another token in one place, or with other tokens from there on.

    Attributes
    ----------
    place : int
    token : int
        The token that was put there.
    nll : (T,) float64, nats
    rest : bool
        Whether all tokens after the place were replaced too.
    """

    place: int
    token: int
    nll: Tensor
    rest: bool


class Steps(NamedTuple):
    """A reading with a call of `next_log_probs` before each token at the beginning and before each place.

    Attributes
    ----------
    nll : (T,) float64, nats
    asked : list of int
        Tokens before which `next_log_probs` was called.
    declared : (asked,) float64, nats
        Negative log-probability that it gave to the token in the document.
    totals : (asked,) float64
        Sum of its probabilities.
    expected : dict from place to (V,) float64, nats
        Its log-probabilities at each place.
    unsteady : list of int
        Places where a second call gave something else.
    """

    nll: Tensor
    asked: list[int]
    declared: Tensor
    totals: Tensor
    expected: dict[int, Tensor]
    unsteady: list[int]


#: Tokens at the beginning that are read one by one, so that a score which is not the declared one shows at any of them.
SINGLY = 256


class Readings:
    """Readings of one document by fresh readers; those in properties are made when first asked for, and kept.

    Parameters
    ----------
    make_reader : callable
        Returns a fresh reader.
    tokens : (T,) long
    places : int
        Number of random places, beside the edges.
    periods : sequence of int
        Lengths at whose multiples a reader may make an update. Edges are both sides of the first and of one random
        multiple of each.
    seed : int
        Seed of the places, and of the tokens that are put there.
    """

    def __init__(
        self, make_reader: Callable[[], Any], tokens: Tensor, *, places: int, periods: Sequence[int], seed: int
    ) -> None:
        self.make_reader, self.tokens, self.length = make_reader, tokens, len(tokens)
        self.generator = torch.Generator().manual_seed(seed)
        self.places = self._places(places, periods)

    def _places(self, count: int, periods: Sequence[int]) -> list[int]:
        """Choose the places: edges, and `count` random ones."""
        found = {0, 1, self.length - 1, *self._random(0, self.length, count).tolist()}
        for period in periods:
            multiples = (self.length - 1) // period
            if multiples:
                for at in (period, period * int(self._random(1, multiples + 1, 1))):
                    found |= {at - 1, at}
        return sorted(found)

    def _random(self, low: int, high: int, count: int) -> Tensor:
        """Draw `count` whole numbers from `low` up to, not including, `high`."""
        return torch.randint(low, high, (count,), generator=self.generator)

    def other_than(self, tokens: Tensor) -> Tensor:
        """Draw another token of the vocabulary for each of some tokens (n,)."""
        return (tokens + self._random(1, self.vocabulary, len(tokens))) % self.vocabulary

    @cached_property
    def vocabulary(self) -> int:
        """Size V of the vocabulary, as `next_log_probs` of a fresh reader has it."""
        expected = self.make_reader().next_log_probs()
        if expected.ndim != 2 or len(expected) != 1:
            raise ValueError(f"next_log_probs() of a fresh reader is {tuple(expected.shape)}; expected (1, V).")
        size = expected.shape[1]
        if size < 2 or not 0 <= int(self.tokens.min()) <= int(self.tokens.max()) < size:
            low, high = int(self.tokens.min()), int(self.tokens.max())
            raise ValueError(f"next_log_probs() is over {size} tokens, but the document holds tokens {low} to {high}.")
        return size

    def read(
        self,
        tokens: Tensor,
        cuts: Sequence[int] = (),
        weights: Tensor | None = None,
        *,
        reader: Any = None,
        spoil: bool = False,
    ) -> Tensor:
        """Read tokens (B, T) in calls that end at `cuts`, and return their NLL (B, T).

        Parameters
        ----------
        tokens : (B, T) long
        cuts : sequence of int
        weights : (B, T), optional
            Weights of the tokens' losses; 0 is padding. None: all are 1.
        reader : optional
            None: a fresh one.
        spoil : bool
            Overwrite the arguments and the result of each call before the next one.

        Raises
        ------
        ValueError
            A call returned another shape of scores than it was given tokens.
        """
        reader = self.make_reader() if reader is None else reader
        pieces = []
        for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < tokens.shape[1]}), tokens.shape[1]]):
            given = tokens[:, start:stop].clone()
            own = None if weights is None else weights[:, start:stop].clone()
            nll = reader.read(given) if own is None else reader.read(given, own)
            nll = nll.nll.detach()
            if nll.shape != given.shape or not nll.is_floating_point():
                raise ValueError(
                    f"tokens {start} to {stop - 1} were given as {tuple(given.shape)}, and scored as "
                    f"{tuple(nll.shape)} of {nll.dtype}; expected one floating-point score a token."
                )
            pieces.append(nll.to("cpu", torch.float64, copy=True))
            if spoil:
                given.copy_((given + 1) % self.vocabulary)
                if nll.is_contiguous():  # an expanded tensor cannot be written to
                    nll.fill_(math.nan)
        return torch.cat(pieces, 1)

    @cached_property
    def whole(self) -> Tensor:
        """NLL (T,) of the document, read in one call; other readings are compared with it."""
        return self.read(self.tokens[None])[0]

    @cached_property
    def cuts(self) -> list[int]:
        """Ends of calls of different lengths, one of them a single token."""
        shares = (7, 113, 390, 551, 905)
        return sorted({max(1, self.length * share // 997) for share in shares} | {self.length * 390 // 997 + 1})

    @cached_property
    def ragged(self) -> Tensor:
        """NLL (T,) of the document, read in calls of different lengths."""
        return self.read(self.tokens[None], self.cuts)[0]

    @cached_property
    def changes(self) -> list[Change]:
        """Readings with another token at each place, and a few with other tokens from some place on."""
        others, found = self.other_than(self.tokens), []
        endings = {1, self.length // 3, self.places[len(self.places) // 2], self.length - 2}
        for place, rest in [*((p, False) for p in self.places), *((p, True) for p in sorted(endings))]:
            tokens, replaced = self.tokens.clone(), slice(place, None if rest else place + 1)
            tokens[replaced] = others[replaced]
            found.append(Change(place, int(others[place]), self.read(tokens[None])[0], rest))
        return found

    @cached_property
    def steps(self) -> Steps:
        """Reading of the document token by token at the beginning and at the places."""
        reader, scores, expected, unsteady = self.make_reader(), [], {}, []
        asked = sorted({*self.places, *range(min(SINGLY, self.length))})
        declared, totals = (torch.zeros(len(asked), dtype=torch.float64) for _ in range(2))
        for start, stop in pairwise(sorted({place + side for place in asked for side in (0, 1)} | {0, self.length})):
            if start in asked:
                log_probs = reader.next_log_probs()
                if log_probs.shape != (1, self.vocabulary):
                    raise ValueError(
                        f"next_log_probs() before token {start} is {tuple(log_probs.shape)}; expected "
                        f"(1, {self.vocabulary}), as at the beginning."
                    )
                answer, index = log_probs[0].detach().to("cpu", torch.float64, copy=True), bisect_left(asked, start)
                declared[index], totals[index] = -answer[self.tokens[start]], answer.exp().sum()
                if start in self.places:
                    expected[start] = answer
                    if not torch.equal(reader.next_log_probs(), log_probs):
                        unsteady.append(start)
            scores.append(self.read(self.tokens[None, start:stop], reader=reader)[0])
        return Steps(torch.cat(scores), asked, declared, totals, expected, unsteady)

    @cached_property
    def mates(self) -> Tensor:
        """Batch (3, T): the document rotated by half its length, the document, and random tokens."""
        again = self.tokens.roll(-(self.length // 2))
        return torch.stack([again, self.tokens, self._random(0, self.vocabulary, self.length)])

    @cached_property
    def beside(self) -> Tensor:
        """NLL (3, T) of `mates`, read as one batch."""
        return self.read(self.mates)


def difference(a: Tensor, b: Tensor) -> tuple[float, int]:
    """Return the largest |a − b| of two tensors (n,), and its index; infinite where either is not finite.

    Two empty tensors give (0, 0).
    """
    if not len(a):
        return 0.0, 0
    apart = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(apart.max()), int(apart.argmax())
