"""Names of readers carry no meaning: a trace with other names gives the same numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from fwl_lab import analysis, receipt_summary, spectrum
from fwl_lab.testing import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.lookup import default_baseline, default_reader, reader_configurations, reader_facts

NAMES = {"base": "d", "static": "c", "dynamic_evaluation": "b", "fwl": "a"}
COUNTS = np.arange(400)

ASKED: dict[str, Callable[[xr.Dataset], xr.Dataset | xr.DataArray]] = {
    "gain": analysis.gain,
    "summary": analysis.summary,
    "cumulative_gain": analysis.cumulative_gain,
    "gain_by_position": lambda trace: analysis.gain_by_position(trace, 100),
    "gain_by_occurrence": analysis.gain_by_occurrence,
    "gain_by_frequency": lambda trace: analysis.gain_by_frequency(trace, COUNTS),
    "gain_by_repetition": analysis.gain_by_repetition,
    "gain_by_token_class": analysis.gain_by_token_class,
    "paired_bootstrap": analysis.paired_bootstrap,
    "across_seeds": lambda trace: analysis.across_seeds([trace, trace]),
    "reset_and_carry": lambda trace: analysis.reset_and_carry(
        trace.assign_attrs({schema.CARRY: "false"}), trace.assign_attrs({schema.CARRY: "true"})
    ),
    "key_token_perplexity": lambda trace: analysis.key_token_perplexity(trace, long=default_reader(trace), saved=0.1),
    "cost_frontier": analysis.cost_frontier,
    "spectrum": lambda trace: spectrum(trace, "W2", [10, 700]),
    "receipt_summary": receipt_summary,
}


@pytest.fixture(scope="module")
def named() -> xr.Dataset:
    return make_trace(7, tokens=1500)


@pytest.fixture(scope="module")
def renamed() -> xr.Dataset:
    return make_trace(7, tokens=1500, readers={new: old for old, new in NAMES.items()})


@pytest.mark.parametrize("name", ASKED)
def test_readers_of_other_names_have_the_same_numbers(name: str, named: xr.Dataset, renamed: xr.Dataset) -> None:
    expected, found = ASKED[name](named), ASKED[name](renamed)
    if schema.READER in expected.coords:
        others = [NAMES[str(old)] for old in expected[schema.READER].values]
        assert found[schema.READER].values.tolist() == others
        found = found.assign_coords({schema.READER: expected[schema.READER]})
    xr.testing.assert_equal(found, expected)
    attrs: dict[Any, Any] = {key: NAMES.get(value, value) for key, value in expected.attrs.items()}
    assert found.attrs == attrs


def test_the_default_readers_follow_from_what_readers_say(renamed: xr.Dataset) -> None:
    assert (default_baseline(renamed), default_reader(renamed)) == ("d", "a")
    assert default_baseline(renamed.sel(reader=["c", "a"])) == "c"
    bare = renamed.copy()
    del bare.attrs[schema.FACTORED]
    assert default_reader(bare) == "a"
    assert default_reader(bare.sel(reader=["d", "b"])) == "b"
    assert default_reader(bare.sel(reader=["d", "c"])) == "c"
    only = renamed.sel(reader=["a", "b"])
    with pytest.raises(ValueError, match="no reader 'base' in this trace; it holds a, b, and each of them adapts"):
        analysis.gain(only)
    assert analysis.gain(only, "b").reader.values.tolist() == ["a"]
    assert analysis.TIME_RATIO not in analysis.summary(only)


def test_a_reader_that_says_nothing_does_not_adapt(renamed: xr.Dataset) -> None:
    described = reader_configurations(renamed)
    silent = renamed.assign_attrs({schema.READERS: encode_configurations(described | {"b": {}})})
    facts = reader_facts(silent)["b"]
    assert (facts.adapts, facts.update_every, facts.every_token, facts.stepwise) == (False, None, False, False)
    assert facts.tokens_per_update == 1
    assert reader_facts(renamed)["b"].tokens_per_update == 64 and reader_facts(renamed)["a"].tokens_per_update == 1
