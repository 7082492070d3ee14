"""Layer norm and root-mean-square norm: forward and backward without gain and bias, and a module for the latter."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    """Return x / sqrt(mean(x²) + ε) over the last dimension, computed in float32 or wider; dtype of `x`."""
    return _root_mean_square(x, epsilon)[0]


def _root_mean_square(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale).to(x.dtype), scale


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, over the last dimension; parameter `weight` (D,)."""

    def __init__(self, weight: nn.Parameter, variance_epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x (..., D), multiplied by the gain."""
        return self.weight * root_mean_square(x, self.variance_epsilon)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """A norm over the last dimension, apart from the gain and bias that it is applied with.

    Attributes
    ----------
    kind : {"layer", "rms"}
        "layer": n = (z − mean z) / σ, σ² = var z + ε. "rms": n = z / σ, σ² = mean z² + ε.
    epsilon : float
        ε.
    """

    kind: Literal["layer", "rms"]
    epsilon: float

    @classmethod
    def of(cls, norm: nn.LayerNorm | RMSNorm) -> "Normalisation":
        """Return kind and ε of a module."""
        if isinstance(norm, nn.LayerNorm):
            return cls("layer", norm.eps)
        return cls("rms", norm.variance_epsilon)

    def apply(self, z: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return n (..., D), times `gain` (D,) and plus `bias` (D,) where given; bitwise what the modules compute."""
        if self.kind == "layer":
            return F.layer_norm(z, z.shape[-1:], gain, bias, self.epsilon)
        normed = root_mean_square(z, self.epsilon)
        normed = normed if gain is None else gain * normed
        return normed if bias is None else normed + bias

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return n (..., D) and 1/σ (..., 1), which :meth:`backward` needs."""
        if self.kind == "rms":
            return _root_mean_square(z, self.epsilon)
        scale = torch.rsqrt(z.var(-1, correction=0, keepdim=True) + self.epsilon)
        return self.apply(z), scale

    def backward(self, gradient: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
        """Return ∂ℓ/∂z from ∂ℓ/∂n and what :meth:`forward` returned; differentiable once more."""
        along = normed * (gradient * normed).mean(-1, keepdim=True)
        centre = gradient.mean(-1, keepdim=True) if self.kind == "layer" else 0.0
        return scale * (gradient - centre - along)
