"""Figures: the numbers, units and colours that they show."""

import json

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from widgets import figures, theme
from widgets.display import tables

COUNTS = np.where(np.arange(400) % 5 == 0, 0, 3 ** (np.arange(400) % 11))


@pytest.fixture(scope="module")
def trace():
    return make_trace(tokens=3000, documents=4)


def _lines(figure: go.Figure) -> dict[str, go.Scatter]:
    return {line.name: line for line in figure.data if line.showlegend is not False}


def _y_title(figure: go.Figure) -> str:
    return figure.layout.yaxis.title.text


def test_cumulative_nll_ends_at_the_document_total(trace):
    figure = figures.plot_cumulative_nll(trace, document=1)
    nll = trace.nll.isel(token=trace.document.values == 1)
    lines = _lines(figure)
    assert list(lines) == ["base", "static", "dynamic evaluation", "FWL"]
    for name, reader in (("base", "base"), ("FWL", "fwl")):
        assert lines[name].y[-1] == pytest.approx(float(nll.sel(reader=reader).sum()))
        assert lines[name].x[-1] == nll.sizes["token"]
    assert _y_title(figure) == "cumulative NLL [nat]"
    assert figure.layout.xaxis.title.text == "tokens read [token]"
    assert figure.layout.title.subtitle.text == "package/module_1.py"


def test_cumulative_gain_leaves_the_baseline_out_and_marks_zero(trace):
    figure = figures.plot_cumulative_gain(trace, document=2)
    here = trace.document.values == 2
    expected = analysis.gain(trace).sel(reader="fwl").values[here].sum()
    assert "base" not in _lines(figure)
    assert _lines(figure)["FWL"].y[-1] == pytest.approx(expected)
    assert [shape.y0 for shape in figure.layout.shapes] == [0]
    assert _y_title(figure) == "cumulative gain [nat]"


def test_long_lines_are_thinned_but_exact_where_they_stand():
    trace = make_trace(tokens=9000, documents=1)
    line = _lines(figures.plot_cumulative_nll(trace))["FWL"]
    assert len(line.x) == 2000
    assert (line.x[0], line.x[-1]) == (1, 9000)
    exact = analysis.cumulative_nll(trace).sel(reader="fwl").values
    np.testing.assert_array_equal(line.y, exact[np.asarray(line.x) - 1])


def test_gain_by_position_shows_the_analysis(trace):
    result = analysis.gain_by_position(trace, 200).sel(reader="fwl")
    figure = figures.plot_gain_by_position(trace, bucket=200)
    line = _lines(figure)["FWL"]
    np.testing.assert_array_equal(line.y, result["mean"].values)
    assert line.x[0] == 100
    assert line.x[-1] == (result.start.values[-1] + trace.position.values.max() + 1) / 2
    band = figure.data[list(figure.data).index(line) - 1]
    assert band.fill == "toself"
    assert max(band.y) == pytest.approx(np.nanmax([result.high.max(), result["mean"].max()]))
    assert not np.isnan(np.asarray(band.y, dtype=float)).any()
    assert _y_title(figure) == "gain over base [nat / token]"
    assert "bootstrap over documents" in figure.layout.title.subtitle.text


@pytest.mark.parametrize(
    ("figure_of", "result_of"),
    [
        (figures.plot_gain_by_occurrence, analysis.gain_by_occurrence),
        (
            lambda trace: figures.plot_gain_by_frequency(trace, counts=COUNTS),
            lambda trace: analysis.gain_by_frequency(trace, COUNTS),
        ),
        (figures.plot_gain_by_token_class, analysis.gain_by_token_class),
    ],
)
def test_bars_show_the_analysis_with_whiskers(trace, figure_of, result_of):
    figure, result = figure_of(trace), result_of(trace)
    assert [bar.name for bar in figure.data] == ["static", "dynamic evaluation", "FWL"]
    bar, row = figure.data[2], result.sel(reader="fwl")
    np.testing.assert_array_equal(bar.y, row["mean"].values)
    np.testing.assert_allclose(bar.y + bar.error_y.array, row.high.values)
    np.testing.assert_allclose(bar.y - bar.error_y.arrayminus, row.low.values)
    for text, label, tokens in zip(bar.x, row.label.values, row.tokens.values, strict=True):
        assert text.startswith(f"{label}<br>")
        assert f"{tokens:,} tokens" in text
    assert _y_title(figure) == "gain over base [nat / token]"


def test_norms_of_one_reader_in_one_document(trace):
    figure = figures.plot_fast_weight_norms(trace, reader="fwl", document=3)
    here = trace.document.values[trace.update_token.values] == 3
    assert [line.name for line in figure.data] == ["W1", "b1", "W2", "b2", "g", "b"]
    expected = trace.drift.sel(reader="fwl", parameter="W2").values[here]
    np.testing.assert_array_equal(figure.data[2].y, expected)
    np.testing.assert_array_equal(figure.data[2].x, trace.position.values[trace.update_token.values[here]] + 1)
    assert _y_title(figure) == "‖Δθ‖₂ [1]"
    assert figure.layout.yaxis.type == "log"
    assert [note.text for note in figure.layout.annotations] == ["W1", "b1", "W2", "b2", "g", "b"]
    steps = figures.plot_fast_weight_norms(trace, document=3, quantity=schema.UPDATE_NORM)
    np.testing.assert_array_equal(steps.data[0].y, trace.update_norm.sel(reader="fwl", parameter="W1").values[here])


def test_parameters_that_a_reader_does_not_have_are_left_out(trace):
    drift = trace.drift.copy()
    drift.loc[{"parameter": ["b1", "g"], "reader": "fwl"}] = np.nan
    figure = figures.plot_fast_weight_norms(trace.assign(drift=drift))
    assert [line.name for line in figure.data] == ["W1", "W2", "b2", "b"]


def test_many_parameters_are_coloured_along_cividis_with_a_legend():
    trace = make_trace(parameters=[f"layer.{i}" for i in range(30)])
    figure = figures.plot_fast_weight_norms(trace)
    assert len({line.line.color for line in figure.data}) == 30
    assert figure.layout.showlegend
    assert not figure.layout.annotations


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: figures.plot_cumulative_nll(t, document=9), "no document 9 in this trace; it holds 4"),
        (lambda t: figures.plot_cumulative_gain(t, document=-1), "no document -1"),
        (lambda t: figures.plot_gain_by_position(t, baseline="nobody"), "no reader 'nobody'"),
        (lambda t: figures.plot_fast_weight_norms(t, reader="nobody"), "no reader 'nobody'"),
        (lambda t: figures.plot_fast_weight_norms(t, reader="static"), "no drift of reader 'static' is recorded"),
        (lambda t: figures.plot_fast_weight_norms(t.drop_dims("update")), "no drift of reader 'fwl' is recorded"),
        (lambda t: figures.plot_fast_weight_norms(t, quantity="nll"), "must be one of drift, update_norm"),
        (lambda t: tables.summary_table(t, relative_to="nobody"), "no reader 'nobody'"),
    ],
)
def test_mistakes_are_named(trace, call, message):
    with pytest.raises(ValueError, match=message):
        call(trace)


def test_summary_table_has_units_and_the_analysis_figures(trace):
    table = tables.summary_table(trace)
    assert list(table.columns) == [
        "nats / token",
        "nats / token, mean of documents",
        "bits / byte",
        "token perplexity",
        "tokens / s",
        "time / static",
    ]
    summary = analysis.summary(trace, "static").sel(reader="fwl")
    assert table.loc["FWL", "nats / token"] == f"{summary.nats_per_token.item():.4f}"
    assert table.loc["static", "time / static"] == "1.00 ×"
    assert "time / FWL" in tables.summary_table(make_trace(readers=("fwl", "base")))
    assert "nats / token, mean of documents" not in tables.summary_table(make_trace(documents=1))


PARTS = [
    {"reader": reader, "start": start, "stop": start + 100, "nats_per_token": level - start / 1000}
    for reader, level in (("base", 3.0), ("fwl", 2.5))
    for start in (0, 100, 200)
]


def test_a_long_reading_shows_levels_above_and_the_gain_below():
    figure = figures.plot_long_reading([{**part, "seconds": 1.0} for part in PARTS])
    base, fwl, gain = figure.data
    assert [line.name for line in figure.data] == ["base", "FWL", "FWL"]
    assert [list(line.x) for line in figure.data] == [[50, 150, 250]] * 3
    np.testing.assert_allclose(base.y, [3.0, 2.9, 2.8])
    np.testing.assert_allclose(fwl.y, [2.5, 2.4, 2.3])
    np.testing.assert_allclose(gain.y, [0.5, 0.5, 0.5])
    assert (base.yaxis, fwl.yaxis, gain.yaxis) == ("y", "y", "y2")
    assert [line.showlegend for line in figure.data] == [None, None, False]
    assert base.line.color != fwl.line.color == gain.line.color
    assert _y_title(figure) == "NLL [nat / token]"
    assert figure.layout.yaxis2.title.text == "gain over base [nat / token]"
    assert figure.layout.xaxis2.title.text == "position in the document [token]"
    assert figure.layout.xaxis.title.text is None
    assert "3 stretches of a document of 300 tokens" in figure.layout.title.subtitle.text
    assert [(shape.y0, shape.yref) for shape in figure.layout.shapes] == [(0, "y2")]
    assert figures.plot_long_reading(PARTS, baseline="fwl").data[1].y[0] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="no reader 'static' in these parts; they hold base, fwl"):
        figures.plot_long_reading(PARTS, baseline="static")


CURVE = [{"step": 20 * i, "tokens": 80 * i, "loss": 4.0 / i, "seconds": 1.0 * i} for i in range(1, 6)]


def test_training_curve_shows_loss_over_tokens():
    figure = figures.plot_training_curve(CURVE)
    (line,) = figure.data
    assert list(line.x) == [80, 160, 240, 320, 400]
    assert list(line.y) == [4.0 / i for i in range(1, 6)]
    assert list(line.customdata) == [20, 40, 60, 80, 100]
    assert _y_title(figure) == "loss [nat / token]"
    assert figure.layout.xaxis.title.text == "tokens seen [token]"
    assert figure.layout.title.subtitle.text.startswith("5 points")


def test_training_curve_of_one_point_or_none_is_still_a_figure():
    (point,) = figures.plot_training_curve(CURVE[:1]).data
    assert point.mode == "markers"
    empty = figures.plot_training_curve([])
    assert len(empty.data[0].x) == 0
    assert "no point yet" in empty.layout.title.subtitle.text


def test_trials_show_the_valley_and_count_what_diverged():
    trials = [
        {"rule": "sgd", "lr": 0.1, "decay": 0.0, "nats": 2.0},
        {"rule": "sgd", "lr": 0.1, "decay": 0.03, "nats": 1.9},
        {"rule": "sgd", "lr": 0.01, "decay": 0.0, "nats": 3.0},
        {"rule": "sgd", "lr": 1.0, "decay": 0.0, "nats": 40.0},
        {"rule": "sgd", "lr": 3.0, "decay": 0.0, "nats": None},
        {"rule": "rms_2018", "lr": 1e-3, "decay": 0.0, "nats": float("inf")},
        {"rule": "rms_2018", "lr": 1e-4, "decay": 0.0, "nats": 2.5},
    ]
    figure = figures.plot_trials(trials)
    lines = _lines(figure)
    assert list(lines["sgd"].x) == [0.01, 0.1, 1.0]
    assert list(lines["sgd"].y) == [3.0, 2.0, 40.0]
    assert list(lines["rms_2018"].y) == [2.5]
    decayed = lines["sgd with decay"]
    assert (list(decayed.y), list(decayed.customdata), decayed.mode) == ([1.9], [0.03], "markers")
    assert figure.layout.title.subtitle.text == "7 trials, 2 of them diverged"
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("log", "step size")
    low, high = figure.layout.yaxis.range
    assert low < 1.9
    assert 3.0 < high < 40.0
    assert _y_title(figure) == "NLL [nat / token]"
    assert not figures.plot_trials([{"rule": "sgd", "lr": 1.0, "nats": None}]).data


def test_a_reader_has_one_colour_in_every_figure(trace):
    everywhere = [
        figures.plot_cumulative_nll(trace),
        figures.plot_cumulative_gain(trace),
        figures.plot_gain_by_position(trace),
    ]
    assert {_lines(figure)["FWL"].line.color for figure in everywhere} == {theme.COLOURS["fwl"]}
    assert figures.plot_gain_by_occurrence(trace).data[2].marker.color == theme.COLOURS["fwl"]
    strangers = theme.name_styles(["base", "mine", "yours"])
    assert len({style.colour for style in strangers.values()}) == 3


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two "#rrggbb" colours by WCAG 2."""
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#111111"])
def test_ink_and_lines_stand_out_on_white_and_on_black(ground):
    assert contrast(theme.INK, ground) >= 4.1
    for colour in (*theme.COLOURS.values(), *theme.CATEGORIES):
        assert contrast(colour, ground) >= 2.7, colour


def test_names_are_text_and_not_markup():
    trace = make_trace(tokens=200, documents=1, parameters=("<b>W</b>",))
    trace = trace.assign_coords(document_name=("document", text_array(["<a href='x'>&"])))
    assert figures.plot_cumulative_nll(trace).layout.title.subtitle.text == "&lt;a href='x'&gt;&amp;"
    assert figures.plot_fast_weight_norms(trace).data[0].name == "&lt;b&gt;W&lt;/b&gt;"


def test_figures_have_one_template_no_ground_and_a_shared_hover_box(trace):
    figure = figures.plot_gain_by_occurrence(trace)
    layout = figure.layout.template.layout
    assert layout == theme.TEMPLATE.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
    assert layout.hovermode == "x unified"


def test_the_theme_shows_figures_as_data_only(trace, monkeypatch):
    monkeypatch.setattr(pio.renderers, "_default_renderers", [])
    theme.use_theme()
    assert pio.renderers.default == "plotly_mimetype"
    figure = figures.plot_gain_by_position(trace)
    assert len(json.dumps(figure.to_plotly_json(), default=str)) < 100_000
