"""Profiling: what reading and learning cost in floating-point operations, time and memory.

`flop_formulas` derives operations from a model's sizes and `flops` counts them as executed; `memory` measures time,
memory and the machine's own rate; `workloads` are the calls that are measured, `benchmark` the command that measures
them all. Nothing here changes what is computed, and no result in the library depends on a measured cost.
"""
