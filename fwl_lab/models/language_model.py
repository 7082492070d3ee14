"""A Hugging Face causal language model seen as body, final norm and unembedding, with or without a fast-weight block.

Symbols: B rows, T tokens, D width of the residual stream, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from fwl_lab.corpora.documents import check_text
from fwl_lab.fast_weights import FastWeightBlock
from fwl_lab.models.context import Context, read_body
from fwl_lab.models.exact import make_exact
from fwl_lab.models.saving import BLOCK, WINDOW_NAME, save_model
from fwl_lab.models.tuned_rule import GradientStatistics, TunedRule
from fwl_lab.ops.cross_entropy import token_nll
from fwl_lab.ops.norms import Normalisation, RMSNorm

NORM_NAMES = ("norm", "ln_f")  # the final norm in the Llama, Mistral and Qwen families, and in GPT-2


class Encoding(NamedTuple):
    """Tokens of a text. The concatenated `texts` are the text; `bytes` add up to its UTF-8 length.

    Attributes
    ----------
    ids : (T,) long
    texts : list of T str, the characters that begin with each token ("" where it only continues one)
    bytes : list of T int, their UTF-8 lengths
    """

    ids: Tensor
    texts: list[str]
    bytes: list[int]

    def head(self, tokens: int | None) -> "Encoding":
        """The first `tokens` tokens."""
        return Encoding(self.ids[:tokens], self.texts[:tokens], self.bytes[:tokens])


def _unsupported(network: PreTrainedModel) -> ValueError:
    return ValueError(
        f"{type(network).__name__} is not a model this library can take apart: expected a final norm named "
        f"{' or '.join(NORM_NAMES)} and rotary or learned absolute positions, and no other "
        "arithmetic around them (GPT-2, Llama, Mistral, Qwen)."
    )


@torch.no_grad()
def _probe(network: PreTrainedModel) -> Tensor:
    """The network's own logits (1, 1, V) after token 0."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=network.get_output_embeddings().weight.device)
    return network(input_ids=ids, use_cache=False).logits.float()


class LanguageModel(nn.Module):
    """A causal LM that reads documents of any length, seen as body, final norm and unembedding.

    Parameters
    ----------
    network : PreTrainedModel
        GPT-2, Llama, Mistral, Qwen or alike. Its norm and rotary modules are replaced by exact ones
        (`fwl_lab.precision`); its weights are used as they are.
    tokenizer : PreTrainedTokenizerBase, optional
    window : int, optional
        How many past positions the body sees; None: what the configuration says.
    block : FastWeightBlock, optional
        On top of the residual stream; it takes the final norm over.
    base : LanguageModel, optional
        The same model without the block; None: this one's own body.
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
        body, config = network.eval().base_model, network.config
        norms = [name for name in NORM_NAMES if hasattr(body, name)]
        self.rotary = hasattr(body, "rotary_emb")
        if not norms or not (self.rotary or hasattr(body, "wpe")):
            raise _unsupported(network)
        expected = _probe(network)
        make_exact(network)
        network.set_attn_implementation("sdpa")
        self.network = network
        self.tokenizer = tokenizer
        self.norm_name = norms[0]
        own = getattr(config, WINDOW_NAME, None) or getattr(config, "sliding_window", None)
        self.window = int(own or config.max_position_embeddings) if window is None else int(window)
        if self.window < (1 if self.rotary else 2):
            raise ValueError(f"window is {self.window}; expected at least {1 if self.rotary else 2} positions.")
        if not self.rotary and self.window > config.max_position_embeddings:
            raise ValueError(f"window is {self.window}, but the model has {config.max_position_embeddings} positions.")
        self.block = None
        # Other families have parts of the same names that compute something else (a gain of 1 + weight, scaled logits).
        if not isinstance(self.final_norm, nn.LayerNorm | RMSNorm) or not self._explains(expected):
            raise _unsupported(network)
        self.block = block
        self.provenance: dict[str, Any] = {}
        self.token_counts: Any = None
        self._gradient_statistics: GradientStatistics | None = None
        self._tuned_rule: TunedRule | None = None
        # Kept out of the registered modules: a base that shares the network would appear twice among them.
        self.__dict__["_base"] = base

    @torch.no_grad()
    def _explains(self, logits: Tensor) -> bool:
        """Whether body, final norm and unembedding give what the whole network gave (see `_probe`)."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        ours = self(ids, Context.empty(1, self.device))[0].float()
        return torch.allclose(ours, logits, rtol=0, atol=0.02 * float(logits.abs().max()), equal_nan=True)

    # -- the parts ------------------------------------------------------------------------------------------------

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
        """Rule of dynamic evaluation tuned for this model, which a reader without another takes; set on the base too.

        Raises ValueError where something else than a TunedRule or None is assigned.
        """
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
        """What `to`, `double`, `cuda` and alike come down to: a base with a body of its own goes along."""
        base = self.__dict__["_base"]
        if base is not None and base.network is not self.network:
            base._apply(function, recurse)
        return super()._apply(function, recurse)

    @property
    def final_norm(self) -> nn.LayerNorm | RMSNorm:
        """The model's own final norm, a LayerNorm or an RMSNorm."""
        return getattr(self.network.base_model, self.norm_name)

    @property
    def unembedding(self) -> nn.Linear:
        """U (V, D) and its bias c (V,) or None."""
        return self.network.get_output_embeddings()

    @property
    def name(self) -> str:
        """What a trace calls this model."""
        return str(self.provenance.get("name") or self.network.config.name_or_path or type(self.network).__name__)

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens the unembedding tells apart."""
        return self.unembedding.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the unembedding's weights."""
        return self.unembedding.weight.dtype

    @property
    def bos(self) -> int:
        """What a fresh reader has read: BOS, or the end-of-text token, or (a model with neither) token 0."""
        tokenizer, config = self.tokenizer, self.network.config
        for source in (tokenizer, config):
            for name in ("bos_token_id", "eos_token_id"):
                token = getattr(source, name, None)
                if isinstance(token, int) and 0 <= token < self.vocab_size:
                    return token
        return 0

    # -- text -----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Tensor:
        """Token ids (T,) of a text; no special token is added, and none is recognised inside the text."""
        return self.encode_text(text).ids

    def encode_text(self, text: str, name: str = "text") -> Encoding:
        """Token ids with the piece of text and the number of bytes each token stands for; `name` is for errors."""
        encoded = self._tokenizer()(
            check_text(text, name),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        texts, end = [], 0
        ends = [stop for _, stop in encoded["offset_mapping"]]
        for index, stop in enumerate(ends):
            stop = len(text) if index == len(ends) - 1 else max(end, stop)
            texts.append(text[end:stop])
            end = stop
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return Encoding(ids, texts, [len(piece.encode()) for piece in texts])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts at once, as :meth:`encode` gives them."""
        texts = [check_text(text, f"text {index}") for index, text in enumerate(texts)]
        encoded = self._tokenizer()(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def decode(self, ids: Tensor | np.ndarray) -> str:
        """The text of token ids (T,)."""
        return str(self._tokenizer().decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: load it from a folder that holds one, or pass token ids.")
        return self.tokenizer

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, ids: Tensor, context: Context, valid: Tensor | None = None) -> tuple[Tensor, Context]:
        """Residual states (B, T, D), before the final norm, of the next tokens (B, T); see `read_body`."""
        return read_body(self._body, ids, context, window=self.window, rotary=self.rotary, valid=valid)

    def _body(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        captured: list[Tensor] = []
        handle = self.final_norm.register_forward_pre_hook(lambda _module, args: captured.append(args[0]))
        try:
            self.network.base_model(
                input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
            )
        finally:
            handle.remove()
        return captured[0]

    def normalise(self, x: Tensor) -> Tensor:
        """Norm(x) without gain and bias, (..., D), by the kind and ε of the model's final norm."""
        return Normalisation.of(self.final_norm).apply(x)

    def slow_output(self, residual: Tensor, seen: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """What the unembedding reads, (B, T, D), float32 or wider, without adaptation: final norm, or block at θ₀.

        `seen` (B,) and `valid` (B, T) tell a block where its inner batches begin, so that the order of its sums, and
        so every bit of the result, is that of a reading with all step sizes at 0.
        """
        if self.block is not None:
            state = self.block.initial_state(len(residual))
            state = state if seen is None else state._replace(seen=seen)
            return self.block(residual, None, None if valid is None else valid.to(residual.dtype), state).hidden
        norm = self.final_norm
        # As the block does, so that in half precision too an untrained block changes no bit.
        residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
        out = self.normalise(residual) * norm.weight
        return out + norm.bias if isinstance(norm, nn.LayerNorm) and norm.bias is not None else out

    def logits(self, hidden: Tensor) -> Tensor:
        """U hidden + c: (..., D) -> (..., V)."""
        return self.unembedding(hidden.to(self.dtype))

    def nll(self, hidden: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """-log softmax(logits)[labels], (B, T) nats, in float32 or wider; 0 where `valid` (B, T) is False."""
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
        """SHA-256 (first 16 hex digits) over names, dtypes and bytes of all parameters."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode() + data.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, block: str = BLOCK) -> None:
        """Write the model, its block and its base to a folder; see `fwl_lab.models.saving.save_model`."""
        save_model(self, folder, dtype=dtype, block=block)


def require_model(model: Any) -> None:
    """ValueError: this is no language model; says how to get one."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"model is {model!r:.80}; expected a LanguageModel, such as load_model('bundled').")
