"""Fast Weight Layers: the block, its rule, its oracle. The README of this folder derives the mathematics."""

from .block import BlockOutput, FastWeightBlock, FastWeightState
from .rule import UpdateRule

__all__ = ["BlockOutput", "FastWeightBlock", "FastWeightState", "UpdateRule"]
