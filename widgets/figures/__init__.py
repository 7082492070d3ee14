"""Figures: pure functions from a trace, or a record of numbers, to a plotly Figure.

One file a theme: readings, breakdowns, comparisons, receipts, weights, training; `drawing` holds what they share.
Colours and labels come from `widgets.theme`, numbers from `fwl_lab.analysis`. Nothing here reads files, keeps state,
runs a model or knows of views. The figures that several notebooks draw are importable from here.
"""

from widgets.figures.breakdowns import (
    plot_gain_by_frequency,
    plot_gain_by_occurrence,
    plot_gain_by_position,
    plot_gain_by_token_class,
)
from widgets.figures.comparisons import plot_across_seeds, plot_cost_frontier, plot_net_gain
from widgets.figures.reading import (
    plot_cumulative_gain,
    plot_cumulative_nll,
    plot_fast_weight_norms,
    plot_long_reading,
)
from widgets.figures.training import plot_training_curve, plot_trials

__all__ = [
    "plot_across_seeds",
    "plot_cost_frontier",
    "plot_cumulative_gain",
    "plot_cumulative_nll",
    "plot_fast_weight_norms",
    "plot_gain_by_frequency",
    "plot_gain_by_occurrence",
    "plot_gain_by_position",
    "plot_gain_by_token_class",
    "plot_long_reading",
    "plot_net_gain",
    "plot_training_curve",
    "plot_trials",
]
