"""Pictures of weights: the numbers, scales and labels that they show."""

import json

import numpy as np
import plotly.io as pio
import pytest
import xarray as xr

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from widgets import theme
from widgets.figures.weights import (
    plot_angles,
    plot_candidates,
    plot_matrices,
    plot_outer_product,
    plot_relative_drift,
    plot_spectrum,
    plot_tokens,
    pooled,
)


@pytest.fixture
def trace():
    """Norms of 0.5 for every slow weight, so that the relative drift is twice the drift."""
    trace = make_trace(tokens=3000, documents=2)
    slow = xr.full_like(trace[schema.DRIFT].isel(update=0, drop=True), 0.5)
    return trace.assign({schema.SLOW_NORM: slow})


def _matrix(values: np.ndarray, token: int) -> xr.DataArray:
    return xr.DataArray(values, dims=("row_W2", "col_W2"), attrs={"token": token, "parameter": "W2"})


class TestPooled:
    def test_the_largest_of_each_cell_keeps_its_sign(self):
        matrix = np.array([[1.0, -3.0, 0.5, 0.0], [2.0, 0.0, -0.1, 0.2]])
        np.testing.assert_array_equal(pooled(matrix, 2), [[-3.0, 0.5], [2.0, 0.2]])
        np.testing.assert_array_equal(pooled(matrix, 1), [[-3.0]])

    def test_what_fits_stays_as_it_is(self):
        matrix = np.random.default_rng(0).normal(size=(5, 7))
        np.testing.assert_array_equal(pooled(matrix, 7), matrix)

    @pytest.mark.parametrize("shape", [(300, 1000), (257, 3), (1, 2)])
    def test_no_entry_is_lost_that_is_the_largest_anywhere(self, shape):
        matrix = np.random.default_rng(1).normal(size=shape)
        image = pooled(matrix)
        assert max(image.shape) <= 256
        assert np.abs(image).max() == np.abs(matrix).max()
        assert set(image.flat) <= set(matrix.flat)


def test_candidates_are_bars_with_the_one_that_came_starred():
    pair = {"θ₀": np.array([0.1, 0.2]), "after": np.array([0.6, 0.1])}
    figure = plot_candidates([" a\n", "<b>"], pair, came=" a\n", title="next")
    assert [list(bar.x) for bar in figure.data] == [[0.1, 0.2], [0.6, 0.1]]
    assert figure.layout.yaxis.ticktext == ("·a↵ ★", "&lt;b&gt;")
    assert figure.layout.xaxis.title.text == "probability"
    assert figure.data[1].marker.color == theme.CATEGORIES[0]


def test_candidates_spelt_alike_stay_apart():
    figure = plot_candidates(["\x00", "\x01"], {"p": np.array([0.3, 0.4])}, came="(", title="next")
    assert list(figure.data[0].y) == [0, 1]
    assert figure.layout.yaxis.ticktext == ("�", "�")


def test_outer_product_stands_between_its_factors():
    delta, key = np.array([-1.0, 2.0]), np.array([0.0, 3.0, 1.0])
    above, beside, product = plot_outer_product(delta, key).data
    np.testing.assert_array_equal(above.y, [3, 1, 0])
    np.testing.assert_array_equal(beside.x, [2, -1])
    np.testing.assert_array_equal(product.z, [[6, 2, 0], [-3, -1, 0]])
    assert product.zmin == -product.zmax


def test_an_outer_product_of_many_entries_is_pooled():
    rng = np.random.default_rng(0)
    product = plot_outer_product(rng.normal(size=300), rng.normal(size=2000)).data[2]
    assert product.z.shape == (256, 256)
    assert 1990 < product.x[-1] < 2000


def test_tokens_one_kind_of_bar_has_a_colour_for_each_sign():
    titles = {"title": "t", "subtitle": "s", "y_title": "NLL [nat]"}
    figure = plot_tokens(["a", "\n"], {"one": np.array([1.0, -1.0])}, **titles)
    assert list(figure.data[0].marker.color) == list(theme.CATEGORIES[:2])
    assert figure.layout.xaxis.ticktext == ("a", "↵")
    assert figure.layout.yaxis.title.text == "NLL [nat]"
    assert not figure.layout.showlegend


def test_tokens_a_third_kind_is_drawn_upon_the_second():
    titles = {"title": "t", "subtitle": "s", "y_title": "y"}
    values = np.array([1.0, 2.0])
    figure = plot_tokens(["a", "b"], {"one": values, "two": values + 1, "three": values + 2}, **titles)
    assert [each.type for each in figure.data] == ["bar", "bar", "scatter"]
    assert figure.data[2].offsetgroup == figure.data[1].offsetgroup
    assert figure.data[2].offsetgroup != figure.data[0].offsetgroup
    np.testing.assert_array_equal(figure.data[2].y, [3, 4])


class TestRelativeDrift:
    def test_each_parameter_over_its_slow_norm_and_the_gain_below(self, trace):
        figure = plot_relative_drift(trace, document=1, window=100)
        *parameters, gain = figure.data
        assert [line.name for line in parameters] == ["W1", "b1", "W2", "b2", "g", "b"]
        here = trace.document.values[trace.update_token.values] == 1
        expected = 2 * trace.drift.sel(reader="fwl", parameter="W2").values[here]
        np.testing.assert_allclose(parameters[2].y, expected)
        np.testing.assert_array_equal(parameters[2].x, trace.position.values[trace.update_token.values[here]] + 1)
        gains = analysis.gain(trace).sel(reader="fwl").values[trace.document.values == 1]
        assert gain.x[0] == 100
        assert gain.y[0] == pytest.approx(gains[:100].mean())
        assert (gain.x[-1], gain.y[-1]) == (len(gains), pytest.approx(gains[-100:].mean()))
        assert figure.layout.yaxis.title.text == "‖Δθ‖ / ‖θ₀‖"
        assert figure.layout.yaxis2.title.text == "gain [nat / token]"

    def test_of_a_reader_that_never_moved_there_is_none(self, trace):
        with pytest.raises(ValueError, match="'static' made no recorded update in document 0"):
            plot_relative_drift(trace, reader="static")


def test_spectrum_shows_all_values_and_both_ranks():
    values = np.array([[3.0, 1.0], [4.0, 2.0]])
    data = {
        "singular_value": (("at", "index"), values),
        "effective_rank": ("at", [1.5, 1.7]),
        "stable_rank": ("at", [1.1, 1.25]),
    }
    figure = plot_spectrum(xr.Dataset(data, {"at": [64, 128]}, {"parameter": "W2"}))
    first, second, effective, stable = figure.data
    assert (list(first.y), list(second.y)) == ([3, 4], [1, 2])
    assert (list(effective.y), list(stable.y)) == ([1.5, 1.7], [1.1, 1.25])
    assert list(first.x) == [64, 128]
    assert "ΔW2" in figure.layout.title.text


class TestMatrices:
    def test_all_are_sorted_by_the_last_and_share_its_scale(self):
        last = np.array([[0.0, 0.1], [4.0, -8.0]])
        first = np.array([[1.0, 2.0], [3.0, 4.0]])
        figure = plot_matrices([_matrix(first, 64), _matrix(last, 2048)])
        np.testing.assert_allclose(figure.data[1].z, [[-8.0, 4.0], [0.1, 0.0]])
        np.testing.assert_array_equal(figure.data[0].z, [[4, 3], [2, 1]])
        assert figure.data[0].zmax == figure.data[1].zmax == -figure.data[0].zmin
        assert [note.text for note in figure.layout.annotations] == ["after 64 tokens", "after 2,048 tokens"]

    def test_a_vector_is_refused(self):
        with pytest.raises(ValueError, match="expected Δθ of a matrix"):
            plot_matrices([xr.DataArray(np.zeros(3))])


def test_all_angles_are_drawn_in_degrees_nearer_than_chance():
    sides = {"side": text_array(["rows", "columns"])}
    values = np.full((2, 2, 8), np.pi / 4)
    values[1, 0, 2] = np.pi / 6
    angles = xr.DataArray(values, sides | {"at": [64, 128]}, ("at", "side", "index"))
    chance = xr.DataArray(np.full((2, 8), np.pi / 3), sides, ("side", "index"))
    figure = plot_angles(angles, chance)
    assert len(figure.data) == 16
    np.testing.assert_allclose(figure.data[0].y, [15, 15])
    np.testing.assert_allclose(figure.data[2].y, [15, 30])
    np.testing.assert_allclose(figure.data[2].customdata, [45, 30])
    np.testing.assert_allclose(figure.data[10].y, [15, 15])
    names = [line.name for line in figure.data[:8]]
    assert names[:4] == ["smallest", "2nd smallest", "3rd smallest", "4th smallest"]
    assert len({line.line.color for line in figure.data[:8]}) == 8
    assert {shape.y0 for shape in figure.layout.shapes if shape.line.dash == "dot"} == {10}
    assert figure.layout.yaxis.title.text == "nearer than chance [°]"
    assert figure.layout.yaxis.range[0] < 0 < 30 < figure.layout.yaxis.range[1]


def test_every_figure_can_be_written_as_json(trace):
    for figure in (plot_relative_drift(trace), plot_outer_product(np.ones(2), np.ones(3))):
        assert json.loads(pio.to_json(figure))["data"]
