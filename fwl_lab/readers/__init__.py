"""Readers: static, fast weights, dynamic evaluation. `base` holds the contract they share."""

from .base import Reader, Scores
from .dynamic_evaluation import DynamicEvaluationReader, gradient_statistics
from .fast_weights import FastWeightReader
from .static import StaticReader

__all__ = ["DynamicEvaluationReader", "FastWeightReader", "Reader", "Scores", "StaticReader", "gradient_statistics"]
