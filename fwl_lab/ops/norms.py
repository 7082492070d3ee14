"""Root-mean-square norm, computed in the dtype of its input or float32, whichever is wider."""

import torch
from torch import Tensor, nn


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
