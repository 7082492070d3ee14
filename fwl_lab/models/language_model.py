"""See a Hugging Face causal language model as body, final norm and unembedding, with or without a fast-weight block.

Symbols: B rows, T tokens, D width of the residual stream, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from fwl_lab.fast_weights import FastWeightBlock
from fwl_lab.models import anatomy, encoding
from fwl_lab.models.context import Context, read_body
from fwl_lab.models.encoding import Encoding
from fwl_lab.models.exact import make_exact
from fwl_lab.models.saving import BLOCK, WINDOW_NAME, save_model
from fwl_lab.models.tuned_rule import GradientStatistics, TunedRule
from fwl_lab.ops.cross_entropy import token_nll
from fwl_lab.ops.norms import Normalisation, RMSNorm


class LanguageModel(nn.Module):
    """A causal LM that reads documents of any length, seen as body, final norm and unembedding.

    Parameters
    ----------
    network : PreTrainedModel
        GPT-2, Llama, Mistral, Qwen or alike. Its norm and rotary modules are replaced by exact ones
        (`fwl_lab.models.exact`); its weights are used as they are.
    tokenizer : PreTrainedTokenizerBase, optional
        Needed for text only; token ids can be read without.
    window : int, optional
        Number of positions that each layer sees, the token's own included; None: the configuration's.
    block : FastWeightBlock, optional
        Stands on the residual stream after the last layer, in place of the final norm.
    base : LanguageModel, optional
        The same model without the block; None: this one's own body.

    Attributes
    ----------
    rotary : bool
        True for rotary positions, False for learned absolute ones.
    window : int
        Number of positions that each layer sees, the token's own included.
    provenance : dict
        Record of how the model came about; JSON types only. Nothing is computed from it; `name` is taken
        from it.
    token_counts : (V,) int64 array, or None
        Number of times that each token occurs in the training documents.

    Raises
    ------
    ValueError
        A network of another architecture, or a window that does not fit it.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        window: int | None = None,
        block: FastWeightBlock | None = None,
        base: "LanguageModel | None" = None,
    ) -> None:
        super().__init__()
        network.eval()
        self.rotary = anatomy.has_rotary_positions(network)
        anatomy.final_norm(network)  # raises the error of an unknown architecture before anything is changed
        expected = anatomy.first_logits(network)
        make_exact(network)
        network.set_attn_implementation("sdpa")
        anatomy.watch_residual(network)
        self.network = network
        self.tokenizer = tokenizer
        self.window = _window(network, self.rotary, window)
        self.block = None
        # Other families have parts of the same names that compute something else (a gain of 1 + weight, scaled logits).
        if not isinstance(self.final_norm, nn.LayerNorm | RMSNorm) or not self._gives(expected):
            raise anatomy.unsupported(network)
        self.block = block
        self.provenance: dict[str, Any] = {}
        self.token_counts: Any = None
        self._gradient_statistics: GradientStatistics | None = None
        self._tuned_rule: TunedRule | None = None
        # Kept out of the registered modules: a base that shares the network would appear twice among them.
        self.__dict__["_base"] = base

    @torch.no_grad()
    def _gives(self, logits: Tensor) -> bool:
        """Return whether body, final norm and unembedding give the whole network's `first_logits`."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        ours = self(ids, Context.empty(1, self.device))[0].float()
        return torch.allclose(ours, logits, rtol=0, atol=0.02 * float(logits.abs().max()), equal_nan=True)

    @property
    def base(self) -> "LanguageModel":
        """The same language model without the block (for a jointly trained one: the model it came from)."""
        if self.block is None:
            return self
        if self.__dict__["_base"] is None:
            base = LanguageModel(self.network, self.tokenizer, window=self.window)
            base.inherit(self)
            self.__dict__["_base"] = base
        return self.__dict__["_base"]

    def inherit(self, other: "LanguageModel") -> None:
        """Take over another model's provenance, token counts, tuned rule and gradient statistics."""
        self.provenance, self.token_counts = other.provenance, other.token_counts
        self.tuned_rule, self.gradient_statistics = other.tuned_rule, other.gradient_statistics

    @property
    def tuned_rule(self) -> TunedRule | None:
        """Rule of dynamic evaluation tuned for this model, taken by readers without another; set on the base too."""
        return self._tuned_rule

    @tuned_rule.setter
    def tuned_rule(self, rule: TunedRule | None) -> None:
        if rule is not None and not isinstance(rule, TunedRule):
            raise ValueError(f"tuned_rule is {rule!r:.80}; expected a TunedRule, such as TunedRule('sgd', lr=0.05).")
        self._tuned_rule = rule
        if (base := self.__dict__["_base"]) is not None:
            base.tuned_rule = rule

    @property
    def gradient_statistics(self) -> GradientStatistics | None:
        """Statistics of training gradients that an RMS rule divides by; set on the base too."""
        return self._gradient_statistics

    @gradient_statistics.setter
    def gradient_statistics(self, statistics: GradientStatistics | None) -> None:
        self._gradient_statistics = statistics
        if (base := self.__dict__["_base"]) is not None:
            base.gradient_statistics = statistics

    def _apply(self, function: Any, recurse: bool = True) -> "LanguageModel":
        """Do the work of `to`, `double`, `cuda` and alike, on a base with a body of its own too."""
        base = self.__dict__["_base"]
        if base is not None and base.network is not self.network:
            base._apply(function, recurse)
        return super()._apply(function, recurse)

    @property
    def layers(self) -> nn.ModuleList:
        """Transformer layers of the body, first to last."""
        return anatomy.layers(self.network)

    @property
    def final_norm(self) -> nn.LayerNorm | RMSNorm:
        """The model's own final norm, a LayerNorm or an RMSNorm."""
        norm: Any = anatomy.final_norm(self.network)
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        """Unembedding U (V, D) and its bias c (V,) or None."""
        return anatomy.unembedding(self.network)

    @property
    def name(self) -> str:
        """Name of this model in traces."""
        return str(self.provenance.get("name") or self.network.config.name_or_path or type(self.network).__name__)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the unembedding distinguishes, V."""
        return self.unembedding.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the unembedding's weights."""
        return self.unembedding.weight.dtype

    @property
    def bos(self) -> int:
        """Token that a fresh reader has read: BOS, or the end-of-text token, or (a model with neither) token 0."""
        return encoding.start_token(self.tokenizer, self.network.config, self.vocab_size)

    def encode(self, text: str) -> Tensor:
        """Return the token ids (T,) of a text; no special token is added, and none is recognised inside the text."""
        return encoding.encode(self.tokenizer, text).ids

    def encode_text(self, text: str, name: str = "text") -> Encoding:
        """Return the tokens of a text with their pieces of text; `name` says in error messages which text it is."""
        return encoding.encode(self.tokenizer, text, name)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, encoded together, as :meth:`encode` gives them."""
        return encoding.encode_batch(self.tokenizer, texts)

    def decode(self, ids: Tensor | np.ndarray) -> str:
        """Return the text of token ids (T,)."""
        return encoding.decode(self.tokenizer, ids)

    def read(self, ids: Tensor, context: Context, valid: Tensor | None = None) -> tuple[Tensor, Context]:
        """Return the residual stream (B, T, D) before the final norm at the next tokens (B, T); see `read_body`."""
        return read_body(self._body, ids, context, window=self.window, rotary=self.rotary, valid=valid)

    def _body(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Run the body once, as `read_body` asks for it."""
        return anatomy.residual(self.network, ids, positions, mask, cache)

    def normalise(self, x: Tensor) -> Tensor:
        """Return Norm(x) without gain and bias, (..., D), by the kind and ε of the model's final norm."""
        return Normalisation.of(self.final_norm).apply(x)

    def slow_output(self, residual: Tensor, seen: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Return the input of the unembedding without adaptation: the final norm's output, or the block's at θ₀.

        Parameters
        ----------
        residual : (B, T, D)
            Residual stream before the final norm.
        seen : (B,) long, optional
            Tokens read before.
        valid : (B, T) bool, optional
            False for padding. With `seen`, it tells a block where its inner batches begin, so that it sums in the
            order, and rounds as, a reading with all step sizes at 0.

        Returns
        -------
        (B, T, D), float32 or wider
        """
        if self.block is not None:
            state = self.block.initial_state(len(residual))
            state = state if seen is None else state._replace(seen=seen)
            return self.block(residual, None, None if valid is None else valid.to(residual.dtype), state).hidden
        norm = self.final_norm
        # In the block's dtype, so that in half precision too an untrained block changes no bit.
        residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
        out = self.normalise(residual) * norm.weight
        return out + norm.bias if isinstance(norm, nn.LayerNorm) and norm.bias is not None else out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return U hidden + c: (..., D) -> (..., V)."""
        return self.unembedding(hidden.to(self.dtype))

    def nll(self, hidden: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return -log softmax(logits)[labels], (B, T) nats, float32 or wider; 0 where `valid` (B, T) is False."""
        return token_nll(hidden, self.unembedding.weight, self.unembedding.bias, labels, valid)

    def forward(
        self, ids: Tensor, context: Context, labels: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        """Read the next tokens without adapting.

        Returns
        -------
        nll : (B, T) nats of `labels`; without labels the logits (B, T, V)
        context : Context
        """
        residual, after = self.read(ids, context, valid)
        hidden = self.slow_output(residual, context.seen, valid)
        return (self.logits(hidden) if labels is None else self.nll(hidden, labels, valid)), after

    def weight_hash(self) -> str:
        """Return the SHA-256 (first 16 hex digits) of names, dtypes, shapes and bytes of all parameters."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode() + data.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, block: str = BLOCK) -> None:
        """Write the model, its block and its base to a folder; see `fwl_lab.models.saving.save_model`."""
        save_model(self, folder, dtype=dtype, block=block)


def _window(network: PreTrainedModel, rotary: bool, window: int | None) -> int:
    """Return the window to read with, by default the configuration's; ValueError where it does not fit the model."""
    config = network.config
    own = getattr(config, WINDOW_NAME, None) or getattr(config, "sliding_window", None)
    window = int(own or config.max_position_embeddings) if window is None else int(window)
    least = 1 if rotary else 2
    if window < least:
        raise ValueError(f"window is {window}; expected at least {least} positions.")
    if not rotary and window > config.max_position_embeddings:
        raise ValueError(f"window is {window}, but the model has {config.max_position_embeddings} positions.")
    return window


def require_model(model: Any) -> None:
    """Raise a ValueError that says how to get a language model, unless `model` is one."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"model is {model!r:.80}; expected a LanguageModel, such as load_model('bundled').")
