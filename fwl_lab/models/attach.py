"""Attach a new fast-weight block to a language model."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from fwl_lab.fast_weights import FastWeightBlock, UpdateRule
from fwl_lab.models import anatomy
from fwl_lab.models.language_model import LanguageModel


def attach_fast_weights(
    model: LanguageModel | PreTrainedModel,
    size: int | None = None,
    rule: UpdateRule = UpdateRule(),
    *,
    share_body: bool = True,
    seed: int = 0,
) -> LanguageModel:
    """Make a language model with a new fast-weight block, which computes exactly what the given model does.

    Parameters
    ----------
    model : LanguageModel or a Hugging Face causal LM
        Becomes `base` of the result; it has no block yet.
    size : int, optional
        The block's inner width is 4·size. None: as wide as the model.
    rule : UpdateRule
        Update rule of the block.
    share_body : bool
        True: the result and its `base` share one body, which training must leave alone (retrofit). False: the result
        gets a copy, so that the body can be trained too while `base` stays unchanged.
    seed : int
        Seed of the first layer's random weights.

    Returns
    -------
    LanguageModel

    Raises
    ------
    ValueError
        No such model or rule, a model that has a block already, or a size below 1.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is {model!r:.80}; expected a LanguageModel, or a causal LM of Hugging Face.")
    if not isinstance(rule, UpdateRule):
        raise ValueError(f"rule is {rule!r:.80}; expected an UpdateRule, such as UpdateRule(inner_batch=64).")
    base = model if isinstance(model, LanguageModel) else LanguageModel(model)
    if base.block is not None:
        raise ValueError("the model has a fast-weight block already; attach one to `model.base` instead.")
    network = base.network if share_body else copy.deepcopy(base.network)
    norm: Any = anatomy.final_norm(network)  # made exact by LanguageModel: a LayerNorm or an RMSNorm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = FastWeightBlock.attach(
            norm, anatomy.unembedding(network), norm.weight.shape[0] if size is None else size, rule
        )
    attached = LanguageModel(network, base.tokenizer, window=base.window, block=block, base=base)
    attached.inherit(base)
    return attached
