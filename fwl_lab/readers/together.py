"""Documents side by side, each with weights of its own, through one model: `torch.func.vmap` over the weights.

Symbols: B documents, T tokens each, S remembered positions, D width of the residual stream, V vocabulary.

A dense layer becomes a batched matrix product. Attention has no weights, so it needs none: its batching rule folds the
documents into the batch and calls the fused kernel, which has no such rule of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv

from ..language_model import LanguageModel
from ..windows import Context, read_body
from .adapted import share

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
        # Keys and values of a frozen layer, or a mask, may be common to all documents.
        query, key, value, mask = (
            (x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)).flatten(0, 1)
            for x, d in zip(tensors, dims[:-1], strict=True)
        )
        # What is called here is recorded by autograd as usual: the gradient is the kernel's own.
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.unflatten(0, (info.batch_size, -1)), 0


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention (b, T, heads, d) as transformers asks for it."""
    # Just as transformers calls the kernel for one document, so that documents read together round alike.
    groups = query.shape[1] // key.shape[1]
    out = _Attention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), mask, scaling)
    return out.transpose(1, 2).contiguous(), None


class Together(nn.Module):
    """A model read by several documents at once, each through its own weights.

    Parameters
    ----------
    model : LanguageModel
        Stays as it is: this reads with a copy of its modules.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = share(model)
        AttentionInterface.register(ATTENTION, _attend)
        self.model.network.set_attn_implementation(ATTENTION)

    def forward(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """What `functional_call` calls: any part of the model, with the weights put in."""
        return part(*arguments)

    def _with(self, weights: Weights, part: Callable[..., Any], *arguments: Any) -> Any:
        return functional_call(self, {f"model.{name}": w for name, w in weights.items()}, (part, *arguments))

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
            residual, now = vmap(one_body)(weights, ids, positions, mask, past)
            for index, (keys, values) in enumerate(now):
                if past:
                    layers[index].keys, layers[index].values = keys, values
                else:
                    cache.update(keys, values, index)
            return residual

        def one_body(own: Weights, ids: Tensor, positions: Tensor, mask: Tensor, past: list) -> tuple[Tensor, list]:
            cache = DynamicCache()
            for index, (keys, values) in enumerate(past):
                cache.update(keys[None], values[None], index)
            residual = self._with(frozen | own, self.model._body, ids[None], positions[None], mask[None], cache)
            layers: list[Any] = cache.layers
            return residual[0], [(layer.keys[0], layer.values[0]) for layer in layers]

        def one_head(own: Weights, residual: Tensor, labels: Tensor | None) -> Tensor:
            return self._with(frozen | own, self._score, residual, labels)

        residual, after = read_body(body, ids, context, window=self.model.window, rotary=self.model.rotary)
        if self.model.block is None:
            return vmap(one_head, in_dims=(0, 0, None if labels is None else 0))(weights, residual, labels), after
        # A block's inner batches are for rows of one set of weights: its documents pass one by one.
        rows = []
        for row in range(len(ids)):
            own = frozen | {name: w[row] for name, w in weights.items()}
            seen, label = context.seen[row : row + 1], None if labels is None else labels[row : row + 1]
            rows.append(self._with(own, self._score_block, residual[row : row + 1], seen, label))
        return torch.cat(rows), after

    def _score(self, residual: Tensor, labels: Tensor | None) -> Tensor:
        logits = self.model.logits(self.model.slow_output(residual))
        if labels is None:
            return logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(wide), labels, reduction="none")

    def _score_block(self, residual: Tensor, seen: Tensor, labels: Tensor | None) -> Tensor:
        hidden = self.model.slow_output(residual, seen)
        return self.model.logits(hidden) if labels is None else self.model.nll(hidden, labels)
