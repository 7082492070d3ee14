"""Find the parts of a Hugging Face causal language model: layers, final norm, unembedding, kind of positions.

The names that Hugging Face gives to these parts stand here; `fwl_lab.models.exact` knows those inside norm and rotary
modules, and `fwl_lab.models.saving` those of tied weights. Supported are GPT-2 and the Llama, Mistral and Qwen
families, and others with the same names and arithmetic, which `LanguageModel` checks on one token.
"""

from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

FINAL_NORMS = ("norm", "ln_f")  # in the Llama, Mistral and Qwen families, and in GPT-2
ROTARY, ABSOLUTE = "rotary_emb", "wpe"  # modules that make positions known
# Inputs of the final norm while a body runs, of one thread: several may run the same network at once.
_residuals: ContextVar[list[Tensor] | None] = ContextVar("residuals", default=None)


def layers(network: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer layers of the body, first to last.

    Raises
    ------
    ValueError
        The body has no list of layers.
    """
    lists = [child for child in network.base_model.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise unsupported(network)
    return max(lists, key=len)


def final_norm(network: PreTrainedModel) -> nn.Module:
    """Return the norm between the last layer and the unembedding.

    Raises
    ------
    ValueError
        The body has no module of a known name.
    """
    found = (getattr(network.base_model, name, None) for name in FINAL_NORMS)
    norm = next((module for module in found if isinstance(module, nn.Module)), None)
    if norm is None:
        raise unsupported(network)
    return norm


def unembedding(network: PreTrainedModel) -> nn.Linear:
    """Return the dense layer from the width to the vocabulary, whose weights may be those of the embedding."""
    return network.get_output_embeddings()


def has_rotary_positions(network: PreTrainedModel) -> bool:
    """Return True for rotary positions and False for learned absolute ones.

    Raises
    ------
    ValueError
        The model has neither.
    """
    rotary = hasattr(network.base_model, ROTARY)
    if not rotary and not hasattr(network.base_model, ABSOLUTE):
        raise unsupported(network)
    return rotary


def attention_width(network: PreTrainedModel) -> int:
    """Return layers × heads × head width: multiply-adds of q·k for one query and key."""
    config = network.config
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers * heads * head_width)


def body_matrix_size(network: PreTrainedModel) -> int:
    """Return the number of entries of the body's 2-D weights, without embeddings and unembedding."""
    return sum(
        parameter.numel()
        for module in network.base_model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 2
    )


def watch_residual(network: PreTrainedModel) -> None:
    """Register, once, the hook that gives :func:`residual` the final norm's input; a second call does nothing."""
    norm = final_norm(network)
    if _keep_input not in norm._forward_pre_hooks.values():
        norm.register_forward_pre_hook(_keep_input)


def _keep_input(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if (kept := _residuals.get()) is not None:
        kept.append(inputs[0])


def residual(network: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Run the body and return the residual stream before the final norm; needs :func:`watch_residual`.

    Parameters
    ----------
    ids, positions : (B, T) long
        Tokens and their positions.
    mask : (B, 1, T, S + T) bool
        True where a query sees a key.
    cache : DynamicCache
        KV cache of S positions, to which the tokens' own are appended.

    Returns
    -------
    (B, T, D)
    """
    kept: list[Tensor] = []
    token = _residuals.set(kept)
    try:
        network.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
    finally:
        _residuals.reset(token)
    return kept[0]


@torch.no_grad()
def first_logits(network: PreTrainedModel) -> Tensor:
    """Return the network's own logits (1, 1, V) after a single token with id 0, float32, to compare its parts with."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=unembedding(network).weight.device)
    return network(input_ids=ids, use_cache=False).logits.float()


def unsupported(network: PreTrainedModel) -> ValueError:
    """Make the error that says which models can be taken apart."""
    return ValueError(
        f"{type(network).__name__} is not a model this library can take apart: expected a final norm named "
        f"{' or '.join(FINAL_NORMS)} and rotary or learned absolute positions, and no other "
        "arithmetic around them (GPT-2, Llama, Mistral, Qwen)."
    )
