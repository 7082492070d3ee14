"""Pictures of where gains are: by position, repetition, rarity and kind of token."""

from typing import Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.schema import BASE, POSITION, READER
from widgets import theme
from widgets.figures.drawing import (
    POSITION_TITLE,
    bars,
    finish,
    gain_title,
    interval_texts,
    method,
    with_zero,
    without_great_losses,
)

_FEWEST: Final = 10  # tokens that make a group worth a bar


def plot_gain_by_position(trace: xr.Dataset, *, bucket: int = 512, baseline: str = BASE) -> go.Figure:
    """Mean gain in buckets of tokens from the document's start; the band is its interval.

    A reader that loses more than any gains leaves the picture below, and the subtitle says how far it falls.
    """
    result = analysis.gain_by_position(trace, bucket, baseline=baseline)
    end = int(trace[POSITION].max()) + 1
    middle = (result[analysis.START].values + np.minimum(result[analysis.STOP].values, end)) / 2
    readers = [str(name) for name in result[READER].values]
    colours, figure = theme.colours(readers), go.Figure()
    for name in readers:
        row = result.sel({READER: name})
        # Without an interval (one document in the bucket) the band closes on the line.
        low, high = (row[edge].fillna(row[analysis.MEAN]).values for edge in (analysis.LOW, analysis.HIGH))
        figure.add_scatter(
            x=np.concatenate([middle, middle[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor=theme.translucent(colours[name], 0.18),
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
            name=theme.label(name),
            legendgroup=name,
            mode="lines+markers",
            line={"color": colours[name], "width": 2.5, "dash": theme.dash(name)},
            marker={"size": 7},
        )
    figure.update_xaxes(title_text=POSITION_TITLE, tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="around token %{x:,.0f}")
    least, subtitle = result[analysis.MEAN].min(analysis.BUCKET), method(result)
    shown = without_great_losses(least.values, result[analysis.HIGH].fillna(result[analysis.MEAN]).values)
    if shown is not None:
        figure.update_yaxes(range=shown)
        fallen = [name for name in readers if float(least.sel({READER: name})) < shown[0]]
        subtitle += "".join(f"; {theme.label(n)} falls to {float(least.sel({READER: n})):+.2f}" for n in fallen)
    return with_zero(finish(figure, "Gain by position", subtitle, gain_title(baseline)))


def plot_gain_by_occurrence(trace: xr.Dataset, *, baseline: str = BASE) -> go.Figure:
    """Mean gain by how often the token came earlier in its document, with intervals as whiskers."""
    result = analysis.gain_by_occurrence(trace, baseline=baseline)
    figure = bars(result, "earlier occurrences of the token in its document")
    return with_zero(finish(figure, "Gain by repetition", method(result), gain_title(baseline)))


def plot_gain_by_frequency(trace: xr.Dataset, *, counts: np.ndarray, baseline: str = BASE) -> go.Figure:
    """Mean gain by how often the token occurs in the training split, rarest first, with intervals as whiskers.

    Groups of fewer than 10 tokens are left out: they would set the scale and say nothing.

    Parameters
    ----------
    counts : (V,) int
        Occurrences of every token id in the training split.
    """
    result = _enough(analysis.gain_by_frequency(trace, counts, baseline=baseline))
    figure = bars(result, "occurrences of the token in the training split")
    return with_zero(finish(figure, "Gain by rarity", method(result), gain_title(baseline)))


def plot_gain_by_token_class(trace: xr.Dataset, *, baseline: str = BASE) -> go.Figure:
    """Mean gain on words, numbers, punctuation, whitespace and other tokens; a bar's share of all gain on hovering.

    Classes of fewer than 10 tokens are left out.
    """
    result = _enough(analysis.gain_by_token_class(trace, baseline=baseline))
    figure = bars(result, "what the token is made of")
    for bar, shares in zip(figure.data, result[analysis.SHARE].values, strict=True):
        bar.text = [f"{share:.0%}" for share in shares]
        bar.update(textposition="none", hovertemplate=bar.hovertemplate + ", %{text} of all gain")
    return with_zero(finish(figure, "Gain by kind of token", method(result), gain_title(baseline)))


def _enough(result: xr.Dataset) -> xr.Dataset:
    """The buckets that hold enough tokens; all, if none does."""
    enough = result[analysis.TOKEN_COUNT].values >= _FEWEST
    return result.isel({analysis.BUCKET: enough if enough.any() else ~enough})
