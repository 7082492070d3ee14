"""DocumentLens without a browser: what it sends, what it answers, what it refuses."""

import gc
import json
import weakref

import numpy as np
import pytest
import xarray as xr

from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.store import open_trace, save_trace
from widgets.core.packing import MISSING
from widgets.core.selection import Selection
from widgets.views.document_lens import view as document_lens
from widgets.views.document_lens.view import DocumentLens


@pytest.fixture(scope="module")
def trace():
    return make_trace(3, tokens=700, documents=3)


@pytest.fixture
def lens(trace):
    view = DocumentLens(trace)
    yield view
    view.close()


def _unpack(layout, data):
    return {
        name: np.frombuffer(data, kind, count=int(np.prod(shape)), offset=start).reshape(shape)
        for name, (kind, start, shape) in layout.items()
    }


def _read(view):
    """Texts and scores as a browser makes them out of all pages."""
    distinct: list[str] = []
    texts: list[str] = []
    scores: list[np.ndarray] = []
    for page in range(view.head["pages"]):
        content, (data,) = view.answer({"kind": "page", "page": page})
        arrays = _unpack(content["columns"], data)
        ends = np.cumsum(arrays["text_bytes"].astype(int))
        distinct += [
            arrays["text"].tobytes()[end - size : end].decode()
            for end, size in zip(ends, arrays["text_bytes"], strict=True)
        ]
        assert content["first"] == len(texts)
        texts += [distinct[code] for code in arrays["code"]]
        rows = []
        for row, scale in enumerate(content["scales"]):
            codes = arrays[f"nll_{row}"]
            rows.append(codes if scale is None else np.where(codes == MISSING, np.nan, scale[0] + scale[1] * codes))
        scores.append(np.array(rows))
    return texts, np.concatenate(scores, axis=1)


def test_the_first_message_holds_the_text_and_scores_right_to_a_hundredth(lens, trace):
    texts, scores = _read(lens)
    assert texts == trace[schema.TOKEN_TEXT].values.tolist()
    # Worst seen 0.0002: half a step of a range of 19 nats.
    assert np.abs(scores - trace[schema.NLL].values).max() < 0.0005
    content, (data,) = lens.answer({"kind": "page", "page": 0})
    assert lens.data == data and lens.head["columns"] == content["columns"]
    assert lens.head["starts"] == np.flatnonzero(trace[schema.POSITION].values == 0).tolist()


def test_a_long_trace_comes_in_pages(trace, monkeypatch):
    monkeypatch.setattr(document_lens, "PAGE_BYTES", 1200)
    view = DocumentLens(trace)
    texts, scores = _read(view)
    assert view.head["pages"] == 7 and texts == trace[schema.TOKEN_TEXT].values.tolist()
    assert np.abs(scores - trace[schema.NLL].values).max() < 0.0005
    asked = [question for question in view.foreseen() if question["kind"] == "page"]
    assert [question["page"] for question in asked] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="page is 7; expected 0 to 6"):
        view.answer({"kind": "page", "page": 7})
    view.close()


def test_a_first_message_of_a_hundred_thousand_tokens_is_below_two_megabytes():
    view = DocumentLens(make_trace(0, tokens=100_000, documents=3, recorded=False))
    assert view.head["pages"] == 1 and len(view.data) + len(json.dumps(view.head)) < 2e6
    view.close()


def _with_nll(trace, values):
    return trace.assign({schema.NLL: (trace[schema.NLL].dims, values, trace[schema.NLL].attrs)})


def test_scores_that_run_far_are_as_exact(trace):
    values = trace[schema.NLL].values.copy()
    values[3, 100:] *= 200
    view = DocumentLens(_with_nll(trace, values))
    _, scores = _read(view)
    np.testing.assert_allclose(scores, values, rtol=1e-6, atol=0.0005)
    view.close()


def test_what_is_not_finite_is_counted_and_never_a_number(trace):
    values = trace[schema.NLL].values.copy()
    values[2, 40], values[3, 31] = np.inf, np.nan
    view = DocumentLens(_with_nll(trace, values))
    assert view.head["not_finite"] == {"count": 2, "first": 31}
    _, scores = _read(view)
    np.testing.assert_array_equal(np.isnan(scores), ~np.isfinite(values))
    answer, _ = view.answer({"kind": "token", "token": 31})
    assert answer["readers"]["fwl"]["nll"] is None and answer["readers"]["base"]["nll"] == values[0, 31]
    json.dumps(answer, allow_nan=False)
    assert "<pre" in view.fallback_html()
    view.close()


def test_a_token_is_answered_with_what_all_readers_expected_and_who_paid(lens, trace):
    token = int(np.flatnonzero(np.isfinite(trace[schema.RECEIPT_GAIN].values[3]))[4])
    answer, _ = lens.answer({"kind": "token", "token": token})
    here = trace.isel(token=token)
    assert list(answer["readers"]) == here[schema.READER].values.tolist()
    for row, one in enumerate(answer["readers"].values()):
        assert one["nll"] == here[schema.NLL].values[row] and one["rank"] == here[schema.LABEL_RANK].values[row]
        assert one["ids"] == here[schema.TOP_ID].values[row].tolist()
        np.testing.assert_allclose(one["log_probs"], here[schema.TOP_LOG_PROB].values[row], atol=1e-5)
        for index in one["ids"]:
            assert answer["texts"][str(index)] == str(trace[schema.VOCABULARY_TEXT].values[index])
    there = here[schema.RECEIPT_SOURCE].values[3] >= 0
    assert answer["readers"]["fwl"]["sources"] == here[schema.RECEIPT_SOURCE].values[3][there].tolist()
    np.testing.assert_allclose(
        answer["readers"]["fwl"]["shares"], here[schema.RECEIPT_SHARE].values[3][there], atol=1e-5
    )
    assert "sources" not in answer["readers"]["base"]
    with pytest.raises(ValueError, match="token is 700; expected 0 to 699"):
        lens.answer({"kind": "token", "token": 700})


def test_alternatives_are_named_without_a_vocabulary_by_the_text_or_the_number(trace):
    bare = trace.drop_vars(schema.VOCABULARY_TEXT)
    known = dict(zip(trace[schema.TOKEN_ID].values.tolist(), trace[schema.TOKEN_TEXT].values.tolist(), strict=True))
    view = DocumentLens(bare)
    named: dict[str, str] = {}
    for token in range(200):
        named |= view.answer({"kind": "token", "token": token})[0]["texts"]
    assert all(text == known.get(int(index), f"#{index}") for index, text in named.items())
    assert any(int(index) not in known for index in named) and any(int(index) in known for index in named)
    view.close()


def test_ranks_are_sent_when_asked_for(lens, trace):
    content, (data,) = lens.answer({"kind": "ranks", "reader": "fwl"})
    np.testing.assert_array_equal(_unpack(content["columns"], data)["rank"], trace[schema.LABEL_RANK].values[3])


def test_what_was_not_recorded_is_said_and_not_foreseen():
    view = DocumentLens(make_trace(0, tokens=60, recorded=False))
    assert not view.head["ranks"] and not view.head["alternatives"] and not view.head["receipts"]
    with pytest.raises(ValueError, match=r"Recorder\(top=10\)"):
        view.answer({"kind": "ranks", "reader": "fwl"})
    assert list(view.foreseen()) == []  # scores are in the first message
    with pytest.raises(ValueError, match="no answer to 'weather'"):
        view.answer({"kind": "weather"})
    view.close()


def test_a_saved_page_takes_the_largest_gains_first_and_every_token_once(lens, trace):
    asked = list(lens.foreseen())
    tokens = [question["token"] for question in asked if question["kind"] == "token"]
    gain = np.abs(trace[schema.NLL].values[0] - trace[schema.NLL].values[3])
    assert tokens[0] == lens.selection.token == 0
    assert tokens[1:4] == np.argsort(-gain, kind="stable")[:3].tolist()
    assert sorted(set(tokens)) == list(range(700)) and len(tokens) <= 701
    assert [question["reader"] for question in asked if question["kind"] == "ranks"] == list(lens.head["readers"])
    for question in asked[:3]:
        assert "error" not in lens.reply(question)[0]


@pytest.mark.parametrize(
    ("given", "said"), [({"measure": "loss"}, "measure is 'loss'; expected"), ({"lines": 2}, "lines is 2")]
)
def test_mistakes_are_told(trace, given, said):
    with pytest.raises(ValueError, match=said):
        DocumentLens(trace, **given)


def test_one_reader_starts_with_its_nll():
    view = DocumentLens(make_trace(0, tokens=50, readers=("fwl",)))
    assert view.measure == "nll" and "<pre" in view.fallback_html()
    view.close()


def test_the_still_picture_is_small_inert_and_around_the_selected_token(trace):
    document = trace[schema.DOCUMENT].values
    token = int(np.flatnonzero(document == np.bincount(document).argmax())[0]) + 150
    view = DocumentLens(trace, selection=Selection(trace, token=token))
    picture = view.fallback_html()
    assert len(picture) < 100_000 and "<script" not in picture
    tokens = np.bincount(document).max()
    assert tokens > 250
    assert f"positions 50 to {min(289, tokens - 1)} of {tokens:,} tokens" in picture
    assert 'data-p="49"' not in picture and 'data-p="150"' in picture
    view.close()


def test_a_trace_from_a_disk_is_read_in_blocks(trace, tmp_path, monkeypatch):
    opened = open_trace(save_trace(trace, tmp_path / "trace.zarr"))
    view = DocumentLens(opened)
    sizes = []
    read = xr.Dataset.isel

    def isel(self, indexers=None, **given):
        piece = read(self, indexers, **given)
        sizes.append(piece.sizes[schema.TOKEN])
        return piece

    monkeypatch.setattr(xr.Dataset, "isel", isel)
    for token in (0, 5, 255, 300):
        view.answer({"kind": "token", "token": token})
    assert sizes == [256, 256]
    view.close()


def test_a_closed_lens_lets_go(trace):
    view = DocumentLens(trace)
    view.answer({"kind": "token", "token": 3})
    gone = weakref.ref(view)
    view.close()
    view.close()
    del view
    gc.collect()
    assert gone() is None
