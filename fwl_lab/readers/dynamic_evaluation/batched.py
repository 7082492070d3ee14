"""Documents side by side, each with weights of its own, through one model: `torch.func.vmap` over the weights.

Symbols: B documents, T tokens each, S remembered positions, D width of the residual stream, V vocabulary.

vmap makes a batched matrix product of a dense layer. Three operations get rules of their own here. Attention has no
weights: its documents are folded into the batch of the fused kernel, for which torch has no rule. A dense layer's
gradient, and an embedding's, are made in the layout and the order of sums that one document's have: this saves a fifth
of the time, and lets documents round as they do alone.
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

ATTENTION = "fwl_lab_together"  # its name among the attention functions of transformers
Weights = dict[str, Tensor]


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention with a rule for vmap; called under vmap only."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        raise AssertionError("called without vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        *tensors, scale = arguments
        rows = (_rows(info, x, dim).flatten(0, 1) for x, dim in zip(tensors, dims[:-1], strict=True))
        query, key, value, mask = rows
        # What is called here is recorded by autograd as usual: the gradient is the kernel's own.
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.unflatten(0, (info.batch_size, -1)), 0


class _Dense(torch.autograd.Function):
    """x Wᵀ + b with a rule for vmap; called under vmap only. Torch's own rule makes the gradient of W transposed."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise AssertionError("called without vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
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
    """x Wᵀ: (B, T, D), (B, N, D) -> (B, T, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x = torch.bmm(gradient, weight) if wanted[0] else None
        return of_x, torch.bmm(gradient.mT, x) if wanted[1] else None


def _rows(info: Any, x: Tensor, dim: int | None) -> Tensor:
    """What vmap hands to a rule, with the documents first; what is common to all (a mask, a frozen layer) repeats."""
    return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


class _Lookup(torch.autograd.Function):
    """Rows of tables, and the tables again for whoever else uses them (a tied unembedding).

    The gradient of a lookup is 0 but for a few rows. Autograd would fill tables of zeros with them and add these to
    the gradient of the tables' other use; this adds the rows alone.
    """

    @staticmethod
    def forward(ctx: Any, tables: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        """tables (B, V, D), ids (B, T) -> tables, rows (B, T, D)"""
        ctx.save_for_backward(ids)
        ctx.padding = padding
        return tables.view_as(tables), tables[torch.arange(len(ids), device=ids.device)[:, None], ids]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        tables, rows = gradients
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[..., None], 0)
        for table, row, own in zip(tables, rows, ids, strict=True):
            places, order = own.unique(return_inverse=True)
            # What autograd itself calls, so that tokens that occur twice are summed alike (and in a fixed order).
            sums = torch.ops.aten.embedding_dense_backward(row, order, len(places), -1, False)
            # In place: the unembedding's product made this tensor for us alone.
            table[places] += sums
        return tables, None, None


class _Linear(nn.Linear):
    """What a dense layer of the copy becomes."""

    def forward(self, x: Tensor) -> Tensor:
        return _Dense.apply(x, self.weight, self.bias)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention (b, T, heads, d) as transformers asks for it."""
    # Just as transformers calls the kernel for one document, so that documents read together round alike.
    groups = query.shape[1] // key.shape[1]
    out = _Attention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), mask, scaling)
    return out.transpose(1, 2).contiguous(), None


class Together:
    """A model read by several documents at once, each through its own weights.

    Parameters
    ----------
    calls : FunctionalCalls
        Of the model; it stays as it is: this reads with a structural copy of its own.
    """

    def __init__(self, calls: FunctionalCalls[LanguageModel]) -> None:
        self.plain = calls
        self.calls = FunctionalCalls(calls.module, keep=shared_parts(calls.module))
        self.model = self.calls.module
        AttentionInterface.register(ATTENTION, _attend)
        self.model.network.set_attn_implementation(ATTENTION)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                # No `forward` of its own, which would hold its module: such a circle outlives the reader.
                module.__class__ = _Linear
        embedding = self.model.network.get_input_embeddings()
        self.padding = embedding.padding_idx
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.embedding_name = names[id(embedding.weight)]
        # Output of the embedding, where that adapts; or nothing. A list, so that the hook need not hold `self`.
        self.embedded = embedded = list[Tensor]()
        embedding.register_forward_hook(lambda module, ids, out: embedded[0] if embedded else out)
        self._lock = threading.RLock()  # forks of a reader share this

    def read(
        self, weights: Weights, frozen: Weights, ids: Tensor, context: Context, labels: Tensor | None
    ) -> tuple[Tensor, Context]:
        """Read the next tokens (B, T); documents must stand at equal positions if the model's are absolute.

        Parameters
        ----------
        weights : dict of (B, ...)
            Of each document.
        frozen : dict
            The model's other parameters, common to all.

        Returns
        -------
        nll : (B, T) nats of `labels`; without labels the logits (B, T, V)
        context : Context
        """

        def body(ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
            layers: list[Any] = cache.layers
            past = [(layer.keys, layer.values) for layer in layers]
            embedded = None
            if self.embedding_name in weights:
                table, embedded = _Lookup.apply(weights[self.embedding_name], ids, self.padding)
                if torch.is_grad_enabled():  # not where a window is read again
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
        # A block's inner batches are for rows of one set of weights: its documents pass one by one.
        rows = []
        for row in range(len(ids)):
            own = frozen | {name: w[row] for name, w in weights.items()}
            seen, label = context.seen[row : row + 1], None if labels is None else labels[row : row + 1]
            rows.append(self.plain(own, _score_block, residual[row : row + 1], seen, label))
        return torch.cat(rows), after


def _score(model: LanguageModel, residual: Tensor, labels: Tensor | None) -> Tensor:
    logits = model.logits(model.slow_output(residual))
    if labels is None:
        return logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, reduction="none")


def _score_block(model: LanguageModel, residual: Tensor, seen: Tensor, labels: Tensor | None) -> Tensor:
    hidden = model.slow_output(residual, seen)
    return model.logits(hidden) if labels is None else model.nll(hidden, labels)
