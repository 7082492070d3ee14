"""RunConsole: what it says beforehand is what comes; what it reads is what `score` reads; it stops and lets go."""

import gc
import shlex
import threading
import weakref

import numpy as np
import pytest

import fwl_lab
from fwl_lab import Document, StaticReader, UpdateRule, attach_fast_weights, stdlib_corpus
from fwl_lab.trace import schema
from tests.helpers.asking import asked
from tests.helpers.models import DOCUMENTS, TEXTS, fill_block, make_text_model
from widgets import RunConsole
from widgets.report.run import check_parameters
from widgets.views.run_console import planning as run_planning
from widgets.views.run_console.planning import NOTEBOOK

LONG = Document("long.txt", "".join(TEXTS) * 30)


@pytest.fixture(scope="module")
def model():
    return fill_block(attach_fast_weights(make_text_model(), size=6, rule=UpdateRule(inner_batch=10)))


@pytest.fixture
def console(model, tmp_path):
    console = RunConsole(model, [*DOCUMENTS, LONG], path=tmp_path / "runs", max_tokens=None)
    yield console
    console.close()
    assert console._worker.wait(60)


class Gated(StaticReader):
    """Waits to be let through before each call once it is armed, so that a test can act in the middle of a reading."""

    def __init__(self, model):
        super().__init__(model)
        self.calls, self.gate_at = 0, 10**9
        self.there, self.go_on = threading.Event(), threading.Event()

    def read(self, tokens, weights=None):
        self.calls += 1
        if self.calls == self.gate_at:
            self.there.set()
            assert self.go_on.wait(60)
        return super().read(tokens, weights)


def gated(model, tmp_path, at, **settings):
    """A console that has been started over the long document, and its reader, which waits in its `at`-th call."""
    reader = Gated(model.base)
    console = RunConsole(model, [LONG], path=tmp_path, readers={"gated": reader}, max_tokens=None)
    console.settings = console.settings | {"readers": ["base", "gated"]} | settings
    reader.gate_at = at
    assert console.start()
    assert reader.there.wait(60)
    return console, reader


def finish(console):
    assert console._worker.wait(60)
    return console.run


def test_a_page_starts_with_what_there_is_to_choose(console, model):
    assert console.head["documents"][-1] == ["long.txt", len(LONG.text)]
    assert list(console.head["readers"]) == ["base", "static", "dynamic_evaluation", "fwl", "neural_cache"]
    assert console.head["devices"] == fwl_lab.available_devices()
    assert console.settings["readers"] == ["base", "static", "dynamic_evaluation", "fwl"]
    tokens = asked(console, "lengths")[0]["tokens"]
    assert tokens == [len(model.encode(document.text)) for document in console.documents]
    with pytest.raises(ValueError, match="documents is empty"):
        RunConsole(model, [])


def test_a_model_without_a_block_offers_no_reader_of_one(tmp_path):
    console = RunConsole(make_text_model(), DOCUMENTS, path=tmp_path)
    assert list(console.head["readers"]) == ["base", "dynamic_evaluation", "neural_cache"]
    console.close()


@pytest.mark.parametrize("record", run_planning.RECORDS)
def test_the_bytes_are_those_of_the_arrays_that_are_written(console, record):
    console.settings = console.settings | {"documents": [0, 2], "record": record}
    plan = asked(console, "plan")[0]
    assert console.start() and finish(console)["phase"] == "done"
    assert str(console.run["path"]) == plan["path"] and console.trace.sizes["token"] == plan["tokens"]
    with_coordinates = {*console.trace.data_vars, *console.trace.coords}
    record_sizes = run_planning.bytes_written(
        run_planning.recorder(record, "1 GiB"),
        console._readers(console.settings),
        [console.lengths()[i] for i in (0, 2)],
    )
    assert sum(record_sizes.values()) == plan["bytes"] and set(record_sizes) <= with_coordinates
    # Dense Δθ are written where there are any, and none of the others is.
    whole = {name for name in record_sizes if not name.startswith("fast_weight_")}
    assert {name: console.trace[name].nbytes for name in whole} == {name: record_sizes[name] for name in whole}
    assert ("key_W2" in whole) == (record == "factors") and (schema.TOP_ID in whole) == (record != "nothing")
    assert plan["largest"][0][0] == max(record_sizes, key=lambda name: record_sizes[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"documents": []}, "no document is chosen; tick at least one"),
        ({"readers": []}, "no reader is chosen"),
        ({"max_tokens": 0}, "max tokens is 0; expected a whole number"),
        ({"max_tokens": 2.5}, "max tokens is 2.5; expected a whole number"),
        ({"folder": "  "}, "no output folder"),
        ({"record": "all"}, "record is 'all'; expected one of 'nothing'"),
        ({"documents": [4], "record": "factors"}, "the byte budget is 64 KiB. Largest:"),
    ],
)
def test_what_cannot_be_started_is_told_beforehand(model, tmp_path, changes, words):
    console = RunConsole(model, [*DOCUMENTS, LONG], path=tmp_path, byte_budget="64 KiB", max_tokens=None)
    settings = console.settings | changes
    assert words in asked(console, "plan", settings=settings)[0]["error"]
    assert asked(console, "start", settings=settings) == ({"started": True}, [])
    assert finish(console)["phase"] == "failed" and words in console.run["words"] and console.trace is None
    assert not any(tmp_path.iterdir())
    console.close()


def test_a_folder_that_is_a_file_is_refused(console, tmp_path):
    (tmp_path / "file").write_text("here")
    refused = asked(console, "plan", settings=console.settings | {"folder": str(tmp_path / "file" / "below")})[0]
    assert "is a file; expected a folder" in refused["error"]


def test_time_is_measured_once_and_grows_with_what_is_to_be_read(model, tmp_path):
    reader = Gated(model.base)
    console = RunConsole(model, [LONG, *DOCUMENTS], path=tmp_path, readers={"gated": reader}, max_tokens=300)
    settings = console.settings | {"readers": ["gated"]}
    short = asked(console, "time", settings=settings)[0]
    assert short["total"] == pytest.approx(short["seconds"]["gated"]) and short["probed"] == 256
    longer = asked(console, "time", settings=settings | {"documents": [0, 1], "max_tokens": None})[0]
    assert longer["speeds"] == short["speeds"] and longer["seconds"]["gated"] > short["seconds"]["gated"]
    lengths = console.lengths()
    expected = lengths[0] + lengths[1] + 16 + 256  # operations are counted on a piece of the longest
    assert longer["seconds"]["gated"] * longer["speeds"]["gated"] == pytest.approx(expected)
    assert reader.calls == 0, "a twin is measured, and the reader itself left as it was"
    console.close()


def test_it_reads_what_score_reads(console, model):
    chosen = {"documents": [1, 3], "readers": ["base", "fwl"], "max_tokens": 20, "record": "nothing"}
    assert asked(console, "start", settings=console.settings | chosen) == ({"started": True}, [])
    run = finish(console)
    own = fwl_lab.score(
        model, [DOCUMENTS[1], DOCUMENTS[3]], fwl_lab.make_readers(model, ["base", "fwl"]), max_tokens=20, progress=False
    )
    np.testing.assert_array_equal(console.trace.nll, own.nll)
    assert run["phase"] == "done" and run["tokens"] == run["total"] == run["done"]["fwl"] == own.sizes["token"]
    base, fwl = own.nll.values.mean(1)
    assert [row["nll"] for row in run["summary"]] == pytest.approx([base, fwl])
    assert [row["gain"] for row in run["summary"]] == pytest.approx([0, base - fwl])
    assert all(row["speed"] > 0 for row in run["summary"]) and set(run["seconds"]) == {"base", "fwl"}
    assert f"<td>{fwl:.3f}</td>" in console.fallback_html()


def test_no_trace_is_overwritten(console):
    console.settings = console.settings | {"readers": ["base"], "record": "nothing"}
    paths = []
    for _ in range(2):
        console.start()
        paths.append(finish(console)["path"].rpartition("/")[2])
    assert paths == ["trace.zarr", "trace-2.zarr"]
    assert asked(console, "plan")[0]["path"].endswith("trace-3.zarr")
    assert console.run["summary"][0]["gain"] == 0


def test_cancelling_keeps_what_all_have_read(model, tmp_path):
    console, reader = gated(model, tmp_path, at=3, record="norms")
    assert console.run["phase"] == "reading" and 0 <= console.run["done"]["gated"] <= 2048
    assert not console.start(), "a second start while one reads does nothing"
    assert asked(console, "cancel") == ({"stopping": True}, []) and console.run["phase"] == "stopping"
    reader.go_on.set()
    run = finish(console)
    assert run["phase"] == "stopped" and run["tokens"] == console.trace.sizes["token"] == 3072 < run["total"]
    kept = fwl_lab.open_trace(run["path"])
    assert kept.sizes["token"] == 3072 and np.isfinite(kept.nll).all() and len(run["summary"]) == 2
    assert asked(console, "cancel") == ({"stopping": False}, []), "nothing runs any more"
    reader.gate_at = -1
    assert console.start() and finish(console)["phase"] == "done", "and it can be started again"
    assert console.run["tokens"] == run["total"]
    console.close()


def test_cancelling_before_anything_is_complete_says_so(model, tmp_path):
    console, reader = gated(model, tmp_path, at=1, readers=["gated", "base"])
    console.cancel()
    reader.go_on.set()
    run = finish(console)
    assert run["phase"] == "stopped" and run["tokens"] == 0 and run["path"] == "" and run["summary"] == []
    assert console.trace is None
    console.close()


def test_a_reader_that_fails_is_told_and_the_rest_kept(model, tmp_path):
    class Breaks(Gated):
        def read(self, tokens, weights=None):
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return super().read(tokens, weights)

    console = RunConsole(model, [LONG], path=tmp_path, readers={"breaks": Breaks(model.base)}, max_tokens=None)
    console.settings = console.settings | {"readers": ["base", "breaks"]}
    console.start()
    run = finish(console)
    assert run["phase"] == "failed" and run["words"].startswith("out of memory\nreader 'breaks' failed in tokens 2,048")
    assert run["tokens"] == 2048 and console.trace.sizes["token"] == 2048
    console.close()


def test_the_command_asks_the_notebook_for_the_same(tmp_path):
    bundled, (first, second, *_) = fwl_lab.load_model("bundled"), stdlib_corpus("test")
    console = RunConsole(bundled, [first, second, Document("own", "text")], path=tmp_path)
    line = asked(console, "command")[0]["line"]
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "widgets.report", NOTEBOOK, str(tmp_path / "report")]
    asked_for = dict(zip(words[6::3], words[7::3], strict=True))
    assert check_parameters(NOTEBOOK, asked_for) == {
        "model": "bundled", "document": first.name, "device": "cpu", "max_tokens": 4096,
        "readers": ["base", "static", "dynamic_evaluation", "fwl"],
    }  # fmt: skip
    both = asked(console, "command", settings=console.settings | {"documents": [0, 1], "max_tokens": None})[0]["line"]
    assert both.count("widgets.report") == 2 and " && " in both and shlex.quote(second.name) in both
    refused = asked(console, "command", settings=console.settings | {"documents": [2]})[0]["error"]
    assert "'own' is not in the test split" in refused and "corpus=folder" in refused
    refused = asked(console, "command", settings=console.settings | {"readers": ["base", "static"]})[0]["error"]
    assert "compares 'base' with a reader that adapts" in refused
    console.close()


def test_a_command_names_texts_and_a_model_in_folders(tmp_path):
    texts, folder = tmp_path / "texts", tmp_path / "model"
    texts.mkdir()
    (texts / "a b.txt").write_text(TEXTS[0])
    fwl_lab.load_model("bundled").save(folder)
    console = RunConsole(fwl_lab.load_model(folder), fwl_lab.text_corpus(texts), path=tmp_path, corpus=texts)
    words = shlex.split(console.command())
    asked_for = dict(zip(words[6::3], words[7::3], strict=True))
    assert asked_for["path"] == str(texts) and asked_for["model"] == str(folder)
    assert check_parameters(NOTEBOOK, asked_for)["document"] == "a b.txt"
    console.close()


def test_what_a_shell_could_not_make_gets_no_command(console, model, tmp_path):
    assert "model.save(folder)" in asked(console, "command")[0]["error"]
    other = RunConsole(model, DOCUMENTS, path=tmp_path, readers={"mine": StaticReader(model)})
    assert other.settings["readers"][-1] == "mine"
    assert "cannot make the reader 'mine'" in asked(other, "command")[0]["error"]
    other.close()


def test_a_saved_page_takes_the_plan_along_and_a_refusal_too(console, tmp_path):
    page = console.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert '"largest"' in page and "model.save(folder)" in page
    console.settings = console.settings | {"documents": []}
    assert "no document is chosen" in console.to_html(tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_still_picture_is_inert(model, tmp_path):
    console = RunConsole(model, DOCUMENTS, path=tmp_path, readers={"<b>": StaticReader(model)})
    assert "&lt;b&gt;" in console.fallback_html() and "<b>" not in console.fallback_html()
    console.close()


def test_closing_ends_a_run_and_frees_everything(model, tmp_path):
    console, reader = gated(model, tmp_path, at=3)
    gone, read, worker = weakref.ref(console), weakref.ref(reader), console._worker
    console.close()
    reader.go_on.set()
    assert worker.wait(60)
    del console, reader
    gc.collect()
    assert gone() is None and read() is None
    assert fwl_lab.open_trace(tmp_path / "trace.zarr").sizes["token"] == 3072, "what was read is kept in its folder"


def test_closing_leaves_no_thread(model, tmp_path):
    before = set(threading.enumerate())
    console = RunConsole(model, DOCUMENTS, path=tmp_path)
    console.settings = console.settings | {"readers": ["base"]}
    asked(console, "plan")
    console.start()
    finish(console)
    console.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
