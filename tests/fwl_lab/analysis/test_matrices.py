"""The spectrum of Δθ without Δθ, its directions, and what they say; compared with dense linear algebra."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from fwl_lab import FastWeightReader, LanguageModel, Recorder, UpdateRule, attach_fast_weights, score
from fwl_lab.analysis.fast_weights import fast_weight, retained
from fwl_lab.analysis.spectra import directions, effective_rank, principal_angles, promotes, spectrum
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace.lookup import reader_configurations
from tests.helpers.models import DOCUMENTS, INNER_BATCH, fill_block, make_text_model


@pytest.fixture(scope="module", params=["mistral", "gpt2"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    rule = UpdateRule(inner_batch=INNER_BATCH, decay=0.1)
    return fill_block(attach_fast_weights(make_text_model(request.param), 6, rule))


@pytest.fixture(scope="module")
def trace(model: LanguageModel) -> xr.Dataset:
    return score(model, DOCUMENTS[:2], {"fwl": FastWeightReader(model)}, Recorder(), progress=False)


def test_a_spectrum_is_that_of_the_dense_matrix(trace: xr.Dataset) -> None:
    first = int((trace["document"].values == 0).sum())
    tokens = [0, 1, 3, 9, 17, 40, first - 1, first, first + 5, trace.sizes["token"] - 1]
    for parameter in ("W1", "W2"):
        found = spectrum(trace, parameter, tokens, count=40)
        for row, token in enumerate(tokens):
            dense = np.linalg.svd(fast_weight(trace, "fwl", parameter, token).values.astype(float), compute_uv=False)
            values = found["singular_value"].values[row]
            top = max(dense.max(), 1e-300)
            np.testing.assert_allclose(values[: len(dense)] / top, dense / top, atol=1e-6)  # worst seen: 2e-7
            assert not values[len(dense) :].any()
            if dense.any():
                assert float(found["effective_rank"][row]) == pytest.approx(effective_rank(dense), rel=1e-2)
                assert float(found["stable_rank"][row]) == pytest.approx((dense**2).sum() / top**2, rel=1e-4)
        assert np.isnan(found["effective_rank"].values[[0, 7]]).all()  # nothing learned yet in either document


def test_effective_rank_counts_equal_values() -> None:
    assert effective_rank(np.array([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.array([2.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_what_decay_has_left_is_a_product_of_what_was_retained(trace: xr.Dataset) -> None:
    left = retained(trace, "fwl", 0, 25)
    keep = trace["retention"].sel(reader="fwl").values[:2]
    np.testing.assert_allclose(keep, 0.9, rtol=1e-6)
    expected = [keep[0] * keep[1]] * 10 + [keep[1]] * 10 + [1.0] * 5
    np.testing.assert_allclose(left, expected)
    assert retained(trace, "fwl", 7, 7).shape == (0,)


def test_directions_rebuild_the_matrix_and_point_with_its_keys(trace: xr.Dataset) -> None:
    token = 33
    dense = fast_weight(trace, "fwl", "W2", token).values
    found = directions(trace, "fwl", "W2", token, count=min(dense.shape))
    rebuilt = np.einsum("i,ir,ic->rc", found["singular_value"], found["left"], found["right"])
    np.testing.assert_allclose(rebuilt, dense, atol=1e-6)
    keys = trace["key_W2"].values[:token].mean(0)
    assert bool((found["right"].values @ keys >= -1e-9).all())


def test_principal_angles_are_those_between_known_planes() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    right = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    turned = np.stack([basis[:, 0], np.cos(0.3) * basis[:, 1] + np.sin(0.3) * basis[:, 2]], 1)
    slow = basis[:, :2] * [5.0, 4.0] @ right[:2]
    new = xr.DataArray(turned * [2.0, 1.0] @ right[:2], dims=("row_W", "col_W"), name="W")
    angles = principal_angles(new, slow, rank=2)
    np.testing.assert_allclose(angles.sel(side="rows").values, [0.0, 0.3], atol=1e-7)
    np.testing.assert_allclose(angles.sel(side="columns").values, [0.0, 0.0], atol=1e-7)
    with pytest.raises(ValueError, match=r"slow weights have shape \(3, 3\); expected \(9, 7\)"):
        principal_angles(new, np.eye(3))


def test_what_a_direction_promotes_is_what_the_logits_do(model: LanguageModel, trace: xr.Dataset) -> None:
    token, block = 30, model.block
    assert block is not None
    found = promotes(trace, model, "W2", token, direction=1, top=4)
    u = directions(trace, "fwl", "W2", token, count=2)["left"].values[1]
    # The last norm is linear along a direction where the state is zero, up to its scale: centre, gain, unembedding.
    if block.kind == "layer":
        u = u - u.mean()
    logits = block.head[0].detach().double().numpy() @ (u * block.g.detach().double().numpy())
    order = np.argsort(-logits)
    assert found["token_id"].sel(side="promoted").values.tolist() == order[:4].tolist()
    assert found["token_id"].sel(side="suppressed").values.tolist() == order[::-1][:4].tolist()
    np.testing.assert_allclose(found["logit"].sel(side="promoted").values, logits[order[:4]])
    ids = found["token_id"].values
    assert str(found["token_text"].values[0, 0]) == model.tokenizer.decode([int(ids[0, 0])])
    vector = promotes(trace, model, "b2", token)
    assert not np.array_equal(vector["token_id"].values[0, :4], ids[0])
    with pytest.raises(ValueError, match="parameter is 'W1'; expected 'W2', 'b2' or 'b'"):
        promotes(trace, model, "W1", token)


def test_between_its_updates_a_block_has_no_snapshot(model: LanguageModel) -> None:
    recorder = Recorder(factors=False, snapshots_every=INNER_BATCH, parameters=["W2"], top=0)
    trace = score(model, DOCUMENTS[:1], {"fwl": FastWeightReader(model)}, recorder, progress=False)
    reader = FastWeightReader(model)
    reader.read(model.encode(DOCUMENTS[0].text)[None, : 2 * INNER_BATCH])
    expected = reader.fast_weights()["W2"][0].numpy()
    found = fast_weight(trace, "fwl", "W2", 2 * INNER_BATCH).values
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())
    assert not fast_weight(trace, "fwl", "W2", 0).values.any()
    for token in (1, INNER_BATCH - 1, 2 * INNER_BATCH + 1):
        with pytest.raises(ValueError, match=f"at token {token} was not kept; the nearest is at"):
            fast_weight(trace, "fwl", "W2", token)


def test_what_has_no_direction_promotes_nothing(model: LanguageModel, trace: xr.Dataset) -> None:
    for parameter in ("W2", "b2"):
        with pytest.raises(ValueError, match=r"expected one that Δθ of .* has, from 0: none yet at token 0"):
            promotes(trace, model, parameter, 0)
    for direction in (3, 10**4, -1):
        with pytest.raises(ValueError, match=f"direction is {direction}; .* 3 directions at token 3"):
            promotes(trace, model, "W2", 3, direction=direction)
    other = fill_block(attach_fast_weights(make_text_model("mistral"), 6, model.block.rule), seed=5)
    with pytest.raises(ValueError, match=r"with the hash \w+, this one's is"):
        promotes(trace, other, "W2", 3)
    slow = FastWeightReader(model).slow_weights()["W2"].numpy()
    for token, rank, said in ((0, 8, "Δθ has 0 directions, and rank is 8"), (3, 8, "Δθ has 3"), (30, 0, "rank is 0")):
        with pytest.raises(ValueError, match=said):
            principal_angles(fast_weight(trace, "fwl", "W2", token), slow, rank=rank)
    with pytest.raises(ValueError, match="count is 0"):
        directions(trace, "fwl", "W2", 3, count=0)


def test_what_is_not_there_is_said(trace: xr.Dataset) -> None:
    wrong: list[Any] = [[10**6], [-1], [], 5, [5.9]]
    for tokens in wrong:
        with pytest.raises(ValueError, match=r"expected a list of indices, each 0 to \d+, of this trace"):
            spectrum(trace, "W2", tokens)
    synthetic = make_trace(0, tokens=100, recorded=False)
    cases = [
        (lambda: fast_weight(trace, "base", "W2", 3), "no reader 'base' in this trace; it holds fwl"),
        (lambda: fast_weight(trace, "fwl", "W9", 3), "no parameter 'W9' was recorded; this trace holds W1, b1"),
        (lambda: fast_weight(trace, "fwl", "W2", 10**6), "token is 1000000; expected 0 to"),
        (lambda: fast_weight(synthetic, "fwl", "W1", 70), r"Record with Recorder\(factors=True\)"),
        (lambda: spectrum(synthetic, "W1", [3]), "the trace holds no factors; name a reader"),
        (lambda: spectrum(trace, "b1", [30]), "b1 is a vector; expected a matrix"),
        (lambda: spectrum(trace, "W2", [30], count=0), "count is 0; expected at least 1"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert reader_configurations(trace)["fwl"]["decay"] == pytest.approx(0.1)
