"""Pictures of evidence: the numbers, places and labels that they show."""

import numpy as np
import pytest
import xarray as xr

from fwl_lab import analysis, receipt_summary
from fwl_lab.attribution.summary import HELD, KINDS, REPLAY, SHARE, SOURCE, SOURCE_KIND
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from widgets.figures.receipts import (
    KIND_COLOURS,
    plot_declared,
    plot_gains,
    plot_receipt,
    plot_running_sum,
    plot_share_by_distance,
    plot_who_teaches,
)

SHARES = np.array([0.5, -1.0, 2.0, 0.25, -0.125])  # of tokens 0 to 4, for token 5
KIND_OF = np.array([2, 2, 0, 1, 2])


@pytest.fixture
def trace() -> xr.Dataset:
    """Twelve tokens, one of them markup."""
    trace = make_trace(tokens=12, documents=1)
    texts = [*" a", "\n    ", "<b>", *"efghijkl"]
    return trace.assign_coords({schema.TOKEN_TEXT: (schema.TOKEN, text_array(texts))})


@pytest.fixture
def receipt() -> xr.Dataset:
    lost = np.array([0.1, np.nan, 1.5, np.nan, np.nan])
    facts = {"gain": float(SHARES.sum()), "gross": float(np.abs(SHARES).sum()), "residual": -1e-4, "token": 5}
    return xr.Dataset(
        {SHARE: (SOURCE, SHARES), HELD: (SOURCE, lost), REPLAY: (SOURCE, lost / 2)},
        {SOURCE: np.arange(5), SOURCE_KIND: (SOURCE, KIND_OF)},
        facts,
    )


class TestReceipt:
    def test_bars_are_the_largest_shares_and_all_others_together(self, receipt, trace):
        figure = plot_receipt(receipt, trace, top=3)
        bars = {bar.name: (list(bar.y), list(bar.x)) for bar in figure.data if bar.type == "bar"}
        assert bars == {
            "share, same token": ([0], [2.0]),
            "share, other": ([1, 2], [-1.0, 0.5]),
            "share, all others together": ([3], [0.125]),
        }
        assert sum(sum(x) for _, x in bars.values()) == receipt.attrs["gain"]
        colours = {bar.name: bar.marker.color for bar in figure.data if bar.type == "bar"}
        assert colours["share, same token"] == KIND_COLOURS["same token"] != colours["share, other"]
        assert "5 shares (residual -1e-04)" in figure.layout.title.subtitle.text
        assert "+1.62 nat" in figure.layout.title.subtitle.text and "3.9" in figure.layout.title.subtitle.text
        assert "[nat]" in figure.layout.xaxis.title.text

    def test_marks_are_what_is_lost_in_the_order_of_the_bars(self, receipt, trace):
        held, replay = (mark for mark in plot_receipt(receipt, trace, top=3).data if mark.type == "scatter")
        np.testing.assert_array_equal(held.x, [1.5, np.nan, 0.1])
        np.testing.assert_array_equal(replay.x, [0.75, np.nan, 0.05])
        assert list(held.y) == list(replay.y) == [0, 1, 2]

    def test_without_replay_there_is_no_mark_for_it_and_no_bar_for_no_others(self, receipt, trace):
        figure = plot_receipt(receipt.drop_vars(REPLAY), trace, top=5)
        assert sum(mark.type == "scatter" for mark in figure.data) == 1
        assert "share, all others together" not in [bar.name for bar in figure.data]
        assert len(figure.layout.yaxis.ticktext) == 5

    def test_labels_show_the_source_in_its_context_and_are_inert(self, receipt, trace):
        labels = plot_receipt(receipt, trace, top=5).layout.yaxis.ticktext
        assert labels[0] == " a<b>\\n    </b> <i>3 back</i>"
        assert labels[3] == " a ↵ <b>&lt;b&gt;</b> <i>2 back</i>"


def test_running_sums_end_at_the_gross_sum_and_at_the_gain(receipt):
    figure = plot_running_sum(receipt)
    gross, net = figure.data
    np.testing.assert_allclose(net.y, [2, 1, 1.5, 1.75, 1.625])
    np.testing.assert_allclose(gross.y, [2, 3, 3.5, 3.75, 3.875])
    assert figure.layout.shapes[0].y0 == receipt.attrs["gain"]
    assert list(net.x) == [1, 2, 3, 4, 5]


class TestPanels:
    def test_kinds_show_what_helps_what_harms_and_what_is_left_of_each_receipt(self, receipt):
        pair = [receipt, receipt.assign_attrs(token=6)]
        figure = plot_who_teaches({"two": receipt_summary(pair), "one": receipt_summary(receipt)})
        assert [note.text for note in figure.layout.annotations] == ["two", "one"]
        for bars in (figure.data[:3], figure.data[3:]):
            helping, harming, net = bars
            assert tuple(net.x) == KINDS
            np.testing.assert_allclose(helping.y, [2.0, 0.25, 0.5])
            np.testing.assert_allclose(harming.y, [0, 0, -1.125], atol=1e-12)
            np.testing.assert_allclose(net.y, [2.0, 0.25, -0.625])
        assert figure.layout.yaxis.title.text == "share [nat / receipt]"

    def test_distances_are_named_by_their_bins(self, receipt):
        far = receipt.assign_attrs(token=7)  # three to seven tokens back
        figure = plot_share_by_distance({"near": receipt_summary(receipt), "far": receipt_summary(far)})
        nets = [bar for bar in figure.data if bar.name == "net"]
        assert [list(bar.x) for bar in nets] == [["1", "2–3", "4–7"]] * 2
        np.testing.assert_allclose(nets[0].y, [-0.125, 2.25, -0.5])
        np.testing.assert_allclose(nets[1].y, [0, -0.125, 1.75])


class TestGains:
    def test_bars_are_the_mean_gain_and_that_at_a_token(self):
        trace = make_trace(tokens=400, documents=1)
        names = {"fwl": "as it was", "dynamic_evaluation": "<i>"}
        figure = plot_gains(trace, names, title="left", token=17)
        gain = analysis.gain(trace, "static").sel(reader=list(names))
        mean, here = figure.data
        np.testing.assert_allclose(mean.x, gain.mean("token").values)
        np.testing.assert_allclose(here.x, gain.isel(token=17).values)
        assert list(mean.y) == ["as it was", "&lt;i&gt;"]
        low, high = mean.x - mean.error_x.arrayminus, mean.x + mean.error_x.array
        assert (low < mean.x).all() and (high > mean.x).all()
        assert figure.layout.xaxis.title.text == "gain over static [nat / token]"
        assert figure.layout.xaxis2.title.text == "gain at token 17 [nat]"

    def test_without_a_token_there_is_one_panel(self):
        assert len(plot_gains(make_trace(tokens=400), {"fwl": "FWL"}, title="left").data) == 1


def test_scores_stand_over_what_was_declared():
    figure = plot_declared({"fwl": ([1.0, 4.0], [1.0, 4.0]), "leaky": ([2.0, 3.0], [0.5, 2.5])})
    line, honest, leaky = figure.data
    assert list(line.x) == list(line.y)
    assert line.x[1] >= 4
    assert list(honest.x) == list(honest.y) == [1.0, 4.0]
    assert (list(leaky.x), list(leaky.y)) == ([2.0, 3.0], [0.5, 2.5])
    assert honest.marker.color != leaky.marker.color
