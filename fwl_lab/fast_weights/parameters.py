"""Weights of a block as data, and what follows from them alone: keys, norm, step from θ₀ to θ_c, retention.

A :class:`~fwl_lab.fast_weights.block.FastWeightBlock` is a module; this is the set of tensors that one call of it
computes with. A checkpoint that repeats a part of the call later repeats it with these tensors, also where the module
holds others by then (`torch.func.functional_call`).

Symbols: θ₀ trained parameters, Δθ what a document has added, θ_c = θ₀ + Δθ at the inner batch's start; B rows, T
tokens, D width of the input, H = 4·size, S width of the norm.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from fwl_lab.fast_weights.update_rule import UpdateRule
from fwl_lab.ops.norms import Normalisation


@dataclasses.dataclass(frozen=True)
class BlockParameters:
    """Weights of a block, and its rule.

    Attributes
    ----------
    slow : dict of Tensor
        θ₀: W1 (H, D), b1 (H,), W2 (S, H), b2, g, and unless the norm has none b (S,), in this order.
    rule : UpdateRule
    norm : Normalisation
        Of the output; of the attached block's input too.
    input_gain, input_bias : (D,) or None
        Of the model's final norm, which an attached block applies to its input. The published shape has neither.
    forgetting : () or None
        Logit of the decay, where that is learned.
    """

    slow: Mapping[str, Tensor]
    rule: UpdateRule
    norm: Normalisation
    input_gain: Tensor | None = None
    input_bias: Tensor | None = None
    forgetting: Tensor | None = None

    @property
    def attached(self) -> bool:
        """Whether the block stands on a language model's residual stream, which it adds to its second layer."""
        return self.input_gain is not None

    @property
    def fast(self) -> tuple[str, ...]:
        """Names of the parameters that a step size drives, in the order of `slow`."""
        return tuple(name for name in self.slow if self.rule.step_of(name) is not None)

    def keys(self, x: Tensor) -> Tensor:
        """Return k₁ (B, T, D), the input of the first layer, from hidden states x (B, T, D)."""
        if self.input_gain is None:
            return x
        return self.norm.apply(x.to(self.input_gain.dtype), self.input_gain, self.input_bias).to(x.dtype)

    def at(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return θ₀ + Δθ for Δθ (B, ...): matrices (B, ...), vectors (B, 1, n); without B where they are slow."""
        theta = {}
        for name, slow in self.slow.items():
            own = slow if name not in delta else slow + delta[name]
            theta[name] = own if slow.ndim == 2 else own.unsqueeze(-2)  # vectors broadcast over tokens
        return theta

    @property
    def forgets(self) -> bool:
        """Whether a decay or a cap may take something from Δθ."""
        return bool(self.rule.decay) or self.rule.cap is not None

    def decay(self) -> Tensor | float:
        """Return the part of Δθ that is forgotten at each re-linearisation."""
        return self.rule.decay if self.forgetting is None else self.forgetting.sigmoid()

    def limit(self) -> Tensor | None:
        """Return the square of the norm up to which a cap leaves Δθ as it is, (), or None without a cap."""
        if self.rule.cap is None:
            return None
        squares = sum((self.slow[name].square().sum() for name in self.fast), self.slow["g"].new_zeros(()))
        return (self.rule.cap**2 * squares).clamp(min=1e-24)  # where θ₀ is 0, so is all that a cap leaves

    def retention(self, fast: Mapping[str, Tensor], limit: Tensor | None = None) -> Tensor | None:
        """Return the factor (B,) that decay and cap leave of Δθ at a re-linearisation, or None: all of it.

        Parameters
        ----------
        fast : dict of (B, ...)
            Δθ before it.
        limit : (), optional
            What :meth:`limit` returned, for callers that ask often.
        """
        rule, g = self.rule, self.slow["g"]
        limit = self.limit() if limit is None else limit
        if limit is None and not rule.learn_decay and not rule.decay:
            return None
        rows = len(next(iter(fast.values()), g[:1]))
        keep = (1.0 - self.decay()) * g.new_ones(rows)
        if limit is None:
            return keep
        flat = [delta.flatten(1) for delta in fast.values()]
        squares = sum((torch.linalg.vecdot(x, x) for x in flat), g.new_zeros(rows))
        return keep * (limit / torch.maximum(keep.square() * squares, limit)).sqrt()
