"""ReaderCompare's state: figures, intervals, settings and stretches agree with the library; runs join by name."""

import gc
import json
import weakref

import numpy as np
import pytest

from fwl_lab import analysis
from fwl_lab.audit.certificate import Certificate, Check, add_certificates
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from tests.helpers.asking import asked
from widgets.core.selection import Selection
from widgets.views.reader_compare import runs as compared_runs
from widgets.views.reader_compare.view import ReaderCompare

TOKENS = 900


@pytest.fixture(scope="module")
def trace():
    return make_trace(3, tokens=TOKENS, documents=4, recorded=False)


def other_run(trace, *, better=0.9):
    """The same run but for its FWL, which does better, its seed and one setting."""
    other = trace.copy(deep=True)
    other[schema.NLL][3] *= better
    settings = json.loads(other.attrs[schema.READERS])
    settings["fwl"]["inner_batch"] = 16
    other.attrs |= {schema.SEED: 17, schema.READERS: json.dumps(settings)}
    return other


def points(view):
    """The points that a browser gets: tokens before each, and each reader's sums."""
    arrays = []
    for name in ("at", "sums"):
        kind, offset, shape = view.head["columns"][name]
        arrays.append(np.frombuffer(view.data, kind, int(np.prod(shape)), offset).reshape(shape))
    return arrays


def test_it_starts_with_the_librarys_figures(trace):
    view = ReaderCompare(trace)
    means = analysis.summary(trace)
    for row, name in enumerate(view.head["order"]):
        figures = view.head["figures"][name]
        assert figures["nll"] == means[analysis.NATS_PER_TOKEN].values[row]
        assert figures["perplexity"] == means[analysis.TOKEN_PERPLEXITY].values[row]
        assert figures["bits_per_byte"] == means[analysis.BITS_PER_BYTE].values[row]
        assert figures["seconds"] == trace[schema.SECONDS].values[row]
        assert figures["tokens_per_second"] == TOKENS / trace[schema.SECONDS].values[row]
        assert figures["peak_bytes"] == trace[schema.PEAK_BYTES].values[row]
    assert [stop for _, _, stop in view.head["documents"]][-1] == TOKENS


def test_a_cumulative_line_is_exact_at_its_points(trace):
    nll = trace[schema.NLL].values
    for most in (5000, 300):
        at, sums = compared_runs.cumulative_points(trace, most)
        assert len(at) <= most and at[0] == 0 and at[-1] == TOKENS
        np.testing.assert_allclose(sums, [[row[:stop].sum() for stop in at] for row in nll], rtol=1e-12)
        assert set(np.flatnonzero(trace[schema.POSITION].values == 0)) <= set(at.tolist())
    at, sums = points(ReaderCompare(trace))
    assert len(at) == TOKENS + 1
    np.testing.assert_allclose(np.diff(sums, axis=1), nll, atol=1e-9)


def test_intervals_are_those_of_the_library(trace):
    view = ReaderCompare(trace)
    answer, _ = asked(view, "intervals", baseline="static")
    expected = analysis.paired_bootstrap(trace, baseline="static").sel({analysis.AVERAGE: analysis.MICRO})
    for name in ("base", "dynamic_evaluation", "fwl"):
        row = expected.sel({schema.READER: name})
        edges = [float(row[edge]) for edge in (analysis.MEAN, analysis.LOW, analysis.HIGH)]
        np.testing.assert_allclose(answer["gain"][name], edges, rtol=1e-12)
    assert answer["resampled"] == "documents"
    frontier = analysis.cost_frontier(trace, "static")
    best = frontier[analysis.OPTIMAL].sel({analysis.COST: analysis.SECONDS_PER_TOKEN}).values
    assert answer["optimal"][analysis.SECONDS_PER_TOKEN] == trace[schema.READER].values[best].tolist()
    assert asked(view, "intervals", baseline="static")[0] is answer  # drawn once
    alone = ReaderCompare(make_trace(0, tokens=400, documents=1, recorded=False))
    assert asked(alone, "intervals", baseline="base")[0]["resampled"] == "blocks of one document"


def test_breakdowns_are_those_of_the_library(trace):
    counts = np.arange(400)
    view = ReaderCompare(trace, counts=counts)
    expected = {
        "position": analysis.gain_by_position(trace, 64),
        "occurrence": analysis.gain_by_occurrence(trace),
        "repetition": analysis.gain_by_repetition(trace),
        "class": analysis.gain_by_token_class(trace),
        "frequency": analysis.gain_by_frequency(trace, counts),
    }
    assert [by for by, _ in view.head["breakdowns"]] == list(expected)
    for by, result in expected.items():
        answer, _ = asked(view, "breakdown", by=by, baseline="base")
        assert [row["label"] for row in answer["buckets"]] == result[analysis.LABEL].values.tolist()
        means = [row["gain"]["fwl"]["mean"] for row in answer["buckets"]]
        np.testing.assert_allclose(means, result[analysis.MEAN].sel({schema.READER: "fwl"}).values)
    assert "frequency" not in [by for by, _ in ReaderCompare(trace).head["breakdowns"]]
    assert "counts=" in asked(ReaderCompare(trace), "breakdown", by="frequency", baseline="base")[0]["error"]
    with pytest.raises(ValueError, match="one number, 0 or more, for each token id"):
        ReaderCompare(trace, counts=counts[:3])


def test_a_stretch_has_its_own_gains(trace):
    view = ReaderCompare(trace)
    answer, _ = asked(view, "stretch", start=100, stop=160, baseline="base")
    gain = trace[schema.NLL].values[0] - trace[schema.NLL].values[3]
    assert answer["mean"]["fwl"] == pytest.approx(gain[100:160].mean())
    assert answer["best"]["fwl"] == 100 + int(gain[100:160].argmax())
    assert "base" not in answer["mean"]
    for start, stop in ((5, 5), (-1, 4), (0, TOKENS + 1)):
        assert "no stretch" in asked(view, "stretch", start=start, stop=stop, baseline="base")[0]["error"]
    assert "no reader 'nobody'" in asked(view, "intervals", baseline="nobody")[0]["error"]


def test_only_what_differs_is_apart(trace):
    rows = ReaderCompare(trace).head["settings"]
    configured = json.loads(trace.attrs[schema.READERS])
    different = {name: values for name, *values in rows["different"]}
    for name, values in different.items():
        found = [configured[reader].get(name) for reader in ("base", "static", "dynamic_evaluation", "fwl")]
        assert [None if value is None else json.loads(value) for value in values] == found
    assert different["segment"] == [None, None, "64", None]
    equal = {name: values for name, *values in rows["equal"]}
    assert equal[schema.MODEL_NAME] == ["synthetic"] * 4 and not equal.keys() & different.keys()
    nested = trace.assign_attrs({schema.READERS: json.dumps({"fwl": {"step_sizes": {"W1": 1e-5}, "cap": None}})})
    named = {name: values for name, *values in ReaderCompare(nested).head["settings"]["different"]}
    assert named == {"step_sizes.W1": [None, None, None, "1e-05"], "cap": [None, None, None, "null"]}


def test_runs_join_by_name(trace):
    other = other_run(trace)
    view = ReaderCompare({"one": trace, "two": other})
    # What both runs hold alike is there once.
    assert view.head["order"] == ["base", "static", "dynamic_evaluation", "fwl", "two: fwl"]
    np.testing.assert_array_equal(view.trace[schema.NLL].values[4], other[schema.NLL].values[3])
    schema.validate(view.trace)
    assert view.head["readers"]["two: fwl"]["colour"] == view.head["readers"]["fwl"]["colour"]
    assert view.head["readers"]["two: fwl"]["label"] == "two: FWL"
    assert view.head["readers"]["two: fwl"]["dash"] != view.head["readers"]["fwl"]["dash"]
    different = {name: values for name, *values in view.head["settings"]["different"]}
    assert different[schema.SEED] == ["3", "3", "3", "3", "17"]
    assert different["inner_batch"][3:] == ["64", "16"]
    view.selection.reader = "two: fwl"
    answer, _ = asked(view, "intervals", baseline="fwl")
    assert answer["gain"]["two: fwl"][0] == pytest.approx(float((trace[schema.NLL][3] - other[schema.NLL][3]).mean()))


def test_runs_that_do_not_fit_are_refused(trace):
    with pytest.raises(ValueError, match="differs from trace 0 in"):
        ReaderCompare({"one": trace, "two": make_trace(4, tokens=TOKENS, documents=4, recorded=False)})
    with pytest.raises(ValueError, match="no trace given"):
        ReaderCompare({})
    with pytest.raises(ValueError, match="the selection knows no reader 'two: fwl'"):
        ReaderCompare({"one": trace, "two": other_run(trace)}, selection=Selection(trace))


def test_badges_say_which_check_failed(trace):
    good = Check("causality", True, 0.0, 0.0, "nat", "512 tokens changed")
    bad = Check("padding", False, 0.3, 0.0, "nat", "<b>token 17</b>")
    known = add_certificates(trace, {"fwl": Certificate((good,)), "static": Certificate((good, bad))})
    found = ReaderCompare(known).head["badges"]
    assert [found[name]["state"] for name in ("base", "static", "fwl")] == ["absent", "failed", "passed"]
    assert found["static"]["text"] == "failed: padding"
    assert found["static"]["rows"][1] == list(bad.texts())


def test_what_is_not_finite_is_said(trace):
    strange = trace.copy(deep=True)
    strange[schema.NLL][2, [700, 710]] = np.nan
    view = ReaderCompare(strange)
    assert view.head["strange"] == {"dynamic_evaluation": [2, 700]}
    assert view.head["figures"]["dynamic_evaluation"]["nll"] is None
    assert view.head["figures"]["fwl"]["nll"] is not None
    _, sums = points(view)
    assert np.isfinite(sums[2, :701]).all() and not np.isfinite(sums[2, 701:]).any()
    for question in view.foreseen():
        json.dumps(asked(view, **question)[0], allow_nan=False)  # a browser reads no NaN
    assert "not finite" in view.fallback_html()
    stretch, _ = asked(view, "stretch", start=720, stop=800, baseline="base")
    assert np.isfinite(stretch["mean"]["dynamic_evaluation"])  # after the gap


def test_one_reader_is_no_comparison_but_no_error(trace):
    view = ReaderCompare(trace.isel({schema.READER: [0]}))
    assert all("error" not in asked(view, **question)[0] for question in view.foreseen())
    assert "<table>" in view.fallback_html()


def test_everything_is_foreseen_and_small():
    long = make_trace(1, tokens=100_000, documents=40, recorded=False)
    view = ReaderCompare(long)
    assert len(json.dumps(view.head)) + len(view.data) <= 2 * 2**20
    assert view.head["columns"]["at"][2][0] <= compared_runs.SUM_POINTS
    asked = list(view.foreseen())
    assert len(asked) == 4 * 5 and asked[0] == {"kind": "intervals", "baseline": "base"}
    assert len(view.fallback_html()) < 100_000


def test_names_are_text_in_the_still_picture(trace):
    trap = "<script>alert(1)</script>"
    view = ReaderCompare({"one": trace, trap: other_run(trace)})
    assert trap not in view.fallback_html() and "&lt;script&gt;" in view.fallback_html()


def test_a_closed_view_is_collected(trace):
    view = ReaderCompare(trace)
    asked(view, "intervals", baseline="base")
    view.close()
    assert "closed" in asked(view, "intervals", baseline="base")[0]["error"]
    gone = weakref.ref(view)
    del view
    gc.collect()
    assert gone() is None
