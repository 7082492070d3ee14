"""Linear cross-entropy and its gradient with respect to the hidden state, both differentiable, without the logits.

Symbols: h (N, D) hidden, U (V, D), c (V,), y (N,) labels, w (N,) weights, p = softmax(U h + c).

    nll = −w log p[y]          δ = ∂nll/∂h = w (Uᵀ p − U[y])

Both passes go through the vocabulary in tiles: forward keeps the log-sum-exp and δ, backward computes the tiles
again. With upstream gradients a (N,) of nll and v (N, D) of δ (w is in them), and r = v·Uᵀp = v·(δ + U[y]),

    q = p ∘ (U v − r)
    ∂/∂h = a δ + Uᵀ q          ∂/∂U = (q + a p) hᵀ + p vᵀ − onehot(y) (a h + v)ᵀ          ∂/∂c = q + a (p − onehot(y))

so the second order needs no pass over U beyond those of the first. These lines are plain tensor operations on values
that stay in the graph, so they can be differentiated once more.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOGITS_AT_ONCE = 2**24  # numbers that scoring holds; bounds their memory, whatever the vocabulary
TILE = 2**18  # numbers (tokens × vocabulary items) of one tile: 1 MiB in float32, what a core's cache holds
NARROWEST_TILE = 1024  # vocabulary items; narrower products are slow


class Gathered:
    """The sum of a weight's gradients over its many uses in one graph, in one buffer.

    A recurrence that uses a large unembedding in every inner batch would otherwise allocate, and add, one tensor of
    its size for each. Use the weight that :meth:`share` returns; its gradient leaves that node of the graph when all
    uses have run.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._pass = -1  # id of the backward pass that the total is of: one that raised leaves nothing behind

    def share(self, weight: Tensor) -> Tensor:
        """Return the weight, in the dtype of autocast where there is one, for uses that add to this sum."""
        return _Shared.apply(weight, self)

    def buffer(self, weight: Tensor) -> Tensor:
        """Return the buffer (V, D) that the current backward pass adds to, float32 or wider."""
        current = torch._C._current_graph_task_id()
        if self.total is None or self._pass != current:
            wide = torch.promote_types(weight.dtype, torch.float32)
            self.total, self._pass = torch.zeros_like(weight, dtype=wide), current
        return self.total


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gathered: Gathered) -> Tensor:
        ctx.gathered, ctx.dtype = gathered, weight.dtype
        ctx.set_materialize_grads(False)
        lower = in_autocast(weight)
        return weight.view_as(weight) if lower is weight else lower

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        total, ctx.gathered.total = ctx.gathered.total, None
        parts = [x.to(ctx.dtype) for x in (total, gradient) if x is not None]
        return (parts[0] if len(parts) == 1 else parts[0] + parts[1] if parts else None), None


class TokenLosses(NamedTuple):
    """Numbers that take both products with U, cut off from any graph; see :func:`token_losses`.

    Attributes
    ----------
    nll : (N,) nats
    delta : (N, D), ∂nll/∂h
    lse : (N,) log-sum-exp of the logits
    """

    nll: Tensor
    delta: Tensor
    lse: Tensor


@torch.no_grad()
def token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor | None = None
) -> TokenLosses:
    """Compute, without a graph, all of :func:`linear_cross_entropy` that needs products with U.

    The arguments are those of :func:`linear_cross_entropy`, whose `losses` the result is: where a checkpoint repeats a
    computation, it spares the second one these products.

    Returns
    -------
    TokenLosses
        Of N = all tokens, float32 or wider; `weights` only hide tokens (where they are 0) and multiply nothing.
    """
    hidden, labels = _hide(hidden, labels, weights)
    return _forward(hidden.reshape(-1, hidden.shape[-1]), in_autocast(weight), bias, labels.reshape(-1))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    gathered: Gathered | None = None,
    losses: TokenLosses | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute NLL and δ of each token, never holding more than a tile of the logits.

    Products are in the dtype of `weight` (under autocast in its dtype), sums over the vocabulary in float32 or wider.

    Parameters
    ----------
    hidden : (..., D)
    weight : (V, D)
    bias : (V,) or None
    labels : (...) long
    weights : (...), optional
        Where it is 0, nll and δ are 0, whatever stands in `hidden` and `labels`.
    gathered : Gathered, optional
        That `weight` was shared by; takes its gradient up.
    losses : TokenLosses, optional
        Of these very arguments, where they have been computed before; nothing is multiplied with U then.

    Returns
    -------
    nll : (...) nats, float32 or wider
    delta : (..., D), float32 or wider; like nll differentiable with respect to hidden, weight and bias
    """
    weight = in_autocast(weight)
    hidden, labels = _hide(hidden, labels, weights)
    h, y = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    nll, delta = _LinearCrossEntropy.apply(h, weight, bias, y, gathered, losses)
    nll, delta = nll.view(labels.shape), delta.view(hidden.shape)
    return (nll, delta) if weights is None else (nll * weights, delta * weights[..., None])


def _hide(hidden: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Put zeros in the place of tokens of weight 0, so that what is not finite there cannot spread."""
    if weights is None:
        return hidden, labels
    real = weights != 0
    return hidden.where(real[..., None], 0.0), labels.where(real, 0)


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    valid: Tensor | None = None,
    *,
    gathered: Gathered | None = None,
) -> Tensor:
    """Compute −log softmax(U h + c)[y], (...) nats, float32 or wider; logits of a bounded number of tokens at a time.

    Every reader scores with this function, so that equal hidden states give bitwise equal scores. Where `valid` (...)
    is False the score is 0 and nothing is computed.
    """
    if valid is not None and not bool(valid.all()):
        nll = token_nll(hidden[valid], weight, bias, labels[valid], gathered=gathered)
        return nll.new_zeros(labels.shape).masked_scatter(valid, nll)
    if not labels.numel():
        return hidden.new_zeros(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    if learning and labels.numel() * weight.shape[0] > LOGITS_AT_ONCE:
        return linear_cross_entropy(hidden, weight, bias, labels, gathered=gathered)[0]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
    parts = [
        F.cross_entropy(F.linear(h.to(weight.dtype), weight, bias).to(wide), y, reduction="none")
        for h, y in zip(hidden.flatten(0, -2).split(rows), labels.flatten().split(rows), strict=True)
    ]
    return torch.cat(parts).view(labels.shape)


def in_autocast(weight: Tensor) -> Tensor:
    """Return the weight in the dtype that autocast multiplies in; as it is where there is no autocast."""
    kind = weight.device.type
    lower = torch.is_autocast_enabled(kind) and weight.dtype == torch.float32
    return weight.to(torch.get_autocast_dtype(kind)) if lower else weight


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        gathered: Gathered | None,
        losses: TokenLosses | None,
    ) -> tuple[Tensor, Tensor]:
        losses = _forward(hidden, weight, bias, labels) if losses is None else losses
        # As tensors of their own: autograd would take inputs that are returned for views.
        nll, delta, lse = (x.detach() for x in losses)
        ctx.save_for_backward(hidden, weight, bias, labels, nll, delta, lse)
        ctx.set_materialize_grads(False)
        ctx.gathered = gathered
        return nll, delta

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, nll, delta, lse = ctx.saved_tensors
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        # Where this backward pass is itself differentiated, its gradient has to leave as a value.
        gather = for_weight and ctx.gathered is not None and not torch.is_grad_enabled()
        d_weight = d_bias = None
        if for_weight:
            wide = torch.promote_types(weight.dtype, torch.float32)
            d_weight = ctx.gathered.buffer(weight) if gather else torch.zeros_like(weight, dtype=wide)
        if for_bias:
            d_bias = torch.zeros_like(bias)
        if torch.is_grad_enabled():  # the same number, as a value of the graph
            again = nll + _label_logits(hidden, weight, bias, labels)
            lse = lse + (again - again.detach())
        count, low, wide = len(labels), weight.dtype, nll.dtype
        a = torch.zeros_like(nll) if a is None else a
        d_hidden, direct, stacked = a[:, None] * delta, a[:, None] * hidden, hidden
        if v is not None:
            r = (v * (delta + F.embedding(labels, weight))).sum(1, keepdim=True)
            # h and v go through U as one batch: products of few rows are slow.
            direct, stacked = direct + v, torch.cat([hidden.to(low), v.to(low)])
        # The second order goes through every tile; without it δ is all that the hidden state's gradient needs.
        for part in _tiles(labels, weight) if v is not None or for_weight or for_bias else ():
            products = _product(stacked, weight[part].mT, wide)
            p = (products[:count] if bias is None else products[:count] + bias[part]).sub(lse[:, None]).exp_()
            through = a[:, None] * p
            if v is not None:
                q = p * (products[count:] - r)
                d_hidden = d_hidden + _product(q, weight[part], wide)
                through = through + q
            if d_weight is not None:
                both = through if v is None else torch.cat([through, p])
                if d_weight.dtype == low:
                    d_weight[part].addmm_(both.mT, stacked)
                else:
                    d_weight[part].add_(_product(both.mT, stacked.to(low), wide))
            if d_bias is not None:
                d_bias[part] = through.sum(0).to(bias.dtype)
        if d_weight is not None:
            d_weight.index_add_(0, labels, direct.neg().to(d_weight.dtype))
        if d_bias is not None:
            d_bias.index_add_(0, labels, a.neg().to(bias.dtype))
        gradient = None if gather or d_weight is None else d_weight.to(low)
        return d_hidden.to(hidden.dtype) if for_hidden else None, gradient, d_bias, None, None, None


def _forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> TokenLosses:
    """Go through the vocabulary once, with a running maximum and sum of the exponentials."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    top = hidden.new_full(labels.shape, -torch.inf, dtype=wide)
    total, mean = torch.zeros_like(top), torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
    chosen = torch.zeros_like(top)
    for part in _tiles(labels, weight):
        logits = _logits(hidden, weight, bias, part)
        # The label's logit is one of these very numbers: rounded as they are, so that no NLL is negative.
        here = (labels >= part.start) & (labels < part.stop)
        place = (labels - part.start).clamp(0, logits.shape[1] - 1)
        chosen = torch.where(here, logits.gather(1, place[:, None])[:, 0], chosen)
        last, top = top, torch.maximum(top, logits.amax(1))
        shrink = (last - top).exp_()
        e = logits.sub_(top[:, None]).exp_()
        total = total.mul_(shrink).add_(e.sum(1))
        mean = mean.mul_(shrink[:, None]).add_(_product(e, weight[part], wide))
    lse = top + total.log()
    nll = lse - chosen
    delta = mean.div_(total[:, None]).sub_(F.embedding(labels, weight))
    return TokenLosses(nll, delta, lse)


def _tiles(labels: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield the vocabulary in tiles of about equal width."""
    vocabulary = weight.shape[0]
    count = -(-vocabulary // max(NARROWEST_TILE, TILE // max(1, len(labels))))
    width = -(-vocabulary // count)
    return (slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _product(x: Tensor, y: Tensor, wide: torch.dtype) -> Tensor:
    """Multiply x and y in the dtype of y; the result is of dtype `wide`."""
    if x.is_cuda and y.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        return torch.mm(x.to(y.dtype), y, out_dtype=torch.float32)  # without rounding what was summed in float32
    with torch.autocast(x.device.type, enabled=False):
        return (x.to(y.dtype) @ y).to(wide)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    """Return the logits (N, n) of a tile of n vocabulary items, float32 or wider."""
    logits = _product(hidden, weight[part].mT, torch.promote_types(hidden.dtype, torch.float32))
    return logits if bias is None else logits + bias[part]


def _label_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the logit of each label, (N,), float32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.to(weight.dtype).to(wide) * F.embedding(labels, weight)).sum(1)
    return logits if bias is None else logits + bias[labels]
