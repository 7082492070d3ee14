"""Comparisons of gains against figures computed by hand."""

import math

import numpy as np
import pytest
import xarray as xr

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.lookup import reader_names


def tiny(nll: dict[str, list[float]], documents: tuple[int, ...] = (2, 2), **attributes: str | int) -> xr.Dataset:
    """A valid trace of two documents whose NLL is given, with invented tokens."""
    trace = make_trace(tokens=4, documents=2, readers=tuple(nll), parameters=())
    trace = trace.assign_coords(
        document=("token", np.repeat(np.arange(2), documents)),
        position=("token", np.concatenate([np.arange(n) for n in documents]), {"units": "token"}),
        token_id=("token", np.array([7, 8, 7, 9])),
    )
    trace["nll"] = trace["nll"].copy(data=np.array(list(nll.values())))
    return schema.validate(trace.assign_attrs(attributes))


BASE = [4.0, 3.0, 2.0, 1.0]


def test_seeds_have_a_mean_and_a_spread():
    runs = [
        tiny({"base": BASE, "fwl": [x - gain for x in BASE]}, seed=seed, model_hash=f"m{seed}")
        for seed, gain in ((3, 0.1), (4, 0.2), (5, 0.6))
    ]
    result = analysis.across_seeds(runs).sel(reader="fwl")
    np.testing.assert_allclose(result.gain, [0.1, 0.2, 0.6])
    assert result.seed.values.tolist() == [3, 4, 5]
    assert result.model_hash.values.tolist() == ["m3", "m4", "m5"]
    assert float(result["mean"]) == pytest.approx(0.3)
    assert float(result["std"]) == pytest.approx(math.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2))
    assert (float(result["min"]), float(result["max"])) == (pytest.approx(0.1), pytest.approx(0.6))
    assert result["std"].attrs["units"] == "nat/token"


def test_readers_are_matched_by_name_in_runs_that_order_them_otherwise():
    one = tiny({"base": BASE, "static": BASE, "fwl": [1.0] * 4})
    other = tiny({"fwl": [1.0] * 4, "static": BASE, "base": BASE})
    result = analysis.across_seeds([one, other])
    assert result.sel(reader="fwl").gain.values.tolist() == [1.5, 1.5]
    assert float(result["std"].sel(reader="static")) == 0.0


def test_runs_over_unlike_documents_are_refused():
    trace = make_trace(tokens=40)
    renamed = trace.assign_coords(document_name=("document", text_array(["package/module_0.py", "b", "c"])))
    ids = trace.assign_coords(token_id=trace.token_id.where(trace.token_id.token != 5, 399))
    for other, message in (
        (renamed, "trace 1 is of other documents than trace 0 .* differ in 'package/module_1.py' and 'b'"),
        (make_trace(tokens=40, documents=2), r"\(2 and 3; they differ in their number\)"),
        (trace.isel(token=slice(30)), "trace 1 holds 30 tokens, trace 0 holds 40"),
        (ids, "trace 1 differs from trace 0 in 'token_id' from token 5 on"),
        (trace.sel(reader=["base", "fwl"]), "trace 1 holds the readers base, fwl"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.across_seeds([trace, other])
    with pytest.raises(ValueError, match="1 trace given; expected a list of two or more"):
        analysis.across_seeds([trace])
    with pytest.raises(ValueError, match="1 trace given; expected a list of two or more"):
        analysis.across_seeds(trace)  # type: ignore[arg-type]


def test_reset_and_carry_stand_side_by_side():
    reset = tiny({"base": BASE, "fwl": [3.0, 2.0, 2.0, 1.0]}, (1, 3), carry="false")
    carry = tiny({"base": BASE, "fwl": [3.0, 2.0, 1.0, 1.0]}, (1, 3), carry="true")
    result = analysis.reset_and_carry(reset, carry).sel(reader="fwl")
    micro, per_document = (result["mean"].sel(average=name) for name in ("micro", "per_document"))
    np.testing.assert_allclose(micro.sel(state=["reset", "carry", "difference"]), [2 / 4, 3 / 4, 1 / 4])
    np.testing.assert_allclose(per_document, [(1 + 1 / 3) / 2, (1 + 2 / 3) / 2, (0 + 1 / 3) / 2])
    # Two documents: a replicate holds one of them twice, or both; 0 and 1/3 are the ends.
    difference = result.sel(state="difference", average="micro")
    assert (float(difference.low), float(difference.high)) == (pytest.approx(0.0), pytest.approx(1 / 3))


def test_two_traces_of_one_kind_are_refused():
    trace = make_trace(tokens=40)
    reset, carry = (trace.assign_attrs(carry=value) for value in ("false", "true"))
    for pair, message in (
        ((reset, reset), "the carry trace has the attribute 'carry' 'false', expected 'true'"),
        ((carry, carry), "the reset trace has the attribute 'carry' 'true', expected 'false'"),
        ((carry, reset), "the reset trace has"),
        ((trace, carry), "'carry' None"),
        ((reset, carry.sel(reader=["base", "fwl"])), "the traces hold other readers"),
        ((reset, carry.isel(token=slice(9))), "holds 9 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.reset_and_carry(*pair)


def test_the_net_gain_is_what_the_wrong_document_does_not_give():
    trace = tiny({"base": BASE, "own": [2.0, 2.0, 1.0, 1.0], "wrong": [3.5, 3.0, 2.0, 0.5]})
    result = analysis.net_gain(trace)
    assert result["mean"].sel(average="micro").values.tolist() == [1.0, 0.25, 0.75]
    assert result.part.values.tolist() == ["gain", "generic", "net"]
    net = result.sel(part="net", average="micro")
    assert (float(net.low), float(net.high)) == (0.25, 1.25)  # the two documents' own: (1.5 + 1) / 2, (1 - 0.5) / 2
    with pytest.raises(ValueError, match="no reader 'wrong'"):
        analysis.net_gain(make_trace(), own="fwl")


def test_key_tokens_are_those_that_a_longer_context_made_easy():
    trace = tiny({"base": [4.0, 5.0, 9.0, 1.0], "more_context": [1.0, 3.5, 2.5, 0.5], "fwl": [2.0, 8.0, 8.0, 8.0]})
    result = analysis.key_token_perplexity(trace)
    assert result.attrs["tokens"] == 1  # saved 3, 1.5, 6.5, 0.5 nats; left 1, 3.5, 2.5, 0.5
    assert result.nats_per_token.values.tolist() == [4.0, 1.0, 2.0]
    assert float(result.token_perplexity.sel(reader="fwl")) == pytest.approx(math.exp(2))
    assert analysis.key_token_perplexity(trace, likely=3.0).nats_per_token.values.tolist() == [6.5, 1.75, 5.0]
    assert np.isnan(analysis.key_token_perplexity(trace, saved=100.0).nats_per_token).all()


def frontier_trace(gains: dict[str, float], seconds: list[float], **costs: list[float]) -> xr.Dataset:
    trace = make_trace(tokens=40, readers=("base", *gains), parameters=(), recorded=False)
    level = trace.nll.sel(reader="base").values
    trace["nll"] = trace.nll.copy(data=np.stack([level, *(level - gain for gain in gains.values())]))
    trace["seconds"] = trace.seconds.copy(data=np.array(seconds))
    return schema.with_units(trace.drop_vars("peak_bytes").assign({k: ("reader", v) for k, v in costs.items()}))


def test_the_frontier_is_in_bits_per_token_and_seconds_per_token():
    trace = frontier_trace({"cheap": 0.5, "slow": 0.4, "dear": 1.0, "worse": -0.1}, [4.0, 8.0, 20.0, 40.0, 2.0])
    result = analysis.cost_frontier(trace)
    np.testing.assert_allclose(result.bits_per_token, np.array([0, 0.5, 0.4, 1.0, -0.1]) / math.log(2))
    np.testing.assert_allclose(result.seconds_per_token, [0.1, 0.2, 0.5, 1.0, 0.05])
    np.testing.assert_allclose(result.low, result.bits_per_token)  # every token gains the same
    assert result.optimal.sel(cost="seconds_per_token").values.tolist() == [True, True, False, True, True]
    assert np.isnan(result.flops_per_token).all()
    assert not result.optimal.sel(cost=["flops_per_token", "peak_bytes"]).any()
    assert result.seconds_per_token.attrs["units"] == "s/token"


def test_each_cost_has_its_own_frontier():
    costs = {"flops_per_token": [1.0, 3.0, 3.0, np.nan], "peak_bytes": [5.0, 5.0, 6.0, 7.0]}
    trace = frontier_trace({"a": 0.5, "twin": 0.5, "unknown": 1.0}, [4.0, 8.0, 0.0, 8.0], **costs)
    optimal = analysis.cost_frontier(trace).optimal
    assert optimal.sel(cost="flops_per_token").values.tolist() == [True, True, True, False]
    assert optimal.sel(cost="peak_bytes").values.tolist() == [False, True, False, True]
    assert optimal.sel(cost="seconds_per_token").values.tolist() == [True, False, False, True]


def test_the_frontier_of_a_trace_without_costs_is_empty():
    trace = make_trace(tokens=40, recorded=False).drop_vars(["seconds", "peak_bytes"])
    result = analysis.cost_frontier(trace, baseline="static")
    assert not result.optimal.any()
    assert float(result.bits_per_token.sel(reader="static")) == 0.0
    assert result.reader.values.tolist() == reader_names(trace)
