"""Tensor operations that know nothing of models, documents or readers.

Numerics (norms, rotary positions, linear cross-entropy, linear attention), gradient checkpointing, states as
NamedTuples of tensors, functional calls, safetensors files, and the interface of observers. Imports nothing of
`fwl_lab` outside this folder; needs no transformers.
"""
