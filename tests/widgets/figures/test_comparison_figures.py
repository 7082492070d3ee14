"""Figures that compare: the numbers, units and marks that they show."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from widgets import figures, theme
from widgets.display import comparisons as comparison_tables


@pytest.fixture(scope="module")
def trace() -> xr.Dataset:
    return make_trace(tokens=3000, documents=4, recorded=False)


def _named(figure: go.Figure) -> dict[str, go.Scatter]:
    return {mark.name: mark for mark in figure.data}


def test_the_frontier_marks_readers_and_joins_the_best(trace):
    # static costs more than base and saves less; dynamic evaluation costs as much as FWL and saves less.
    trace = trace.assign(seconds=trace.seconds.copy(data=np.array([3.0, 6.0, 9.0, 9.0])))
    figure = figures.plot_cost_frontier(trace)
    result, marks = analysis.cost_frontier(trace), _named(figure)
    assert list(marks) == ["frontier", "base", "static", "dynamic evaluation", "FWL"]
    row = result.sel(reader="fwl")
    (bits,) = marks["FWL"].y
    assert (
        bits
        == float(row.bits_per_token)
        == pytest.approx(float(analysis.gain(trace).sel(reader="fwl").mean()) / np.log(2))
    )
    assert marks["FWL"].x == (3.0,)  # 9 s over 3,000 tokens, in ms
    assert bits + marks["FWL"].error_y.array[0] == pytest.approx(float(row.high))
    assert bits - marks["FWL"].error_y.arrayminus[0] == pytest.approx(float(row.low))
    symbols = {name: mark.marker.symbol for name, mark in marks.items() if name != "frontier"}
    assert symbols == {"base": "circle", "static": "circle-open", "dynamic evaluation": "circle-open", "FWL": "circle"}
    np.testing.assert_allclose(marks["frontier"].x, [1.0, 3.0])
    np.testing.assert_allclose(marks["frontier"].y, [0.0, bits])
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == (
        "log",
        "time per token [ms / token], logarithmic",
    )
    np.testing.assert_allclose(figure.layout.xaxis.range, np.log10([0.75, 4.5]))
    assert figure.layout.yaxis.title.text == "saved over base [bit / token]"
    assert marks["FWL"].marker.color == theme.COLOURS["fwl"]


def test_a_great_loss_is_a_triangle_at_the_edge_and_flattens_nothing(trace):
    gain = float(analysis.gain(trace).sel(reader="fwl").mean())
    harmed = trace.assign(nll=trace.nll + 20 * gain * (trace.reader == "static"))
    figure = figures.plot_cost_frontier(harmed)
    loss = float(analysis.gain(harmed).sel(reader="static").mean()) / np.log(2)
    mark, lowest = _named(figure)["static"], -gain / np.log(2)
    assert (mark.marker.symbol, mark.text, mark.error_y.visible) == (
        "triangle-down-open",
        (f"static {loss:+.2f}",),
        False,
    )
    assert mark.customdata[0] == pytest.approx(loss)
    low, high = figure.layout.yaxis.range
    assert low < mark.y[0] <= 0.9 * lowest
    assert high > _named(figure)["FWL"].y[0] + _named(figure)["FWL"].error_y.array[0]  # no whisker is cut off
    by_position = figures.plot_gain_by_position(harmed, bucket=500)
    assert "; static falls to -" in by_position.layout.title.subtitle.text
    assert "FWL falls" not in by_position.layout.title.subtitle.text
    assert by_position.layout.yaxis.range[0] == pytest.approx(-by_position.layout.yaxis.range[1])
    assert max(np.max(line.y) for line in by_position.data) < by_position.layout.yaxis.range[1]
    assert figures.plot_gain_by_position(trace, bucket=500).layout.yaxis.range is None


def test_readers_whose_cost_is_unknown_are_left_out(trace):
    counted = trace.assign(flops_per_token=("reader", [2e6, np.nan, np.nan, 5e6]))
    figure = figures.plot_cost_frontier(counted, cost="flops_per_token")
    assert list(_named(figure)) == ["frontier", "base", "FWL"]
    assert _named(figure)["FWL"].x == (5.0,)
    assert figure.layout.xaxis.title.text == "operations per token [MFLOP], logarithmic"
    memory = figures.plot_cost_frontier(trace, cost="peak_bytes")
    assert (_named(memory)["base"].x, memory.layout.xaxis.title.text) == (
        (200.0,),
        "memory beyond the model [MB], logarithmic",
    )
    with pytest.raises(ValueError, match="holds no flops_per_token of any reader"):
        figures.plot_cost_frontier(trace, cost="flops_per_token")
    with pytest.raises(ValueError, match="cost must be one of seconds_per_token, flops_per_token, peak_bytes, not 'x'"):
        figures.plot_cost_frontier(trace, cost="x")


def test_seeds_are_dots_around_their_mean(trace):
    harder = trace.assign(nll=trace.nll + 0.5 * (trace.reader == "fwl")).assign_attrs(seed=7)
    figure = figures.plot_across_seeds([trace, harder])
    gain = float(analysis.gain(trace).sel(reader="fwl").mean())
    line, dots = (mark for mark in figure.data if mark.name == "FWL")
    np.testing.assert_allclose(dots.y, [gain, gain - 0.5])
    assert list(dots.customdata) == [0, 7]
    np.testing.assert_allclose(line.y, [gain - 0.25] * 2)
    assert f"{gain - 0.25:+.3f} ± {0.5 / np.sqrt(2):.3f}" in [note.text for note in figure.layout.annotations]
    assert figure.layout.xaxis.ticktext == ("static", "dynamic evaluation", "FWL")
    assert figure.layout.yaxis.title.text == "gain over base [nat / token]"
    assert figure.layout.title.subtitle.text.startswith("2 runs")


def test_the_net_gain_stands_below_its_parts(trace):
    figure = figures.plot_net_gain(trace, own="fwl", wrong="static")
    (bars,) = figure.data
    own, generic = (float(analysis.gain(trace).sel(reader=name).mean()) for name in ("fwl", "static"))
    np.testing.assert_allclose(bars.x, [own, generic, own - generic])
    assert [text.split(":")[0] for text in bars.y] == [
        "gain on its own document",
        "with another document's weights",
        "net",
    ]
    net = analysis.net_gain(trace, "fwl", "static").sel(part="net", average="micro")
    assert bars.x[2] + bars.error_x.array[2] == pytest.approx(float(net.high))
    assert bars.x[2] - bars.error_x.arrayminus[2] == pytest.approx(float(net.low))
    assert figure.layout.xaxis.title.text == "gain over base [nat / token]"


def _interval(mean: float, low: float | None, high: float | None) -> dict[str, dict[str, float | None]]:
    return {"micro": {"mean": mean, "low": low, "high": high}}


@pytest.mark.parametrize(
    ("generic", "expected"),
    [
        (_interval(0.1, 0.05, 0.2), "weights it gains +0.100 [+0.050, +0.200], 25% of it. Its own"),
        (_interval(-0.215, -0.3, -0.13), "weights it loses 0.215 [0.130, 0.300]. Its own"),
        (_interval(-0.215, None, None), "weights it loses 0.215. Its own"),
        (_interval(-0.1, -0.3, 0.1), "weights it loses 0.100 [-0.100, 0.300]. Its own"),
    ],
)
def test_a_loss_with_another_documents_weights_has_no_share(generic, expected):
    record = {"gain": _interval(0.4, 0.3, 0.5), "generic": generic, "net": _interval(0.3, 0.2, 0.4)}
    assert expected in comparison_tables.net_gain_statement({"wrong_document": record})


def test_the_share_of_a_class_is_told_on_hovering(trace):
    figure = figures.plot_gain_by_token_class(trace)
    row = analysis.gain_by_token_class(trace).sel(reader="fwl")
    assert list(figure.data[2].text) == [f"{share:.0%}" for share in row.share.values]
    assert "%{text} of all gain" in figure.data[2].hovertemplate
    assert figure.layout.xaxis.title.text == "what the token is made of"
