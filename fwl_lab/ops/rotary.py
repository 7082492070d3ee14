"""Rotary position embeddings whose angles are computed in float64, exact at any position."""

import torch
from torch import Tensor, nn

STATIC_ROTARY = ("default", "linear", "llama3", "yarn")  # kinds whose frequencies do not depend on the length read


class RotaryEmbedding(nn.Module):
    """Cosines and sines of rotary angles, exact at any position.

    Parameters
    ----------
    inv_freq : (d / 2,)
        Frequencies, radians a position.
    attention_scaling : float
        Multiplies cosines and sines.
    """

    def __init__(self, inv_freq: Tensor, attention_scaling: float) -> None:
        super().__init__()
        # No buffer: a cast of the model to bfloat16 would round the frequencies.
        self.inv_freq = inv_freq.detach().double()
        self.attention_scaling = attention_scaling

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B, T, d) of positions (B, T), in the dtype of x."""
        with torch.autocast(x.device.type, enabled=False):
            angles = position_ids[..., None].double() * self.inv_freq.to(x.device)
            angles = torch.cat([angles, angles], -1)
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)
