"""Fast Weight Layers: the block, its rule and its reference implementation.

Works on hidden states and labels; knows no tokenizer, model or reader, and imports `ops` only. The README of this
folder derives the mathematics.
"""

from fwl_lab.fast_weights.block import FastWeightBlock
from fwl_lab.fast_weights.state import BlockOutput, FastWeightState
from fwl_lab.fast_weights.update_rule import UpdateRule

__all__ = ["BlockOutput", "FastWeightBlock", "FastWeightState", "UpdateRule"]
