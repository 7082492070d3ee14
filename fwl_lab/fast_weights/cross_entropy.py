"""Linear cross-entropy and its gradient with respect to the hidden state, as values that can be differentiated again.

Symbols: h (N, D) hidden, U (V, D), c (V,), y (N,) labels, p = softmax(U h + c).

    nll = −log p[y]          δ = ∂nll/∂h = Uᵀ p − U[y]
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOGITS_AT_ONCE = 2**24  # numbers; bounds the memory of logits, whatever the vocabulary


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """NLL and δ of each token.

    Parameters
    ----------
    hidden : (..., D)
    weight : (V, D)
    bias : (V,) or None
    labels : (...) long

    Returns
    -------
    nll : (...) nats, float32 or wider
    delta : (..., D), same dtype; differentiable with respect to hidden, weight and bias
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_p = F.linear(hidden.to(weight.dtype), weight, bias).to(wide).log_softmax(-1)  # (..., V)
    nll = -log_p.gather(-1, labels[..., None])[..., 0]
    delta = (log_p.exp().to(weight.dtype) @ weight).to(wide) - F.embedding(labels, weight).to(wide)
    return nll, delta


def token_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """-log softmax(U h + c)[y], (...) nats, float32 or wider; logits of a bounded number of tokens at a time.

    Every reader scores with this function, so that equal hidden states give bitwise equal scores.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
    parts = [
        F.cross_entropy(F.linear(h.to(weight.dtype), weight, bias).to(wide), y, reduction="none")
        for h, y in zip(hidden.flatten(0, -2).split(rows), labels.flatten().split(rows), strict=True)
    ]
    return torch.cat(parts).view(labels.shape)
