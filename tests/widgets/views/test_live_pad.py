"""LivePad: what it shows of a text is what the readers say of it, however the text came about."""

import gc
import json
import threading
import weakref

import numpy as np
import pytest
import torch
import traitlets

import fwl_lab
from fwl_lab.inference.incremental import EVERY, LiveReading
from fwl_lab.trace import schema
from tests.helpers.asking import asked
from widgets.views.live_pad.view import LivePad

TEXT = "def mean_gain(trace):\n    return trace.nll.mean()\n\n\ndef mean_loss(trace):\n    return " * 6


@pytest.fixture(scope="module")
def model():
    return fwl_lab.load_model("bundled")


@pytest.fixture
def pad(model):
    pad = LivePad(model)
    yield pad
    pad.close()


def test_a_text_that_changes_is_read_as_if_it_had_always_been_so(model):
    ids = model.encode(TEXT)
    texts = [ids[:70], ids[:150], torch.cat([ids[:130], ids[40:80]]), ids[:128], ids[:0], ids[5:70]]
    for name, whole in fwl_lab.make_readers(model).items():
        live = LiveReading(fwl_lab.make_readers(model, [name])[name])
        for text in texts:
            assert live.read(text, lambda _: True)
            whole.reset()
            np.testing.assert_allclose(live.nll, whole.read(text[None]).nll[0], rtol=0, atol=1e-5)  # worst seen: 3e-6
            expected = whole.next_log_probs()[0]
            log_probs, best = live.next(5)
            np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-4)
            assert best[0] == log_probs.argmax()


def test_only_what_follows_the_change_is_read(model):
    live, ids, read = LiveReading(fwl_lab.StaticReader(model.base)), model.encode(TEXT * 2)[:300], []

    def count(more):
        read.append(more)
        return True

    live.read(ids, count)
    assert live.unread(ids) == 300 - 256 and sum(read) == 300
    # A change far from any mark is read from the last one before it, and the next one near it from close by.
    for value, expected in ((1, 300), (2, 300 - 192)):
        changed = ids.clone()
        changed[200] += value
        read.clear()
        assert live.unread(changed) == expected
        live.read(changed, count)
        assert sum(read) == expected
    # One that is stopped goes on from where it was.
    read.clear()
    assert not live.read(ids, lambda more: False) and len(live.nll) == 256
    live.read(ids, count)
    assert sum(read) == 300 - 256


def test_marks_stay_within_their_budget(model):
    ids = model.encode(TEXT * 6)[:1024]
    counts = []
    for marks in (3, 100):
        reader = fwl_lab.FastWeightReader(model)
        reader.read(ids[None, :1])
        size = sum(tensor.nbytes for tensor in reader.state_dict().values())
        live = LiveReading(reader, budget=marks * size)
        live.read(ids, lambda _: True)
        assert {0, 1024} <= set(live._marks)
        counts.append(len(live._marks))
    assert counts == [3, 1 + 1024 // EVERY]


def test_a_pad_says_what_the_readers_say(pad, model):
    trace = pad.read(TEXT)
    document = fwl_lab.Document("typed", TEXT)
    names = ["base", "fwl", "dynamic_evaluation"]
    expected = fwl_lab.score(model, [document], fwl_lab.make_readers(model, names), progress=False)
    assert trace.reader.values.tolist() == names
    np.testing.assert_allclose(trace.nll, expected.nll, rtol=0, atol=1e-5)
    assert trace.attrs[schema.READERS] == expected.attrs[schema.READERS]
    shown = pad.reading
    assert shown["phase"] == "done" and "".join(shown["texts"]) == TEXT
    for name in names:
        np.testing.assert_allclose(shown["readers"][name]["nll"], trace.nll.sel(reader=name), atol=1e-5)
        probabilities = [row[1] for row in shown["readers"][name]["next"]]
        assert len(probabilities) == 10 and probabilities == sorted(probabilities, reverse=True)
    ranks = [row[3] for row in shown["readers"]["base"]["next"]]
    assert ranks == list(range(1, 11)) and {row[3] for row in shown["readers"]["fwl"]["next"]} != set(ranks)
    assert json.dumps(shown, allow_nan=False)


def test_settings_change_what_reads(pad):
    pad.read(TEXT)
    pad.settings = pad.settings | {"step_scale": 0.0, "readers": ["static", "fwl"]}
    still = pad.read(TEXT)
    assert np.array_equal(*still.nll.values)
    pad.settings = pad.settings | {"step_scale": 2.0, "inner_batch": 16, "segment": 32,
                                   "readers": ["fwl", "dynamic_evaluation"]}  # fmt: skip
    changed = json.loads(pad.read(TEXT).attrs[schema.READERS])
    assert (changed["fwl"]["inner_batch"], changed["fwl"]["step_scale"]) == (16, 2.0)
    assert (changed["dynamic_evaluation"]["segment"], changed["dynamic_evaluation"]["step_scale"]) == (32, 2.0)
    pad.settings = pad.settings | {"inner_batch": None, "readers": ["fwl"], "step_scale": 1.0}
    assert json.loads(pad.read(TEXT).attrs[schema.READERS])["fwl"]["inner_batch"] is None
    for wrong, said in (({"readers": ["nobody"]}, "no reader 'nobody'; expected some of base, static"),
                        ({"step_scale": -1}, "expected 0 to 4"), ({"inner_batch": 0}, "inner_batch is 0")):  # fmt: skip
        with pytest.raises(traitlets.TraitError, match=said):
            pad.settings = pad.settings | wrong
    assert pad.settings["inner_batch"] is None


def test_a_receipt_of_what_was_typed(pad, model):
    pad.settings = pad.settings | {"inner_batch": 16, "readers": ["base", "fwl"]}
    trace = pad.read(TEXT)
    receipt = fwl_lab.receipt(model, trace, 100)
    assert float(receipt.share.sum()) == pytest.approx(receipt.attrs["gain"], abs=1e-3)


def test_the_page_asks_and_the_pad_reads(pad):
    assert asked(pad, "hello") == ({}, [])
    settings = pad.settings | {"readers": ["base"]}
    assert asked(pad, "read", text="import os\nimport sys", settings=settings) == ({}, [])
    assert pad._worker.wait(60) and pad.text == "import os\nimport sys" and list(pad.reading["readers"]) == ["base"]
    said, _ = asked(pad, "read", text="a", settings=settings | {"readers": ["nobody"]})
    assert "no reader 'nobody'" in said["error"] and pad.text == "import os\nimport sys"
    # A text that is set here is news to the page; one that it sent is none.
    assert pad.given == 0
    pad.text = "import re"
    pad.text = "import os\nimport sys"
    assert pad.given == 2
    asked(pad, "read", text="", settings=settings)
    assert pad.given == 2
    assert pad._worker.wait(60) and pad.reading["phase"] == "empty" and pad.trace is None
    with pytest.raises(ValueError, match="nothing to read"):
        pad.read("")


def test_what_is_no_text_is_told_and_typing_goes_on(pad):
    with pytest.raises(ValueError, match=r"surrogate|UTF-8"):
        pad.read("a\ud800b")
    assert pad.reading["phase"] == "failed" and pad.reading["words"]
    assert pad.read("import os").sizes["token"] >= 2


def test_a_reader_that_breaks_leaves_the_others(model):
    class Broken(fwl_lab.StaticReader):
        def step(self, state, inputs, labels, weights):
            nll, state = super().step(state, inputs, labels, weights)
            return nll * float("nan"), state

    pad = LivePad(model, readers={"broken": Broken(model.base)})
    with pytest.raises(ValueError, match="broken: the score of token 0"):
        pad.read("import os")
    shown: dict = pad.reading
    assert "nll" in shown["readers"]["base"] and shown["phase"] == "failed"
    pad.close()


def test_a_long_text_is_read_to_its_limit(model, monkeypatch):
    monkeypatch.setattr("widgets.views.live_pad.view.LIMIT", 50)
    pad = LivePad(model)
    pad.settings = pad.settings | {"readers": ["base"]}
    assert pad.read(TEXT).sizes["token"] == 50
    assert pad.reading["left_out"] == len(model.encode(TEXT)) - 50
    pad.close()


def test_cancelling_stops_the_reading(model):
    began, go_on = threading.Event(), threading.Event()

    class Slow(fwl_lab.StaticReader):
        def step(self, state, inputs, labels, weights):
            began.set()
            go_on.wait(60)
            return super().step(state, inputs, labels, weights)

    pad = LivePad(model, readers={"slow": Slow(model.base)})
    pad.settings = pad.settings | {"readers": ["base", "slow"]}
    pad.text = TEXT
    assert began.wait(60)
    assert asked(pad, "cancel") == ({}, [])
    go_on.set()
    assert pad._worker.wait(60)
    assert pad.reading["phase"] == "stopped" and list(pad.reading["readers"]) == ["base"] and pad.trace is None
    assert pad.read(TEXT).reader.values.tolist() == ["base", "slow"]
    pad.close()


def test_the_still_picture_is_inert_and_shows_what_was_read(model):
    pad = LivePad(model, text="<script>alert(1)</script> " * 4)
    html = pad.fallback_html()
    assert "&lt;" in html and "<script" not in html and "Typing needs a kernel" in html
    pad.close()


def test_a_closed_pad_is_collected_and_reads_no_more(model):
    pad = LivePad(model, text=TEXT)
    gone, worker = weakref.ref(pad), pad._worker
    pad.close()
    assert worker.wait(60)
    del pad
    gc.collect()
    assert gone() is None
