"""Select the parameters that dynamic evaluation adapts: all, a subset, or low-rank adapters beside them (LoRA).

=================== ================================================================================================
`"all"`             every parameter
`"mlp"`             the feed-forward part of every layer
`"norm"`            gains and biases of every LayerNorm and RMSNorm, the final one included
`"bias"`            the bias of every module that has one
`"last:k"`          the last k layers (not the final norm)
`"no-embeddings"`   all but token and position embeddings and the unembedding, tied or not
`"lora"`, `"lora:r"` only adapters of rank r (8) beside every dense layer of every layer (Hu et al. 2021)
=================== ================================================================================================

A subset is found by the types of the modules, so it means the same in every model family. A fast-weight block's
parameters are in `"all"` and `"no-embeddings"` only.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import GradientStatistics
from fwl_lab.ops.functional_call import structural_copy
from fwl_lab.ops.norms import RMSNorm

CHOICES = "'all', 'mlp', 'norm', 'bias', 'last:k', 'no-embeddings', 'lora' or 'lora:r'"
LORA_RANK = 8  # of "lora" without a rank
LORA_SEED = 0  # all readers' adapters have the same random A at the start (and B = 0)


def adapt(model: LanguageModel, parameters: str) -> tuple[LanguageModel, dict[str, Tensor]]:
    """Select the parameters of a model that adapt.

    Parameters
    ----------
    model : LanguageModel
        Unchanged.
    parameters : str
        A choice from the table above.

    Returns
    -------
    model : LanguageModel
        The model to read with: the one given, or for LoRA a structural copy with adapters over the same weights.
    selected : dict of Tensor
        Its parameters that adapt, by name and in the model's order.

    Raises
    ------
    ValueError
        No such choice, or this model has no parameter of that kind.
    """
    kind, colon, digits = parameters.partition(":") if isinstance(parameters, str) else ("", "", "")
    number = int(digits) if digits.isdecimal() else 0
    known = kind in ("all", "mlp", "norm", "bias", "no-embeddings", "lora") and not colon
    if not known and not (kind in ("last", "lora") and number):
        raise ValueError(f"parameters is {parameters!r}; expected {CHOICES}, with k and r whole numbers from 1.")
    if kind == "lora":
        model = add_lora(model, number or LORA_RANK)
    chosen = {id(parameter) for parameter in _choose(model, kind, number)}
    selected: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if id(p) in chosen}
    if not selected:
        there = [
            kind
            for kind in ("all", "mlp", "norm", "bias", "no-embeddings")
            if next(_choose(model, kind, 0), None) is not None
        ]
        raise ValueError(
            f"parameters is {parameters!r}, but {type(model.network).__name__} of this configuration has none of that "
            f"kind; expected one that it has: {', '.join(there)}, last:k or lora."
        )
    return model, selected


def _choose(model: LanguageModel, kind: str, number: int) -> Iterator[Tensor]:
    """Yield the parameters of a choice without its number; `number` is the k of "last:k"."""
    if kind == "mlp":
        for layer in model.layers:
            if isinstance(mlp := getattr(layer, "mlp", None), nn.Module):
                yield from mlp.parameters()
    elif kind == "last":
        layers = model.layers
        if number > len(layers):
            raise ValueError(f"parameters is 'last:{number}', but the model has {len(layers)} layers; expected fewer.")
        yield from layers[-number:].parameters()
    elif kind == "norm":
        for module in model.network.modules():
            if isinstance(module, nn.LayerNorm | RMSNorm):
                yield from module.parameters(recurse=False)
    elif kind == "bias":
        for module in model.network.modules():
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                yield bias
    elif kind == "lora":
        yield from (p for p in model.parameters() if p.requires_grad)  # the copy's own weights are frozen
    else:
        embeddings = [m for m in model.network.modules() if isinstance(m, nn.Embedding)] + [model.unembedding]
        left_out = {id(p) for m in embeddings for p in m.parameters()} if kind == "no-embeddings" else set()
        yield from (p for p in model.parameters() if id(p) not in left_out)


def shared_parts(model: LanguageModel) -> list[object]:
    """Return what a structural copy of a model holds by reference: all that is neither module nor weight."""
    return [model.tokenizer, model.token_counts, model.gradient_statistics, model.__dict__["_base"]]


def share(model: LanguageModel) -> LanguageModel:
    """Return a structural copy of a model: modules of its own over the same weights in memory."""
    return structural_copy(model, keep=shared_parts(model))


def add_lora(model: LanguageModel, rank: int) -> LanguageModel:
    """Return a structural copy of a model with an adapter of rank `rank` at every dense layer of its layers.

    The copy computes what the model does until the adapters are changed. Its only parameters that require gradients
    are the adapters' A (random, from a fixed seed) and B (zero).
    """
    # Imported only here: most readings do not need peft, and it is slow to import.
    from peft import LoraConfig, inject_adapter_in_model

    model = share(model)
    inside = {id(m) for m in model.layers.modules() if isinstance(m, nn.Linear | Conv1D)}
    dense = {name: m for name, m in model.network.named_modules() if id(m) in inside}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # W + BA without a further factor: the optimizer has the step size
        target_modules=list(dense),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in dense.values()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(LORA_SEED)
        inject_adapter_in_model(config, model.network)
    return model


def select_statistics(
    statistics: GradientStatistics | None, model: LanguageModel, selected: dict[str, Tensor]
) -> GradientStatistics | None:
    """Return the gradient statistics of the selected parameters.

    Statistics that are not of all the model's parameters, or of another model than `selected`, are returned unchanged.
    """
    names = [name for name, _ in model.named_parameters()]
    if statistics is None or len(statistics.sum_of_squares) != len(names) or not selected.keys() <= set(names):
        return statistics
    squares = dict(zip(names, statistics.sum_of_squares, strict=True))
    return GradientStatistics(tuple(squares[name] for name in selected), statistics.batches)


def weight_versions(model: LanguageModel) -> list[tuple[int, int, torch.dtype]]:
    """Return what changes when a model's weights do: where each lies, how often it was written to, its dtype."""
    return [(p.data_ptr(), p._version, p.dtype) for p in model.parameters()]
