"""Define the reader with a continuous cache (Grave, Joulin and Usunier, ICLR 2017), a control for readers that learn.

A token that followed a similar hidden state earlier in the document becomes more likely; no weight changes. What a
reader that learns gains beyond this control is more than copied repetition.

Symbols: h_t (D,) hidden state of unit length, y_t the token that followed it, S cached pairs, θ inverse temperature of
the similarities, λ weight of the cache in the mixture. B rows, T tokens, P tokens scored at once, N = S + P slots, V
vocabulary.

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
from fwl_lab.readers.arguments import finite_number
from fwl_lab.readers.base import Reader
from fwl_lab.readers.description import model_of

QUERIES_AT_ONCE = 256  # tokens whose similarities to the cache are in memory together, whatever the length of a call


class Cache(NamedTuple):
    """Pairs of hidden state and next token, in reading order.

    Attributes
    ----------
    keys : (B, S, D) float32 or wider
        Hidden states, of unit length.
    labels : (B, S) long
        Next tokens; -1 where the slot is empty. Rows with fewer pairs than others may have empty slots.
    """

    keys: Tensor
    labels: Tensor

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> "Cache":
        """Return the empty cache of `rows` documents; `like` (..., D) gives the width D, the dtype and the device."""
        keys = torch.zeros(rows, 0, like.shape[-1], dtype=torch.promote_types(like.dtype, torch.float32))
        return cls(keys.to(like.device), torch.zeros(rows, 0, dtype=torch.long, device=like.device))

    def extend(self, keys: Tensor, labels: Tensor) -> "Cache":
        """Return the cache with keys (B, P, D) and labels (B, P) appended."""
        return Cache(torch.cat([self.keys, keys], 1), torch.cat([self.labels, labels], 1))

    def last(self, size: int) -> "Cache":
        """Return the last `size` pairs of each row; empty slots, where they remain, come first."""
        if bool((self.labels >= 0).all()):
            return Cache(self.keys[:, -size:], self.labels[:, -size:])
        order = (self.labels >= 0).to(torch.uint8).argsort(dim=1, stable=True)[:, -size:]
        return Cache(self.keys.gather(1, order[..., None].expand(-1, -1, self.keys.shape[2])),
                     self.labels.gather(1, order))  # fmt: skip


class NeuralCacheState(NamedTuple):
    """State of a reader with a cache.

    Attributes
    ----------
    context : Context
        KV cache and positions of the model's body.
    cache : Cache
        Pairs read in the document.
    """

    context: Context
    cache: Cache


class NeuralCacheReader(Reader):
    """Static reader whose distribution is mixed with that of the tokens which followed similar hidden states.

    The hidden state is the input of the unembedding: the output of the final norm, or of the block at θ₀. There two
    states are close where the model predicts similar distributions, which makes it a suitable key. It is scaled to
    unit length, so that a product of two is a cosine, and θ means the same for every width and gain of the norm.

    A score costs D × V operations for the model's logits and `size` × D for the cache; the state of a document holds
    `size` × (D + 1) numbers. A cached pair counts once, whatever its token's weight; tokens of weight 0 (padding) are
    not cached. The cache is emptied at the end of a document, also where fast weights are carried.

    Parameters
    ----------
    model : LanguageModel
        With a block or without.
    size : int
        Number of last tokens of the document that are kept.
    theta : float
        θ >= 0. With 0 all cached tokens count alike; a large θ copies from the most similar place alone. This default
        and that of `interpolation` were tuned on validation documents of the bundled base model.
    interpolation : float
        0 <= λ < 1, weight of the cache in the mixture. While the cache is empty the weight is 0.
    step_scale : float
        Multiplies λ.

    Raises
    ------
    ValueError
        An argument is out of range, or the product of `interpolation` and `step_scale` is.
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
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size is {size!r}; expected a whole number of tokens, at least 1.")
        self.size, self.theta = size, finite_number(theta, "theta")
        if self.theta < 0:
            raise ValueError(f"theta is {theta!r}; expected a finite number, at least 0.")
        self.interpolation = finite_number(interpolation, "interpolation")
        super().__init__(model, step_scale=step_scale)

    @property
    def share(self) -> float:
        """Weight of the cache in the mixture: λ multiplied by the step scale."""
        return self.interpolation * self.step_scale

    def initial_state(self, rows: int) -> NeuralCacheState:
        """Return the state of `rows` documents before their first token; ValueError where the share is out of range."""
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
        """Score and cache the next tokens, and report the predicted distributions; see `Reader.observe`."""
        return self._score(state, inputs, labels, weights, observer)

    def _score(
        self, state: NeuralCacheState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, NeuralCacheState]:
        """Score and cache the next tokens, and report the predicted distributions to an observer, if there is one."""
        valid, cache, found = weights != 0, state.cache, []
        residual, context = self.model.read(inputs, state.context, valid)
        hidden = self.model.slow_output(residual, state.context.seen, valid)
        nll = self.model.nll(hidden, labels)
        if self.share == 0:
            if observer is not None:
                observer.expected(hidden.shape[1], lambda part: self.model.logits(hidden[:, part]))
            return nll, NeuralCacheState(context, cache)
        for start in range(0, labels.shape[1], QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            mixed, cache = self._mix(cache, nll[:, part], hidden[:, part], labels[:, part], valid[:, part], observer)
            found.append(mixed)
        return torch.cat(found, 1), NeuralCacheState(context, cache)

    def _mix(
        self, cache: Cache, nll: Tensor, hidden: Tensor, labels: Tensor, valid: Tensor, observer: Observer | None
    ) -> tuple[Tensor, Cache]:
        """Score some tokens by the mixture of model and cache, and cache them.

        Parameters
        ----------
        cache : Cache
            Before these tokens.
        nll : (B, P) float
            The model's NLL of the tokens, nats.
        hidden : (B, P, D) float
            Hidden states before each token.
        labels : (B, P) long
            The tokens.
        valid : (B, P) bool
            False for padding.
        observer : Observer or None
            Is told the distributions of the mixture.

        Returns
        -------
        nll : (B, P) float
            NLL under the mixture, nats.
        cache : Cache
            After these tokens.
        """
        slots, queries = cache.labels.shape[1], _unit(hidden, cache)
        new = labels.masked_fill(~valid if self.learning else torch.ones_like(valid), -1)
        extended = cache.extend(queries, new)
        filled = extended.labels >= 0  # (B, N) where N = S + P
        count = filled.cumsum(1)  # (B, N), pairs up to each slot, its own included
        # A token's own pair is in its slot, and visible only to later tokens; it sees the `size` pairs before its slot.
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
        found = similar.isfinite().any(-1, keepdim=True)  # False while the cache is empty: the model alone counts
        at = labels.clamp(min=0)[:, None].expand_as(similar)
        cached = torch.zeros_like(log_probs).scatter_add(2, at, similar.softmax(-1).nan_to_num(0.0))
        mixed = torch.logaddexp(math.log1p(-self.share) + log_probs, math.log(self.share) + cached.log())
        return torch.where(found, mixed, log_probs)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"size": self.size, "theta": self.theta, "interpolation": self.interpolation}

    @classmethod
    def from_configuration(cls, model: LanguageModel, configuration: Mapping[str, Any]) -> Self:
        """Make a reader of this kind with the settings of a `configuration`."""
        size, theta, interpolation = (configuration[name] for name in ("size", "theta", "interpolation"))
        step_scale = configuration["step_scale"]
        return cls(model_of(model, configuration), size, theta, interpolation, step_scale=step_scale)


def _unit(hidden: Tensor, cache: Cache) -> Tensor:
    """Return hidden states scaled to unit length, in the dtype of the cache."""
    return F.normalize(hidden.to(cache.keys.dtype), dim=-1)
