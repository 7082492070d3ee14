"""Change how a reader learns, and read again: counterfactual readings.

A `Surgery` (no torch) says which updates to drop, scale or edit. `readers` makes a reader that learns under one;
`replay` reads a trace's documents again with it, and returns a trace with the old readers and the new one.
Nothing here attributes a gain (see `attribution`) or changes a shared model; a further kind of reader that can be
operated on gets its subclass in `readers`.
"""
