"""Plot where gains are: by position, repetition, rarity and kind of token."""

from typing import Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.schema import POSITION, READER
from widgets import theme
from widgets.figures.drawing import (
    POSITION_TITLE,
    bars,
    chosen_baseline,
    finish,
    gain_title,
    interval_texts,
    method,
    with_zero,
    without_great_losses,
)

_FEWEST_TOKENS: Final = 10  # of a group that is drawn


def plot_gain_by_position(trace: xr.Dataset, *, bucket: int = 512, baseline: str | None = None) -> go.Figure:
    """Plot the mean gain in buckets of tokens from the document's start; the band is its interval.

    A reader that loses more than any gains leaves the picture below, and the subtitle says how far it falls.

    Parameters
    ----------
    bucket : int
        Tokens of a bucket.
    baseline : str, optional
        What gains are measured against; None: `fwl_lab.trace.lookup.default_baseline`.
    """
    baseline = chosen_baseline(trace, baseline)
    result = analysis.gain_by_position(trace, bucket, baseline=baseline)
    end = int(trace[POSITION].max()) + 1
    middle = (result[analysis.START].values + np.minimum(result[analysis.STOP].values, end)) / 2
    readers = [str(name) for name in result[READER].values]
    styles, figure = theme.trace_styles(trace), go.Figure()
    for name in readers:
        style, row = styles[name], result.sel({READER: name})
        # Without an interval (one document in the bucket) the band closes on the line.
        low, high = (row[edge].fillna(row[analysis.MEAN]).values for edge in (analysis.LOW, analysis.HIGH))
        figure.add_scatter(
            x=np.concatenate([middle, middle[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor=theme.translucent(style.colour, 0.18),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        figure.add_scatter(
            x=middle,
            y=row[analysis.MEAN].values,
            customdata=interval_texts(row),
            hovertemplate="%{y:+.3f} %{customdata}",
            name=style.label,
            legendgroup=name,
            mode="lines+markers",
            line={"color": style.colour, "width": 2.5, "dash": style.dash},
            marker={"size": 7},
        )
    figure.update_xaxes(title_text=POSITION_TITLE, tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="around token %{x:,.0f}")
    least, subtitle = result[analysis.MEAN].min(analysis.BUCKET), method(result)
    shown = without_great_losses(least.values, result[analysis.HIGH].fillna(result[analysis.MEAN]).values)
    if shown is not None:
        figure.update_yaxes(range=shown)
        fallen = [name for name in readers if float(least.sel({READER: name})) < shown[0]]
        subtitle += "".join(f"; {styles[n].label} falls to {float(least.sel({READER: n})):+.2f}" for n in fallen)
    return with_zero(finish(figure, "Gain by position", subtitle, gain_title(baseline)))


def plot_gain_by_occurrence(trace: xr.Dataset, *, baseline: str | None = None) -> go.Figure:
    """Plot the mean gain by how often the token came earlier in its document, with intervals as whiskers."""
    baseline = chosen_baseline(trace, baseline)
    result = analysis.gain_by_occurrence(trace, baseline=baseline)
    figure = bars(result, theme.trace_styles(trace), "earlier occurrences of the token in its document")
    return with_zero(finish(figure, "Gain by repetition", method(result), gain_title(baseline)))


def plot_gain_by_frequency(trace: xr.Dataset, *, counts: np.ndarray, baseline: str | None = None) -> go.Figure:
    """Plot the mean gain by how often the token occurs in the training split, rarest first, with intervals as whiskers.

    Groups of fewer than 10 tokens are left out: they would set the scale and say nothing.

    Parameters
    ----------
    counts : (V,) int
        Occurrences of every token id in the training split.
    baseline : str, optional
        What gains are measured against; None: `fwl_lab.trace.lookup.default_baseline`.
    """
    baseline = chosen_baseline(trace, baseline)
    result = _enough(analysis.gain_by_frequency(trace, counts, baseline=baseline))
    figure = bars(result, theme.trace_styles(trace), "occurrences of the token in the training split")
    return with_zero(finish(figure, "Gain by rarity", method(result), gain_title(baseline)))


def plot_gain_by_token_class(trace: xr.Dataset, *, baseline: str | None = None) -> go.Figure:
    """Plot the mean gain on words, numbers, punctuation, whitespace and other tokens; hovering shows a bar's share.

    Classes of fewer than 10 tokens are left out. A share is of the reader's whole gain.
    """
    baseline = chosen_baseline(trace, baseline)
    result = _enough(analysis.gain_by_token_class(trace, baseline=baseline))
    figure = bars(result, theme.trace_styles(trace), "what the token is made of")
    for bar, shares in zip(figure.data, result[analysis.SHARE].values, strict=True):
        bar.text = [f"{share:.0%}" for share in shares]
        bar.update(textposition="none", hovertemplate=bar.hovertemplate + ", %{text} of all gain")
    return with_zero(finish(figure, "Gain by kind of token", method(result), gain_title(baseline)))


def _enough(result: xr.Dataset) -> xr.Dataset:
    """Return the buckets that hold enough tokens; all, if none does."""
    enough = result[analysis.TOKEN_COUNT].values >= _FEWEST_TOKENS
    return result.isel({analysis.BUCKET: enough if enough.any() else ~enough})
