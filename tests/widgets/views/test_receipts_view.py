"""The receipts view: what it says of a token is what the trace, or the model, says."""

import threading

import numpy as np
import pytest

import fwl_lab
from fwl_lab.attribution.summary import receipt_summary
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from tests.helpers.asking import asked
from widgets.views.receipts.view import Receipts, recorded_receipt


@pytest.fixture(scope="module")
def trace():
    return make_trace(2, tokens=900, documents=2)


@pytest.fixture(scope="module")
def tokens(trace):
    return np.flatnonzero(np.isfinite(trace.receipt_gain.sel(reader="fwl").values)).tolist()


@pytest.fixture
def view(trace):
    view = Receipts(trace)
    yield view
    view.close()


def test_a_recorded_receipt_is_the_traces(view, trace, tokens):
    row = trace.sel(reader="fwl").isel(token=tokens[3])
    receipt, buffers = asked(view, "receipt", reader="fwl", token=tokens[3])
    there = row.receipt_source.values >= 0
    assert buffers == [] and there.sum() == len(receipt["sources"]) > 1
    np.testing.assert_array_equal([one["token"] for one in receipt["sources"]], row.receipt_source.values[there])
    np.testing.assert_allclose([one["share"] for one in receipt["sources"]], row.receipt_share.values[there])
    texts = trace.token_text.values
    for one in receipt["sources"]:
        assert one["text"] == texts[one["token"]] and one["distance"] == tokens[3] - one["token"] > 0
        assert one["before"] == "".join(texts[max(one["token"] - 4, 0) : one["token"]])
    assert receipt["gain"] == pytest.approx(float(row.receipt_gain))
    assert receipt["gross"] == pytest.approx(receipt["paid"] - receipt["cost"]) and receipt["cost"] <= 0
    assert receipt["net"] == pytest.approx(receipt["paid"] + receipt["cost"])
    assert receipt["gain"] == pytest.approx(receipt["net"] + receipt["residual"])


def test_the_bins_hold_every_listed_share(view, tokens):
    for token in tokens[:8]:
        receipt, _ = asked(view, "receipt", reader="fwl", token=token)
        shares = [one["share"] for one in receipt["sources"]]
        assert sum(receipt["bin_net"]) == pytest.approx(sum(shares))
        assert sum(receipt["bin_gross"]) == pytest.approx(np.abs(shares).sum())
        widest = max(one["distance"] for one in receipt["sources"])
        assert receipt["bins"][-1] <= widest < 2 * receipt["bins"][-1]


def test_all_receipts_together_are_the_summary(view, trace, tokens):
    found = receipt_summary(trace)
    said, _ = asked(view, "summary", reader="fwl")
    assert said["receipts"] == len(tokens) and said["gain"] == found.attrs["gain"]
    assert said["kind_net"] == found["net"].values.tolist()
    assert said["bin_gross"] == found["gross_by_distance"].values.tolist()


def test_where_there_is_none_it_names_the_nearest(view, tokens):
    token = next(t for t in range(tokens[0] + 1, 900) if t not in tokens)
    said, _ = asked(view, "receipt", reader="fwl", token=token)
    assert said["absent"] and said["previous"] == max(t for t in tokens if t < token)
    assert said["next"] == min(t for t in tokens if t > token)
    said, _ = asked(view, "receipt", reader="base", token=token)
    assert said["absent"] and said["previous"] is None and said["next"] is None


def test_without_a_model_it_says_what_to_do(view):
    said, _ = asked(view, "compute", reader="fwl", token=5)
    assert "no model is at hand; Receipts(trace, model=load_model(...))" in said["error"]


def test_a_saved_page_takes_all_receipts_along(view, tokens):
    asked = list(view.foreseen())
    assert asked[:2] == [
        {"kind": "summary", "reader": "fwl"},
        {"kind": "receipt", "reader": "fwl", "token": view.selection.token},
    ]
    assert [question["token"] for question in asked[2:]] == tokens


def test_the_still_picture_is_inert(trace, tokens):
    texts = trace.token_text.values
    source = trace.receipt_source.sel(reader="fwl").values[tokens[0]][0]
    texts[source] = "<script>alert(1)</script>"
    view = Receipts(trace.assign_coords(token_text=("token", texts)))
    view.selection.token = tokens[0]
    html = view.fallback_html()
    assert (
        "&lt;script&gt;" in html
        and "<script" not in html
        and f"{trace.receipt_gain.sel(reader='fwl').values[tokens[0]]:+.3f}" in html
    )
    view.selection.token = next(t for t in range(900) if t not in tokens)
    assert "No receipt of token" in view.fallback_html()
    view.close()


def test_with_a_model_it_computes_what_the_trace_lacks_and_keeps_it():
    model = fwl_lab.load_model("bundled")
    document = fwl_lab.Document("loop.py", "for index in range(10):\n    total += index\n" * 6)
    trace = fwl_lab.score(model, [document], fwl_lab.make_readers(model, ["base", "static", "fwl"]), progress=False)
    view, token = Receipts(trace, model=model), trace.sizes["token"] - 1
    assert asked(view, "receipt", reader="fwl", token=token)[0]["absent"]
    receipt, _ = asked(view, "compute", reader="fwl", token=token)
    exact = fwl_lab.receipt(model, trace, token)
    assert receipt["gain"] == pytest.approx(exact.attrs["gain"]) and receipt["gross"] == pytest.approx(
        exact.attrs["gross"]
    )
    assert sum(receipt["bin_net"]) == pytest.approx(float(exact.share.sum()))
    shares = np.abs([one["share"] for one in receipt["sources"]])
    assert len(shares) == min(40, exact.sizes["source"]) and (np.diff(shares) <= 0).all()
    assert receipt["sources"][0]["held"] is not None and receipt["sources"][0]["replay"] is not None
    assert recorded_receipt(trace, "fwl", token) is None  # the trace itself stays as it was
    assert asked(view, "receipt", reader="fwl", token=token)[0] is receipt
    view.close()
    assert view.model is None and schema.RECEIPT_GAIN not in trace


def test_closing_ends_its_thread():
    view = Receipts(make_trace(0, tokens=50))
    asked(view, "compute", reader="fwl", token=5)
    (thread,) = view._worker._threads
    view.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and thread not in threading.enumerate()
