"""UpdateScope without a browser: what it starts with, what it answers, what a saved page takes along."""

import base64
import json
import re

import numpy as np
import pytest

from fwl_lab.analysis.fast_weights import fast_weight
from fwl_lab.analysis.spectra import spectrum
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace.arrays import text_array
from widgets.core.packing import pack
from widgets.core.selection import Selection
from widgets.views.update_scope import tiles
from widgets.views.update_scope.norms import advice, drifts, kept_tokens, still_picture
from widgets.views.update_scope.view import PIECE, UpdateScope

ARRAYS = {"int8": "<i1", "uint32": "<u4", "int32": "<i4", "float32": "<f4", "uint8": "<u1", "uint16": "<u2"}


@pytest.fixture(scope="module")
def trace():
    return make_trace(3, tokens=900, documents=2)


@pytest.fixture
def view(trace):
    made = UpdateScope(trace, selection=Selection(trace, token=700))
    yield made
    made.close()


def read(content, buffers):
    """Arrays by name, as the browser reads them."""
    return {
        name: np.frombuffer(buffers[0], ARRAYS[kind], int(np.prod(shape)), start).reshape(shape)
        for name, (kind, start, shape) in content["columns"].items()
    }


def ask(view, kind, parameter="W2", token=700, reader="fwl", **more):
    question = {"kind": kind, "reader": reader, "parameter": parameter, "token": token, "pinned": None}
    return view.answer(question | ({"order": "stored"} if kind in ("tile", "piece") else {}) | more)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 513), (7, 4000), (256, 256), (1, 1), (1000,)])
def test_a_cell_is_the_largest_entry_behind_it_with_its_sign(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cells = tiles.pool(values)
    edges = [np.append(tiles.starts_of(side), side) for side in shape]
    for index in np.ndindex(*(min(side, 3) for side in cells.shape)):
        block = values[tuple(slice(e[i], e[i + 1]) for i, e in zip(index, edges, strict=True))]
        assert cells[index] == block.flat[np.abs(block).argmax()]
    assert np.abs(cells).max() == np.abs(values).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_pooled_away(bad):
    values = np.ones((600, 600), dtype=np.float32)
    values[301, 12] = bad
    cells = tiles.pool(values)
    codes, size = tiles.squeeze(cells)
    assert np.argwhere(~np.isfinite(cells)).tolist() == [[301 * 256 // 600, 12 * 256 // 600]]
    assert (codes == tiles.NOT_FINITE).sum() == 1
    assert size == 1.0
    assert tiles.NotFinite.of(values) == tiles.NotFinite(1, (301, 12))
    assert tiles.histogram(values, size).sum() == values.size - 1


def test_bytes_keep_small_values_and_signs():
    values = np.array([-1.0, -0.25, -1e-3, 0.0, 1e-4, 0.5, 1.0])
    codes, size = tiles.squeeze(values)
    back = np.sign(codes) * (np.abs(codes.astype(float)) / 127) ** 2 * size
    assert codes.min() > tiles.NOT_FINITE
    assert np.abs(back - values).max() < 0.008 * size
    assert (np.sign(codes) == np.sign(values)).all()


def test_a_tile_is_made_of_delta_at_that_token(view, trace):
    delta = fast_weight(trace, "fwl", "W2", 700).values
    content, buffers = ask(view, "tile")
    found = read(content, buffers)
    assert content["shape"] == [16, 32]
    assert content["norm"] == pytest.approx(np.linalg.norm(delta))
    assert content["size"] == pytest.approx(np.abs(delta).max())
    back = np.sign(found["codes"]) * (np.abs(found["codes"].astype(float)) / 127) ** 2 * content["size"]
    assert np.abs(back - delta).max() < 0.008 * content["size"]
    assert found["bars"].sum() == delta.size
    np.testing.assert_allclose(found["norms_0"], np.linalg.norm(delta, axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["norms_1"], np.linalg.norm(delta, axis=0), rtol=1e-6)
    assert len(buffers[0]) < 256 * 256 + 16_384


def test_rows_and_columns_come_longest_first_in_one_order_for_the_document(view, trace):
    peak, _ = view.answer({"kind": "peak", "reader": "fwl", "parameter": "W1", "document": int(trace.document[700])})
    at_peak = fast_weight(trace, "fwl", "W1", peak["token"]).values
    rows = read(*ask(view, "tile", "W1", order="length"))["order_0"]
    assert (np.diff(np.linalg.norm(at_peak, axis=1)[rows]) <= 0).all()
    earlier = read(*ask(view, "tile", "W1", token=peak["token"] - 64, order="length"))
    assert earlier["order_0"].tolist() == rows.tolist()
    piece = read(*ask(view, "piece", "W1", row=0, column=0, order="length"))["values"]
    delta = fast_weight(trace, "fwl", "W1", 700).values
    assert (piece == delta[np.ix_(rows, earlier["order_1"])][:PIECE, :PIECE]).all()
    assert peak["size"] == pytest.approx(np.abs(at_peak).max())
    assert peak["first"] == pytest.approx(np.linalg.norm(at_peak, 2))


def test_two_pinned_tokens_are_subtracted(view, trace):
    less = fast_weight(trace, "fwl", "W2", 700).values - fast_weight(trace, "fwl", "W2", 600).values
    piece = read(*ask(view, "piece", row=0, column=0, pinned=600))["values"]
    assert (piece == less).all()
    assert ask(view, "tile", pinned=700)[0]["size"] == 0.0
    assert ask(view, "spectrum", pinned=600)[0]["values"][0] == pytest.approx(np.linalg.norm(less, 2), rel=1e-6)


def test_the_spectrum_is_the_one_of_the_library(view, trace):
    expected = spectrum(trace, "W2", [700], reader="fwl")
    found, _ = ask(view, "spectrum")
    np.testing.assert_allclose(found["values"], expected.singular_value.values[0], rtol=1e-5, atol=1e-7)
    assert found["rank"] == pytest.approx(float(expected.effective_rank[0]), rel=1e-4)
    total = np.linalg.norm(fast_weight(trace, "fwl", "W2", 700).values) ** 2
    assert found["share"] == pytest.approx(found["values"][0] ** 2 / total, rel=1e-5)


def test_a_vector_travels_whole(view, trace):
    content, buffers = ask(view, "tile", "b1")
    assert (read(content, buffers)["values"] == fast_weight(trace, "fwl", "b1", 700).values).all()
    assert content["cells"] == [32]
    with pytest.raises(ValueError, match="is a vector"):
        ask(view, "spectrum", "b1")


def test_nothing_is_learned_at_the_start_of_a_document(view):
    for token in (0, view.head["starts"][1]):
        content, _ = ask(view, "tile", token=token)
        assert (content["size"], content["norm"], content["bad"]) == (0.0, 0.0, None)
        assert ask(view, "spectrum", token=token)[0]["rank"] is None


@pytest.mark.parametrize(
    ("kind", "more", "match"),
    [
        ("tile", {"token": 900}, "expected 0 to 899"),
        ("tile", {"order": "random"}, "expected one of 'length', 'stored'"),
        ("tile", {"parameter": "W9"}, "no parameter 'W9'"),
        ("piece", {"row": 16, "column": 0}, "row 16, column 0 is outside"),
        ("sound", {}, "knows no answer"),
    ],
)
def test_what_cannot_be_asked_is_said(view, kind, more, match):
    with pytest.raises(ValueError, match=match):
        ask(view, kind, **more)


# -- what was recorded -------------------------------------------------------------------------------------------------


def test_norms_are_those_of_the_trace(view, trace):
    arrays, moved = drifts(trace)
    assert set(moved) == {"dynamic_evaluation", "fwl"}
    names = [entry["name"] for entry in moved["fwl"]["parameters"]]
    expected = trace.drift.sel(reader="fwl").transpose("parameter", "update").values
    np.testing.assert_array_equal(arrays[moved["fwl"]["norms"]], expected.astype(np.float32))
    assert names == ["W1", "b1", "W2", "b2", "g", "b"]
    assert moved["fwl"]["parameters"][0]["slow"] == pytest.approx(float(trace.slow_norm.sel(reader="fwl")[0]))
    assert moved["fwl"]["bad"] is None
    assert json.loads(json.dumps(view.head)) == view.head


def test_the_first_norm_that_is_not_finite_is_found(trace):
    drift = trace.drift.values.copy()
    drift[-1, 4, 2] = np.inf
    _, moved = drifts(trace.assign(drift=(trace.drift.dims, drift)))
    assert moved["fwl"]["bad"] == int(trace.update_token[4])


def test_a_long_trace_starts_small():
    long = make_trace(0, tokens=100_000, documents=3, recorded=False)
    made = UpdateScope(long)
    assert len(made.data) + len(json.dumps(made.head)) < 2_000_000
    made.close()


def test_norms_are_thinned_evenly_and_keep_the_last_of_each_document(trace, monkeypatch):
    monkeypatch.setattr("widgets.views.update_scope.norms.NORM_BYTES", 300)
    arrays, _ = drifts(trace)
    assert len(arrays["drawn"]) < len(arrays["updates"])
    document = trace.document.values[arrays["updates"]]
    assert set(np.flatnonzero(np.diff(document, append=-1))) <= set(arrays["drawn"].tolist())


def test_snapshots_are_shown_where_they_are_and_the_nearest_is_named(trace):
    """Readers without factors have Δθ at some tokens only."""
    at = int(trace.update_token[3])
    values = np.full((*trace.drift.shape[:2], 2, 3), np.nan, dtype=np.float32)
    values[2, 3] = np.arange(6).reshape(2, 3)
    kept = np.zeros(trace.anchored.shape, dtype=bool)
    kept[2, 3] = True
    plain = trace.drop_vars([name for name in trace.data_vars if "W1" in name]).assign(
        anchored=(trace.anchored.dims, kept), fast_weight_W1=(("reader", "update", "row_W1", "col_W1"), values)
    )
    assert kept_tokens(plain, "dynamic_evaluation", "W1").tolist() == [at + 1]
    made = UpdateScope(plain)
    content, _ = ask(made, "tile", "W1", at + 1, "dynamic_evaluation")
    assert content["norm"] == pytest.approx(np.sqrt(55))
    absent, _ = ask(made, "tile", "W1", 800, "dynamic_evaluation")
    assert absent["nearest"] == at + 1
    assert "was not kept" in absent["absent"]
    made.close()


def test_without_factors_or_snapshots_it_says_what_to_record(trace):
    bare = trace.drop_vars([name for name in trace.data_vars if name.startswith(("key_", "delta_", "fast_weight_"))])
    made = UpdateScope(bare)
    absent, buffers = ask(made, "tile")
    assert (absent["nearest"], buffers) == (None, [])
    assert "was not recorded" in absent["absent"]
    assert made.head["record"]["fwl"] == "Recorder(factors=True)"
    assert advice(bare, "dynamic_evaluation") == "Recorder(snapshots_every=64)"
    assert ask(made, "peak", document=0)[0]["limit"] is None
    made.close()


def test_a_trace_without_updates_is_shown_too():
    made = UpdateScope(make_trace(0, tokens=50, documents=1, parameters=(), recorded=False))
    assert (made.head["moved"], made.head["recorded"]) == ({}, False)
    assert [question["kind"] for question in made.foreseen()] == ["saved"]
    assert "does not adapt" in made.fallback_html()
    made.close()
    short = UpdateScope(make_trace(0, tokens=2, documents=1))  # ends before the first update
    assert (short.head["moved"], short.head["recorded"]) == ({}, True)
    short.close()


# -- saved -------------------------------------------------------------------------------------------------------------


def test_a_saved_page_takes_along_what_is_looked_at_first(view):
    foreseen = list(view.foreseen())
    pictures = [question for question in foreseen if question["kind"] == "tile"]
    assert pictures[0] == {"order": "length", **pictures[0]}
    here = [q["token"] for q in pictures if q["parameter"] == view.selection.parameter and q["reader"] == "fwl"]
    assert view.selection.token in here
    assert len(here) > 10
    assert {q["parameter"] for q in pictures} == {"W1", "b1", "W2", "b2", "g", "b"}
    assert view.answer({"kind": "saved"})[0]["tiles"] == pictures
    for question in foreseen:
        content, _ = view.reply(question)
        assert "error" not in content, (question, content)


def test_a_page_and_a_still_picture_hold_no_markup_of_the_trace(tmp_path, trace):
    hostile = trace.assign_coords(parameter=text_array(["W1", "b1", "W2", "b2", "</script><b>", "b"]))
    made = UpdateScope(hostile)
    page = made.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "</script><b>" not in page
    assert "http://" not in page
    assert "https://" not in page
    still = still_picture(hostile, "fwl", "</script><b>")
    assert "<b>" not in still
    (drawing,) = re.findall(r"base64,([^\"]*)", still)
    assert base64.b64decode(drawing).count(b"<polyline") == 6 * 2  # a line for each parameter in each document
    assert len(still) < 100_000
    made.close()


def test_closed_it_lets_go(trace):
    made = UpdateScope(trace)
    ask(made, "tile")
    made.close()
    assert made.trace is None
    with pytest.raises(ValueError, match="closed"):
        ask(made, "tile")


def test_pack_has_what_the_browser_reads():
    layout, data = pack({"codes": np.array([-128, 0, 127], dtype=np.int8)})
    assert layout == {"codes": ["int8", 0, [3]]}
    assert data[:3] == b"\x80\x00\x7f"
