"""All views at once: one selection, a telling token to begin with, one page, and nothing left when closed."""

import gc
import json
import weakref

import numpy as np
import pytest
from ipywidgets.widgets.widget import _instances

from fwl_lab.testing.traces import make_trace
from fwl_lab.trace.schema import RECEIPT_GAIN
from widgets import DocumentLens, ReaderCompare, Receipts, Selection, UpdateScope, explore
from widgets.core import lifetime
from widgets.core.view import WIDGET
from widgets.views.explorer import Explorer


@pytest.fixture(scope="module")
def trace():
    return make_trace(1, tokens=800, documents=2)


@pytest.fixture
def explorer(trace):
    views = explore(trace)
    yield views
    views.close()


def test_views_share_one_selection(explorer):
    assert [type(view).__name__ for view in explorer.views] == [
        "DocumentLens", "Receipts", "UpdateScope", "ReaderCompare",
    ]  # fmt: skip
    assert {id(view.selection) for view in explorer.views} == {id(explorer.selection)}
    assert list(explorer.children) == explorer.views


def test_it_begins_at_the_largest_gain_that_has_a_receipt(trace, explorer):
    gain = (trace.nll.sel(reader="base") - trace.nll.sel(reader="fwl")).values
    known = np.isfinite(trace[RECEIPT_GAIN].sel(reader="fwl").values)
    assert known[explorer.selection.token]
    assert gain[explorer.selection.token] == gain[known].max() < gain.max()


def test_without_receipts_it_begins_at_the_largest_gain_and_elsewhere_if_asked(trace):
    plain = trace.drop_vars([name for name in trace if str(name).startswith("receipt_")])
    first, second = explore(plain), explore(plain, reader="dynamic_evaluation", token=7)
    gain = (trace.nll.sel(reader="base") - trace.nll.sel(reader="fwl")).values
    assert first.selection.token == int(gain.argmax())
    assert (second.selection.reader, second.selection.token) == ("dynamic_evaluation", 7)
    first.close(), second.close()


def test_a_trace_with_scores_alone_can_be_explored(tmp_path):
    views = explore(make_trace(0, tokens=60, documents=1, recorded=False, parameters=()))
    assert views.to_html(tmp_path / "views.html").stat().st_size < 2e6
    views.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_leave_a_page_that_opens(tmp_path, bad):
    """A browser reads no NaN in JSON: one would leave the whole page blank."""
    trace = make_trace(1, tokens=400, documents=2)
    recorded = ("nll", "top_log_prob", "receipt_share", "receipt_gain", "receipt_gross", "receipt_residual")
    for name in (*recorded, *(("seconds", "drift", "update_norm", "receipt_leave_one_out") if np.isnan(bad) else ())):
        trace[name].values.reshape(-1)[::7] = bad
    views = explore(trace)
    page = views.to_html(tmp_path / "all.html").read_text(encoding="utf-8")
    state = page.partition('<script type="application/json" id="state">')[2].partition("</script>")[0]
    models = json.loads(state, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    lens = next(model for model in models.values() if model["kind"] == "DocumentLens")
    assert any("null" in json.dumps(answer) for answer in lens["answers"].values())
    views.close()


def test_a_selection_that_was_handed_in_stays(trace):
    shared = Selection(trace)
    first, second = Explorer(trace, selection=shared), Receipts(trace, selection=shared)
    first.close()
    assert shared.comm is not None
    second.close()
    assert shared.comm is not None
    shared.close()


def test_one_page_holds_all_views(explorer, tmp_path):
    page = explorer.to_html(tmp_path / "all.html").read_text(encoding="utf-8")
    assert page.count("<div data-model=") == 4 and page.count("viewModules.") == 4
    assert "http://" not in page and "https://" not in page


def test_closing_lets_go_of_everything(trace):
    before = set(_instances)
    views = explore(trace)
    parts = [weakref.ref(part) for part in (views, *views.views, views.selection)]
    views.close()
    assert set(_instances) == before
    del views
    gc.collect()
    assert [part() for part in parts] == [None] * 6


def test_a_batch_run_keeps_pictures_and_a_person_gets_views(explorer, monkeypatch):
    still = explorer._repr_mimebundle_()
    assert set(still) == {"text/html", "text/plain"} and len(still["text/html"]) < 500_000
    assert "<script" not in still["text/html"]
    monkeypatch.setattr(lifetime, "someone_is_there", lambda: True)
    assert explorer._repr_mimebundle_()[WIDGET]["model_id"] == explorer.model_id


@pytest.mark.parametrize("view", [explore, DocumentLens, Receipts, UpdateScope, ReaderCompare, Selection])
def test_a_path_is_no_trace(view):
    with pytest.raises(ValueError, match=r"trace is 'runs/x.zarr'; expected a Dataset, such as open_trace"):
        view("runs/x.zarr")
    gc.collect()  # what was never made whole complains of nothing when it goes
