"""Readers by name: the one registry. No meaning hangs on a name anywhere else."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.readers.base import Reader
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader
from fwl_lab.readers.fast_weights import FastWeightReader
from fwl_lab.readers.neural_cache import NeuralCacheReader
from fwl_lab.readers.static import StaticReader
from fwl_lab.trace.schema import BASE, DYNAMIC_EVALUATION, FWL, NEURAL_CACHE, STATIC


class NamedReader(NamedTuple):
    """One entry of the registry.

    Attributes
    ----------
    make : callable
        From a model to a fresh reader.
    needs_block : bool
        Whether the model must have a fast-weight block.
    """

    make: Callable[[LanguageModel], Reader]
    needs_block: bool = False


NAMED: dict[str, NamedReader] = {
    BASE: NamedReader(lambda model: StaticReader(model.base)),
    STATIC: NamedReader(StaticReader, needs_block=True),
    DYNAMIC_EVALUATION: NamedReader(lambda model: DynamicEvaluationReader(model.base)),
    FWL: NamedReader(FastWeightReader, needs_block=True),
    NEURAL_CACHE: NamedReader(lambda model: NeuralCacheReader(model.base)),
}
USUAL = (BASE, STATIC, DYNAMIC_EVALUATION, FWL)

#: Kinds of readers that can be made again from what a trace says of them.
REBUILDABLE: dict[str, type[Reader]] = {
    kind.__name__: kind for kind in (StaticReader, DynamicEvaluationReader, FastWeightReader, NeuralCacheReader)
}


def available(model: LanguageModel) -> list[str]:
    """Return the names of the readers that a model can be read with, in the registry's order."""
    require_model(model)
    return [name for name, entry in NAMED.items() if model.block is not None or not entry.needs_block]


def make_readers(model: LanguageModel, names: Sequence[str] = USUAL) -> dict[str, Reader]:
    """Make readers of a model, by name; the usual four where none are named.

    base: the LM without its block. static: the block at θ₀. dynamic_evaluation: all weights of the base, with the
    rule and step tuned for it. fwl: the block's fast weights. neural_cache: the base with a cache, which copies.

    Raises
    ------
    ValueError
        A name that is not in the registry.
    """
    require_model(model)
    if isinstance(names, str):
        raise ValueError(f"names is {names!r}; expected a list of names, such as [{names!r}].")
    unknown = [name for name in names if name not in NAMED]
    if unknown:
        raise ValueError(f"unknown reader {', '.join(map(repr, unknown))}; expected some of {', '.join(NAMED)}.")
    return {name: NAMED[name].make(model) for name in names}
