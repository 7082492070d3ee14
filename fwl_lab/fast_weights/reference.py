"""Reference implementation: fast weights by explicit gradient descent, prefix by prefix; published parameters.

Slow and simple, to test the block against; also loads published parameters. It shares only parameters with the block:
gradients come from autograd, one token at a time.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fwl_lab.fast_weights.block import FastWeightBlock
from fwl_lab.fast_weights.update_rule import UpdateRule


def token_loss(block: FastWeightBlock, theta: Mapping[str, Tensor], x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Compute NLL (), nats, and output (S,) of one token at θ, for hidden state x (D,) and label ()."""
    key = x if block.input_norm is None else block.input_norm(x)
    z1 = theta["W1"] @ key + theta["b1"]
    z2 = theta["W2"] @ z1.relu() ** 2 + theta["b2"] + (x if block.attached else 0)
    if block.kind == "layer":
        z2 = z2 - z2.mean()
    out = theta["g"] * z2 / (z2.square().mean() + block.epsilon).sqrt()
    if "b" in theta:
        out = out + theta["b"]
    weight, bias = block.head
    logits = weight @ out + (0 if bias is None else bias)
    return logits.logsumexp(0) - logits[label], out


def read(
    block: FastWeightBlock, hidden: Tensor, labels: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Read documents by the definition; differentiable, through the inner gradients too.

    θ_t = θ_c − Σ_{i=c}^{t−1} η ⊙ w_i ∇ℓ_i(θ_c). c is the start of the inner batch; there decay and cap are applied.

    Parameters
    ----------
    hidden : (B, T, D); labels, weights : (B, T)

    Returns
    -------
    nll : (B, T) nats, 0 where the weight is 0
    output : (B, T, S)
    delta : dict of (B, ...), Δθ after the last token
    """
    weights = torch.ones(labels.shape, dtype=hidden.dtype) if weights is None else weights
    learning = weights / weights.sum() if block.rule.normaliser == "batch" else weights
    rows = [_read_row(block, *row) for row in zip(hidden, labels, weights, learning, strict=True)]
    nll, output, deltas = zip(*rows, strict=True)
    names = deltas[0]
    return torch.stack(nll), torch.stack(output), {n: torch.stack([d[n] for d in deltas]) for n in names}


def _read_row(
    block: FastWeightBlock, hidden: Tensor, labels: Tensor, weights: Tensor, learning: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    slow = {n: getattr(block, n) for n in ("W1", "b1", "W2", "b2", "g", "b") if getattr(block, n) is not None}
    fast = block.fast_parameters
    eta = {n: block.steps[block.rule.step_of(n)] for n in fast}
    start = {n: torch.zeros_like(slow[n]) for n in fast}  # Δθ at the inner batch's start
    since = {n: torch.zeros_like(slow[n]) for n in fast}
    scores, outputs, seen = [], [], 0
    for x, label, weight, learn in zip(hidden, labels, weights, learning, strict=True):
        label = label if weight else torch.zeros_like(label)
        if block.rule.inner_batch is not None and seen % block.rule.inner_batch == 0 and weight:
            start = _kept(block, slow, {n: start[n] + since[n] for n in fast})
            since = {n: torch.zeros_like(slow[n]) for n in fast}
        theta = slow | {n: slow[n] + start[n] + since[n] for n in fast}
        loss, out = token_loss(block, theta, x, label)
        scores.append(loss if weight else torch.zeros_like(loss))
        outputs.append(out)
        if weight:
            gradients = _gradients(block, slow, {n: slow[n] + start[n] for n in fast}, x, label)
            begin, power = block.rule.schedule or (1.0, 0.0)
            learn = learn * (1 + seen / begin) ** -power
            since = {n: since[n] - eta[n] * learn * g for n, g in zip(fast, gradients, strict=True)}
            seen += 1
    return torch.stack(scores), torch.stack(outputs), {n: start[n] + since[n] for n in fast}


def _kept(block: FastWeightBlock, slow: dict[str, Tensor], delta: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return Δθ after decay and cap."""
    delta = {n: (1 - block.decay()) * value for n, value in delta.items()}
    if block.rule.cap is None:
        return delta
    squares, most = (torch.stack([values[n].square().sum() for n in delta]).sum() for values in (delta, slow))
    shrink = block.rule.cap * (most / squares).sqrt() if squares > block.rule.cap**2 * most else 1.0
    return {n: shrink * value for n, value in delta.items()}


def _gradients(
    block: FastWeightBlock, slow: dict[str, Tensor], at: dict[str, Tensor], x: Tensor, label: Tensor
) -> tuple[Tensor, ...]:
    """Return ∇ℓ at the fast parameters `at`; part of the caller's graph where there is one."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        if not outer:
            at = {n: value.detach().requires_grad_(True) for n, value in at.items()}
        loss, _ = token_loss(block, slow | at, x, label)
        return torch.autograd.grad(loss, list(at.values()), create_graph=outer)


def load_published_parameters(
    arrays: Mapping[str, np.ndarray], flavour: Literal["jax", "tf"] = "jax"
) -> FastWeightBlock:
    """Make a float64 block with the parameters of a published implementation and its rule.

    Parameters
    ----------
    arrays : mapping
        `k1` (D, 4S), `b1`, `k2` (4S, S), `b2`, `ln_scale`, `ln_bias`, `unk` (S, V), `unb`, `steps`; kernels are
        input × output. Other names are ignored.
    flavour : {"jax", "tf"}
        The two compute slightly different functions; see `UpdateRule.published_jax` and `published_tf`. The norm's
        ε is 1e-6 in JAX and 0 in TensorFlow.
    """
    rules = {"jax": (UpdateRule.published_jax(), 1e-6), "tf": (UpdateRule.published_tf(), 0.0)}
    if flavour not in rules:
        raise ValueError(f"flavour is {flavour!r}; expected 'jax' or 'tf'.")
    names = {"W1": "k1", "b1": "b1", "W2": "k2", "b2": "b2", "g": "ln_scale", "b": "ln_bias", "U": "unk", "c": "unb",
             "steps": "steps"}  # fmt: skip
    missing = [name for name in names.values() if name not in arrays]
    if missing:
        raise ValueError(f"arrays lack {', '.join(missing)}; expected {', '.join(names.values())}.")
    rule, epsilon = rules[flavour]
    inputs, (size, vocabulary) = arrays["k1"].shape[0], arrays["unk"].shape
    block = FastWeightBlock(inputs, size, vocabulary, rule, epsilon=epsilon).double()
    with torch.no_grad():
        for ours, theirs in names.items():
            value = torch.from_numpy(np.asarray(arrays[theirs], dtype=np.float64))
            value = value.T if value.ndim == 2 else value
            parameter = getattr(block, ours)
            if parameter.shape != value.shape:
                raise ValueError(
                    f"{theirs} has shape {arrays[theirs].shape}, which does not fit the other arrays "
                    f"(expected {tuple(parameter.shape)}{' transposed' if value.ndim == 2 else ''})."
                )
            parameter.copy_(value)
    return block
