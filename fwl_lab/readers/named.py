"""Readers by name: the one place that says what each name stands for."""

from collections.abc import Callable, Sequence

from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.readers import DynamicEvaluationReader, FastWeightReader, NeuralCacheReader, Reader, StaticReader
from fwl_lab.trace import schema as schema

READERS: dict[str, Callable[[LanguageModel], Reader]] = {
    schema.BASE: lambda model: StaticReader(model.base),
    "static": StaticReader,
    "dynamic_evaluation": lambda model: DynamicEvaluationReader(model.base),
    "fwl": FastWeightReader,
    "neural_cache": lambda model: NeuralCacheReader(model.base),
}
USUAL = (schema.BASE, "static", "dynamic_evaluation", "fwl")


def make_readers(model: LanguageModel, names: Sequence[str] = USUAL) -> dict[str, Reader]:
    """Readers of a model, by name; the usual four where none are named.

    base: the LM without its block. static: the block at θ₀. dynamic_evaluation: all weights of the base, with the
    rule and step tuned for it. fwl: the block's fast weights. neural_cache: the base with a cache, which copies.
    """
    require_model(model)
    if isinstance(names, str):
        raise ValueError(f"names is {names!r}; expected a list of names, such as [{names!r}].")
    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise ValueError(f"unknown reader {', '.join(map(repr, unknown))}; expected some of {', '.join(READERS)}.")
    return {name: READERS[name](model) for name in names}
