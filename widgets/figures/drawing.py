"""Parts that figures share: bars with whiskers, titles, the line at zero, thinned points, default readers."""

import html
from collections.abc import Mapping
from typing import Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.lookup import default_baseline
from fwl_lab.trace.schema import DOCUMENT, DOCUMENT_NAME, NAT, READER, TOKENS
from widgets import theme

PER_TOKEN: Final = f"{NAT} / {TOKENS}"
POSITION_TITLE: Final = f"position in the document [{TOKENS}]"
READ_TITLE: Final = f"tokens read [{TOKENS}]"
_LINE_POINTS: Final = 2000  # a line has no more, so that a figure of a million tokens still opens at once


def bars(result: xr.Dataset, styles: Mapping[str, theme.Style], title: str) -> go.Figure:
    """Draw grouped bars with whiskers, one group a bucket, the number of tokens in it written below.

    Parameters
    ----------
    result : Dataset
        A breakdown of `fwl_lab.analysis`: mean, low and high (reader, bucket).
    styles : mapping from name of a reader to Style
    title : str
        Of the x axis.
    """
    labels = [
        f"{text}<br><span style='font-size:11px'>{count:,} tokens</span>"
        for text, count in zip(result[analysis.LABEL].values, result[analysis.TOKEN_COUNT].values, strict=True)
    ]
    figure = go.Figure()
    for name in map(str, result[READER].values):
        row = result.sel({READER: name})
        mean = row[analysis.MEAN].values
        figure.add_bar(
            x=labels,
            y=mean,
            customdata=interval_texts(row),
            hovertemplate="%{y:+.3f} %{customdata}",
            name=styles[name].label,
            marker={"color": styles[name].colour},
            error_y={
                "array": row[analysis.HIGH].values - mean,
                "arrayminus": mean - row[analysis.LOW].values,
                "color": theme.INK,
                "thickness": 1.5,
                "width": 4,
            },
        )
    return figure.update_xaxes(title_text=title)


def finish(figure: go.Figure, title: str, subtitle: str, y_title: str) -> go.Figure:
    """Give a figure the project's look and its titles."""
    return themed(figure, title, subtitle).update_layout(showlegend=True).update_yaxes(title_text=y_title)


def themed(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    """Give a figure the project's look and a title; its axes and its legend stay as they are."""
    return figure.update_layout(template=theme.TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}})


def with_zero(figure: go.Figure) -> go.Figure:
    """Draw the line above which a reader is better than the baseline."""
    return figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below")


def without_great_losses(low: np.ndarray, high: np.ndarray) -> tuple[float, float] | None:
    """Return a range of y that shows losses only as far down as gains go up, so that one great loss flattens nothing.

    Parameters
    ----------
    low : array
        What may leave the picture.
    high : array
        What must stay in it, whiskers too.

    Returns
    -------
    (float, float) or None
        None: nothing lies further down, or nothing is gained.
    """
    top = float(np.nanmax(high))
    return None if top <= 0 or float(np.nanmin(low)) >= -top else (-1.1 * top, 1.1 * top)


def interval_texts(row: xr.Dataset) -> list[str]:
    """Return the interval and the number of documents of each bucket, for hovering."""
    return [
        (f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "[no interval]")
        + f", {documents:,} document{'s' if documents != 1 else ''}"
        for low, high, documents in zip(
            row[analysis.LOW].values, row[analysis.HIGH].values, row[analysis.DOCUMENT_COUNT].values, strict=True
        )
    ]


def method(result: xr.Dataset) -> str:
    """Return how the intervals of a result were drawn, for a subtitle."""
    attrs = result.attrs
    return f"mean and {100 * attrs['level']:g} % interval, paired bootstrap over {attrs['resampled']}"


def chosen_baseline(trace: xr.Dataset, baseline: str | None) -> str:
    """Return the baseline that a figure was asked for, or the trace's own where none was.

    Raises
    ------
    ValueError
        None was named, and every reader of the trace adapts.
    """
    return default_baseline(trace) if baseline is None else baseline


def gain_title(baseline: str) -> str:
    """Return the title of an axis of gains, nats per token."""
    return f"gain over {theme.label(baseline)} [{PER_TOKEN}]"


def name_of(trace: xr.Dataset, document: int) -> str:
    """Return the name of a document, as text that plotly does not take for markup.

    Raises
    ------
    ValueError
        There is no such document.
    """
    check_document(trace, document)
    return html.escape(str(trace[DOCUMENT_NAME].values[document]), quote=False)


def check_document(trace: xr.Dataset, document: int) -> None:
    """Raise ValueError where the trace has no document of that index."""
    count = trace.sizes[DOCUMENT]
    if not 0 <= document < count:
        raise ValueError(f"no document {document} in this trace; it holds {count}, counted from 0")


def thin(count: int) -> np.ndarray:
    """Return indices of at most 2,000 of `count` points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _LINE_POINTS)).round().astype(int))
