"""Readers score each token given all read before it, then learn from it.

Kinds: static, fast weights, dynamic evaluation, neural cache. `base` holds the contract that all share, `named` the
registry by name; `rebuild` makes a reader from what a trace says.
Nothing here writes traces or knows what a trace is for; a view or an analysis never asks which class a reader is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Reader"],
        "dynamic_evaluation.gradient_statistics": ["gradient_statistics"],
        "dynamic_evaluation.reader": ["DynamicEvaluationReader"],
        "fast_weights": ["FastWeightReader"],
        "neural_cache": ["NeuralCacheReader"],
        "standing": ["Scores"],
        "static": ["StaticReader"],
    },
)
