"""Readers: static, fast weights, dynamic evaluation, neural cache. `base` holds the contract they share."""

from .base import Reader, Scores
from .dynamic_evaluation import DynamicEvaluationReader, gradient_statistics
from .fast_weights import FastWeightReader
from .neural_cache import NeuralCacheReader
from .static import StaticReader

__all__ = [
    "DynamicEvaluationReader",
    "FastWeightReader",
    "NeuralCacheReader",
    "Reader",
    "Scores",
    "StaticReader",
    "gradient_statistics",
]
