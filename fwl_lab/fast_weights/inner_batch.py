"""One span of an inner batch: gradients at its start, outputs with every token's own fast weights.

Two pure functions: :func:`gradients` makes updates at the parameters θ_c of the inner batch's start, :func:`outputs`
applies them, and those of the tokens before the span, to each token that comes after. Both begin with
:func:`first_layer`.

Symbols (the README of this folder derives them): x input, k₁ key of the first layer, z₁, h = relu(z₁)², z₂, o output;
δ_v = ∂ℓ/∂v; θ_c parameters at the inner batch's start, η step sizes, w token weights. b rows, L tokens of a span,
D width, H = 4·size, S width of the norm, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fwl_lab.fast_weights.parameters import BlockParameters
from fwl_lab.ops.cross_entropy import Gathered, TokenLosses, linear_cross_entropy, token_losses
from fwl_lab.ops.linear_attention import before, mixed

Weights = Mapping[str, Tensor]  # θ_c or a part of Δθ, by parameter


class Head(NamedTuple):
    """Unembedding.

    Attributes
    ----------
    weight : (V, S)
    bias : (V,) or None
    gathered : Gathered or None
        Adds up the gradients of `weight`, where that learns.
    """

    weight: Tensor
    bias: Tensor | None
    gathered: Gathered | None


class FirstLayer(NamedTuple):
    """Input x of a span, key k₁ (b, L, D) and output z₁ (b, L, H) of the first layer at θ_c."""

    x: Tensor
    k1: Tensor
    z1: Tensor


class Labels(NamedTuple):
    """Labels of a span, and the factors of their gradients.

    Attributes
    ----------
    labels : (b, L) long
    weights : (b, L)
        Multiplies each token's gradient, beside the step size; 0 where nothing is learned from it.
    steps : dict of () or (b, L, 1)
        η per fast parameter.
    """

    labels: Tensor
    weights: Tensor
    steps: Mapping[str, Tensor]


class Learned(NamedTuple):
    """Updates of the fast parameters by a span, as factors of outer products.

    Attributes
    ----------
    keys : dict of (b, L, columns)
        Of the matrices W1 and W2.
    updates : dict of (b, L, rows)
        Per fast parameter; −η·w is in them. A token adds update keyᵀ to a matrix, and its update to a vector.
    """

    keys: Mapping[str, Tensor]
    updates: Mapping[str, Tensor]


def first_layer(parameters: BlockParameters, theta: Weights, x: Tensor) -> FirstLayer:
    """Apply the first layer at θ_c, which gradients and outputs both need, to hidden states x (b, L, D)."""
    k1 = parameters.keys(x)
    return FirstLayer(x, k1, k1 @ theta["W1"].mT + theta["b1"])


def gradients(
    parameters: BlockParameters,
    theta: Weights,
    layer: FirstLayer,
    given: Labels,
    head: Head,
    losses: TokenLosses | None = None,
) -> tuple[Learned, TokenLosses | None]:
    """Compute every token's update, −η·w times the gradient of its loss at θ_c.

    Parameters
    ----------
    losses : TokenLosses, optional
        Returned by an earlier call with the same arguments; spares both products with U.

    Returns
    -------
    learned : Learned
    losses : TokenLosses or None
        For a repetition of this call; None where no graph is recorded, so that there will be none.
    """
    positive = layer.z1.relu()
    h = positive.square()
    normed, scale = parameters.norm.forward(
        h @ theta["W2"].mT + theta["b2"] + (layer.x if parameters.attached else 0.0)
    )
    out = normed * theta["g"] + theta.get("b", 0.0)
    weight, bias, gathered = head
    if losses is None and torch.is_grad_enabled():
        losses = token_losses(out, weight, bias, given.labels, given.weights)
    _, d_out = linear_cross_entropy(out, weight, bias, given.labels, given.weights, gathered=gathered, losses=losses)
    d_z2 = parameters.norm.backward(d_out * theta["g"], normed, scale)
    d_z1 = d_z2 @ theta["W2"] * (2 * positive)
    found = {"W1": d_z1, "b1": d_z1, "W2": d_z2, "b2": d_z2, "g": d_out * normed, "b": d_out}
    updates = {name: -step * found[name] for name, step in given.steps.items()}
    return Learned({"W1": layer.k1, "W2": h}, updates), losses


def outputs(
    parameters: BlockParameters, theta: Weights, layer: FirstLayer, pending: Weights, learned: Learned | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the block's output for each token: at θ_c + pending + the updates of the span's earlier tokens.

    Parameters
    ----------
    pending : dict of (b, ...)
        Sum of the updates between the inner batch's start and the span; empty where there are none.
    learned : Learned, optional
        Of the span's own tokens; None: look without learning.

    Returns
    -------
    output : (b, L, S)
    pending : dict of (b, ...)
        After the span.
    """
    keys, updates = ({}, {}) if learned is None else learned
    after: dict[str, Tensor | None] = {}

    added, after["W1"] = _add_to_layer(layer.k1, pending.get("W1"), keys.get("W1"), updates.get("W1"))
    z1 = layer.z1 + added
    added, after["b1"] = _add_to_vector(pending.get("b1"), updates.get("b1"))
    h = (z1 + added).relu().square()
    z2 = h @ theta["W2"].mT + theta["b2"] + (layer.x if parameters.attached else 0.0)
    added, after["W2"] = _add_to_layer(h, pending.get("W2"), keys.get("W2"), updates.get("W2"))
    z2 = z2 + added
    added, after["b2"] = _add_to_vector(pending.get("b2"), updates.get("b2"))
    normed = parameters.norm.apply(z2 + added)
    added, after["g"] = _add_to_vector(pending.get("g"), updates.get("g"))
    output = normed * (theta["g"] + added)
    added, after["b"] = _add_to_vector(pending.get("b"), updates.get("b"))
    output = output + (theta.get("b", 0.0) + added)
    return output, {name: value for name, value in after.items() if value is not None}


def _add_to_layer(
    queries: Tensor, pending: Tensor | None, keys: Tensor | None, updates: Tensor | None
) -> tuple[Tensor | float, Tensor | None]:
    """Return what a matrix's updates add to its layer's output for inputs (b, L, columns), and pending after."""
    if keys is None or updates is None:
        return 0.0 if pending is None else queries @ pending.mT, pending
    return mixed(queries, keys, updates, pending)


def _add_to_vector(pending: Tensor | None, updates: Tensor | None) -> tuple[Tensor | float, Tensor | None]:
    """Return what a vector's updates add to it for each token, (b, L, n) or (b, 1, n), and pending after."""
    if updates is None:
        return 0.0 if pending is None else pending.unsqueeze(-2), pending
    inside, total = before(updates), updates.sum(1)
    if pending is None:
        return inside, total
    return inside + pending.unsqueeze(-2), pending + total
