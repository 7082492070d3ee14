"""The continuous cache (Grave, Joulin and Usunier, ICLR 2017): the cheap control for every reader that learns.

It copies. A word that followed a similar hidden state earlier in the document becomes more likely, and no weight
changes; what a learning reader gains beyond it is more than repetition.

Symbols: h_t (D,) hidden state of unit length, y_t the token that followed it, S cached pairs, θ sharpness, λ share of
the cache. B rows, T tokens, P tokens of a piece, V vocabulary.

    p(y) = (1 − λ) p_model(y) + λ p_cache(y)        p_cache(y) ∝ Σ_i 1[y_i = y] exp(θ h_t·h_i)

over the last `size` pairs (h_i, y_i), i < t, of the document (equations 2, 3 and 5 of the paper).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.observer import Observer
from fwl_lab.readers.base import Reader
from fwl_lab.readers.description import model_of

PIECE = 256  # tokens whose similarities to the cache are held at once, whatever the length of a call


class Cache(NamedTuple):
    """Pairs of hidden state and next token, in reading order; where rows hold unlike numbers, empty slots in front.

    Attributes
    ----------
    keys : (B, S, D) float32 or wider, of unit length
    labels : (B, S) long, -1 where the slot is empty
    """

    keys: Tensor
    labels: Tensor

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> "Cache":
        """The cache of `rows` documents of which nothing has been read; `like` (..., D) gives width and kind."""
        keys = torch.zeros(rows, 0, like.shape[-1], dtype=torch.promote_types(like.dtype, torch.float32))
        return cls(keys.to(like.device), torch.zeros(rows, 0, dtype=torch.long, device=like.device))

    def extend(self, keys: Tensor, labels: Tensor) -> "Cache":
        """The cache with the pairs (B, P, D) and (B, P) after its own."""
        return Cache(torch.cat([self.keys, keys], 1), torch.cat([self.labels, labels], 1))

    def last(self, size: int) -> "Cache":
        """The last `size` pairs of each row."""
        if bool((self.labels >= 0).all()):
            return Cache(self.keys[:, -size:], self.labels[:, -size:])
        order = (self.labels >= 0).to(torch.uint8).argsort(dim=1, stable=True)[:, -size:]
        return Cache(self.keys.gather(1, order[..., None].expand(-1, -1, self.keys.shape[2])),
                     self.labels.gather(1, order))  # fmt: skip


class NeuralCacheState(NamedTuple):
    """What a reader with a cache remembers.

    Attributes
    ----------
    context : Context
        Of the model's body.
    cache : Cache
    """

    context: Context
    cache: Cache


class NeuralCacheReader(Reader):
    """Reads as `StaticReader` does, and mixes in what followed similar places earlier in the document.

    The hidden state is what the unembedding reads: the output of the final norm, or of the block at θ₀. There two
    states are close where the model expects the same words, which is what a cached word is looked up by. It is scaled
    to unit length, so that h·h is a cosine and θ means the same for every width and every norm's gain.

    A score costs the model's own D × V product and `size` × D beside it; a document keeps `size` × (D + 1) numbers.
    A cached pair counts once, whatever its token's weight; one of weight 0 (padding) is not cached. What a document
    cached is forgotten at its end, carried fast weights or not.

    Parameters
    ----------
    model : LanguageModel
        With a block or without.
    size : int
        How many of the document's last tokens are kept.
    theta : float
        θ >= 0: 0 counts words, a large one copies from the most similar place alone. The default and that of
        `interpolation` were tuned on validation documents of the bundled base model.
    interpolation : float
        0 <= λ < 1, the share of the cache once it holds anything; before, the model is asked alone.
    step_scale : float
        Multiplies λ.
    """

    label = "neural cache"

    def __init__(
        self,
        model: LanguageModel,
        size: int = 2000,
        theta: float = 30.0,
        interpolation: float = 0.5,
        *,
        step_scale: float = 1.0,
    ) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size is {size!r}; expected a whole number of tokens, at least 1.")
        if not 0 <= theta < math.inf:
            raise ValueError(f"theta is {theta!r}; expected a finite number, at least 0.")
        self.size, self.theta, self.interpolation = size, float(theta), float(interpolation)
        super().__init__(model, step_scale=step_scale)

    @property
    def share(self) -> float:
        """λ, scaled."""
        return self.interpolation * self.step_scale

    def initial_state(self, rows: int) -> NeuralCacheState:
        """Return the state of `rows` documents of which nothing has been read."""
        if not 0 <= self.share < 1:
            raise ValueError(
                f"interpolation is {self.interpolation} and step_scale {self.step_scale}; expected a product of at "
                "least 0 and below 1, the share of the cache: with all of it a new word would be impossible."
            )
        cache = Cache.empty(rows, self.model.unembedding.weight)
        return NeuralCacheState(Context.empty(rows, self.model.device), cache)

    def step(
        self, state: NeuralCacheState, inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, NeuralCacheState]:
        """Score the next tokens, and cache them; see `Reader.step`."""
        return self._score(state, inputs, labels, weights, None)

    def observe(
        self, state: NeuralCacheState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, NeuralCacheState]:
        """Score the next tokens, and tell what was expected; see `Reader.observe`."""
        return self._score(state, inputs, labels, weights, observer)

    def _score(
        self, state: NeuralCacheState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, NeuralCacheState]:
        valid, cache, found = weights != 0, state.cache, []
        residual, context = self.model.read(inputs, state.context, valid)
        hidden = self.model.slow_output(residual, state.context.seen, valid)
        nll = self.model.nll(hidden, labels)
        if self.share == 0:
            if observer is not None:
                observer.expected(hidden.shape[1], lambda part: self.model.logits(hidden[:, part]))
            return nll, NeuralCacheState(context, cache)
        for start in range(0, labels.shape[1], PIECE):
            part = slice(start, start + PIECE)
            mixed, cache = self._mix(cache, nll[:, part], hidden[:, part], labels[:, part], valid[:, part], observer)
            found.append(mixed)
        return torch.cat(found, 1), NeuralCacheState(context, cache)

    def _mix(
        self, cache: Cache, nll: Tensor, hidden: Tensor, labels: Tensor, valid: Tensor, observer: Observer | None
    ) -> tuple[Tensor, Cache]:
        """Return the NLL (B, P) of the mixture for the next tokens, whose model's NLL is `nll`, and the cache after."""
        slots, queries = cache.labels.shape[1], _unit(hidden, cache)
        new = labels.masked_fill(~valid if self.learning else torch.ones_like(valid), -1)
        extended = cache.extend(queries, new)
        filled = extended.labels >= 0  # (B, N) where N = S + P
        count = filled.cumsum(1)  # (B, N) pairs up to each slot, its own included
        # A token is cached at its own slot, after it was scored; what it sees are the `size` pairs before.
        place = torch.arange(filled.shape[1], device=labels.device)
        oldest = count[:, slots:] - filled[:, slots:].long() - self.size
        visible = filled[:, None] & (place < place[slots:, None]) & (count[:, None] > oldest[..., None])  # (B, P, N)
        similar = (self.theta * queries @ extended.keys.mT).masked_fill(~visible, -math.inf)
        same = extended.labels[:, None] == labels[..., None]
        log_all = similar.logsumexp(-1)
        log_cached = similar.masked_fill(~same, -math.inf).logsumexp(-1) - log_all
        mixed = -torch.logaddexp(math.log1p(-self.share) - nll, math.log(self.share) + log_cached)
        if observer is not None:
            observer.expected(
                hidden.shape[1], lambda part: self._mixture(hidden[:, part], similar[:, part], extended.labels)
            )
        return torch.where(log_all.isfinite(), mixed, nll), extended.last(self.size) if self.learning else cache

    def logits(self, state: NeuralCacheState, last: Tensor) -> Tensor:
        """Return the logits (B, V), or log-probabilities of the mixture, of the token after `last` (B, 1)."""
        residual, _ = self.model.read(last, state.context)
        hidden, cache = self.model.slow_output(residual, state.context.seen), state.cache
        if self.share == 0 or not cache.labels.shape[1]:
            return self.model.logits(hidden)[:, -1]
        filled = cache.labels[:, None] >= 0
        similar = (self.theta * _unit(hidden, cache) @ cache.keys.mT).masked_fill(~filled, -math.inf)
        return self._mixture(hidden, similar, cache.labels)[:, -1]

    def _mixture(self, hidden: Tensor, similar: Tensor, labels: Tensor) -> Tensor:
        """Return log-probabilities (B, P, V) for hidden states (B, P, ·), log-weights (B, P, N) and labels (B, N)."""
        log_probs = self.model.logits(hidden).to(similar.dtype).log_softmax(-1)
        found = similar.isfinite().any(-1, keepdim=True)  # where nothing is cached the model is asked alone
        at = labels.clamp(min=0)[:, None].expand_as(similar)
        cached = torch.zeros_like(log_probs).scatter_add(2, at, similar.softmax(-1).nan_to_num(0.0))
        mixed = torch.logaddexp(math.log1p(-self.share) + log_probs, math.log(self.share) + cached.log())
        return torch.where(found, mixed, log_probs)

    def settings(self) -> dict[str, Any]:
        """Return what the constructor was given."""
        return {"size": self.size, "theta": self.theta, "interpolation": self.interpolation}

    @classmethod
    def from_configuration(cls, model: LanguageModel, configuration: Mapping[str, Any]) -> Self:
        """Make a reader of this kind, set as a `configuration` says."""
        size, theta, interpolation = (configuration[name] for name in ("size", "theta", "interpolation"))
        step_scale = configuration["step_scale"]
        return cls(model_of(model, configuration), size, theta, interpolation, step_scale=step_scale)


def _unit(hidden: Tensor, cache: Cache) -> Tensor:
    return F.normalize(hidden.to(cache.keys.dtype), dim=-1)
