"""What figures have in common: bars with whiskers, titles, the zero line, thinned points."""

import html
from typing import Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.schema import DOCUMENT, DOCUMENT_NAME, NAT, READER, TOKENS
from widgets import theme

PER_TOKEN: Final = f"{NAT} / {TOKENS}"
POSITION_TITLE: Final = f"position in the document [{TOKENS}]"
_MOST_POINTS: Final = 2000  # a line has no more, so that a figure of a million tokens still opens at once


def bars(result: xr.Dataset, title: str) -> go.Figure:
    """Grouped bars with whiskers, one group a bucket, the tokens in it written below."""
    labels = [
        f"{text}<br><span style='font-size:11px'>{count:,} tokens</span>"
        for text, count in zip(result[analysis.LABEL].values, result[analysis.TOKEN_COUNT].values, strict=True)
    ]
    readers = [str(name) for name in result[READER].values]
    colours, figure = theme.colours(readers), go.Figure()
    for name in readers:
        row = result.sel({READER: name})
        mean = row[analysis.MEAN].values
        figure.add_bar(
            x=labels,
            y=mean,
            customdata=interval_texts(row),
            hovertemplate="%{y:+.3f} %{customdata}",
            name=theme.label(name),
            marker={"color": colours[name]},
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
    """The figure in the project's look, with its titles."""
    figure.update_layout(template=theme.TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}})
    return figure.update_layout(showlegend=True).update_yaxes(title_text=y_title)


def with_zero(figure: go.Figure) -> go.Figure:
    """Draw the line above which a reader is better than the baseline."""
    return figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below")


def without_great_losses(low: np.ndarray, high: np.ndarray) -> tuple[float, float] | None:
    """A range of y that shows losses only as far down as gains go up, so that one great loss does not flatten all.

    `low` is what may leave the picture, `high` what must stay in it, whiskers too. None: nothing lies further down,
    or nothing is gained.
    """
    top = float(np.nanmax(high))
    return None if top <= 0 or float(np.nanmin(low)) >= -top else (-1.1 * top, 1.1 * top)


def interval_texts(row: xr.Dataset) -> list[str]:
    """Interval and support of each bucket, for hovering."""
    return [
        (f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "[no interval]")
        + f", {documents:,} document{'s' if documents != 1 else ''}"
        for low, high, documents in zip(
            row[analysis.LOW].values, row[analysis.HIGH].values, row[analysis.DOCUMENT_COUNT].values, strict=True
        )
    ]


def method(result: xr.Dataset) -> str:
    attrs = result.attrs
    return f"mean and {100 * attrs['level']:g} % interval, paired bootstrap over {attrs['resampled']}"


def gain_title(baseline: str) -> str:
    return f"gain over {theme.label(baseline)} [{PER_TOKEN}]"


def name_of(trace: xr.Dataset, document: int) -> str:
    check_document(trace, document)
    # plotly reads some markup in titles, and a name is not markup.
    return html.escape(str(trace[DOCUMENT_NAME].values[document]), quote=False)


def check_document(trace: xr.Dataset, document: int) -> None:
    count = trace.sizes[DOCUMENT]
    if not 0 <= document < count:
        raise ValueError(f"no document {document} in this trace; it holds {count}, counted from 0")


def thin(count: int) -> np.ndarray:
    """Indices of at most `_MOST_POINTS` of `count` points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(int))
