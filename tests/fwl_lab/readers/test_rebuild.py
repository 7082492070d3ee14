"""One function makes a trace's reader again, and one compares two readers, for receipts, replays and views alike."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr

from fwl_lab import (
    DynamicEvaluationReader,
    DynamicEvaluationSGD,
    FastWeightReader,
    LanguageModel,
    NeuralCacheReader,
    Reader,
    StaticReader,
    Surgery,
    UpdateRule,
    attach_fast_weights,
    receipt,
    replay,
    score,
)
from fwl_lab.readers.rebuild import from_configuration, reader_of
from fwl_lab.trace.configurations import differences, encode_configurations
from fwl_lab.trace.lookup import default_reader, reader_configurations, reader_facts
from tests.helpers.models import DOCUMENTS, SEGMENT, fill_block, make_text_model, rms, sgd


def halves(model: LanguageModel) -> FastWeightReader:
    rule = UpdateRule(inner_batch=7, decay=0.1, schedule=(20.0, 0.5), cap=0.2)
    return FastWeightReader(model, step_scale=0.5, rule=rule)


KINDS: dict[str, Callable[[LanguageModel], Reader]] = {
    "the model alone": lambda model: StaticReader(model.base),
    "at the start": StaticReader,
    "learns": FastWeightReader,
    "learns by halves": halves,
    "copies": lambda model: NeuralCacheReader(model, size=20, theta=7.0, interpolation=0.3),
    "copies less": lambda model: NeuralCacheReader(model.base, step_scale=0.5),
    "follows": lambda model: DynamicEvaluationReader(model.base, sgd, SEGMENT),
    "follows a part": lambda model: DynamicEvaluationReader(model.base, sgd, 9, "mlp", step_scale=0.7),
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fill_block(attach_fast_weights(make_text_model("mistral"), 6, UpdateRule(inner_batch=10, decay=0.05)))


@pytest.fixture(scope="module")
def trace(model: LanguageModel) -> xr.Dataset:
    return score(model, DOCUMENTS[:2], {name: make(model) for name, make in KINDS.items()}, progress=False)


@pytest.mark.parametrize("name", KINDS)
def test_a_reader_is_made_again_from_what_the_trace_says(model: LanguageModel, trace: xr.Dataset, name: str) -> None:
    """Under any name, and with a decay of its own."""
    made = reader_of(model, trace, name)
    assert differences(made.configuration(), KINDS[name](model).configuration()) == {}
    assert type(made) is type(KINDS[name](model))
    ids = torch.from_numpy(trace["token_id"].values[trace["document"].values == 0].astype(np.int64))
    expected = KINDS[name](model).read(ids[None]).nll
    assert torch.equal(made.read(ids[None]).nll, expected)


@pytest.mark.parametrize("name", ["learns", "learns by halves", "follows", "follows a part"])
def test_receipts_and_replays_accept_the_same_traces(model: LanguageModel, trace: xr.Dataset, name: str) -> None:
    token = int((trace["document"].values == 0).sum()) - 1
    found = receipt(model, trace, token, name, leave_one_out=1)
    assert abs(found.attrs["residual"]) <= 1e-3 and found.sizes["source"]
    strongest = int(np.abs(found["share"].values).argmax())
    again = replay(model, trace, Surgery(drop=[int(found["source"][strongest])]), reader=name)
    lost = float(again["nll"].values[-1, token] - trace["nll"].sel(reader=name).values[token])
    assert lost == pytest.approx(float(found["replay"][strongest]), abs=1e-5) and abs(lost) > 1e-5
    unchanged = replay(model, trace, Surgery(), reader=name)
    np.testing.assert_array_equal(unchanged["nll"].values[-1], trace["nll"].sel(reader=name).values)


def test_statistics_of_an_rms_rule_are_the_models_own(model: LanguageModel) -> None:
    reader = DynamicEvaluationReader(model.base, rms, SEGMENT)
    with pytest.raises(ValueError, match="an RMS rule needs gradient statistics"):
        from_configuration(model, reader.configuration())


def test_what_a_configuration_does_not_say_is_asked_for(model: LanguageModel, trace: xr.Dataset) -> None:
    adam = DynamicEvaluationReader(model.base, lambda p: torch.optim.Adam(p, 1e-3), SEGMENT)
    with pytest.raises(ValueError, match=r"optimizer was Adam, .* hand in the reader that read"):
        from_configuration(model, adam.configuration())
    frozen = FastWeightReader(model).without_learning()
    with pytest.raises(ValueError, match="frozen after it had learned"):
        from_configuration(model, frozen.configuration())
    with pytest.raises(ValueError, match=r"a reader of kind os\.system cannot be made"):
        from_configuration(model, {"kind": "os.system", "step_scale": 1.0, "block": False})
    with pytest.raises(ValueError, match=r"lacks step_scale, block; it was written by an older version"):
        from_configuration(model, {"kind": "StaticReader"})
    with pytest.raises(ValueError, match="lacks 'segment'"):
        from_configuration(model, {"kind": "DynamicEvaluationReader", "step_scale": 1.0, "block": False,
                                   "parameters": "all", "optimizer": DynamicEvaluationSGD.__name__, "lr": 0.1,
                                   "decay": 0.0})  # fmt: skip
    with pytest.raises(ValueError, match="with a fast-weight block, and the model has none"):
        from_configuration(model.base, FastWeightReader(model).configuration())
    silent = trace.assign_attrs(readers=json.dumps({"learns": {}}))
    with pytest.raises(ValueError, match="does not say how reader 'follows' was set"):
        reader_of(model, silent, "follows")


def test_a_factory_is_as_good_as_a_reader(model: LanguageModel, trace: xr.Dataset) -> None:
    made = reader_of(model, trace, "learns by halves", {"learns by halves": halves})
    given = halves(model)
    assert isinstance(made, FastWeightReader) and reader_of(model, trace, "learns by halves",
                                                            {"learns by halves": given}) is given  # fmt: skip
    with pytest.raises(ValueError, match=r"inner_batch 7, this one's is 10; decay 0\.1"):
        reader_of(model, trace, "learns by halves", {"learns by halves": FastWeightReader})


def test_differences_are_of_settings_and_not_of_what_follows_from_them() -> None:
    a = {"kind": "A", "segment": 64, "label": "x", "betas": (0.9, 0.99)}
    assert differences(a, a | {"label": "y", "betas": [0.9, 0.99]}) == {}
    assert differences(a, a | {"segment": 32, "more": 1}) == {"segment": (64, 32), "more": (None, 1)}
    assert differences(a, a | {"kind": "B", "segment": 32}) == {"kind": ("A", "B")}


def test_a_trace_of_an_older_version_is_read_as_before(model: LanguageModel, trace: xr.Dataset) -> None:
    """Its readers said less of themselves: fast weights were taken for a reader that stays where it is."""
    facts = ("label", "adapts", "update_every", "every_token", "forgets", "learns", "block")
    said = {
        name: {k: v for k, v in one.items() if k not in facts} for name, one in reader_configurations(trace).items()
    }
    older = trace.assign_attrs(readers=encode_configurations(said))
    old, now = reader_facts(older), reader_facts(trace)
    for name in ("learns", "learns by halves", "follows", "follows a part", "copies", "the model alone"):
        for fact in ("adapts", "update_every", "every_token", "forgets", "learns"):
            assert getattr(old[name], fact) == getattr(now[name], fact), f"{name}: {fact}"
    assert default_reader(older) == default_reader(trace) == "learns"
    token = int((trace["document"].values == 0).sum()) - 1
    for name in ("learns", "follows"):
        found, expected = (receipt(model, one, token, name, replay=False) for one in (older, trace))
        np.testing.assert_allclose(found["share"].values, expected["share"].values, atol=1e-6)
        assert found.attrs["gain"] == pytest.approx(expected.attrs["gain"], abs=1e-5)
    again = replay(model, older, Surgery(drop=[3]), reader="learns")
    assert again.sizes["reader"] == trace.sizes["reader"] + 1
