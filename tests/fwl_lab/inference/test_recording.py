"""What is recorded: exact factors, dense fast weights, alternatives; within a budget, and readable if cut short."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from fwl_lab import (
    Document,
    FastWeightReader,
    LanguageModel,
    Reader,
    Recorder,
    UpdateRule,
    attach_fast_weights,
    open_trace,
    save_trace,
    score,
)
from fwl_lab.analysis.fast_weights import fast_weight, relative_drift
from fwl_lab.inference.plan import Plan
from fwl_lab.trace.schema import validate
from tests.helpers.models import DOCUMENTS, INNER_BATCH, READERS, SEGMENT, fill_block, make_text_model

RULES = {
    "plain": UpdateRule(inner_batch=INNER_BATCH),
    "decay": UpdateRule(inner_batch=INNER_BATCH, decay=0.2),
    "cap": UpdateRule(inner_batch=INNER_BATCH, cap=0.02),
    "schedule": UpdateRule(inner_batch=INNER_BATCH, schedule=(20.0, 0.5), decay=0.1),
    "infinite": UpdateRule(inner_batch=None),
    "online": UpdateRule(inner_batch=1, decay=0.01),
    "some": UpdateRule(inner_batch=7, steps=(("W2",), ("g", "b1"))),
}


def make(rule: UpdateRule, family: str = "mistral") -> LanguageModel:
    return fill_block(attach_fast_weights(make_text_model(family), 6, rule))


def in_force(reader: FastWeightReader) -> dict[str, np.ndarray]:
    """Δθ with which the next token will be scored: where an inner batch begins, what is retained of it."""
    now = reader.fast_weights()
    every = reader.block.rule.inner_batch
    keep = reader.block.retention(now) if every is not None and int(reader.seen[0]) % every == 0 else None
    return {name: (w if keep is None else w * keep.detach()[0])[0].numpy() for name, w in now.items()}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("carry", [False, True])
def test_a_fast_weight_at_any_token_is_that_of_the_reader(
    name: str, carry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fwl_lab.inference.plan.ANCHOR", 30)
    model = make(RULES[name])
    documents = DOCUMENTS[:2]
    trace = score(model, documents, {"fwl": FastWeightReader(model)}, Recorder(), carry=carry, progress=False)
    assert (int(trace["anchored"].sum()) > 1) == (name != "infinite")  # which makes no update so soon
    retained = trace["retention"].values
    assert bool((retained < 1).any()) == (name in ("decay", "cap", "schedule", "online"))
    reader, start, every = FastWeightReader(model), 0, RULES[name].inner_batch or INNER_BATCH
    for document in documents:
        ids = model.encode(document.text)
        reader.reset(carry=carry)
        for offset in range(len(ids)):
            # About where an inner batch, or what an anchor covers, ends and the next begins.
            near = offset % every in (0, 1, every - 1) or (start + offset) % 30 in (0, 1, 29)
            if near and start + offset > 0:
                for parameter, expected in in_force(reader).items():
                    found = fast_weight(trace, "fwl", parameter, start + offset)
                    size = np.linalg.norm(expected)
                    assert np.linalg.norm(found.values - expected) <= 1e-5 * size, (parameter, offset)
            reader.read(ids[None, offset : offset + 1])
        start += len(ids)


def test_snapshots_of_dynamic_evaluation_are_its_weights() -> None:
    model = make_text_model()
    readers = {"base": READERS["base"](model), "sgd": READERS["sgd"](model)}
    document = DOCUMENTS[1]
    trace = score(model, [document], readers, Recorder(snapshots_every=2 * SEGMENT), progress=False)
    reader, ids = READERS["sgd"](model), model.encode(document.text)
    kept = trace["update_token"].values[trace["anchored"].sel(reader="sgd").values]
    assert kept.tolist() == list(range(2 * SEGMENT - 1, len(ids), 2 * SEGMENT)) and len(kept) > 1
    for token in kept + 1:
        reader.reset()
        reader.read(ids[None, :token])
        for name, delta in reader.fast_weights().items():
            found = fast_weight(trace, "sgd", name, int(token))
            np.testing.assert_array_equal(found.values, delta[0].numpy())
            # It stands still until the next update.
            np.testing.assert_array_equal(fast_weight(trace, "sgd", name, int(token) + 3).values, found.values)
    with pytest.raises(ValueError, match=rf"was not kept; the nearest is at {4 * SEGMENT}.*snapshots_every={SEGMENT}"):
        fast_weight(trace, "sgd", name, 3 * SEGMENT + 2)
    with pytest.raises(ValueError, match="of reader 'base' was not recorded"):
        fast_weight(trace, "base", name, 30)
    drift = relative_drift(trace).sel(reader="sgd", parameter=name).values[-1]
    assert drift == pytest.approx(float(delta.norm() / reader.slow_weights()[name].norm()), rel=1e-4)


@pytest.mark.parametrize("reader", READERS)
def test_alternatives_are_those_the_reader_declares(reader: str) -> None:
    model = make(RULES["decay"])
    trace = score(model, DOCUMENTS[:1], {reader: READERS[reader](model)}, Recorder(top=5), progress=False)
    twin, ids = READERS[reader](model), model.encode(DOCUMENTS[0].text)
    for token, label in enumerate(ids.tolist()):
        log_probs = twin.next_log_probs()[0]
        expected = log_probs.topk(5)
        assert trace["top_id"].values[0, token].tolist() == expected.indices.tolist()
        np.testing.assert_allclose(trace["top_log_prob"].values[0, token], expected.values, atol=1e-4)
        assert trace["label_rank"].values[0, token] == int((log_probs > log_probs[label]).sum())
        twin.read(ids[None, token : token + 1])


def test_a_snapshot_of_low_rank_is_the_nearest_and_says_what_it_leaves_out() -> None:
    model, document = make(RULES["plain"]), DOCUMENTS[1]
    readers = {"fwl": FastWeightReader(model), "sgd": READERS["sgd"](model)}
    whole, low = (
        score(model, [document], readers, Recorder(snapshots_every=SEGMENT, rank=rank), progress=False)
        for rank in (None, 2)
    )
    token = 3 * SEGMENT
    for name, slow in readers["sgd"].slow_weights().items():
        exact, near = (fast_weight(trace, "sgd", name, token) for trace in (whole, low))
        if slow.ndim == 1:
            np.testing.assert_array_equal(exact.values, near.values)
            continue
        values = np.linalg.svd(exact.values, compute_uv=False)
        lost = np.linalg.norm(exact.values - near.values)
        assert lost == pytest.approx(np.linalg.norm(values[2:]), rel=1e-3)
        assert near.attrs["left_out"] == pytest.approx(lost / np.linalg.norm(values), abs=2e-3)
    np.testing.assert_array_equal(  # factors are exact whatever the snapshots' rank
        fast_weight(whole, "fwl", "W2", token).values, fast_weight(low, "fwl", "W2", token).values
    )
    sizes = [
        sum(a.nbytes for a in Plan.of(Recorder(False, SEGMENT, rank), readers, [60], carry=False).arrays().values())
        for rank in (None, 2)
    ]
    assert sizes[1] < sizes[0]


def test_recording_changes_no_score_and_keeps_none_of_the_reader() -> None:
    model = make(RULES["cap"])
    readers = {name: READERS[name](model) for name in READERS}
    plain = score(model, DOCUMENTS, readers, progress=False)
    trace = score(model, DOCUMENTS, readers, Recorder(snapshots_every=SEGMENT), progress=False)
    np.testing.assert_array_equal(trace["nll"].values, plain["nll"].values)
    before = fast_weight(trace, "fwl", "W2", 40).values.copy()
    readers["fwl"].read(model.encode(DOCUMENTS[2].text)[None])
    np.testing.assert_array_equal(fast_weight(trace, "fwl", "W2", 40).values, before)


def test_steps_have_a_norm_and_a_direction() -> None:
    model = make(RULES["plain"])
    trace = score(model, DOCUMENTS[:1], {"fwl": FastWeightReader(model)}, Recorder(), progress=False)
    grid, count = trace["update_token"].values, trace.sizes["token"]
    at = [0, *(grid + 1).tolist()]
    for name in ("W2", "b1"):
        weights = [fast_weight(trace, "fwl", name, t).values.ravel() for t in at if t <= count]
        steps = np.diff(np.stack(weights), axis=0)
        recorded = trace.sel(reader="fwl", parameter=name)
        np.testing.assert_allclose(recorded["update_norm"].values, np.linalg.norm(steps, axis=1), rtol=1e-3)
        cosines = (steps[1:] * steps[:-1]).sum(1) / np.prod([np.linalg.norm(steps[i:][: len(steps) - 1], axis=1)
                                                             for i in (0, 1)], axis=0)  # fmt: skip
        np.testing.assert_allclose(recorded["update_cosine"].values[1:], cosines, atol=1e-3)
        assert np.isnan(recorded["update_cosine"].values[0]) and np.abs(cosines).max() > 0.05


def test_the_trace_is_the_same_in_memory_on_disk_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwl_lab.inference.plan.ANCHOR", 30)
    monkeypatch.setattr("fwl_lab.trace.arrays.BLOCK", 16)  # blocks that end inside chunks
    monkeypatch.setattr("fwl_lab.inference.read_loop.TOKENS_PER_CALL", 25)
    model = make(RULES["decay"])
    readers: dict[str, Reader] = {name: READERS[name](model) for name in ("base", "fwl", "sgd")}
    record = Recorder(snapshots_every=24)
    memory = score(model, DOCUMENTS, readers, record, progress=False)
    disk = score(model, DOCUMENTS, readers, record, path=tmp_path / "a.zarr", progress=False)
    again = open_trace(save_trace(memory, tmp_path / "b.zarr"))
    varying = ["seconds", "peak_bytes"]
    for other in (disk, again):
        xr.testing.assert_equal(other.drop_vars(varying).load(), memory.drop_vars(varying).load())
        assert {k: v for k, v in other.attrs.items() if k != "created"} == {
            k: v for k, v in memory.attrs.items() if k != "created"
        }
    assert "progress" not in disk.attrs and bool((memory["flops_per_token"] > 0).all())
    score(model, DOCUMENTS[:1], {"base": readers["base"]}, path=tmp_path / "a.zarr", progress=False)
    assert open_trace(tmp_path / "a.zarr").sizes["reader"] == 1 and len(list(tmp_path.iterdir())) == 2


def test_the_budget_is_kept_and_told_before_anything_is_read(tmp_path: Path) -> None:
    model = make(RULES["plain"])
    readers: dict[str, Reader] = {"fwl": FastWeightReader(model)}
    lengths = [len(model.encode(document.text)) for document in DOCUMENTS]
    plan = Plan.of(Recorder(), readers, lengths, carry=False)
    needed = sum(array.nbytes for array in plan.arrays().values())
    for name in ("W1", "W2"):
        rows, columns = readers["fwl"].slow_weights()[name].shape
        found = plan.arrays()[f"delta_{name}"].nbytes + plan.arrays()[f"key_{name}"].nbytes
        assert found == 4 * (rows + columns) * sum(lengths)
    with pytest.raises(ValueError, match=r"would take .* and the byte budget is .* Nothing was read"):
        score(model, DOCUMENTS, readers, Recorder(byte_budget=needed - 1), path=tmp_path / "t", progress=False)
    assert not (tmp_path / "t").exists()
    score(model, DOCUMENTS, readers, Recorder(byte_budget=needed), path=tmp_path / "t", progress=False)
    scores = 8 * sum(lengths)
    written = sum(file.stat().st_size for file in (tmp_path / "t").rglob("*") if "delta_" in str(file) or
                  "key_" in str(file))  # fmt: skip
    assert written <= needed + scores + 100_000


def test_bad_recorders_are_refused() -> None:
    model = make(RULES["plain"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"byte_budget": "much"}, "byte_budget is 'much'; expected a size such as '1 GiB'"),
        ({"byte_budget": "1 KB"}, "byte_budget is '1 KB'"),
        ({"snapshots_every": 0}, "snapshots_every is 0; expected a whole number"),
        ({"rank": 0}, "rank is 0; expected a whole number of directions"),
        ({"parameters": "W2"}, r"parameters is 'W2'; expected a list of names, such as \['W2'\]"),
        ({"top": -1}, "top is -1; expected a whole number"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            Recorder(**arguments)
    with pytest.raises(ValueError, match="top is 5000; expected at most"):
        score(model, DOCUMENTS, {"fwl": FastWeightReader(model)}, Recorder(top=5000), progress=False)
    with pytest.raises(ValueError, match="asks for W9; what adapts in these readers: W1, b1, W2, b2, g"):
        score(model, DOCUMENTS, {"fwl": FastWeightReader(model)}, Recorder(parameters=["W9"]), progress=False)


def test_only_some_parameters_are_kept() -> None:
    model = make(RULES["plain"])
    record = Recorder(parameters=["W2"], top=0)
    trace = validate(score(model, DOCUMENTS[:1], {"fwl": FastWeightReader(model)}, record, progress=False))
    assert {"key_W2", "delta_W2", "drift"} <= set(trace.variables) and "top_id" not in trace
    assert "delta_W1" not in trace and "delta_b1" not in trace
    with pytest.raises(ValueError, match=r"Δθ of W1 of reader 'fwl' was not recorded. .*Recorder\(factors=True\)"):
        fast_weight(trace, "fwl", "W1", 20)


CUT_SHORT = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.fwl_lab.inference import test_recording as t
model = t.make(t.RULES["decay"])
text = "".join(document.text for document in t.DOCUMENTS) * 400
t.score(model, [t.Document("long", text)], {name: t.READERS[name](model) for name in ("base", "fwl")}, t.Recorder(),
        path=sys.argv[1], progress=False)
"""


def test_a_reading_that_is_killed_leaves_what_was_complete(tmp_path: Path) -> None:
    path = tmp_path / "trace.zarr"
    running = subprocess.Popen([sys.executable, "-c", CUT_SHORT, str(path), str(Path(__file__).parents[3])])
    try:
        until = time.monotonic() + 120
        while running.poll() is None and time.monotonic() < until:
            try:
                if json.loads((path / "zarr.json").read_text())["attributes"]["progress"].count("0") < 2:
                    break
            except (OSError, KeyError):
                pass
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    trace = validate(open_trace(path))
    count = trace.sizes["token"]
    assert count >= 1024 and count % 1024 == 0 and "progress" in trace.attrs
    # It is the beginning of the whole one.
    model = make(RULES["decay"])
    text = "".join(document.text for document in DOCUMENTS) * 400
    readers = {name: READERS[name](model) for name in ("base", "fwl")}
    whole = score(model, [Document("long", text)], readers, Recorder(), progress=False, max_tokens=count)
    np.testing.assert_array_equal(trace["nll"].values, whole["nll"].values)
    for token in (17, count - 1):
        np.testing.assert_array_equal(
            fast_weight(trace, "fwl", "W2", token).values, fast_weight(whole, "fwl", "W2", token).values
        )


def test_a_reader_that_does_not_say_when_it_updates_is_named() -> None:
    class Silent(FastWeightReader):
        @property
        def update_every(self) -> int:
            return 8

    model = make_text_model()
    model = fill_block(attach_fast_weights(model, 6, UpdateRule(inner_batch=INNER_BATCH)))
    with pytest.raises(ValueError, match="reader 'mine' made an update after 10 tokens of a document, and its"):
        score(model, DOCUMENTS[:1], {"mine": Silent(model)}, Recorder(), progress=False)


@pytest.mark.slow
def test_a_long_document_is_recorded_within_its_budget_and_little_memory(tmp_path: Path) -> None:
    """32,768 tokens of the bundled model's documents: budget 1 GiB, memory 1.5 GiB for the whole process."""
    script = (
        "import sys, resource\n"
        "from fwl_lab import *\n"
        "from fwl_lab.inference.plan import Plan\n"
        "model = load_model('bundled')\n"
        "text = ''.join(d.text for d in stdlib_corpus('validation'))\n"
        "readers = make_readers(model, ['base', 'fwl'])\n"
        "trace = score(model, [Document('long', text)], readers, Recorder(), path=sys.argv[1], max_tokens=32768,"
        " progress=False)\n"
        "print(trace.sizes['token'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t")], check=True, capture_output=True, text=True
    )
    tokens, peak = map(int, done.stdout.split())
    size = sum(file.stat().st_size for file in (tmp_path / "t").rglob("*") if file.is_file())
    assert tokens == 32768 and peak <= 1.5 * 2**30 and size <= 2**30, (tokens, peak, size)
