"""One selection for all views: it knows its trace, and token and update follow each other."""

import numpy as np
import pytest
from traitlets import TraitError

from fwl_lab.testing.traces import make_trace
from fwl_lab.trace.schema import UPDATE_TOKEN
from widgets.core.selection import Selection


@pytest.fixture(scope="module")
def trace():
    return make_trace(3, tokens=700, documents=2)


def test_it_starts_at_a_reader_that_adapts_against_the_base(trace):
    selection = Selection(trace)
    assert (selection.reader, selection.baseline, selection.token) == ("fwl", "base", 0)
    assert (selection.parameter, selection.update, selection.pinned, selection.span) == ("W2", -1, None, None)


def test_without_a_base_or_an_adapting_reader_it_takes_what_there_is():
    selection = Selection(make_trace(0, tokens=50, readers=["static"], parameters=()))
    assert (selection.reader, selection.baseline, selection.parameter) == ("static", "static", "")


def test_update_is_the_last_one_before_the_token_and_leads_to_the_token_after_it(trace):
    selection, grid = Selection(trace), trace[UPDATE_TOKEN].values
    for token in (0, int(grid[0]), int(grid[0]) + 1, int(grid[3]), 699):
        selection.token = token
        assert selection.update == np.flatnonzero(grid < token).size - 1
    selection.update = 2
    assert selection.token == grid[2] + 1
    selection.update = -1
    assert selection.token == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reader", "fwll", "expected one of 'base', 'static', 'dynamic_evaluation', 'fwl'"),
        ("baseline", "", "expected one of"),
        ("parameter", "W9", "expected one of 'W1', 'b1', 'W2', 'b2', 'g', 'b'"),
        ("token", 700, "expected 0 to 699"),
        ("token", -1, "expected 0 to 699"),
        ("pinned", 700, "expected 0 to 699"),
        ("span", [5, 5], "expected a first token and one past the last"),
        ("span", [0, 701], "within 0 to 700"),
        ("update", 99, "the updates that are recorded"),
    ],
)
def test_what_is_not_in_the_trace_is_refused_in_words(trace, name, value, said):
    selection = Selection(trace)
    before = getattr(selection, name)
    with pytest.raises(TraitError, match=said):
        setattr(selection, name, value)
    assert getattr(selection, name) == before


def test_nothing_pinned_or_brushed_is_allowed(trace):
    selection = Selection(trace)
    selection.pinned, selection.span = 3, [2, 9]
    selection.pinned, selection.span = None, None
    assert selection.pinned is None and selection.span is None
