"""Replace norm and rotary modules of Hugging Face models by ones that round less.

Hugging Face computes RMSNorm and rotary angles in float32 whatever the dtype of the model. In float64 that turns
differences of 1e-16 (another batch, another cut into calls) into 1e-7, and at position 1,000,000 an angle is off by
0.03 rad. The replacements compute in the dtype of the input or float32, whichever is wider, and angles in float64.
In float32 the norm is bitwise that of Hugging Face.
"""

from torch import nn

from fwl_lab.ops.norms import RMSNorm
from fwl_lab.ops.rotary import STATIC_ROTARY, RotaryEmbedding


def make_exact(network: nn.Module) -> None:
    """Replace the norm and rotary modules of a Hugging Face model in place; the weights are the same tensors.

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
