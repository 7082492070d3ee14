"""Norm and rotary modules of Hugging Face models, without the roundings that exact reading cannot bear.

The library's own modules compute RMSNorm and rotary angles in float32 whatever the dtype of the model. In float64
that turns differences of 1e-16 (another batch, another cut) into 1e-7, and at position 1,000,000 an angle is off
by 0.03 rad. These compute in the dtype of the input or float32, whichever is wider, and angles in float64. In
float32 the norm is bitwise the library's.
"""

import torch
from torch import Tensor, nn

STATIC_ROTARY = ("default", "linear", "llama3", "yarn")  # kinds whose frequencies do not depend on the length


def root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + ε) over the last dimension, computed in float32 or wider; dtype of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, over the last dimension; parameter `weight` (D,)."""

    def __init__(self, weight: nn.Parameter, variance_epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * root_mean_square(x, self.variance_epsilon)


class RotaryEmbedding(nn.Module):
    """Cosines and sines (B, T, d) of rotary angles, exact at any position."""

    def __init__(self, inv_freq: Tensor, attention_scaling: float) -> None:
        super().__init__()
        # No buffer: a cast of the model to bfloat16 would round the frequencies.
        self.inv_freq = inv_freq.detach().double()
        self.attention_scaling = attention_scaling

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            angles = position_ids[..., None].double() * self.inv_freq.to(x.device)
            angles = torch.cat([angles, angles], -1)
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def make_exact(network: nn.Module) -> None:
    """Replace the norm and rotary modules of a Hugging Face body in place; the weights are the same tensors.

    Raises
    ------
    ValueError
        The rotary kind changes its frequencies with the length read ("dynamic", "longrope").
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm | RotaryEmbedding):
                continue
            epsilon, weight = getattr(child, "variance_epsilon", None), getattr(child, "weight", None)
            if isinstance(epsilon, float) and isinstance(weight, nn.Parameter):
                setattr(parent, name, RMSNorm(weight, epsilon))
            elif name == "rotary_emb":
                kind = getattr(child, "rope_type", "default")
                if kind not in STATIC_ROTARY:
                    raise ValueError(
                        f"rotary positions of kind {kind!r} change with the length read, so no score would be final; "
                        f"expected one of {', '.join(STATIC_ROTARY)}."
                    )
                frequencies, scaling = child.get_buffer("inv_freq"), float(getattr(child, "attention_scaling", 1.0))
                setattr(parent, name, RotaryEmbedding(frequencies, scaling))
