"""Fast Weight Layers: the block, its rule, its oracle. The README of this folder derives the mathematics."""

from fwl_lab.fast_weights.block import FastWeightBlock
from fwl_lab.fast_weights.state import BlockOutput, FastWeightState
from fwl_lab.fast_weights.update_rule import UpdateRule

__all__ = ["BlockOutput", "FastWeightBlock", "FastWeightState", "UpdateRule"]
