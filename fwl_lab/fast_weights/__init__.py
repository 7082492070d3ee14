"""Fast Weight Layers: the block, its rule, its oracle. The README of this folder derives the mathematics."""

from .block import FastWeightBlock
from .rule import UpdateRule
from .state import BlockOutput, FastWeightState

__all__ = ["BlockOutput", "FastWeightBlock", "FastWeightState", "UpdateRule"]
