"""Attribute the gain of single tokens to the earlier tokens, or updates, that caused it.

`receipts` is the entry point: it splits a gain into shares. `fast_weights` (a block's tokens) and
`dynamic_evaluation` (segments) evaluate the NLL along the path from θ₀ to the adapted weights, `path_integral`
integrates its slope. `stored` writes receipts into a trace and `summary` sums them up, both without torch.
Nothing here changes how a reader learns (see `interventions`) or draws. A further kind of reader gets a file here.
"""
