"""Plot evidence: which tokens paid for a gain, what surgery leaves of it, whether a score was declared.

Imports no torch.

A *share* is the part of a gain that a source gets; shares of both signs cancel, so that their sum (net) stands beside
the sum of their sizes (gross) everywhere.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from fwl_lab import analysis
from fwl_lab.attribution.summary import (
    DISTANCE,
    GROSS,
    GROSS_BY_DISTANCE,
    HELD,
    KIND,
    KINDS,
    NET,
    NET_BY_DISTANCE,
    REPLAY,
    SHARE,
    SOURCE,
    SOURCE_KIND,
)
from fwl_lab.trace.lookup import reader_facts
from fwl_lab.trace.schema import NAT, READER, TOKEN, TOKEN_TEXT, TOKENS
from widgets import theme
from widgets.figures.drawing import chosen_baseline, finish, gain_title, method, with_zero

KIND_COLOURS: Final = dict(zip(KINDS, (theme.ACCENT, theme.CATEGORIES[2], theme.CATEGORIES[1]), strict=True))
_LABEL_TOKENS: Final = 4  # before a source, shown in its label
_LABEL_CHARACTERS: Final = 22  # of them at most
# Rims in the other shade, so that marks are seen on bars and on either ground.
_WHITE: Final = {"width": 1.5, "color": "white"}
_GREY: Final = {"width": 2.5, "color": theme.INK}
_LEFT_OUT: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    HELD: ("lost without it, the others as they were", {"symbol": "diamond", "color": theme.INK, "line": _WHITE}),
    REPLAY: ("lost without it, all after it read again", {"symbol": "circle", "color": "white", "line": _GREY}),
}


def plot_receipt(receipt: xr.Dataset, trace: xr.Dataset, *, top: int = 10) -> go.Figure:
    """Plot the largest shares of a receipt, what is lost without each, and the sum of all other shares.

    Parameters
    ----------
    receipt : Dataset
        From `fwl_lab.receipt`; ``held`` and ``replay`` are drawn where it has them.
    trace : Dataset
        The trace that it is of, for the texts.
    top : int
        Number of sources, of either sign.
    """
    token, texts = receipt.attrs["token"], trace[TOKEN_TEXT].values.tolist()
    share, sources, kinds = (receipt[name].values for name in (SHARE, SOURCE, SOURCE_KIND))
    order = np.argsort(-np.abs(share), kind="stable")[:top]
    places = np.arange(len(order))
    names = [f"{_in_context(texts, s)} <i>{token - s:,} back</i>" for s in sources[order].tolist()]
    figure = go.Figure()
    for index, kind in enumerate(KINDS):
        of = kinds[order] == index
        if of.any():
            _bars(figure, places[of], share[order][of], f"share, {kind}", KIND_COLOURS[kind])
    others = len(share) - len(order)
    if others:
        names.append(f"the other {others:,}")
        _bars(figure, [len(order)], [share.sum() - share[order].sum()], "share, all others together", theme.INK)
    for name, (said, marker) in _LEFT_OUT.items():
        if name in receipt:
            shown: dict[str, Any] = {"y": places, "x": receipt[name].values[order], "name": said}
            figure.add_scatter(mode="markers", hovertemplate="%{x:+.3f}", marker=marker | {"size": 11}, **shown)
    ticks = {"tickvals": np.arange(len(names)), "ticktext": names, "tickfont": {"size": 12}}
    figure.update_yaxes(autorange="reversed", showgrid=False, unifiedhovertitle_text=" ", **ticks)
    figure.update_xaxes(title_text=f"part of the gain [{NAT}]", showgrid=True)
    attrs = receipt.attrs
    subtitle = (
        f"gain {attrs['gain']:+.2f} {NAT} = sum of {len(share):,} shares (residual {attrs['residual']:.0e}); "
        f"sum of their sizes {attrs['gross']:.1f}"
    )
    finish(figure, f"Who paid for {_quoted(texts[token])} at {token:,}?", subtitle, "")
    figure.add_vline(x=0, line={"color": theme.ZERO, "width": 1}, layer="below")
    # What is drawn has long names, two lines of them: below, where there is room.
    rows, below = 34 * len(names), 140
    figure.update_layout(hovermode="y unified", barmode="overlay", margin={"t": 84, "b": below})
    return figure.update_layout(height=84 + rows + below, legend={"y": -62 / rows, "yanchor": "top"})


def plot_running_sum(receipt: xr.Dataset) -> go.Figure:
    """Plot shares added up from the largest in size to the smallest: the net sum ends at the gain, the gross above."""
    share = receipt[SHARE].values
    ranked = share[np.argsort(-np.abs(share), kind="stable")]
    counts, gain = np.arange(1, len(ranked) + 1), receipt.attrs["gain"]
    figure = go.Figure()
    for values, name, colour in (
        (np.abs(ranked).cumsum(), "gross: sum of sizes", theme.NEUTRAL),
        (ranked.cumsum(), "net: sum of shares", theme.ACCENT),
    ):
        line = {"color": colour, "width": 2.5}
        figure.add_scatter(x=counts, y=values, name=name, mode="lines", line=line, hovertemplate="%{y:.2f}")
    note = {"annotation_text": f"gain {gain:+.2f}", "annotation_position": "bottom right"}
    figure.add_hline(y=gain, line={"color": theme.ZERO, "width": 1.5, "dash": "dot"}, **note)
    figure.update_xaxes(title_text="sources, the largest first", type="log", dtick=1, tickformat="~g")
    figure.update_xaxes(unifiedhovertitle_text="the %{x:,} largest")
    subtitle = "what the largest shares make together, and the sum of their sizes"
    return finish(figure, "How many tokens pay?", subtitle, f"sum [{NAT}]").update_yaxes(rangemode="tozero")


def plot_who_teaches(summaries: Mapping[str, xr.Dataset]) -> go.Figure:
    """Plot net (full) and gross (pale) shares by what the source is to its target, a mean per receipt.

    Parameters
    ----------
    summaries : of Dataset
        From `fwl_lab.receipt_summary`, by what the targets are called; a panel each.
    """
    kinds = [str(kind) for kind in next(iter(summaries.values()))[KIND].values]
    colours = [KIND_COLOURS[kind] for kind in kinds]
    figure = _panels(summaries, kinds, NET, GROSS, colours)
    figure.update_xaxes(title_text="what the source is to the token that gains")
    return _titled(figure, "Who teaches whom?")


def plot_share_by_distance(summaries: Mapping[str, xr.Dataset]) -> go.Figure:
    """Plot net (full) and gross (pale) shares by how far back the source is, a mean per receipt; a panel each."""
    farthest = max((summary[DISTANCE].values for summary in summaries.values()), key=len)
    names = [f"{near:,}–{2 * near - 1:,}" if near > 1 else "1" for near in farthest.tolist()]
    figure = _panels(summaries, names, NET_BY_DISTANCE, GROSS_BY_DISTANCE, [theme.ACCENT] * len(names))
    figure.update_xaxes(title_text=f"distance of the source [{TOKENS}]", tickangle=-45)
    return _titled(figure, "From how far?")


def plot_gains(
    trace: xr.Dataset, readers: Mapping[str, str], *, title: str, baseline: str | None = None, token: int | None = None
) -> go.Figure:
    """Plot the mean gain of some readers with intervals, and beside it, where asked, their gain at one token.

    Parameters
    ----------
    readers : of str
        What each is called in the picture, by its name in the trace; drawn in this order, the first as a reference.
    title : str
    baseline : str, optional
        None: the reader that does not adapt and has a block where the first of `readers` has one: it reads as that one
        does at θ₀.
    token : int, optional
        Index in the trace.
    """
    baseline = _at_slow_weights(trace, next(iter(readers), "")) if baseline is None else baseline
    both = analysis.paired_bootstrap(trace, baseline=baseline)
    result = both.sel({analysis.AVERAGE: analysis.MICRO, READER: list(readers)})
    mean, low, high = (result[name].values for name in (analysis.MEAN, analysis.LOW, analysis.HIGH))
    names = [html.escape(name, quote=False) for name in readers.values()]
    colours = [theme.ACCENT, *[theme.CATEGORIES[1]] * (len(names) - 1)]
    columns = [gain_title(baseline)]
    if token is not None:
        columns.append(f"gain at token {token:,} [{NAT}]")
    figure = make_subplots(1, len(columns), shared_yaxes=True, horizontal_spacing=0.06)
    whiskers = {"array": high - mean, "arrayminus": mean - low, "color": theme.INK, "thickness": 1.5, "width": 4}
    shown: dict[str, Any] = {"y": names, "orientation": "h", "marker": {"color": colours}, "width": 0.6}
    hover = {"hovertemplate": "%{y}: %{x:+.3f}<extra></extra>"}
    figure.add_bar(x=mean, error_x=whiskers, row=1, col=1, **shown, **hover)
    if token is not None:
        values = analysis.gain(trace, baseline).sel({READER: list(readers)}).isel({TOKEN: token}).values
        figure.add_bar(x=values, row=1, col=2, **shown, **hover)
    finish(figure, html.escape(title, quote=False), method(both), "").update_yaxes(autorange="reversed", showgrid=False)
    for column, text in enumerate(columns, 1):
        figure.update_xaxes(title_text=text, showgrid=True, col=column)
        line = {"color": theme.ZERO, "width": 1}
        figure.add_vline(x=0, line=line, layer="below", row=1, col=column)
        figure.add_vline(x=float(figure.data[column - 1].x[0]), line=line | {"dash": "dot"}, row=1, col=column)
    return figure.update_layout(showlegend=False, hovermode="closest", height=170 + 40 * len(names), margin={"t": 84})


def plot_declared(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> go.Figure:
    """Plot each token's score against what was declared of it before it was read; an honest reader's lie on the line.

    Parameters
    ----------
    pairs : of ((T,), (T,)), nats
        By reader: NLL declared by `next_log_probs`, and NLL returned by `read`.
    """
    styles, figure = theme.name_styles(pairs), go.Figure()
    ends = [0.0, 1.03 * max(float(np.max(declared)) for declared, _ in pairs.values())]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": theme.ZERO, "dash": "dot"}, name="as declared", hoverinfo="skip"
    )
    for name, (declared, scored) in pairs.items():
        marker = {"size": 9, "color": theme.translucent(styles[name].colour, 0.6)}
        shown: dict[str, Any] = {"x": declared, "y": scored, "name": html.escape(styles[name].label), "marker": marker}
        figure.add_scatter(mode="markers", hovertemplate="declared %{x:.2f}, scored %{y:.2f}", **shown)
    figure.update_xaxes(title_text=f"NLL declared before the token was read [{NAT}]", showgrid=True, range=ends)
    figure.update_yaxes(range=ends)
    subtitle = "each circle a token; below the line, the score knew more than the reader had said"
    finish(figure, "Was it declared?", subtitle, f"NLL returned as the score [{NAT}]")
    return figure.update_layout(hovermode="closest")


def _at_slow_weights(trace: xr.Dataset, reader: str) -> str:
    """Return the reader of a trace that reads as another does at θ₀; the default baseline where there is none."""
    facts = reader_facts(trace)
    block = facts[reader].block if reader in facts else False
    still = [name for name, one in facts.items() if not one.adapts and one.block == block]
    return still[0] if still else chosen_baseline(trace, None)


def _panels(
    summaries: Mapping[str, xr.Dataset], names: Sequence[str], net: str, gross: str, colours: Sequence[str]
) -> go.Figure:
    """Draw a panel a summary: sums of helping and harming shares in pale, the net one in full, means per receipt."""
    titles = [html.escape(name, quote=False) for name in summaries]
    figure = make_subplots(1, len(summaries), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    pale = [theme.translucent(colour, 0.3) for colour in colours]
    for column, summary in enumerate(summaries.values(), 1):
        count = summary.attrs["receipts"]
        total, size = summary[net].values / count, summary[gross].values / count
        for values, ink, said in (
            ((size + total) / 2, pale, "helping"),
            (-(size - total) / 2, pale, "harming"),
            (total, colours, "net"),
        ):
            marker, width = {"color": list(ink)}, 0.44 if said == "net" else 0.78
            shown: dict[str, Any] = {"x": names[: len(values)], "y": values, "marker": marker, "width": width}
            figure.add_bar(name=said, hovertemplate="%{y:+.3f}", row=1, col=column, **shown)
    return with_zero(figure.update_layout(barmode="overlay"))


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """Finish a figure of panels, which share the axis at the side."""
    finish(figure, title, "full: net; pale: all that helps, up, and all that harms, down", "").update_layout(
        showlegend=False
    )
    return figure.update_yaxes(title_text=f"share [{NAT} / receipt]", col=1)


def _bars(figure: go.Figure, places: Sequence[int] | np.ndarray, values: Any, name: str, colour: str) -> None:
    hover = {"hovertemplate": "%{x:+.3f}", "width": 0.62}
    figure.add_bar(y=places, x=values, orientation="h", name=name, marker={"color": colour}, **hover)


def _in_context(texts: Sequence[str], token: int) -> str:
    """Return a token in bold after the few before it, as plotly's markup."""
    before = re.sub(r"\s*\n\s*", " ↵ ", "".join(texts[max(0, token - _LABEL_TOKENS) : token]))[-_LABEL_CHARACTERS:]
    return f"{_quoted(before)[1:-1]}<b>{_quoted(texts[token])[1:-1]}</b>"


def _quoted(text: str) -> str:
    """Return a text as Python would write it: on one line and inert, since plotly reads some markup in labels."""
    return html.escape(repr(text), quote=False)
