"""A trace read again under surgery: the same tokens, the old readers beside the new one, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fwl_lab import (
    FastWeightReader,
    LanguageModel,
    Reader,
    Recorder,
    Surgery,
    UpdateRule,
    attach_fast_weights,
    fast_weight,
    make_readers,
    open_trace,
    operate,
    receipt,
    replay,
    score,
)
from fwl_lab.analysis import gain
from fwl_lab.trace.schema import validate
from tests.helpers.models import DOCUMENTS, INNER_BATCH, READERS, SEGMENT, fill_block, make_text_model

MAX_TOKENS = 50  # of a document; no whole number of segments, and in the midst of a text


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    rule = UpdateRule(inner_batch=INNER_BATCH, cap=0.02)
    return fill_block(attach_fast_weights(make_text_model("mistral"), 6, rule))


@pytest.fixture(scope="module")
def readers(model: LanguageModel) -> dict[str, Reader]:
    return {name: READERS[name](model) for name in ("base", "fwl", "sgd")}


@pytest.fixture(scope="module")
def trace(model: LanguageModel, readers: dict[str, Reader]) -> xr.Dataset:
    recorder = Recorder(factors=True, snapshots_every=1)
    return score(model, DOCUMENTS, readers, recorder, progress=False, max_tokens=MAX_TOKENS)


def starts(trace: xr.Dataset) -> list[int]:
    """Index of each document's first token, and the end."""
    return [*np.flatnonzero(trace["position"].values == 0).tolist(), trace.sizes["token"]]


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", ["fwl", "sgd"])
def test_a_replay_with_nothing_changed_is_the_reading_bitwise(
    name: str, carry: bool, model: LanguageModel, readers: dict[str, Reader]
) -> None:
    old = score(model, DOCUMENTS[:2], readers, Recorder(), carry=carry, progress=False, max_tokens=MAX_TOKENS)
    new = replay(model, old, Surgery(), reader=name, readers=readers, record=Recorder())
    again = f"{name}: nothing changed"
    assert new["reader"].values.tolist() == ["base", "fwl", "sgd", again]
    for variable in ("nll", "label_rank", "top_id", "top_log_prob"):
        np.testing.assert_array_equal(new[variable].sel(reader=again).values, old[variable].sel(reader=name).values)
        np.testing.assert_array_equal(new[variable].isel(reader=slice(3)).values, old[variable].values)
    own = np.isin(old["update_token"].values, new["update_token"].values)
    for variable in ("update_norm", "drift", "retention", "slow_norm"):
        found, copied = (new[variable].sel(reader=reader).values for reader in (again, name))
        np.testing.assert_array_equal(found, copied)
        assert np.isfinite(found).all()
        if "update" in old[variable].dims:
            expected = old[variable].sel(reader=name).isel(update=own)
            if "parameter" in expected.dims:
                expected = expected.sel(parameter=new["parameter"].values)
            np.testing.assert_array_equal(found, expected.values)
    for coordinate in ("token_id", "token_text", "document", "position", "byte_count", "document_name"):
        assert new[coordinate].identical(old[coordinate].drop_vars(["parameter", "reader"], errors="ignore"))
    same = ("model_hash", "corpus_hash", "carry", "max_tokens", "dtype")
    assert {key: new.attrs[key] for key in same} == {key: old.attrs[key] for key in same}
    configurations = json.loads(new.attrs["readers"])
    assert configurations[again]["surgery"] == {} and configurations[name] == json.loads(old.attrs["readers"])[name]


@pytest.mark.parametrize("name", ["fwl", "sgd"])
def test_tokens_are_named_by_their_index_in_the_trace(
    name: str, model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset
) -> None:
    """In two documents a segment each is dropped, of the others nothing."""
    edges = starts(trace)
    dropped = [*range(edges[1], edges[1] + SEGMENT), edges[2] + 2 * SEGMENT - 1]
    new = replay(model, trace, Surgery(drop=dropped, name="less"), reader=name, readers=readers)
    found, old = (new["nll"].sel(reader=reader).values for reader in (f"{name}: less", name))
    for number, surgery in enumerate(
        [Surgery(), Surgery(drop=range(SEGMENT)), Surgery(drop=[2 * SEGMENT - 1]), Surgery()]
    ):
        at = slice(edges[number], edges[number + 1])
        ids = torch.from_numpy(trace["token_id"].values[at])[None]
        expected = operate(readers[name], surgery).read(ids).nll[0].double().numpy()
        np.testing.assert_array_equal(found[at], expected)
        assert np.array_equal(found[at], old[at]) == (number in (0, 3))
    assert json.loads(new.attrs["readers"])[f"{name}: less"]["surgery"]["name"] == "less"


def test_a_mask_may_name_tokens_that_make_no_update(
    model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset
) -> None:
    everything = xr.ones_like(trace["position"], dtype=bool)
    for name, static in (("fwl", readers["fwl"].with_step_scale(0)), ("sgd", readers["base"])):
        new = replay(model, trace, Surgery(drop=everything, name="nothing learned"), reader=name, readers=readers)
        expected = score(model, DOCUMENTS, {"static": static}, progress=False, max_tokens=MAX_TOKENS)
        found = new["nll"].sel(reader=f"{name}: nothing learned").values
        np.testing.assert_allclose(found, expected["nll"].values[0], rtol=0, atol=1e-5)
        assert np.abs(found - new["nll"].sel(reader=name).values).max() > 0.01


def test_replays_add_up_and_gains_compare(model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset) -> None:
    others = [name for name in ("W1", "b1", "b2", "g", "b") if name in readers["fwl"].slow_weights()]
    new = replay(model, trace, Surgery(scale=dict.fromkeys(others, 0.0), name="W2 only"))
    new = validate(replay(model, new, Surgery(rank=1)))
    assert new["reader"].values.tolist() == ["base", "fwl", "sgd", "fwl: W2 only", "fwl: rank 1"]
    gains = gain(new).mean("token")
    assert float(gains.sel(reader="fwl")) == pytest.approx(float(gain(trace).mean("token").sel(reader="fwl")))
    assert len({round(float(gains.sel(reader=name)), 9) for name in gains["reader"].values.tolist()}) == 4
    assert not [name for name in new.variables if str(name).startswith(("key_", "delta_", "update"))]


def test_factors_of_a_replay_make_its_fast_weights(
    model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset, tmp_path: Path
) -> None:
    dropped, path = [3, 4, 17], tmp_path / "new.zarr"
    surgery = Surgery(drop=dropped, scale={"W1": 2.0, "b1": 0.0}, decay=0.1, name="less")
    new = replay(model, trace, surgery, record=Recorder(), path=path)
    xr.testing.assert_identical(open_trace(path).load(), new.load())
    assert new.attrs["factored"] == "fwl: less"
    deltas = new["delta_W2"].values
    assert not deltas[dropped].any() and (np.abs(deltas[[2, 5, 16, 18]]).max(1) > 0).all()
    assert not new["delta_b1"].values.any()
    reader = operate(readers["fwl"], surgery)
    ids = torch.from_numpy(trace["token_id"].values[: starts(trace)[1]])
    for token in (1, INNER_BATCH + 3, 2 * INNER_BATCH + 1, 3 * INNER_BATCH + 4):
        reader.reset()
        reader.read(ids[None, :token])
        for parameter, delta in reader.fast_weights().items():
            found = fast_weight(new, "fwl: less", parameter, token).values
            np.testing.assert_allclose(found, delta[0].numpy(), rtol=0, atol=1e-6)  # worst seen: 2e-9
    # The decay and the cap have both acted, as the trace says.
    kept = new["retention"].sel(reader="fwl: less").values[: len(ids) // INNER_BATCH]
    assert (kept[:-1] <= 0.9 + 1e-6).all() and kept.min() < 0.89


def test_snapshots_of_a_truncated_reading_are_what_was_in_force(
    model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset
) -> None:
    recorder = Recorder(factors=False, snapshots_every=1)
    new = replay(model, trace, Surgery(rank=2), record=recorder)
    for parameter in ("W1", "W2"):
        matrices = new[f"fast_weight_{parameter}"].sel(reader="fwl: rank 2").values
        values = np.linalg.svd(matrices, compute_uv=False)
        assert len(values) > 10 and (values[:, 2] < 1e-6 * values[:, 0]).all() and (values[:, 1] > 0).all()
    reader = operate(readers["fwl"], Surgery(rank=2))
    reader.read(torch.from_numpy(trace["token_id"].values[None, :INNER_BATCH]))
    found = new["fast_weight_W2"].sel(reader="fwl: rank 2").isel(update=0).values
    np.testing.assert_array_equal(found, reader.fast_weights()["W2"][0].numpy())


def test_what_does_not_fit_the_trace_is_refused(
    model: LanguageModel, readers: dict[str, Reader], trace: xr.Dataset
) -> None:
    size = trace.sizes["token"]
    other = fill_block(attach_fast_weights(make_text_model("mistral"), 6, model.block.rule), seed=5)
    with pytest.raises(ValueError, match=r"read by a model with the hash .* Expected the same weights"):
        replay(other, trace, Surgery())
    with pytest.raises(ValueError, match="fast"):
        replay(model, trace, Surgery(), reader="fast")
    with pytest.raises(ValueError, match=r"readers holds base; expected 'sgd' among them"):
        replay(model, trace, Surgery(), reader="sgd", readers={"base": readers["base"]})
    halved = {"fwl": readers["fwl"].with_step_scale(0.5)}
    with pytest.raises(ValueError, match=r"set with step_scale 1.0, this one's is 0.5"):
        replay(model, trace, Surgery(), readers=halved)
    with pytest.raises(ValueError, match="the reader is a StaticReader"):
        replay(model, trace, Surgery(), reader="base")
    with pytest.raises(ValueError, match=f"names token {size}; expected 0 to {size - 1}"):
        replay(model, trace, Surgery(drop=[size]))
    with pytest.raises(ValueError, match=f"a mask of 10 tokens; expected {size}"):
        replay(model, trace, Surgery(drop=np.ones(10, dtype=bool)))
    with pytest.raises(ValueError, match="surgery is a NoneType"):
        replay(model, trace, None)
    with pytest.raises(ValueError, match="expected its last token"):
        replay(model, trace, Surgery(drop=[starts(trace)[1]]), reader="sgd", readers=readers)
    with pytest.raises(ValueError, match=r"expected a Recorder\(factors=False"):
        replay(model, trace, Surgery(rank=1), record=Recorder())
    with pytest.raises(ValueError, match="factors of reader 'fwl' would not add up to its Δθ"):
        score(model, DOCUMENTS[:1], {"fwl": operate(readers["fwl"], Surgery(rank=1))}, Recorder(), progress=False)
    with pytest.raises(ValueError, match="holds a reader 'fwl: nothing changed' already"):
        replay(model, replay(model, trace, Surgery()), Surgery())


def test_the_reader_of_that_name_is_made_where_none_is_given(model: LanguageModel) -> None:
    old = score(model, DOCUMENTS[:1], make_readers(model, ["fwl"]), progress=False)
    new = replay(model, old, Surgery(drop=[0]))
    found, plain = (new["nll"].sel(reader=name).values for name in ("fwl: 1 token dropped", "fwl"))
    assert found[0] == plain[0] and (found[1:] != plain[1:]).any()


class Mine(FastWeightReader):
    """A kind of reader that the library does not know."""


@pytest.mark.parametrize("kind", ["surgery", "subclass", "segments"])
def test_between_its_updates_a_snapshot_is_given_only_where_nothing_was_learned(
    kind: str, model: LanguageModel
) -> None:
    """Regression: a reader under surgery, and any subclass, was given the Δθ of its last update at every token."""
    made: dict[str, tuple[Reader, str, int]] = {
        "surgery": (operate(READERS["fwl"](model), Surgery(drop=[3])), "W2", INNER_BATCH),
        "subclass": (Mine(model), "W2", INNER_BATCH),
        "segments": (
            operate(READERS["sgd"](model), Surgery(drop=[2 * SEGMENT - 1])),
            "network.model.layers.0.mlp.down_proj.weight",
            SEGMENT,
        ),
    }
    reader, parameter, every = made[kind]
    recorder = Recorder(factors=False, snapshots_every=1, parameters=[parameter], top=0)
    trace = score(model, DOCUMENTS[:1], {"a": reader}, recorder, progress=False, max_tokens=MAX_TOKENS)
    ids = torch.from_numpy(trace["token_id"].values)
    for token in (every, every + 2, 2 * every, 3 * every - 1):
        reader.reset()
        reader.read(ids[None, :token])
        expected = reader.fast_weights()[parameter][0].numpy()
        if token % every and kind != "segments":
            with pytest.raises(ValueError, match=f"at token {token} was not kept; the nearest is at"):
                fast_weight(trace, "a", parameter, token)
        else:
            found = fast_weight(trace, "a", parameter, token).values
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert np.abs(found).max() > 1e-4


def test_a_replay_of_a_replay_takes_the_plain_reader_again(model: LanguageModel, trace: xr.Dataset) -> None:
    """The new trace holds the factors of the reader under surgery, which is not one to operate on, or to split."""
    first = replay(model, trace, Surgery(drop=[3], name="first"), record=Recorder(factors=True))
    assert first.attrs["factored"] == "fwl: first"
    second = replay(model, first, Surgery(drop=[5], name="second"))
    assert [str(name) for name in second["reader"].values][-2:] == ["fwl: first", "fwl: second"]
    split, expected = (receipt(model, one, 20, replay=False) for one in (first, trace))
    assert split.attrs["reader"] == "fwl" == expected.attrs["reader"]
    np.testing.assert_allclose(split["share"].values, expected["share"].values, atol=1e-6)
