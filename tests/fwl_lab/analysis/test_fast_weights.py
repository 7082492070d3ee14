"""Δθ from snapshots: given where it is known, and refused where later tokens may have changed it."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from fwl_lab.analysis.fast_weights import fast_weight
from fwl_lab.testing import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.lookup import reader_configurations

READER, EVERY, TOKENS = "a", 64, 400
SURGERY = {"kind": "OperatedFastWeightReader", "adapts": True, "update_every": EVERY, "every_token": True}
SUBCLASS = SURGERY | {"kind": "MyReader"}
STEPWISE = {"kind": "MyReader", "adapts": True, "update_every": EVERY, "every_token": False}
OLD = {"kind": "DynamicEvaluationReader", "segment": EVERY}
NOTHING: dict[str, Any] = {}


@pytest.fixture(scope="module")
def exact() -> xr.Dataset:
    """A trace of one document with the factors of its reader, which give Δθ at every token."""
    return make_trace(4, tokens=TOKENS, documents=1, readers={"still": "base", READER: "fwl"}, parameters=("W2", "b2"))


def snapshots(exact: xr.Dataset, configuration: dict[str, Any]) -> xr.Dataset:
    """Put Δθ after each update in place of the factors, of a reader with another configuration."""
    grid = exact[schema.UPDATE_TOKEN].values
    trace = exact.copy(deep=True)
    for parameter in ("W2", "b2"):
        for update, token in enumerate(grid.tolist()):
            trace[schema.fast_weight_name(parameter)][1, update] = fast_weight(exact, READER, parameter, token + 1)
        names = (schema.delta_name(parameter), schema.key_name(parameter))
        trace = trace.drop_vars([name for name in names if name in trace])
    trace[schema.ANCHORED][1] = True
    del trace.attrs[schema.FACTORED]
    described = reader_configurations(exact) | {READER: configuration}
    return trace.assign_attrs({schema.READERS: encode_configurations(described)})


@pytest.mark.parametrize("parameter", ["W2", "b2"])
@pytest.mark.parametrize("configuration", [SURGERY, SUBCLASS, NOTHING], ids=["surgery", "subclass", "unknown"])
def test_between_updates_what_may_learn_with_every_token_is_refused(
    exact: xr.Dataset, configuration: dict[str, Any], parameter: str
) -> None:
    """Regression: only readers of the class FastWeightReader were refused; others got Δθ of the update before."""
    trace = snapshots(exact, configuration)
    for token in (EVERY, 2 * EVERY, 5 * EVERY):
        found = fast_weight(trace, READER, parameter, token).values
        np.testing.assert_array_equal(found, fast_weight(exact, READER, parameter, token).values)
    assert not fast_weight(trace, READER, parameter, 0).values.any()
    for token in (1, EVERY - 1, EVERY + 1, 3 * EVERY - 1, TOKENS):
        moved = fast_weight(exact, READER, parameter, token).values
        before = fast_weight(exact, READER, parameter, token // EVERY * EVERY).values
        assert not np.allclose(moved, before, rtol=1e-3)
        with pytest.raises(ValueError, match=f"reader 'a' at token {token} was not kept; the nearest is at"):
            fast_weight(trace, READER, parameter, token)


@pytest.mark.parametrize("configuration", [STEPWISE, OLD], ids=["stepwise", "old trace"])
def test_between_updates_what_learns_in_steps_has_that_of_the_update_before(
    exact: xr.Dataset, configuration: dict[str, Any]
) -> None:
    trace = snapshots(exact, configuration)
    for token, at in ((1, 0), (EVERY - 1, 0), (EVERY, EVERY), (EVERY + 1, EVERY), (TOKENS, 6 * EVERY)):
        expected = fast_weight(exact, READER, "W2", at).values
        np.testing.assert_array_equal(fast_weight(trace, READER, "W2", token).values, expected)


def test_the_advice_names_the_readers_own_interval(exact: xr.Dataset) -> None:
    trace = snapshots(exact, SURGERY | {"update_every": 32})
    with pytest.raises(ValueError, match=r"Recorder\(snapshots_every=32\)"):
        fast_weight(trace, READER, "W2", EVERY + 1)


def test_what_only_another_reader_updated_is_no_update_of_its_own(exact: xr.Dataset) -> None:
    """The grid is shared: a place on it where this reader's weights did not move says nothing of them."""
    trace = snapshots(exact, SURGERY)
    trace[schema.UPDATE_NORM][1, 2] = 0.0
    trace[schema.ANCHORED][1, 2] = False
    fast_weight(trace, READER, "W2", 2 * EVERY)
    with pytest.raises(ValueError, match=f"at token {3 * EVERY} was not kept; the nearest is at"):
        fast_weight(trace, READER, "W2", 3 * EVERY)
