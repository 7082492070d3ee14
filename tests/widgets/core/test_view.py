"""What all views do: start with data, answer questions, save themselves as a page, and go when they are closed."""

import gc
import json
import re
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
from ipywidgets.widgets.widget import _instances

from fwl_lab.testing.traces import make_trace
from widgets.core import lifetime
from widgets.core.packing import pack
from widgets.core.page import write_page
from widgets.core.selection import Selection
from widgets.core.view import WIDGET, View, reader_styles
from widgets.core.wire import Answer, question_key

TRAP = "</script><script>alert(1)</script>&amp;\u2028"


class Counter(View):
    """The least that a view is: it doubles a number."""

    _esm = "export default { render({ el }) { el.textContent = 'counter'; } };"
    _css = ".fwl-counter { color: inherit; }"

    def __init__(self, trace, *, selection=None):
        layout, data = pack({"nll": trace.nll.values[0].astype(np.float32)})
        head = {"columns": layout, "readers": reader_styles(trace), "text": TRAP}
        super().__init__(trace, selection=selection, head=head, data=data)

    def answer(self, question):
        if question["number"] > 5:
            raise ValueError("that is more than five")
        return {"double": 2 * question["number"]}, [b"\x00\xff"]

    def foreseen(self):
        return ({"kind": "double", "number": n} for n in (0, 1, 2, 3, 4, 6))

    def fallback_html(self):
        return "<p>a counter</p>"


@pytest.fixture(scope="module")
def trace():
    return make_trace(1, tokens=300, documents=1)


@pytest.fixture
def asked(trace):
    """A view, and what it sends."""
    view, sent = Counter(trace), []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    yield view, sent
    view.close()


def test_a_question_is_answered_under_its_own_id(asked):
    view, sent = asked
    view._handle_custom_msg({"id": "a-1", "kind": "double", "number": 4}, [])
    assert sent == [({"id": "a-1", "double": 8}, [b"\x00\xff"])]


@pytest.mark.parametrize(("question", "said"), [({"number": 6}, "that is more than five"), ({}, "KeyError: 'number'")])
def test_what_goes_wrong_is_an_answer_too(asked, question, said):
    view, sent = asked
    view._handle_custom_msg({"id": "a-2", **question}, [])
    assert sent == [({"id": "a-2", "error": said}, [])]


def test_an_unknown_keyword_is_refused(trace):
    class Wider(Counter):
        def __init__(self, trace, **traits):
            View.__init__(self, trace, **traits)

    with pytest.raises(TypeError, match="Wider has no colour"):
        Wider(trace, colour="red")


def test_views_share_a_selection_and_one_of_its_own_ends_with_its_view(trace):
    shared = Selection(trace)
    first, second, alone = Counter(trace, selection=shared), Counter(trace, selection=shared), Counter(trace)
    assert first.selection is second.selection is shared and alone.selection is not shared
    own = alone.selection
    for view in (first, alone):
        view.close()
    assert shared.comm is not None and own.comm is None
    second.close()
    shared.close()


def test_a_closed_view_is_collected(trace):
    view = Counter(trace)
    selection, view_gone, selection_gone = view.selection, weakref.ref(view), weakref.ref(view.selection)
    view.close()
    del view, selection
    gc.collect()
    assert view_gone() is None and selection_gone() is None


def test_closing_views_leaves_no_widget_behind(trace):
    before = set(_instances)
    views = [Counter(trace), Counter(trace)]
    assert all(view.layout and view.selection.layout for view in views)  # which a page asks for
    assert len(set(_instances) - before) == 8  # two views, each with a selection, and a layout of each
    for view in views:
        view.close()
    assert set(_instances) == before


def test_a_long_answer_comes_later_and_its_error_too(asked):
    view, sent = asked
    later: Future[Answer] = Future()
    failed: Future[Answer] = Future()
    view.answer = lambda question: later if question["number"] == 1 else failed
    view._handle_custom_msg({"id": "a", "number": 1}, [])
    view._handle_custom_msg({"id": "b", "number": 2}, [])
    assert sent == []
    failed.set_exception(ValueError("no such token"))
    later.set_result(({"double": 2}, []))
    assert sent == [({"id": "b", "error": "no such token"}, []), ({"id": "a", "double": 2}, [])]


def test_without_a_person_a_notebook_keeps_the_picture_only(trace, monkeypatch):
    view = Counter(trace)
    assert view._repr_mimebundle_() == {"text/html": "<p>a counter</p>", "text/plain": "Counter"}
    monkeypatch.setattr(lifetime, "someone_is_there", lambda: True)
    data, _ = view._repr_mimebundle_()
    assert data[WIDGET]["model_id"] == view.model_id and data["text/html"] == "<p>a counter</p>"
    view.close()


def test_running_a_cell_again_closes_what_it_made(trace, monkeypatch):
    def run(cell, message):
        monkeypatch.setattr(lifetime, "_request", lambda: {"metadata": {"cellId": cell}, "header": {"msg_id": message}})
        return Counter(trace), Counter(trace)

    first, twin = run("cell-1", "m1")
    other, _ = run("cell-2", "m2")
    assert first.comm is not None and twin.comm is not None
    again, _ = run("cell-1", "m3")
    assert first.comm is None and twin.comm is None
    assert again.comm is not None and other.comm is not None
    for view in (*run("cell-1", "m4"), *run("cell-2", "m5")):
        view.close()


def _state(page):
    (state,) = re.findall(r'<script type="application/json" id="state">(.*?)</script>', page, re.DOTALL)
    return json.loads(state)


def test_a_saved_page_holds_the_views_their_data_and_the_answers_they_foresee(trace, tmp_path):
    selection = Selection(trace, token=7)
    views = [Counter(trace, selection=selection), Counter(trace, selection=selection)]
    page = write_page(views, tmp_path / "sub" / "page.html", title="<b>two</b>").read_text(encoding="utf-8")
    state = _state(page)
    assert [state[view.model_id]["kind"] for view in views] == ["Counter", "Counter"]
    assert state[selection.model_id]["state"]["token"] == 7
    mine = state[views[0].model_id]
    assert mine["state"]["selection"] == f"IPY_MODEL_{selection.model_id}"
    assert mine["state"]["head"]["text"] == TRAP
    assert mine["answers"][question_key({"number": 3, "kind": "double"})] == [{"double": 6}, [{"base64": "AP8="}]]
    assert "<b>two</b>" not in page and "&lt;b&gt;two" in page
    assert mine["answers"][question_key({"number": 6, "kind": "double"})] == [{"error": "that is more than five"}, []]
    # Once for both views; the module is a function's body, and what could end a script early is spelt otherwise.
    assert page.count("viewModules.Counter = ") == 1 and "export default" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"https?://", page)
    for view in views:
        view.close()


def test_answers_that_do_not_fit_are_left_out(trace, tmp_path):
    view = Counter(trace)
    state = _state(write_page([view], tmp_path / "page.html", budget=40).read_text(encoding="utf-8"))
    assert 0 < len(state[view.model_id]["answers"]) < 5
    view.close()
