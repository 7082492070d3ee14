"""The continuous cache (Grave, Joulin and Usunier, ICLR 2017): the cheap control for every reader that learns.

It copies. A word that followed a similar hidden state earlier in the document becomes more likely, and no weight
changes; what a learning reader gains beyond it is more than repetition.

Symbols: h_t (D,) hidden state of unit length, y_t the token that followed it, S cached pairs, θ sharpness, λ share of
the cache. B rows, T tokens, P tokens of a piece, V vocabulary.

    p(y) = (1 − λ) p_model(y) + λ p_cache(y)        p_cache(y) ∝ Σ_i 1[y_i = y] exp(θ h_t·h_i)

over the last `size` pairs (h_i, y_i), i < t, of the document (equations 2, 3 and 5 of the paper).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.state import expand_rows, from_tensors, to_tensors
from fwl_lab.readers.base import Reader

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

    def _start(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(
                f"interpolation is {self.interpolation} and step_scale {self.step_scale}; expected a product of at "
                "least 0 and below 1, the share of the cache: with all of it a new word would be impossible."
            )
        self._forget(1)

    def _carry(self) -> None:
        self._forget(len(self.last))

    def _forget(self, rows: int) -> None:
        self.context = Context.empty(rows, self.model.device)
        self.cache = Cache.empty(rows, self.model.unembedding.weight)

    def _expand(self, rows: int) -> None:
        self.context, self.cache = expand_rows(self.context, rows), expand_rows(self.cache, rows)

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        valid, seen = weights != 0, self.context.seen
        residual, self.context = self.model.read(inputs, self.context, valid)
        hidden = self.model.slow_output(residual, seen, valid)
        nll = self.model.nll(hidden, labels)
        if self.share == 0:
            if self._observer is not None:
                self._observer.expected(hidden.shape[1], lambda part: self.model.logits(hidden[:, part]))
            return nll
        parts = (slice(start, start + PIECE) for start in range(0, labels.shape[1], PIECE))
        return torch.cat([self._mix(nll[:, p], hidden[:, p], labels[:, p], valid[:, p]) for p in parts], 1)

    def _unit(self, hidden: Tensor) -> Tensor:
        return F.normalize(hidden.to(self.cache.keys.dtype), dim=-1)

    def _mix(self, nll: Tensor, hidden: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """NLL (B, P) of the mixture for the next tokens, whose model's NLL is `nll`; caches them."""
        slots, queries = self.cache.labels.shape[1], self._unit(hidden)
        new = labels.masked_fill(~valid if self.learning else torch.ones_like(valid), -1)
        cache = self.cache.extend(queries, new)
        filled = cache.labels >= 0  # (B, N) where N = S + P
        count = filled.cumsum(1)  # (B, N) pairs up to each slot, its own included
        # A token is cached at its own slot, after it was scored; what it sees are the `size` pairs before.
        place = torch.arange(filled.shape[1], device=labels.device)
        oldest = count[:, slots:] - filled[:, slots:].long() - self.size
        visible = filled[:, None] & (place < place[slots:, None]) & (count[:, None] > oldest[..., None])  # (B, P, N)
        similar = (self.theta * queries @ cache.keys.mT).masked_fill(~visible, -math.inf)
        same = cache.labels[:, None] == labels[..., None]
        log_all = similar.logsumexp(-1)
        log_cached = similar.masked_fill(~same, -math.inf).logsumexp(-1) - log_all
        mixed = -torch.logaddexp(math.log1p(-self.share) - nll, math.log(self.share) + log_cached)
        if self._observer is not None:
            self._observer.expected(
                hidden.shape[1], lambda part: self._mixture(hidden[:, part], similar[:, part], cache.labels)
            )
        if self.learning:
            self.cache = cache.last(self.size)
        return torch.where(log_all.isfinite(), mixed, nll)

    def _logits(self, last: Tensor) -> Tensor:
        residual, _ = self.model.read(last, self.context)
        hidden = self.model.slow_output(residual, self.context.seen)
        if self.share == 0 or not self.cache.labels.shape[1]:
            return self.model.logits(hidden)[:, -1]
        filled = self.cache.labels[:, None] >= 0
        similar = (self.theta * self._unit(hidden) @ self.cache.keys.mT).masked_fill(~filled, -math.inf)
        return self._mixture(hidden, similar, self.cache.labels)[:, -1]

    def _mixture(self, hidden: Tensor, similar: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities (B, P, V) for the states (B, P, ·), of log-weights (B, P, N) for the labels (B, N)."""
        log_probs = self.model.logits(hidden).to(similar.dtype).log_softmax(-1)
        found = similar.isfinite().any(-1, keepdim=True)  # where nothing is cached the model is asked alone
        at = labels.clamp(min=0)[:, None].expand_as(similar)
        cached = torch.zeros_like(log_probs).scatter_add(2, at, similar.softmax(-1).nan_to_num(0.0))
        mixed = torch.logaddexp(math.log1p(-self.share) + log_probs, math.log(self.share) + cached.log())
        return torch.where(found, mixed, log_probs)

    def _freeze(self) -> None:
        self.learning = False  # the share stays: a frozen cache is looked into, and takes in no more

    def configuration(self) -> dict[str, Any]:
        return super().configuration() | {
            "size": self.size, "theta": self.theta, "interpolation": self.interpolation,
        }  # fmt: skip

    def _tensors(self) -> dict[str, Tensor]:
        return to_tensors(self.context, "context.") | to_tensors(self.cache, "cache.")

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.context = from_tensors(self.context, tensors, "context.")
        self.cache = from_tensors(self.cache, tensors, "cache.")
