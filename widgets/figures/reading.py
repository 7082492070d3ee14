"""Plot a reading along its document: NLL and gain so far, norms of the fast weights, one long document."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from fwl_lab import analysis
from fwl_lab.trace.lookup import default_reader
from fwl_lab.trace.schema import (
    BASE,
    DOCUMENT,
    DRIFT,
    NAT,
    PARAMETER,
    POSITION,
    READER,
    TOKEN,
    UNITS,
    UPDATE,
    UPDATE_NORM,
    UPDATE_TOKEN,
)
from widgets import theme
from widgets.figures.drawing import (
    PER_TOKEN,
    POSITION_TITLE,
    READ_TITLE,
    check_document,
    chosen_baseline,
    finish,
    gain_title,
    name_of,
    thin,
    with_zero,
)

_NORM_TITLES: Final = {DRIFT: "How far the fast weights have moved", UPDATE_NORM: "How large each update is"}


def plot_cumulative_nll(trace: xr.Dataset, *, document: int = 0) -> go.Figure:
    """Plot the NLL of each reader summed over a document, nats: the lower line has found it easier so far."""
    figure = _running(trace, analysis.cumulative_nll(trace), document, "%{y:,.1f} nat")
    return finish(figure, "Cumulative NLL of each reader", name_of(trace, document), f"cumulative NLL [{NAT}]")


def plot_cumulative_gain(trace: xr.Dataset, *, document: int = 0, baseline: str | None = None) -> go.Figure:
    """Plot the gain of each reader over `baseline`, summed over a document, nats.

    Rising: better than the baseline just here; flat: the same; falling: worse.

    Parameters
    ----------
    document : int
        Index of the document.
    baseline : str, optional
        None: `fwl_lab.trace.lookup.default_baseline`.
    """
    baseline = chosen_baseline(trace, baseline)
    figure = _running(trace, analysis.cumulative_gain(trace, baseline), document, "%{y:+,.1f} nat")
    title = f"Nats saved so far, against {theme.label(baseline)}"
    return with_zero(finish(figure, title, name_of(trace, document), f"cumulative gain [{NAT}]"))


def plot_fast_weight_norms(
    trace: xr.Dataset, *, reader: str | None = None, document: int = 0, quantity: str = DRIFT
) -> go.Figure:
    """Plot the L2 norm of each fast parameter's Δθ over a document.

    Parameters
    ----------
    reader : str, optional
        None: `fwl_lab.trace.lookup.default_reader`.
    document : int
        Index of the document.
    quantity : "drift" or "update_norm"
        The norm of Δθ, or of its last update.

    Raises
    ------
    ValueError
        The trace records no such norms for that reader.
    """
    if quantity not in _NORM_TITLES:
        raise ValueError(f"quantity must be one of {', '.join(_NORM_TITLES)}, not {quantity!r}")
    reader = default_reader(trace) if reader is None else reader
    analysis.require_reader(trace, reader)
    norms = trace[quantity].sel({READER: reader}).dropna(PARAMETER, how="all") if quantity in trace else None
    if norms is None or not norms.size:
        raise ValueError(f"no {quantity} of reader {reader!r} is recorded here; score with record=Recorder()")
    check_document(trace, document)
    here = np.flatnonzero(trace[DOCUMENT].values[trace[UPDATE_TOKEN].values] == document)
    picked = here[thin(len(here))]
    positions = trace[POSITION].values[trace[UPDATE_TOKEN].values[picked]] + 1
    names = [str(name) for name in norms[PARAMETER].values]
    figure = go.Figure()
    for name, colour in zip(names, theme.series(len(names)), strict=True):
        figure.add_scatter(
            x=positions,
            y=norms.sel({PARAMETER: name}).isel({UPDATE: picked}).values,
            name=html.escape(name),
            mode="lines",
            line={"color": colour, "width": 2.5},
            hovertemplate="%{y:.3g}",
        )
    figure.update_xaxes(title_text=READ_TITLE, tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="after %{x:,d} tokens")
    figure.update_yaxes(type="log", dtick=1, tickformat="~g")
    symbol = "‖Δθ‖₂" if quantity == DRIFT else "‖last update‖₂"
    subtitle = f"{theme.label(reader)} reading {name_of(trace, document)}"
    finish(figure, _NORM_TITLES[quantity], subtitle, f"{symbol} [{norms.attrs[UNITS]}]")
    return _label_ends(figure) if len(names) <= len(theme.CATEGORIES) else figure


def plot_long_reading(parts: Sequence[Mapping[str, Any]], *, baseline: str = BASE) -> go.Figure:
    """Plot the NLL of each reader along one long document and, below, the gain over `baseline`; nats per token.

    Parameters
    ----------
    parts : sequence of mappings
        ``reader``, ``start``, ``stop`` (tokens) and ``nats_per_token``, in the order of the document; the same for
        each reader.
    """
    levels: dict[str, list[float]] = {}
    for part in parts:
        levels.setdefault(str(part[READER]), []).append(part[analysis.NATS_PER_TOKEN])
    if baseline not in levels:
        raise ValueError(f"no reader {baseline!r} in these parts; they hold {', '.join(levels) or 'none'}")
    middle = [(part["start"] + part["stop"]) / 2 for part in parts if part[READER] == baseline]
    styles, figure = theme.name_styles(levels), make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    for name, values in levels.items():
        style = styles[name]
        shown: dict[str, Any] = {"x": middle, "name": style.label, "legendgroup": name, "mode": "lines"}
        shown["line"] = {"color": style.colour, "width": 2.5, "dash": style.dash}
        figure.add_scatter(y=values, hovertemplate="%{y:.4f} nat", row=1, col=1, **shown)
        if name != baseline:
            gain = np.subtract(levels[baseline], values)
            figure.add_scatter(y=gain, hovertemplate="%{y:+.4f} nat", showlegend=False, row=2, col=1, **shown)
    figure.update_xaxes(tickformat=",d", rangemode="tozero", unifiedhovertitle_text="around token %{x:,.0f}")
    subtitle = f"{len(middle):,} stretches of a document of {parts[-1]['stop']:,} tokens, each the mean of its tokens"
    finish(figure, "NLL and gain by position", subtitle, f"NLL [{PER_TOKEN}]")
    figure.update_xaxes(title_text=POSITION_TITLE, row=2).update_yaxes(title_text=gain_title(baseline), row=2)
    figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below", row=2)
    return figure.update_layout(height=620)


def _running(trace: xr.Dataset, values: xr.DataArray, document: int, hover: str) -> go.Figure:
    """Draw a line a reader over one document's positions; thinned lines are exact at the tokens they keep."""
    check_document(trace, document)
    tokens = np.flatnonzero(trace[DOCUMENT].values == document)
    picked = tokens[thin(len(tokens))]
    styles, figure = theme.trace_styles(trace), go.Figure()
    for name in map(str, values[READER].values):
        figure.add_scatter(
            x=trace[POSITION].values[picked] + 1,
            y=values.sel({READER: name}).isel({TOKEN: picked}).values,
            name=styles[name].label,
            mode="lines",
            line={"color": styles[name].colour, "width": 2.5, "dash": styles[name].dash},
            hovertemplate=hover,
        )
    figure.update_xaxes(title_text=READ_TITLE, tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="after %{x:,d} tokens")
    return figure


def _label_ends(figure: go.Figure) -> go.Figure:
    """Write each line's name at its end, in its colour, in place of a legend; on a logarithmic axis."""
    for line in figure.data:
        if len(line.y) and line.y[-1] > 0:
            label = {"text": line.name, "font": {"color": line.line.color}, "showarrow": False, "xanchor": "left"}
            figure.add_annotation(x=line.x[-1], y=np.log10(line.y[-1]), xshift=6, **label)
    return figure.update_layout(showlegend=False)
