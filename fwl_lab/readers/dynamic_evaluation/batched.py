"""Run one model on several documents at once, each with its own weights, by `torch.func.vmap` over the weights.

vmap turns a dense layer into a batched matrix product. Three operations have vmap rules of their own here. Attention
has no weights: its documents are folded into the batch of the fused kernel, for which torch has no vmap rule. The
gradients of a dense layer and of an embedding are computed in the memory layout and the order of summation that a
single document has: this saves a fifth of the time, and makes documents round as they do when read alone.

Symbols: B documents, T tokens each, S remembered positions, D width of the residual stream, N outputs of a dense layer,
V vocabulary.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv

from fwl_lab.models.context import Context, read_body
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.functional_call import FunctionalCalls
from fwl_lab.readers.dynamic_evaluation.parameters import shared_parts

ATTENTION = "fwl_lab_together"  # name under which transformers finds the attention function of this module
Weights = dict[str, Tensor]


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention with a vmap rule; called under vmap only."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        """Raise AssertionError: under vmap, :meth:`vmap` is called instead."""
        raise AssertionError("called without vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Save nothing: autograd records the operations inside :meth:`vmap`."""

    @staticmethod
    def vmap(info: Any, dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        """Fold the documents into the batch of torch's kernel; returns (B, b, heads, T, d) and the dimension of B."""
        *tensors, scale = arguments
        rows = (_rows(info, x, dim).flatten(0, 1) for x, dim in zip(tensors, dims[:-1], strict=True))
        query, key, value, mask = rows
        # Autograd records this call as usual, so the gradient is the kernel's own.
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.unflatten(0, (info.batch_size, -1)), 0


class _Dense(torch.autograd.Function):
    """x Wᵀ + b with a vmap rule, since torch's own computes the gradient of W transposed; called under vmap only."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Raise AssertionError: under vmap, :meth:`vmap` is called instead."""
        raise AssertionError("called without vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Save nothing: autograd records the operations inside :meth:`vmap`."""

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        """Compute the layer of all documents, (B, ..., N), and return it with the dimension of B."""
        x = _rows(info, x, dims[0])  # (B, ..., D)
        if dims[1] is None:
            out = F.linear(x, weight)
        else:
            out = _Product.apply(x.flatten(1, -2), weight.movedim(dims[1], 0)).unflatten(1, x.shape[1:-1])
        if bias is not None:
            own = _rows(info, bias, dims[2])  # (B, N)
            out = out + own.view(len(own), *[1] * (out.ndim - 2), -1)
        return out, 0


class _Product(torch.autograd.Function):
    """x Wᵀ of each document, with the gradient of W in its own layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return (B, T, N) from x (B, T, D) and the weight (B, N, D)."""
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x and of the weight, each None where it is not needed."""
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x = torch.bmm(gradient, weight) if wanted[0] else None
        return of_x, torch.bmm(gradient.mT, x) if wanted[1] else None


def _rows(info: Any, x: Tensor, dim: int | None) -> Tensor:
    """Return an argument of a vmap rule with the documents as its first dimension.

    dim : the dimension of the documents; None: common to all (a mask, a frozen layer), which is then repeated.
    """
    return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


class _Lookup(torch.autograd.Function):
    """Embedding lookup that also returns the tables, for their other use as a tied unembedding.

    The gradient of a lookup is 0 except in a few rows. Autograd would make whole tables of zeros with these rows, and
    add them to the gradient from the other use; this function adds only the rows.
    """

    @staticmethod
    def forward(ctx: Any, tables: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        """Return the tables (B, V, D) and their rows (B, T, D) at ids (B, T); `padding` is an id without gradient."""
        ctx.save_for_backward(ids)
        ctx.padding = padding
        return tables.view_as(tables), tables[torch.arange(len(ids), device=ids.device)[:, None], ids]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the tables: that from their other use, to which the rows are added in place."""
        tables, rows = gradients
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[..., None], 0)
        for table, row, own in zip(tables, rows, ids, strict=True):
            places, order = own.unique(return_inverse=True)
            # The function that autograd itself calls, so that the rows of repeated tokens are summed in the same order.
            sums = torch.ops.aten.embedding_dense_backward(row, order, len(places), -1, False)
            # In place: nothing else refers to this tensor, which the gradient of the other use has just made.
            table[places] += sums
        return tables, None, None


class _Linear(nn.Linear):
    """Class that the dense layers of the copied model get."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer by the vmap rule of this module."""
        return _Dense.apply(x, self.weight, self.bias)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Compute attention (b, T, heads, d), with the signature that transformers expects of an attention function."""
    # Prepared as in transformers' own function, so that documents read together round as those read alone.
    groups = query.shape[1] // key.shape[1]
    out = _Attention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), mask, scaling)
    return out.transpose(1, 2).contiguous(), None


class Together:
    """Model that reads several documents at once, each with its own weights.

    Parameters
    ----------
    calls : FunctionalCalls
        Of the model. Its module is unchanged: the documents are read with a further structural copy.
    """

    def __init__(self, calls: FunctionalCalls[LanguageModel]) -> None:
        self.plain = calls
        self.calls = FunctionalCalls(calls.module, keep=shared_parts(calls.module))
        self.model = self.calls.module
        AttentionInterface.register(ATTENTION, _attend)
        self.model.network.set_attn_implementation(ATTENTION)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                # The class is changed, not the `forward` of the instance: that would refer to its module, and such a
                # reference cycle would keep the weights in memory after the reader is gone.
                module.__class__ = _Linear
        embedding = self.model.network.get_input_embeddings()
        self.padding = embedding.padding_idx
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.embedding_name = names[id(embedding.weight)]
        # Holds the output that the hook gives to the embedding, or nothing. A list, so that the hook does not refer to
        # `self`.
        self.embedded = embedded = list[Tensor]()
        embedding.register_forward_hook(lambda module, ids, out: embedded[0] if embedded else out)
        self._lock = threading.RLock()  # for `embedded`, since forks of a reader share this object

    def read(
        self, weights: Weights, frozen: Weights, ids: Tensor, context: Context, labels: Tensor | None
    ) -> tuple[Tensor, Context]:
        """Read the next tokens of each document.

        Parameters
        ----------
        weights : dict of (B, ...)
            Adapted parameters of each document.
        frozen : dict of Tensor
            The model's other parameters, common to all documents.
        ids : (B, T) long
            Input tokens. If the model's positions are absolute, all documents must be at the same position.
        context : Context
            Of all documents, before these tokens.
        labels : (B, T) long or None
            Tokens to be scored.

        Returns
        -------
        nll : (B, T) float
            NLL of `labels`, nats; without labels the logits (B, T, V).
        context : Context
            After these tokens.
        """

        def body(ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
            """Read tokens as `read_body` asks for, all documents at once, and extend the cache."""
            layers: list[Any] = cache.layers
            past = [(layer.keys, layer.values) for layer in layers]
            embedded = None
            if self.embedding_name in weights:
                table, embedded = _Lookup.apply(weights[self.embedding_name], ids, self.padding)
                if torch.is_grad_enabled():  # it is off where a window is read again
                    weights[self.embedding_name] = table
            own = {name: w.detach() if name == self.embedding_name else w for name, w in weights.items()}
            dims = (0, None if embedded is None else 0, 0, 0, 0, 0)
            residual, now = vmap(one_body, dims)(own, embedded, ids, positions, mask, past)
            for index, (keys, values) in enumerate(now):
                if past:
                    layers[index].keys, layers[index].values = keys, values
                else:
                    cache.update(keys, values, index)
            return residual

        def one_body(
            own: Weights, embedded: Tensor | None, ids: Tensor, positions: Tensor, mask: Tensor, past: list
        ) -> tuple[Tensor, list]:
            """Read one document's tokens under vmap; returns the residual states (T, D), and keys and values."""
            self.embedded[:] = [] if embedded is None else [embedded[None]]
            cache = DynamicCache()
            for index, (keys, values) in enumerate(past):
                cache.update(keys[None], values[None], index)
            residual = self.calls(frozen | own, LanguageModel._body, ids[None], positions[None], mask[None], cache)
            self.embedded.clear()
            layers: list[Any] = cache.layers
            return residual[0], [(layer.keys[0], layer.values[0]) for layer in layers]

        def one_head(own: Weights, residual: Tensor, labels: Tensor | None) -> Tensor:
            return self.calls(frozen | own, _score, residual, labels)

        weights = dict(weights)
        with self._lock:
            residual, after = read_body(body, ids, context, window=self.model.window, rotary=self.model.rotary)
        if self.model.block is None:
            return vmap(one_head, in_dims=(0, 0, None if labels is None else 0))(weights, residual, labels), after
        # A block takes rows that share one set of weights, so its documents are scored one by one.
        rows = []
        for row in range(len(ids)):
            own = frozen | {name: w[row] for name, w in weights.items()}
            seen, label = context.seen[row : row + 1], None if labels is None else labels[row : row + 1]
            rows.append(self.plain(own, _score_block, residual[row : row + 1], seen, label))
        return torch.cat(rows), after


def _score(model: LanguageModel, residual: Tensor, labels: Tensor | None) -> Tensor:
    """Return the NLL (T,) of labels from residual states (T, D), or without labels the logits (T, V)."""
    logits = model.logits(model.slow_output(residual))
    if labels is None:
        return logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, reduction="none")


def _score_block(model: LanguageModel, residual: Tensor, seen: Tensor, labels: Tensor | None) -> Tensor:
    """Return the NLL (1, T) of labels with the block at θ₀, or without labels the logits (1, T, V)."""
    hidden = model.slow_output(residual, seen)
    return model.logits(hidden) if labels is None else model.nll(hidden, labels)
