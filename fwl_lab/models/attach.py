"""Attach a fast-weight block to a language model."""

import copy

import torch
from transformers import PreTrainedModel

from fwl_lab.fast_weights import FastWeightBlock, UpdateRule
from fwl_lab.models.language_model import LanguageModel


def attach_fast_weights(
    model: LanguageModel | PreTrainedModel,
    size: int | None = None,
    rule: UpdateRule = UpdateRule(),
    *,
    share_body: bool = True,
    seed: int = 0,
) -> LanguageModel:
    """A language model with a new fast-weight block on top; until it is trained it is exactly the model given.

    Parameters
    ----------
    model : LanguageModel or a Hugging Face causal LM
    size : int, optional
        The block's inner width is 4·size. None: as wide as the model.
    rule : UpdateRule
    share_body : bool
        True: `result.base` and the result share one body, which training must leave alone (retrofit). False: the
        result gets a copy, so that the body can be trained too and `result.base` stays what it was.
    seed : int
        Of the first layer's random start.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is {model!r:.80}; expected a LanguageModel, or a causal LM of Hugging Face.")
    if not isinstance(rule, UpdateRule):
        raise ValueError(f"rule is {rule!r:.80}; expected an UpdateRule, such as UpdateRule(inner_batch=64).")
    base = model if isinstance(model, LanguageModel) else LanguageModel(model)
    if base.block is not None:
        raise ValueError("the model has a fast-weight block already; attach one to `model.base` instead.")
    network = base.network if share_body else copy.deepcopy(base.network)
    inner = getattr(network.base_model, base.norm_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = FastWeightBlock.attach(
            inner, network.get_output_embeddings(), inner.weight.shape[0] if size is None else size, rule
        )
    attached = LanguageModel(network, base.tokenizer, window=base.window, block=block, base=base)
    attached.inherit(base)
    return attached
