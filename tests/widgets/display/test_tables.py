"""Tables of an evaluation: the numbers against slow, obvious computations, and what is said of them."""

import json

import numpy as np
import pytest
import xarray as xr

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from widgets.display import tables


@pytest.fixture(scope="module")
def trace() -> xr.Dataset:
    return make_trace(tokens=6000, documents=12)


@pytest.fixture(scope="module")
def evaluation(trace: xr.Dataset) -> dict:
    return tables.evaluate(trace, table_tokens=300, bucket=100)


def test_averages_are_of_the_first_tokens_of_each_document(trace, evaluation):
    early = trace.isel(token=trace.position.values < 300)
    assert evaluation["tokens"] == early.sizes["token"] < trace.sizes["token"]
    assert evaluation["documents"] == 12
    row = evaluation["readers"]["fwl"]
    nll = early.nll.sel(reader="fwl").values
    assert row["nats_per_token"] == pytest.approx(nll.mean())
    own = [nll[early.document.values == document].mean() for document in range(12)]
    assert row["nats_per_token_per_document"] == pytest.approx(np.mean(own))
    assert row["bits_per_byte"] == pytest.approx(nll.sum() / np.log(2) / early.byte_count.values.sum())
    assert row["word_perplexity"] == pytest.approx(np.exp(nll.sum() / analysis.word_count(early)))
    gain = early.nll.sel(reader="base").values - nll
    assert row["gain"]["micro"]["mean"] == pytest.approx(gain.mean())
    assert row["gain"]["micro"]["low"] < gain.mean() < row["gain"]["micro"]["high"]
    assert "gain" not in evaluation["readers"]["base"]


def test_times_are_of_the_whole_reading(trace, evaluation):
    row, seconds = evaluation["readers"]["fwl"], trace.seconds.values
    assert row["tokens_per_second"] == pytest.approx(6000 / seconds[3])
    assert row["time_over_base"] == pytest.approx(seconds[3] / seconds[0])
    assert row["time_over_dynamic_evaluation"] == pytest.approx(seconds[3] / seconds[2])
    untimed = tables.evaluate(trace.drop_vars("seconds"))["readers"]["fwl"]
    assert not {"tokens_per_second", "time_over_base"} & set(untimed)


def test_buckets_are_of_the_whole_reading(trace, evaluation):
    expected = analysis.gain_by_position(trace, 100)
    buckets = evaluation["buckets"]
    assert [bucket["start"] for bucket in buckets] == expected.start.values.tolist()
    assert [bucket["documents"] for bucket in buckets] == expected.documents.values.tolist()
    assert buckets[2]["gain"]["fwl"]["high"] == pytest.approx(float(expected.high.sel(reader="fwl")[2]))


def test_the_difference_is_the_gain_of_one_over_the_other(trace, evaluation):
    early = trace.isel(token=trace.position.values < 300).nll
    difference = float((early.sel(reader="dynamic_evaluation") - early.sel(reader="fwl")).mean())
    assert evaluation["fwl_over_dynamic_evaluation"]["micro"]["mean"] == pytest.approx(difference)
    assert f"{difference:+.3f} [" in tables.difference_statement(evaluation)
    alone = tables.evaluate(trace.sel(reader=["base", "fwl"]))
    assert alone["fwl_over_dynamic_evaluation"] is None
    assert "not compared" in tables.difference_statement(alone)
    assert "time_over_dynamic_evaluation" not in alone["readers"]["fwl"]


def test_an_evaluation_is_json_without_nan(trace):
    longest = np.bincount(trace.document.values).argmax()
    one_long = trace.isel(token=(trace.position.values < 20) | (trace.document.values == longest))
    evaluation = tables.evaluate(one_long, bucket=100)
    last = evaluation["buckets"][-1]
    assert (last["documents"], last["gain"]["fwl"]["low"]) == (1, None)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["configurations"]["fwl"]["kind"] == "synthetic"
    assert evaluation["provenance"]["versions"] == {}
    assert evaluation["provenance"]["seed"] == 0


def _buckets(*gains: tuple[int, float, float]) -> dict:
    """An evaluation of nothing but FWL's buckets: documents, mean gain, lower end."""
    buckets = [
        {"start": 10 * i, "stop": 10 * i + 10, "documents": documents, "tokens": 9,
         "gain": {"fwl": {"mean": mean, "low": low, "high": mean + 0.1}}}
        for i, (documents, mean, low) in enumerate(gains)
    ]  # fmt: skip
    return {"readers": {"fwl": {}}, "buckets": buckets}


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([(12, 0.5, 0.4), (10, 0.2, 0.1), (9, -1.0, -2.0)], "FWL is better than base, on average, in all of the 2 "),
        ([(12, 0.5, 0.4), (10, -0.2, -0.3)], "not better than base in 1 of the 2 buckets held by 10 documents"),
        ([(12, 0.5, 0.4), (10, -0.2, -0.3)], "(to token 20): 10–19 (-0.200 [-0.300, -0.100])."),
        ([(12, 0.5, -0.1)], "In 1 of them the interval of a gain reaches zero: 0–9."),
        ([(12, 0.0, -0.1)], "not better than base in 1 of the 1"),
        ([(3, 0.5, 0.4)], "No bucket is held by 10 documents or more"),
    ],
)
def test_the_statement_on_buckets_follows_the_numbers(gains, expected):
    assert expected in tables.bucket_statement(_buckets(*gains))


def test_the_statement_knows_a_reader_that_was_not_read():
    assert "FWL was not read" in tables.bucket_statement({"readers": {"base": {}}, "buckets": []})


def test_tables_write_the_numbers_down(evaluation):
    accuracy, cost = tables.accuracy_table(evaluation), tables.cost_table(evaluation)
    row = evaluation["readers"]["fwl"]
    assert list(accuracy.index) == list(cost.index) == ["base", "static", "dynamic evaluation", "FWL"]
    assert accuracy.loc["FWL", "nats / token"] == f"{row['nats_per_token']:.4f}"
    assert accuracy.loc["FWL", "gain over base"] == tables.interval_text(row["gain"]["micro"])
    assert accuracy.loc["base", "gain over base"] == "–"
    assert cost.loc["FWL", "word perplexity"] == f"{row['word_perplexity']:,.0f}"
    assert cost.loc["FWL", "time / dyn. eval."] == f"{row['time_over_dynamic_evaluation']:.2f} ×"
    assert cost.loc["FWL", "MFLOP / token"] == f"{row['flops_per_token'] / 1e6:,.0f}"
    assert cost.loc["FWL", "peak MB"] == f"{row['peak_bytes'] / 1e6:,.0f}"
    buckets = tables.bucket_table(evaluation)
    assert buckets.loc["100–199", "documents"] == str(evaluation["buckets"][1]["documents"])
    assert buckets.loc["100–199", "FWL"] == tables.interval_text(evaluation["buckets"][1]["gain"]["fwl"])
    assert list(buckets) == ["documents", "tokens", "FWL", "static", "dynamic evaluation"]
    few = tables.bucket_table(evaluation, readers=["dynamic_evaluation", "fwl", "nobody"])
    assert list(few) == ["documents", "tokens", "dynamic evaluation", "FWL"]
    sources = tables.provenance_table(evaluation | {"provenance": {"model_name": "m", "versions": {"torch": "2"}}})
    assert sources.to_dict() == {"": {"model name": "m", "torch": "2"}}


def test_intervals_in_words():
    assert tables.interval_text({"mean": 0.1234, "low": -0.1, "high": 0.3}) == "+0.123 [-0.100, +0.300]"
    assert tables.interval_text({"mean": -0.1, "low": None, "high": None}) == "-0.100"
    assert tables.interval_text(None) == "–"


def test_mistakes_are_named(trace):
    with pytest.raises(ValueError, match="no reader 'base' in this trace; it holds fwl"):
        tables.evaluate(trace.sel(reader=["fwl"]))
    with pytest.raises(ValueError, match="table_tokens is 0"):
        tables.evaluate(trace, table_tokens=0)
    with pytest.raises(ValueError, match="a bucket must hold at least 1"):
        tables.evaluate(trace, bucket=0)
