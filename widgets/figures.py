"""Pictures of a trace: pure functions from a trace to a plotly Figure, and its table of averages."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from fwl_lab import analysis
from fwl_lab.trace import (
    BASE,
    DOCUMENT,
    DOCUMENT_NAME,
    DRIFT,
    NAT,
    PARAMETER,
    POSITION,
    READER,
    TOKEN,
    TOKENS,
    UNITS,
    UPDATE,
    UPDATE_NORM,
    UPDATE_TOKEN,
)
from widgets import theme

_PER_TOKEN: Final = f"{NAT} / {TOKENS}"
_POSITION_TITLE: Final = f"position in the document [{TOKENS}]"
_MOST_POINTS: Final = 2000  # a line has no more, so that a figure of a million tokens still opens at once
_FEWEST: Final = 10  # tokens that make a group worth a bar
_QUANTITIES: Final = {DRIFT: "How far the fast weights have moved", UPDATE_NORM: "How large each update is"}


def plot_cumulative_nll(trace: xr.Dataset, *, document: int = 0) -> go.Figure:
    """NLL of each reader summed over a document, nats: the lower line has found the document easier so far."""
    figure = _running(trace, analysis.cumulative_nll(trace), document, "%{y:,.1f} nat")
    return _finish(figure, "Cumulative NLL of each reader", _name(trace, document), f"cumulative NLL [{NAT}]")


def plot_cumulative_gain(trace: xr.Dataset, *, document: int = 0, baseline: str = BASE) -> go.Figure:
    """Gain of each reader over `baseline`, summed over a document, nats.

    Rising: better than the baseline just here; flat: the same; falling: worse.
    """
    figure = _running(trace, analysis.cumulative_gain(trace, baseline), document, "%{y:+,.1f} nat")
    title = f"Nats saved so far, against {theme.label(baseline)}"
    return _with_zero(_finish(figure, title, _name(trace, document), f"cumulative gain [{NAT}]"))


def plot_gain_by_position(trace: xr.Dataset, *, bucket: int = 512, baseline: str = BASE) -> go.Figure:
    """Mean gain in buckets of tokens from the document's start; the band is its interval."""
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
            customdata=_interval_texts(row),
            hovertemplate="%{y:+.3f} %{customdata}",
            name=theme.label(name),
            legendgroup=name,
            mode="lines+markers",
            line={"color": colours[name], "width": 2.5, "dash": theme.dash(name)},
            marker={"size": 7},
        )
    figure.update_xaxes(title_text=_POSITION_TITLE, tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="around token %{x:,.0f}")
    return _with_zero(_finish(figure, "Gain by position", _method(result), _gain_title(baseline)))


def plot_gain_by_occurrence(trace: xr.Dataset, *, baseline: str = BASE) -> go.Figure:
    """Mean gain by how often the token came earlier in its document, with intervals as whiskers."""
    result = analysis.gain_by_occurrence(trace, baseline=baseline)
    figure = _bars(result, "earlier occurrences of the token in its document")
    return _with_zero(_finish(figure, "Gain by repetition", _method(result), _gain_title(baseline)))


def plot_gain_by_frequency(trace: xr.Dataset, *, counts: np.ndarray, baseline: str = BASE) -> go.Figure:
    """Mean gain by how often the token occurs in the training split, rarest first, with intervals as whiskers.

    Groups of fewer than 10 tokens are left out: they would set the scale and say nothing.

    Parameters
    ----------
    counts : (V,) int
        Occurrences of every token id in the training split.
    """
    result = analysis.gain_by_frequency(trace, counts, baseline=baseline)
    enough = result[analysis.TOKEN_COUNT].values >= _FEWEST
    result = result.isel({analysis.BUCKET: enough if enough.any() else ~enough})
    figure = _bars(result, "occurrences of the token in the training split")
    return _with_zero(_finish(figure, "Gain by rarity", _method(result), _gain_title(baseline)))


def plot_fast_weight_norms(
    trace: xr.Dataset, *, reader: str = "fwl", document: int = 0, quantity: str = DRIFT
) -> go.Figure:
    """L2 norm of each fast parameter's Δθ (or, for ``quantity="update_norm"``, of its last update) over a document.

    Raises
    ------
    ValueError
        The trace records no such norms for that reader.
    """
    if quantity not in _QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(_QUANTITIES)}, not {quantity!r}")
    analysis.require_reader(trace, reader)
    norms = trace[quantity].sel({READER: reader}).dropna(PARAMETER, how="all") if quantity in trace else None
    if norms is None or not norms.size:
        raise ValueError(f"no {quantity} of reader {reader!r} is recorded here; score with record=Recorder()")
    _check_document(trace, document)
    here = np.flatnonzero(trace[DOCUMENT].values[trace[UPDATE_TOKEN].values] == document)
    picked = here[_thin(len(here))]
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
    figure.update_xaxes(title_text=f"tokens read [{TOKENS}]", tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="after %{x:,d} tokens")
    figure.update_yaxes(type="log", dtick=1, tickformat="~g")
    symbol = "‖Δθ‖₂" if quantity == DRIFT else "‖last update‖₂"
    subtitle = f"{theme.label(reader)} reading {_name(trace, document)}"
    _finish(figure, _QUANTITIES[quantity], subtitle, f"{symbol} [{norms.attrs[UNITS]}]")
    return _label_ends(figure) if len(names) <= len(theme.CATEGORIES) else figure


def plot_long_reading(parts: Sequence[Mapping[str, Any]], *, baseline: str = BASE) -> go.Figure:
    """NLL of each reader along one long document and, below it, the gain over `baseline`; nats per token.

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
    colours, figure = theme.colours(list(levels)), make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    for name, values in levels.items():
        shown: dict[str, Any] = {"x": middle, "name": theme.label(name), "legendgroup": name, "mode": "lines"}
        shown["line"] = {"color": colours[name], "width": 2.5, "dash": theme.dash(name)}
        figure.add_scatter(y=values, hovertemplate="%{y:.4f} nat", row=1, col=1, **shown)
        if name != baseline:
            gain = np.subtract(levels[baseline], values)
            figure.add_scatter(y=gain, hovertemplate="%{y:+.4f} nat", showlegend=False, row=2, col=1, **shown)
    figure.update_xaxes(tickformat=",d", rangemode="tozero", unifiedhovertitle_text="around token %{x:,.0f}")
    subtitle = f"{len(middle):,} stretches of a document of {parts[-1]['stop']:,} tokens, each the mean of its tokens"
    _finish(figure, "NLL and gain by position", subtitle, f"NLL [{_PER_TOKEN}]")
    figure.update_xaxes(title_text=_POSITION_TITLE, row=2).update_yaxes(title_text=_gain_title(baseline), row=2)
    figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below", row=2)
    return figure.update_layout(height=620)


def plot_training_curve(curve: Sequence[Mapping[str, float]]) -> go.Figure:
    """Training loss over tokens seen, nats per token.

    Parameters
    ----------
    curve : sequence of mappings
        As `fwl_lab.train` returns it: ``step``, ``tokens``, ``loss``. A run of fewer than 20 steps has no point.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[point["tokens"] for point in curve],
        y=[point["loss"] for point in curve],
        customdata=[point["step"] for point in curve],
        hovertemplate="%{y:.4f} nat, step %{customdata:,d}",
        name="training",
        mode="lines" if len(curve) > 1 else "markers",
        line={"color": theme.CATEGORIES[0], "width": 2.5},
    )
    figure.update_xaxes(title_text=f"tokens seen [{TOKENS}]", rangemode="tozero")
    points = f"{len(curve):,} points, each the mean of 20 steps" if curve else "no point yet: each takes 20 steps"
    return _finish(figure, "Training loss", points, f"loss [{_PER_TOKEN}]").update_layout(showlegend=False)


def plot_trials(trials: Sequence[Mapping[str, Any]]) -> go.Figure:
    """NLL on validation documents over the step size, a line a rule; trials with a decay are open circles.

    The axis ends a little above what the smallest steps reach, so that the valley is seen; worse trials lie above.

    Parameters
    ----------
    trials : sequence of mappings
        ``rule``, ``lr``, ``nats`` per token (None or infinite: diverged), and ``decay`` where the rule has one.
    """
    finite = sorted((t for t in trials if t["nats"] is not None and math.isfinite(t["nats"])), key=lambda t: t["lr"])
    rules = list(dict.fromkeys(str(trial["rule"]) for trial in finite))
    figure, cautious = go.Figure(), []
    for rule, colour in zip(rules, theme.series(len(rules)), strict=True):
        own = [trial for trial in finite if trial["rule"] == rule]
        cautious.append(own[0]["nats"])
        for decayed, symbol in ((False, "circle"), (True, "circle-open")):
            shown = [trial for trial in own if bool(trial.get("decay")) == decayed]
            figure.add_scatter(
                x=[trial["lr"] for trial in shown],
                y=[trial["nats"] for trial in shown],
                customdata=[trial.get("decay", 0.0) for trial in shown],
                hovertemplate="%{y:.4f} nat, decay %{customdata:g}",
                name=html.escape(f"{rule} with decay" if decayed else rule),
                mode="markers" if decayed else "lines+markers",
                line={"color": colour, "width": 2.5},
                marker={"color": colour, "size": 9, "symbol": symbol},
            )
    best = min((trial["nats"] for trial in finite), default=0.0)
    reach = max(cautious, default=0.0) - best
    if reach > 0:
        figure.update_yaxes(range=[best - 0.1 * reach, best + 1.5 * reach])
    figure.update_xaxes(title_text="step size", type="log", dtick=1, tickformat="~g")
    figure.update_xaxes(unifiedhovertitle_text="step size %{x:.3g}")
    count = f"{len(trials)} trials, {len(trials) - len(finite)} of them diverged"
    return _finish(figure, "Dynamic evaluation on validation documents", count, f"NLL [{_PER_TOKEN}]")


def _running(trace: xr.Dataset, values: xr.DataArray, document: int, hover: str) -> go.Figure:
    """A line a reader over one document's positions; thinned lines keep exact values at the tokens they keep."""
    _check_document(trace, document)
    tokens = np.flatnonzero(trace[DOCUMENT].values == document)
    picked = tokens[_thin(len(tokens))]
    readers = [str(name) for name in values[READER].values]
    colours, figure = theme.colours(readers), go.Figure()
    for name in readers:
        figure.add_scatter(
            x=trace[POSITION].values[picked] + 1,
            y=values.sel({READER: name}).isel({TOKEN: picked}).values,
            name=theme.label(name),
            mode="lines",
            line={"color": colours[name], "width": 2.5, "dash": theme.dash(name)},
            hovertemplate=hover,
        )
    figure.update_xaxes(title_text=f"tokens read [{TOKENS}]", tickformat=",d", rangemode="tozero")
    figure.update_xaxes(unifiedhovertitle_text="after %{x:,d} tokens")
    return figure


def _bars(result: xr.Dataset, title: str) -> go.Figure:
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
            customdata=_interval_texts(row),
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


def _label_ends(figure: go.Figure) -> go.Figure:
    """Write each line's name at its end, in its colour, in place of a legend; on a logarithmic axis."""
    for line in figure.data:
        if len(line.y) and line.y[-1] > 0:
            label = {"text": line.name, "font": {"color": line.line.color}, "showarrow": False, "xanchor": "left"}
            figure.add_annotation(x=line.x[-1], y=np.log10(line.y[-1]), xshift=6, **label)
    return figure.update_layout(showlegend=False)


def _finish(figure: go.Figure, title: str, subtitle: str, y_title: str) -> go.Figure:
    figure.update_layout(template=theme.TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}})
    return figure.update_layout(showlegend=True).update_yaxes(title_text=y_title)


def _with_zero(figure: go.Figure) -> go.Figure:
    """Draw the line above which a reader is better than the baseline."""
    return figure.add_hline(y=0, line={"color": theme.ZERO, "width": 1}, layer="below")


def _interval_texts(row: xr.Dataset) -> list[str]:
    """Interval and support of each bucket, for hovering."""
    return [
        (f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "[no interval]")
        + f", {documents:,} document{'s' if documents != 1 else ''}"
        for low, high, documents in zip(
            row[analysis.LOW].values, row[analysis.HIGH].values, row[analysis.DOCUMENT_COUNT].values, strict=True
        )
    ]


def _method(result: xr.Dataset) -> str:
    attrs = result.attrs
    return f"mean and {100 * attrs['level']:g} % interval, paired bootstrap over {attrs['resampled']}"


def _gain_title(baseline: str) -> str:
    return f"gain over {theme.label(baseline)} [{_PER_TOKEN}]"


def _name(trace: xr.Dataset, document: int) -> str:
    _check_document(trace, document)
    # plotly reads some markup in titles, and a name is not markup.
    return html.escape(str(trace[DOCUMENT_NAME].values[document]), quote=False)


def _check_document(trace: xr.Dataset, document: int) -> None:
    count = trace.sizes[DOCUMENT]
    if not 0 <= document < count:
        raise ValueError(f"no document {document} in this trace; it holds {count}, counted from 0")


def _thin(count: int) -> np.ndarray:
    """Indices of at most `_MOST_POINTS` of `count` points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(int))
