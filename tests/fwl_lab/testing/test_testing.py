"""What a synthetic trace holds agrees with itself, as a real one does."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fwl_lab import open_trace, save_trace
from fwl_lab.analysis.fast_weights import fast_weight, first_source, relative_drift
from fwl_lab.analysis.spectra import spectrum
from fwl_lab.attribution.summary import receipt_summary
from fwl_lab.audit.certificate import certificates
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_facts
from fwl_lab.trace.schema import validate
from widgets.display.badges import badge_html, badge_text


@pytest.fixture(scope="module")
def trace() -> xr.Dataset:
    return make_trace(tokens=3000)


@pytest.fixture(scope="module")
def long() -> xr.Dataset:
    """Two documents, one of them with anchors."""
    return make_trace(seed=2, tokens=12000, documents=2)


def test_the_same_seed_gives_the_same_trace_and_another_one_another() -> None:
    assert make_trace(seed=5).identical(make_trace(seed=5))
    first, second = make_trace(seed=5), make_trace(seed=6)
    for name in (schema.TOP_ID, schema.NLL, schema.RECEIPT_SHARE, schema.delta_name("W2")):
        assert not np.array_equal(first[name].values, second[name].values), name


def test_readers_may_have_any_names_and_say_of_which_kind_they_are() -> None:
    names = {"d": "base", "c": "static", "b": "dynamic_evaluation", "a": "fwl"}
    found, expected = (make_trace(seed=5, readers=readers, failing=True) for readers in (names, tuple(names.values())))
    assert found.assign_coords(reader=expected["reader"]).equals(expected)
    assert found.attrs[schema.FACTORED] == "a" and set(certificates(found)) == {"a", "b", "c"}
    facts = reader_facts(found)
    assert [one.adapts for one in facts.values()] == [False, False, True, True]
    assert [one.update_every for one in facts.values()] == [None, None, 64, 64]
    assert [one.every_token for one in facts.values()] == [False, False, False, True]
    assert [one.block for one in facts.values()] == [False, True, False, True]
    assert [one.label for one in facts.values()] == ["static", "static", "dynamic evaluation", "FWL"]
    mine = reader_facts(make_trace(tokens=20, readers=("base", "mine")))["mine"]
    assert mine.adapts and mine.update_every == 64 and not mine.every_token and mine.label == "mine"


class TestAlternatives:
    @pytest.mark.parametrize("vocab", [1, 2, 5, 11, 400])
    def test_they_agree_with_the_score_and_the_rank_of_what_came(self, vocab: int) -> None:
        trace = make_trace(tokens=500, vocab=vocab)
        ids, log_probs = trace[schema.TOP_ID].values, trace[schema.TOP_LOG_PROB].values
        rank, nll = trace[schema.LABEL_RANK].values, trace[schema.NLL].values
        top = min(10, vocab)
        assert ids.shape == (4, 500, top) and (np.diff(log_probs, axis=-1) <= 0).all()
        assert ids.min() >= 0 and rank.min() >= 0 and max(ids.max(), rank.max()) < vocab
        assert all(len(set(row)) == top for row in ids.reshape(-1, top).tolist())
        own = ids == trace[schema.TOKEN_ID].values[:, None]
        np.testing.assert_array_equal(own.any(-1), rank < top)
        np.testing.assert_array_equal(own.argmax(-1)[rank < top], rank[rank < top])
        np.testing.assert_allclose(log_probs[own], -nll[rank < top], rtol=1e-6)
        # Where it is not listed it is less likely than all that are.
        assert (log_probs[rank >= top].min(-1, initial=0) > -nll[rank >= top]).all()
        # What is left is no more than the tokens that are not listed can fill (scores know no vocabulary of one).
        left = 1 - np.exp(log_probs.astype(np.float64)).sum(-1)
        assert (left > -1e-6).all()
        assert vocab == 1 or (left <= (vocab - top) * np.exp(log_probs[..., -1]) + 1e-6).all()

    def test_readers_that_adapt_expect_them_in_another_order(self, trace: xr.Dataset) -> None:
        ids, token_id = trace[schema.TOP_ID].values, trace[schema.TOKEN_ID].values
        listed = [
            [[i for i in row if i != own][:8] for row, own in zip(rows, token_id, strict=True)] for rows in ids.tolist()
        ]
        assert listed[0] == listed[1]
        moved = np.mean([a != b for a, b in zip(listed[0], listed[3], strict=True)])
        kept = np.mean([len(set(a) & set(b)) for a, b in zip(listed[0], listed[3], strict=True)])
        assert moved > 0.8 and kept > 5

    def test_every_id_has_its_own_text(self, trace: xr.Dataset) -> None:
        texts = trace[schema.VOCABULARY_TEXT].values
        np.testing.assert_array_equal(texts[trace[schema.TOKEN_ID].values], trace[schema.TOKEN_TEXT].values)
        assert len(set(texts.tolist())) == len(texts) == 400
        assert {"</script>", "\x00", "\u202e", "🙂"} <= set(texts.tolist())


def test_recording_can_be_left_out() -> None:
    plain = make_trace(recorded=False)
    assert set(plain.data_vars) == {schema.NLL, schema.SECONDS, schema.PEAK_BYTES, schema.DRIFT, schema.UPDATE_NORM}
    assert schema.VOCABULARY_TEXT not in plain.variables and schema.CERTIFICATES not in plain.attrs
    np.testing.assert_array_equal(plain[schema.NLL].values, make_trace()[schema.NLL].values)


def test_every_variable_of_the_schema_is_there(trace: xr.Dataset) -> None:
    fields = schema.FIELDS | schema.parameter_fields(trace)
    low_rank = {name(p) for name in (schema.left_name, schema.right_name) for p in trace[schema.PARAMETER].values}
    vectors = {schema.key_name(p) for p in ("b1", "b2", "g", "b")}
    assert set(fields) - set(trace.variables) == low_rank | vectors


def test_all_of_it_survives_saving(trace: xr.Dataset, tmp_path: Path) -> None:
    again = open_trace(save_trace(trace, tmp_path / "trace.zarr"))
    xr.testing.assert_identical(validate(again).load(), trace)


class TestFastWeights:
    @pytest.mark.parametrize("parameter", ["W1", "b1", "W2", "b2", "g", "b"])
    def test_they_are_the_sum_of_their_factors_at_any_token(self, long: xr.Dataset, parameter: str) -> None:
        deltas = long[schema.delta_name(parameter)].values.astype(np.float64)
        keys = long[schema.key_name(parameter)].values if schema.key_name(parameter) in long else None
        for token in (0, 1, 700, 4095, 4097, 9000, long.sizes[schema.TOKEN]):
            start = first_source(long, token)
            part = deltas[start:token]
            expected = part.sum(0) if keys is None else part.T @ keys[start:token]
            found = fast_weight(long, "fwl", parameter, token)
            np.testing.assert_allclose(found.values, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))

    def test_norms_are_those_of_the_sums(self, long: xr.Dataset) -> None:
        grid, position = long[schema.UPDATE_TOKEN].values, long[schema.POSITION].values
        for parameter in ("W2", "b1"):
            rows = long.sel(reader="fwl", parameter=parameter)
            before, last = np.zeros(()), np.zeros(())
            for index, token in enumerate(grid.tolist()):
                now = fast_weight(long, "fwl", parameter, token + 1).values.astype(np.float64)
                assert rows[schema.DRIFT].values[index] == pytest.approx(np.linalg.norm(now), rel=1e-4)
                first = position[token] < 64
                step = now if first else now - before
                assert rows[schema.UPDATE_NORM].values[index] == pytest.approx(np.linalg.norm(step), rel=1e-3)
                cosine = rows[schema.UPDATE_COSINE].values[index]
                if first:
                    assert np.isnan(cosine)
                else:
                    lengths = np.linalg.norm(step) * np.linalg.norm(last)
                    assert cosine == pytest.approx((step * last).sum() / lengths, abs=1e-3)
                before, last = now, step
        assert (position[grid] < 64).sum() == 2  # documents

    def test_dense_ones_are_kept_every_4096_tokens_of_a_document(self, long: xr.Dataset) -> None:
        kept = long[schema.ANCHORED].values
        assert kept.any(1).tolist() == [False, False, False, True]
        position = long[schema.POSITION].values[long[schema.UPDATE_TOKEN].values]
        assert position[kept[3]].tolist()[:2] == [4095, 8191]
        np.testing.assert_array_equal(np.isfinite(long["fast_weight_W2"].values).any((2, 3)), kept)
        np.testing.assert_array_equal(np.isfinite(long["fast_weight_b"].values).all(2), kept)

    def test_their_spectrum_and_drift_can_be_asked_for(self, long: xr.Dataset) -> None:
        found = spectrum(long, "W2", [10, 5000])
        exact = np.linalg.svd(fast_weight(long, "fwl", "W2", 10).values, compute_uv=False)
        np.testing.assert_allclose(found["singular_value"].values[0], exact, atol=1e-5)
        assert 1 < float(found["effective_rank"].values[1]) < 16
        relative = relative_drift(long).values
        assert np.isnan(relative[:2]).all() and (relative[2:] > 0).all() and np.nanmax(relative) < 10
        assert np.isnan(long[schema.RETENTION].values[:2]).all() and (long[schema.RETENTION].values[2:] == 1).all()

    def test_without_parameters_or_without_fwl_there_are_none(self) -> None:
        bare = make_trace(tokens=200, parameters=())
        assert schema.FACTORED not in bare.attrs and schema.DRIFT not in bare
        assert (bare[schema.RECEIPT_SOURCE].values[3] >= 0).any()
        other = make_trace(tokens=200, readers=("base", "mine"))
        assert schema.FACTORED not in other.attrs and schema.DRIFT in other and "delta_W1" not in other
        assert schema.RECEIPT_GAIN not in other and schema.CERTIFICATES not in other.attrs


class TestReceipts:
    def test_they_are_laid_out_and_add_up_as_real_ones(self, trace: xr.Dataset) -> None:
        rows = {name: trace[name].values for name in trace.data_vars if str(name).startswith("receipt_")}
        source, share = rows[schema.RECEIPT_SOURCE], rows[schema.RECEIPT_SHARE]
        gain, gross = rows[schema.RECEIPT_GAIN], rows[schema.RECEIPT_GROSS]
        there = np.isfinite(gain)
        assert there.sum(1).tolist() == [0, 0, 0, 150]
        nll = trace[schema.NLL].values
        np.testing.assert_array_equal(gain[3][there[3]], (nll[1] - nll[3])[there[3]])  # over θ₀, so "static"
        for name in (schema.RECEIPT_SHARE, schema.RECEIPT_LEAVE_ONE_OUT):
            np.testing.assert_array_equal(np.isfinite(rows[name]), source >= 0)
        assert (source[~there] == -1).all() and not np.isfinite(gross[~there]).any()
        position = trace[schema.POSITION].values
        for token in np.flatnonzero(there[3]).tolist():
            some = source[3, token][source[3, token] >= 0]
            assert len(set(some)) == len(some) == min(8, position[token])
            assert some.min() >= first_source(trace, token) and some.max() < token
            sizes = np.abs(share[3, token, : len(some)])
            assert (np.diff(sizes) <= 0).all() and sizes.sum() <= gross[3, token] * (1 + 1e-12)
            net, residual = share[3, token, : len(some)].sum(), rows[schema.RECEIPT_RESIDUAL][3, token]
            unlisted = gain[3, token] - residual - net
            assert abs(unlisted) <= gross[3, token] - sizes.sum() + 1e-9
        brief = make_trace(tokens=4, documents=1)  # all sources are listed
        token = int(np.flatnonzero(np.isfinite(brief[schema.RECEIPT_GAIN].values[3]))[0])
        shares = brief[schema.RECEIPT_SHARE].values[3, token]
        facts = {n: float(brief[n].values[3, token]) for n in (schema.RECEIPT_GAIN, schema.RECEIPT_RESIDUAL)}
        assert np.nansum(shares) == pytest.approx(
            facts[schema.RECEIPT_GAIN] - facts[schema.RECEIPT_RESIDUAL], abs=1e-12
        )
        assert np.isfinite(shares).sum() == token

    def test_they_can_be_summed_up(self, trace: xr.Dataset) -> None:
        found = receipt_summary(trace)
        assert found.attrs["receipts"] == 150 and found.attrs["worst_residual"] < 1e-5
        kinds = dict(zip(found["kind"].values.tolist(), found["net"].values, strict=True))
        assert kinds["same token"] > kinds["other"] > 0

    def test_over_base_where_nothing_else_stands_still(self) -> None:
        trace = make_trace(tokens=300, readers=("fwl", "base"))
        gain = trace[schema.RECEIPT_GAIN].values
        there = np.isfinite(gain[0])
        assert there.sum() == 15 and not np.isfinite(gain[1]).any()
        np.testing.assert_array_equal(gain[0][there], (trace[schema.NLL][1] - trace[schema.NLL][0]).values[there])


def test_certificates_are_badges() -> None:
    assert {name: found.passed for name, found in certificates(make_trace(tokens=20)).items()} == {"fwl": True}
    found = certificates(make_trace(tokens=20, failing=True))
    assert {name: badge_text(one) for name, one in found.items()} == {
        "fwl": "certified",
        "dynamic_evaluation": "failed: padding",
        "static": "certified, 1 not checked",
    }
    html = badge_html(make_trace(tokens=20, failing=True))
    assert html.count('class="fwl-badge certified"') == 2 and html.count('class="fwl-badge failed"') == 1


def test_costs_of_all_readers_are_told(trace: xr.Dataset) -> None:
    flops = trace[schema.FLOPS_PER_TOKEN].values
    assert (flops > 0).all() and flops[0] == flops[1] < flops[2:].min()


@pytest.mark.parametrize(("tokens", "documents"), [(1, 1), (5, 5), (63, 3)])
def test_short_traces_are_whole_too(tokens: int, documents: int, tmp_path: Path) -> None:
    trace = make_trace(tokens=tokens, documents=documents)
    assert trace.sizes[schema.UPDATE] == 0 and schema.RECEIPT_GAIN in trace
    xr.testing.assert_identical(open_trace(save_trace(trace, tmp_path / "trace.zarr")).load(), trace)
