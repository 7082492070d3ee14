"""Make synthetic traces, valid and seeded, for tests and figures that need a trace and no model.

`make_trace` is the public name; `synthetic` holds what it invents beside NLL: alternatives, factors and receipts.
Nothing here reads a document or runs a model: no torch, and no import but from `fwl_lab.trace`, `fwl_lab.analysis` and
`fwl_lab.audit.certificate`. Tests of real readers belong in tests/, with their models in tests/helpers.
"""

from fwl_lab.testing.traces import make_trace

__all__ = ["make_trace"]
