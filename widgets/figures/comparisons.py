"""Plot gains beside something else: their cost, other seeds, what any document would have given."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.schema import BYTE, FLOP, FLOPS_PER_TOKEN, PEAK_BYTES, READER, TOKENS
from widgets import theme
from widgets.figures.drawing import chosen_baseline, finish, gain_title, method, with_zero, without_great_losses

#: Of each cost the title of its axis, and the number of the axis' units in one of the trace's.
_COST_AXES: Final = {
    analysis.SECONDS_PER_TOKEN: (f"time per token [ms / {TOKENS}]", 1e3),
    FLOPS_PER_TOKEN: (f"operations per token [M{FLOP}]", 1e-6),
    PEAK_BYTES: (f"memory beyond the model [M{BYTE}]", 1e-6),
}
_COST_REACH: Final = (0.75, 1.5)  # of the least and the largest cost: names are written beside the circles
_COST_TICKS: Final = (1, 1.5, 2, 3, 5, 7)  # of each power of ten
_PART_TITLES: Final = {
    analysis.GAIN: "gain on its own document",
    analysis.GENERIC: "with another document's weights",
    analysis.NET: "net: learned from this document",
}
_PART_COLOURS: Final = (theme.ACCENT, theme.NEUTRAL, theme.CATEGORIES[4])


def plot_cost_frontier(
    trace: xr.Dataset, *, cost: str = analysis.SECONDS_PER_TOKEN, baseline: str | None = None
) -> go.Figure:
    """Plot bits saved per token against what a reader costs; the line joins those that no other reader beats in both.

    Full circles are on that frontier, open ones are not; whiskers are the intervals of the bits. A reader that loses
    more than any saves is a triangle at the lower edge, with what it loses written beside it.

    Parameters
    ----------
    cost : "seconds_per_token", "flops_per_token" or "peak_bytes"
    baseline : str, optional
        What bits are saved over; None: `fwl_lab.trace.lookup.default_baseline`.

    Raises
    ------
    ValueError
        No such cost, or the trace holds it for no reader.
    """
    if cost not in _COST_AXES:
        raise ValueError(f"cost must be one of {', '.join(_COST_AXES)}, not {cost!r}")
    baseline = chosen_baseline(trace, baseline)
    result = analysis.cost_frontier(trace, baseline)
    result = result.isel({READER: np.isfinite(result[cost].values)})
    if not result.sizes[READER]:
        raise ValueError(f"this trace holds no {cost} of any reader; it may hold another of {', '.join(_COST_AXES)}")
    best = result[analysis.OPTIMAL].sel({analysis.COST: cost}).values
    title, scale = _COST_AXES[cost]
    result[cost] = result[cost] * scale
    figure = go.Figure()
    along = result.isel({READER: best}).sortby(cost)
    figure.add_scatter(
        x=along[cost].values,
        y=along[analysis.BITS_PER_TOKEN].values,
        name="frontier",
        mode="lines",
        line={"color": theme.ZERO, "width": 1.5, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    names, styles = [str(name) for name in result[READER].values], theme.trace_styles(trace)
    shown = without_great_losses(result[analysis.BITS_PER_TOKEN].values, result[analysis.HIGH].values)
    ends = np.array(_COST_REACH) * [float(result[cost].min()), float(result[cost].max())]
    for name, optimal in zip(names, best.tolist(), strict=True):
        row, style = result.sel({READER: name}), styles[name]
        bits = float(row[analysis.BITS_PER_TOKEN])
        fallen = shown is not None and bits < shown[0]
        figure.add_scatter(
            x=[float(row[cost])],
            y=[0.9 * shown[0] if shown is not None and fallen else bits],
            customdata=[bits],
            error_y={
                "visible": not fallen,
                "array": [float(row[analysis.HIGH]) - bits],
                "arrayminus": [bits - float(row[analysis.LOW])],
                "color": style.colour,
                "thickness": 1.5,
                "width": 4,
            },
            mode="markers+text",
            text=[style.label + (f" {bits:+.2f}" if fallen else "")],
            # Names run towards the middle, and those of losses away from the ones above zero.
            textposition=("top" if bits > 0 or fallen else "bottom")
            + (" left" if name == baseline or float(row[cost]) > np.sqrt(ends.prod()) else " right"),
            textfont={"color": style.colour},
            cliponaxis=False,
            marker={
                "color": style.colour,
                "size": 13,
                "symbol": "triangle-down-open" if fallen else "circle" if optimal else "circle-open",
                "line": {"width": 2, "color": style.colour},
            },
            name=style.label,
            hovertemplate=f"%{{customdata:+.3f}} bit / {TOKENS} at %{{x:,.3~r}}<extra>%{{text}}</extra>",
        )
    # Logarithmic: what counts is how many times as much, and cheap readers lie close together.
    powers = 10.0 ** np.arange(np.floor(np.log10(ends[0])), np.ceil(np.log10(ends[1])) + 1)
    ticks = np.outer(powers, _COST_TICKS).ravel()
    axis = {"type": "log", "range": np.log10(ends), "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}
    figure.update_xaxes(title_text=f"{title}, logarithmic", showgrid=True, **axis)
    if shown is not None:
        figure.update_yaxes(range=shown)
    subtitle = f"up and left is better; full: no other beats it in both, open: one does; {method(result)}"
    finish(figure, "What a gain costs", subtitle, f"saved over {theme.label(baseline)} [bit / {TOKENS}]")
    return with_zero(figure).update_layout(showlegend=False, hovermode="closest")


def plot_across_seeds(traces: Sequence[xr.Dataset], *, baseline: str | None = None) -> go.Figure:
    """Plot the gain of each reader in each of several runs over the same documents: a dot a run, a bar at their mean.

    Parameters
    ----------
    traces : sequence of Dataset
        Two or more, one a seed, with the same readers.
    baseline : str, optional
        What gains are measured against; None: `fwl_lab.trace.lookup.default_baseline` of the first.
    """
    several = not isinstance(traces, xr.Dataset) and len(traces) > 1  # anything else is refused below
    baseline = chosen_baseline(traces[0], baseline) if several else ""
    result = analysis.across_seeds(traces, baseline=baseline)
    names = [str(name) for name in result[READER].values]
    styles, runs = theme.trace_styles(traces[0]), result.sizes[analysis.RUN]
    places = np.linspace(-0.12, 0.12, runs)  # side by side, so that equal dots do not hide each other
    figure = go.Figure()
    for index, name in enumerate(names):
        row, style = result.sel({READER: name}), styles[name]
        mean, spread = float(row[analysis.MEAN]), float(row[analysis.STD])
        figure.add_scatter(
            x=[index - 0.25, index + 0.25],
            y=[mean, mean],
            mode="lines",
            line={"color": style.colour, "width": 2.5},
            name=style.label,
            legendgroup=name,
            hovertemplate=f"mean %{{y:+.4f}}, standard deviation {spread:.4f}",
        )
        figure.add_scatter(
            x=index + places,
            y=row[analysis.GAIN].values,
            customdata=result["seed"].values,
            mode="markers",
            marker={"color": theme.translucent(style.colour, 0.55), "size": 10},
            name=style.label,
            legendgroup=name,
            showlegend=False,
            hovertemplate="%{y:+.4f}, seed %{customdata}",
        )
        note = {"showarrow": False, "xanchor": "left", "font": {"color": style.colour}}
        figure.add_annotation(x=index + 0.27, y=mean, text=f"{mean:+.3f} ± {spread:.3f}", **note)
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[styles[name].label for name in names],
        range=[-0.6, len(names) - 0.2],
    )
    subtitle = f"{runs} runs over the same documents; mean ± standard deviation over runs"
    finish(figure, "Gain across seeds", subtitle, gain_title(baseline))
    return with_zero(figure).update_layout(showlegend=False, hovermode="closest")


def plot_net_gain(
    trace: xr.Dataset, *, own: str = analysis.OWN, wrong: str = analysis.WRONG, baseline: str | None = None
) -> go.Figure:
    """Plot the gain of a reader on its document, the gain of another document's weights, and their difference.

    Parameters
    ----------
    trace : Dataset
        Of `fwl_lab.inference.controls.wrong_document`.
    own, wrong : str
        The reader with its own fast weights, and the same with those of another document.
    baseline : str, optional
        What gains are measured against; None: `fwl_lab.trace.lookup.default_baseline`.
    """
    baseline = chosen_baseline(trace, baseline)
    both = analysis.net_gain(trace, own, wrong, baseline=baseline)
    result = both.sel({analysis.AVERAGE: analysis.MICRO})
    mean = result[analysis.MEAN].values
    low, high = result[analysis.LOW].values, result[analysis.HIGH].values
    figure = go.Figure()
    figure.add_bar(
        y=[_PART_TITLES[str(part)] for part in result[analysis.PART].values],
        x=mean,
        orientation="h",
        marker={"color": _PART_COLOURS},
        error_x={"array": high - mean, "arrayminus": mean - low, "color": theme.INK, "thickness": 1.5, "width": 4},
        customdata=[f"{m:+.3f} [{a:+.3f}, {b:+.3f}]" for m, a, b in zip(mean, low, high, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        width=0.55,
    )
    figure.update_xaxes(title_text=gain_title(baseline), showgrid=True)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    finish(figure, "Learned from this document, or from any?", method(both), "")
    figure.add_vline(x=0, line={"color": theme.ZERO, "width": 1}, layer="below")
    return figure.update_layout(showlegend=False, hovermode="closest", height=340)
