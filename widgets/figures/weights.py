"""Plot weights that change: one update, and the Δθ that a whole document has made of a matrix. Imports no torch.

Symbols as in :mod:`fwl_lab.analysis.fast_weights`: Δθ fast minus slow weights, θ₀ slow weights, δ and k the factors of
an update.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from fwl_lab import analysis
from fwl_lab.analysis.fast_weights import relative_drift
from fwl_lab.analysis.spectra import AT, EFFECTIVE_RANK, INDEX, SIDE, SINGULAR_VALUE, STABLE_RANK
from fwl_lab.trace.lookup import default_reader
from fwl_lab.trace.schema import DOCUMENT, PARAMETER, POSITION, READER, UPDATE, UPDATE_TOKEN
from widgets import theme
from widgets.figures.drawing import PER_TOKEN, READ_TITLE, chosen_baseline, name_of, themed, thin

PICTURE_CELLS: Final = 256  # at most, along either side of a picture of a matrix
ZERO_COLOUR: Final = "#fbfbfa"  # middle of the diverging scale
DIVERGING: Final = ((0.0, "#8a4b00"), (0.25, "#f0a040"), (0.5, ZERO_COLOUR), (0.75, "#4aa3df"), (1.0, "#0b4f86"))


def pooled(matrix: np.ndarray, most: int = PICTURE_CELLS) -> np.ndarray:
    """Shrink a matrix to at most `most` rows and columns: of each cell the entry largest in size, with its sign."""
    values = np.asarray(matrix, dtype=np.float64)
    for axis in (0, 1):
        length = values.shape[axis]
        starts = np.linspace(0, length, min(length, most), endpoint=False).astype(int)
        high = np.maximum.reduceat(values, starts, axis=axis)
        low = np.minimum.reduceat(values, starts, axis=axis)
        values = np.where(high >= -low, high, low)
    return values


def plot_candidates(
    texts: Sequence[str], probabilities: Mapping[str, np.ndarray], *, came: str, title: str
) -> go.Figure:
    """Plot the probabilities of some tokens, side by side; the token that came is starred.

    Parameters
    ----------
    texts : (n,) of str
    probabilities : of (n,)
        By what the bars are called; drawn in this order.
    came : str
        The token that came, one of `texts`.
    """
    names = [f"{_shown(text)} ★" if text == came else _shown(text) for text in texts]
    # Places on the axis, since two tokens may be spelt alike.
    places, figure = np.arange(len(texts)), go.Figure()
    for (name, values), colour in zip(probabilities.items(), (theme.INK, theme.ACCENT), strict=False):
        bars: dict[str, Any] = {"name": html.escape(name), "marker": {"color": colour}}
        figure.add_bar(y=places, x=values, orientation="h", hovertemplate="%{x:.2%}", **bars)
    ticks = {"tickvals": places, "ticktext": names, "tickfont": {"family": "monospace"}}
    figure.update_yaxes(autorange="reversed", showgrid=False, unifiedhovertitle_text=" ", **ticks)
    figure.update_xaxes(title_text="probability", tickformat=".0%", showgrid=True, rangemode="tozero")
    return themed(figure, html.escape(title, quote=False), "★ the token that came").update_layout(
        hovermode="y unified", height=150 + 30 * len(texts), showlegend=len(probabilities) > 1
    )


def plot_outer_product(delta: np.ndarray, key: np.ndarray, *, parameter: str = "W2") -> go.Figure:
    """Plot an update δ kᵀ as a picture: the key above, δ at the side, and their product between them.

    Rows and columns are in the order of δ and of k, so that the picture is the product's shape, largest entries at
    the edges; a matrix of rank one has no other structure.
    """
    rows, columns = np.sort(delta)[::-1], np.sort(key)[::-1]
    image = pooled(np.outer(rows, columns))
    shape = {"rows": 2, "cols": 2, "row_heights": [0.22, 0.78], "column_widths": [0.16, 0.84]}
    figure = make_subplots(**shape, horizontal_spacing=0.03, vertical_spacing=0.04)
    line = {"mode": "lines", "fillcolor": theme.translucent(theme.ACCENT, 0.25), "line": {"color": theme.INK}}
    figure.add_scatter(x=np.arange(len(key)), y=columns, fill="tozeroy", name="k", row=1, col=2, **line)
    figure.add_scatter(x=rows, y=np.arange(len(delta)), fill="tozerox", name="δ", row=2, col=1, **line)
    # Entries of an outer product are heavy-tailed: beyond this they are drawn alike.
    figure.add_trace(_heatmap(image, float(np.quantile(np.abs(image), 0.995)), (len(delta), len(key))), row=2, col=2)
    figure.update_xaxes(showticklabels=False, range=[0, len(key)], row=1, col=2)
    figure.update_yaxes(title_text="k", row=1, col=2)
    figure.update_xaxes(title_text="−η δ", nticks=3, tickformat="~s", row=2, col=1)
    figure.update_yaxes(title_text=f"row of {parameter}, sorted", row=2, col=1)
    figure.update_xaxes(title_text=f"column of {parameter}, sorted", row=2, col=2)
    figure.update_yaxes(autorange="reversed", showticklabels=False, row=2, col=2)
    figure.update_yaxes(range=[len(delta), 0], row=2, col=1)
    themed(figure, f"The update of {parameter}", f"one column times one row; {len(delta)} × {len(key)} entries")
    return figure.update_layout(showlegend=False, hovermode="closest", height=520)


def plot_tokens(
    texts: Sequence[str], bars: Mapping[str, np.ndarray], *, title: str, subtitle: str, y_title: str
) -> go.Figure:
    """Plot numbers of each token of a short text, as bars above the tokens.

    Parameters
    ----------
    texts : (T,) of str
    bars : of (T,)
        By what they are called; the last is drawn as open circles where there are three.
    """
    places, figure = np.arange(len(texts)), go.Figure()
    for index, ((name, values), colour) in enumerate(
        zip(bars.items(), [theme.INK, theme.CATEGORIES[0], theme.CATEGORIES[1]], strict=False)
    ):
        group = {"alignmentgroup": "tokens", "offsetgroup": str(min(index, 1))}
        shown: dict[str, Any] = {
            "x": places,
            "y": values,
            "name": html.escape(name),
            "hovertemplate": "%{y:.3f}",
        } | group
        if index == 2:
            figure.add_scatter(mode="markers", marker={"color": colour, "size": 9, "symbol": "circle-open"}, **shown)
        else:
            ink = np.where(np.asarray(values) >= 0, *theme.CATEGORIES[:2]) if len(bars) == 1 else colour
            figure.add_bar(marker={"color": ink}, **shown)
    ticks = {"tickvals": places, "ticktext": [_shown(text) for text in texts], "tickangle": -60}
    figure.update_xaxes(**ticks, tickfont={"family": "monospace", "size": 11}, range=[-0.6, len(texts) - 0.4])
    figure.update_yaxes(title_text=y_title)
    return themed(figure, html.escape(title, quote=False), html.escape(subtitle, quote=False)).update_layout(
        showlegend=len(bars) > 1, margin={"b": 90}, scattermode="group"
    )


def plot_relative_drift(
    trace: xr.Dataset, *, reader: str | None = None, document: int = 0, baseline: str | None = None, window: int = 256
) -> go.Figure:
    """Plot ‖Δθ‖ / ‖θ₀‖ of each parameter over a document and, below, the gain, a mean of `window` tokens.

    Parameters
    ----------
    reader : str, optional
        None: `fwl_lab.trace.lookup.default_reader`.
    document : int
        Index of the document.
    baseline : str, optional
        What the gain is measured against; None: `fwl_lab.trace.lookup.default_baseline`.
    window : int
        Tokens.

    Raises
    ------
    ValueError
        No update of that reader in that document is recorded.
    """
    reader = default_reader(trace) if reader is None else reader
    baseline = chosen_baseline(trace, baseline)
    analysis.require_reader(trace, reader)
    ratio = relative_drift(trace).sel({READER: reader}).dropna(PARAMETER, how="all")
    here = np.flatnonzero(trace[DOCUMENT].values[trace[UPDATE_TOKEN].values] == document)
    if not ratio.size or not len(here):
        raise ValueError(f"reader {reader!r} made no recorded update in document {document}; read a longer text.")
    after = trace[POSITION].values[trace[UPDATE_TOKEN].values[here]] + 1
    names = [str(name) for name in ratio[PARAMETER].values]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.62, 0.38])
    for name, colour in zip(names, theme.series(len(names)), strict=True):
        values = ratio.sel({PARAMETER: name}).isel({UPDATE: here}).values
        line = {"color": colour, "width": 2.5}
        figure.add_scatter(x=after, y=values, name=html.escape(name), line=line, hovertemplate="%{y:.2g}", row=1, col=1)
    gain = analysis.gain(trace, baseline).sel({READER: reader}).values[trace[DOCUMENT].values == document]
    size = min(window, len(gain))
    mean = np.convolve(gain, np.full(size, 1 / size), mode="valid")
    picked = thin(len(mean))
    shown: dict[str, Any] = {"name": "gain", "line": {"color": theme.ACCENT, "width": 2.5}, "showlegend": False}
    figure.add_scatter(x=picked + size, y=mean[picked], hovertemplate="%{y:+.3f} nat", row=2, col=1, **shown)
    figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below", row=2)
    figure.update_xaxes(tickformat=",d", rangemode="tozero").update_xaxes(title_text=READ_TITLE, row=2)
    figure.update_yaxes(title_text="‖Δθ‖ / ‖θ₀‖", type="log", dtick=1, tickformat="~g", row=1)
    figure.update_yaxes(title_text=f"gain [{PER_TOKEN}]", row=2)
    below = f"below, its gain over {theme.label(baseline)}, mean of the last {size} tokens"
    subtitle = f"{theme.label(reader)} reading {name_of(trace, document)}; {below}"
    return themed(figure, "How far the weights have moved", subtitle).update_layout(height=600)


def plot_spectrum(spectrum: xr.Dataset) -> go.Figure:
    """Plot the singular values of Δθ over the tokens read, the leading one on top; below, effective and stable rank."""
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.62, 0.38])
    at, values = spectrum[AT].values, spectrum[SINGULAR_VALUE].values
    for index, colour in enumerate(theme.series(max(values.shape[1], len(theme.CATEGORIES) + 1))[: values.shape[1]]):
        line = {"color": colour, "width": 2.5 if index < 2 else 1.5}
        shown = {"x": at, "y": values[:, index], "hovertemplate": "%{y:.3g}", "showlegend": False}
        figure.add_scatter(name=f"σ{index + 1}", mode="lines", line=line, row=1, col=1, **shown)
    ranks = {EFFECTIVE_RANK: "effective rank", STABLE_RANK: "stable rank"}
    for (name, title), colour in zip(ranks.items(), theme.CATEGORIES, strict=False):
        line = {"color": colour, "width": 2.5}
        shown = {"x": at, "y": spectrum[name].values, "name": title, "line": line, "hovertemplate": "%{y:.1f}"}
        figure.add_scatter(mode="lines", row=2, col=1, **shown)
    figure.update_xaxes(tickformat=",d", rangemode="tozero").update_xaxes(title_text=READ_TITLE, row=2)
    figure.update_yaxes(title_text="singular value", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="rank", type="log", dtick=1, tickformat="~g", row=2)
    subtitle = f"the {values.shape[1]} leading ones, the largest on top; below, how many directions count"
    return themed(figure, f"Singular values of Δ{spectrum.attrs['parameter']}", subtitle).update_layout(height=600)


def plot_matrices(matrices: Sequence[xr.DataArray]) -> go.Figure:
    """Plot Δθ of one parameter at a few tokens, side by side, in one colour scale: blue above zero, orange below.

    Rows and columns are sorted by their length in the last matrix, the longest first, in all of them alike; each cell
    shows the largest of the entries behind it.
    """
    if not matrices or any(m.ndim != 2 for m in matrices):
        raise ValueError("expected Δθ of a matrix at one token or more, as fast_weight returns it.")
    last = matrices[-1].values.astype(np.float64)
    rows, columns = (np.argsort(-np.linalg.norm(last, axis=axis), kind="stable") for axis in (1, 0))
    images = [pooled(m.values[rows][:, columns]) for m in matrices]
    limit = float(np.quantile(np.abs(images[-1]), 0.995))
    titles = [f"after {int(m.attrs['token']):,} tokens" for m in matrices]
    figure = make_subplots(1, len(images), subplot_titles=titles, horizontal_spacing=0.03)
    for index, image in enumerate(images):
        figure.add_trace(_heatmap(image, limit, last.shape, index + 1 == len(images)), row=1, col=index + 1)
    figure.update_yaxes(autorange="reversed", showticklabels=False, showgrid=False)
    figure.update_xaxes(tickformat=",d", nticks=4)
    parameter = html.escape(str(matrices[-1].attrs["parameter"]))
    figure.update_xaxes(title_text=f"column of {parameter}, sorted").update_yaxes(title_text="row, sorted", col=1)
    subtitle = "rows and columns in the order of their length at the end, longest first; each cell its largest entry"
    return themed(figure, f"Δ{parameter} as a matrix", subtitle).update_layout(hovermode="closest", height=440)


def plot_angles(angles: xr.DataArray, chance: xr.DataArray, *, margin: float = 10.0) -> go.Figure:
    """Plot how far the principal angles between Δθ and θ₀ are below those of chance, over the tokens read, in degrees.

    Parameters
    ----------
    angles : (at, side, index)
        Radians, as `principal_angles` gives them at each of some tokens.
    chance : (side, index)
        Of a random matrix of that shape.
    margin : float
        Degrees beyond which an angle is called nearer than chance: the dotted line.
    """
    count = angles.sizes[INDEX]
    sides = [str(side) for side in angles[SIDE].values]
    titles = [f"{side} of the matrix" for side in sides]
    figure = make_subplots(1, len(sides), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    nearer = (chance - angles) * (180 / np.pi)
    for column, side in enumerate(sides, 1):
        for index, colour in enumerate(theme.series(count)):
            name = f"{_ordinal(index)}smallest"
            figure.add_scatter(
                x=angles[AT].values,
                y=nearer.sel({SIDE: side}).isel({INDEX: index}).values,
                customdata=np.degrees(angles.sel({SIDE: side}).isel({INDEX: index}).values),
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 5},
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate="%{y:+.0f}°, an angle of %{customdata:.0f}°",
                row=1,
                col=column,
            )
    # Both lines are always in the picture, however near to chance the angles are.
    reach = [min(float(nearer.min()), 0.0) - 3, max(float(nearer.max()), margin) + 3]
    figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below")
    figure.add_hline(y=margin, line={"color": theme.ZERO, "width": 1.5, "dash": "dot"}, layer="below")
    figure.update_yaxes(range=reach).update_yaxes(title_text="nearer than chance [°]", col=1)
    figure.update_xaxes(title_text=READ_TITLE, tickformat=",d", rangemode="tozero")
    subtitle = f"0: as a random matrix; above the dotted line, {margin:g}°: nearer to θ₀ than chance"
    themed(figure, f"Angles between the {count} leading directions of Δθ and of θ₀", subtitle)
    # Titles of the two sides stand where the legend would.
    return figure.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin={"b": 112})


def _ordinal(index: int) -> str:
    """Return "", "2nd ", "3rd ", "4th ": before "smallest", counted from 0."""
    ending = {1: "nd", 2: "rd"}.get(index, "th")
    return "" if index == 0 else f"{index + 1}{ending} "


def _heatmap(image: np.ndarray, limit: float, shape: tuple[int, ...], bar: bool = True) -> go.Heatmap:
    """Draw a pooled matrix in the diverging colours; its axes count the entries of the whole one."""
    return go.Heatmap(
        z=image.astype(np.float32),
        x=(np.arange(image.shape[1]) + 0.5) * shape[1] / image.shape[1],
        y=(np.arange(image.shape[0]) + 0.5) * shape[0] / image.shape[0],
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        showscale=bar,
        colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": "~g", "nticks": 5},
        hovertemplate="row %{y:,.0f}, column %{x:,.0f}: %{z:.3g}<extra></extra>",
    )


def _shown(text: str) -> str:
    """Return token text on one line, inert, in which blanks can be seen: plotly reads some markup in labels."""
    plain = "".join({"\n": "↵", "\t": "⇥", " ": "·"}.get(c) or (c if c.isprintable() else "�") for c in text)
    return html.escape(plain, quote=False)
