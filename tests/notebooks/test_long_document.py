"""The notebook that reads one long document: what its summary says is what was read."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from fwl_lab import FastWeightReader, LanguageModel, StaticReader, UpdateRule, attach_fast_weights
from tests.helpers.models import TEXTS, fill_block, make_text_model
from widgets.report.run import NotebookFailed, run_notebook

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "long_document.ipynb"
TOKENS, FIRST = 1205, 300


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fill_block(attach_fast_weights(make_text_model(), size=4, rule=UpdateRule(inner_batch=16)), scale=0.002)


@pytest.fixture(scope="module")
def folder(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and texts of more than `TOKENS` tokens."""
    folder = tmp_path_factory.mktemp("long")
    model.save(folder / "model")
    (folder / "texts").mkdir()
    for index in range(12):
        text = TEXTS[index % len(TEXTS)] * (index + 1)
        (folder / "texts" / f"{index:02}.txt").write_text(text, encoding="utf-8")
    return folder


def _run(folder: Path, output: Path, **parameters: object) -> Path:
    sources = {"model": str(folder / "model"), "path": str(folder / "texts")}
    return run_notebook(NOTEBOOK, output, sources | parameters, progress=False)


def test_the_summary_says_what_was_read(model, folder, tmp_path):
    executed = _run(folder, tmp_path, tokens=TOKENS, first_tokens=FIRST)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))

    pieces = [model.encode(path.read_text(encoding="utf-8")) for path in sorted((folder / "texts").iterdir())]
    ends = np.cumsum([len(piece) for piece in pieces])
    assert ends[-1] > TOKENS > FIRST > ends[0]
    ids = torch.cat(pieces)[None, :TOKENS]
    (made_of,) = summary["made_of"].values()
    assert made_of == {"documents": int((ends < TOKENS).sum()) + 1, "tokens": TOKENS}
    assert (summary["tokens"], summary["first_tokens"]) == (TOKENS, FIRST)

    readers = {"base": StaticReader(model.base), "fwl": FastWeightReader(model)}
    nll = {name: reader.read(ids).nll[0].double().numpy() for name, reader in readers.items()}
    assert np.abs(nll["base"] - nll["fwl"]).max() > 0.1
    # A tenth begins at the first token that has a tenth of the document, or more, before it.
    tenth = np.arange(TOKENS) * 10 // TOKENS
    for name in readers:
        means = [nll[name][tenth == index].mean() for index in range(10)]
        np.testing.assert_allclose(summary["tenths"]["nats_per_token"][name], means, atol=1e-5)
        assert summary["readers"][name]["nats_per_token"] == pytest.approx(nll[name].mean(), abs=1e-5)
        assert summary["readers"][name]["finite"] is True
        told = np.average(summary["tenths"]["nats_per_token"][name], weights=np.bincount(tenth))
        assert told == pytest.approx(summary["readers"][name]["nats_per_token"], abs=1e-9)
        _check_parts(summary, name)
    gains = [(nll["base"] - nll["fwl"])[tenth == index].mean() for index in range(10)]
    np.testing.assert_allclose(summary["tenths"]["gain"], gains, atol=1e-5)
    fwl = readers["fwl"]
    moved, slow = (
        np.sqrt(sum(float(t.square().sum()) for t in weights.values()))
        for weights in (fwl.fast_weights(), fwl.slow_weights())
    )
    assert summary["readers"]["fwl"]["final_drift"] == pytest.approx(moved / slow, rel=1e-4)
    assert summary["readers"]["base"]["final_drift"] is None
    drifts = summary["drifts"]
    assert [(row["reader"], row["parameter"]) for row in drifts] == [("fwl", name) for name in fwl.slow_weights()]
    for row in drifts:
        delta, slow = (float(w[row["parameter"]].norm()) for w in (fwl.fast_weights(), fwl.slow_weights()))
        assert (row["norm"], row["slow_norm"]) == pytest.approx((delta, slow), rel=1e-4)
        assert row["drift"] == (pytest.approx(delta / slow, rel=1e-4) if slow else None)
    assert summary["provenance"]["model_hash"] == model.weight_hash()

    said = [str(output) for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert f"{TOKENS:,} scores of each reader, all finite" in " ".join(said)
    worse = [str(index + 1) for index, gain in enumerate(gains) if gain <= 0]
    assert ("not better than base in tenth " + ", ".join(worse) in " ".join(said)) == bool(worse)


def _check_parts(summary: dict, name: str) -> None:
    """The parts follow one another, and time, memory and drift are those of the parts."""
    parts, facts = [part for part in summary["parts"] if part["reader"] == name], summary["readers"][name]
    stops = [part["stop"] for part in parts]
    assert [part["start"] for part in parts] == [0, *stops[:-1]]
    assert stops[-1] == TOKENS and FIRST in stops and len(parts) in (100, 101)
    early = parts[: stops.index(FIRST) + 1]
    seconds = sum(part["seconds"] for part in parts)
    assert facts["seconds"] == pytest.approx(seconds)
    linear = sum(part["seconds"] for part in early) * TOKENS / FIRST
    assert facts["seconds_over_linear"] == pytest.approx(seconds / linear)
    peaks = [part["peak_bytes"] for part in parts]
    assert (facts["first_peak_bytes"], facts["peak_bytes"]) == (peaks[len(early) - 1], peaks[-1])
    assert peaks == sorted(peaks, key=lambda peak: peak or 0)
    drifts = [part["drift"] for part in parts if part["drift"] is not None]
    assert (facts["largest_drift"], facts["final_drift"]) == (max(drifts, default=None), (drifts or [None])[-1])


@pytest.mark.slow
def test_a_whole_that_is_no_longer_than_its_beginning_is_refused(folder, tmp_path):
    with pytest.raises(NotebookFailed, match=f"{TOKENS} tokens to read, first_tokens is 5000; expected 100 and a part"):
        _run(folder, tmp_path, tokens=TOKENS, first_tokens=5000)
    assert [path.name for path in tmp_path.iterdir()] == [NOTEBOOK.name]
