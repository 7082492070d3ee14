"""Notebooks: how they are written, and that each runs from its parameters to what it leaves behind."""

import ast
import base64
import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr
from transformers import GPT2Config, GPT2LMHeadModel

from fwl_lab import (
    Document,
    LanguageModel,
    Surgery,
    TunedRule,
    UpdateRule,
    attach_fast_weights,
    certificates,
    load_model,
    new_model,
    open_trace,
    operate,
    train,
)
from fwl_lab.models.from_scratch import train_tokenizer
from fwl_lab.ops.tensor_files import read_tensors
from fwl_lab.readers import DynamicEvaluationReader, FastWeightReader, StaticReader
from fwl_lab.training.config import TrainingConfig
from widgets.report.render import write_report
from widgets.report.run import NotebookFailed, check_parameters, notebook_parameters, run_notebook

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINES = 15


def _code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def _is_parameters(cell: nbformat.NotebookNode) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def test_all_notebooks_are_found():
    assert {path.stem for path in NOTEBOOKS} >= {
        "00_quickstart",
        "01_anatomy_of_an_update",
        "02_read_a_document",
        "03_receipts_and_surgery",
        "04_compare_readers",
        "05_live",
        "06_widget_gallery",
        "long_document",
        "train",
        "tune",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestHowTheyAreWritten:
    def test_one_cell_of_parameters_with_literal_values(self, path):
        (cell,) = filter(_is_parameters, _code(path))
        statements = ast.parse(cell.source).body
        assert all(isinstance(statement, ast.Assign) for statement in statements)
        for statement in statements:
            assert isinstance(statement, ast.Assign)
            ast.literal_eval(statement.value)
        assert notebook_parameters(path)["output"].startswith("runs/")

    def test_no_output_is_stored(self, path):
        for cell in _code(path):
            assert cell.outputs == []
            assert cell.execution_count is None

    def test_cells_are_short_and_define_nothing(self, path):
        for cell in _code(path):
            # A list of parameters is as long as it is.
            assert _is_parameters(cell) or len(cell.source.splitlines()) <= LINES, cell.source
            defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, defined)], cell.source

    def test_text_says_what_each_picture_shows(self, path):
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].source.startswith("# ")
        for before, cell in itertools.pairwise(cells):
            if cell.cell_type == "code" and "figures.plot_" in cell.source:
                assert before.cell_type == "markdown" or "train(" in before.source, cell.source

    def test_an_unknown_parameter_is_an_error(self, path, tmp_path):
        with pytest.raises(ValueError, match=r"has no parameter 'maks_tokens'; it has .*output"):
            run_notebook(path, tmp_path / "out", {"maks_tokens": 1})
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path", [FOLDER / "04_compare_readers.ipynb", FOLDER / "train.ipynb"], ids=lambda path: path.stem
)
def test_a_parameter_of_another_type_is_an_error(path):
    with pytest.raises(ValueError, match="parameter 'seed'"):
        check_parameters(path, {"seed": "many"})


def _text(rng: random.Random) -> str:
    """A little program in which the same few names come again and again."""
    names = [f"{word}_{rng.randrange(100)}" for word in ("value", "total", "reader", "score", "token")]
    return "".join(
        f"def {rng.choice(names)}({rng.choice(names)}):\n    return {rng.choice(names)} + {rng.choice(names)}\n\n"
        for _ in range(40)
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 small documents, and one of a few words."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    for index in range(20):
        (folder / f"{index:02}.txt").write_text(_text(rng), encoding="utf-8")
    (folder / "short.txt").write_text("return value\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model_folder(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a block that adapts, both a little trained."""
    documents = [Document(path.name, path.read_text(encoding="utf-8")) for path in sorted(texts.glob("[0-9]*"))]
    base = new_model(documents, hidden_size=128, layers=1, vocab_size=400, window=64)
    config = TrainingConfig(mode="base", steps=30, rows=4, tokens=64, learning_rate=3e-3, warmup=5)
    train(base, documents, config, progress=False)
    model = attach_fast_weights(base, 8, UpdateRule(inner_batch=16, initial_step=0.01))
    train(model, documents, dataclasses.replace(config, mode="retrofit", steps=5), progress=False)
    model.provenance = {
        "name": "tiny",
        "training": [{"mode": "base", "tokens": 7680}, {"mode": "retrofit", "tokens": 1280}],
        "validation": {"base": 1.0},
    }
    model.tuned_rule = TunedRule("sgd", lr=0.05)
    folder = tmp_path_factory.mktemp("model")
    model.save(folder, block="control")
    model.save(folder)
    return folder


def _run(name: str, folder: Path, **parameters: object) -> Path:
    return run_notebook(FOLDER / f"{name}.ipynb", folder, parameters, progress=False)


def _said(executed: Path) -> str:
    """All that an executed notebook printed; nothing of it an error or a warning."""
    cells = _code(executed)
    streams = [output for cell in cells for output in cell.outputs if output.output_type == "stream"]
    assert not [stream.text for stream in streams if "Warning" in stream.text or "Traceback" in stream.text]
    return "".join(stream.text for stream in streams)


def _nll(trace: xr.Dataset, reader: str, document: int) -> np.ndarray:
    return trace.nll.sel(reader=reader).values[trace.document.values == document]


def _ids(model: LanguageModel, path: Path, tokens: int) -> torch.Tensor:
    return model.encode(path.read_text(encoding="utf-8"))[None, :tokens]


def test_quickstart_reads_a_users_text(texts, model_folder, tmp_path):
    executed = _run(
        "00_quickstart", tmp_path, model=str(model_folder), path=str(texts), document="03.txt", max_tokens=200, seed=5
    )
    assert "03.txt" in _said(executed)
    trace, model = open_trace(tmp_path / "trace.zarr"), load_model(model_folder)
    assert trace.reader.values.tolist() == ["base", "static", "dynamic_evaluation", "fwl"]
    assert (trace.attrs["seed"], trace.attrs["max_tokens"], trace.attrs["model_name"]) == (5, 200, "tiny")
    ids = _ids(model, texts / "03.txt", 200)
    for name, reader in (("base", StaticReader(model.base)), ("fwl", FastWeightReader(model))):
        np.testing.assert_allclose(_nll(trace, name, 0), reader.read(ids).nll[0].numpy(), atol=1e-5)
    assert np.abs(_nll(trace, "fwl", 0) - _nll(trace, "static", 0)).max() > 0.01
    assert "drift" in trace
    assert "03.txt" in (tmp_path / "document.html").read_text(encoding="utf-8")
    page = write_report(executed, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<script type="application/json">') == 6
    assert _is_light(executed) and len(_still(executed, "views")) > 1000
    assert (tmp_path / "views.html").stat().st_size > 10_000


@pytest.mark.slow
def test_quickstart_shows_no_update_of_a_text_too_short_for_one(texts, model_folder, tmp_path):
    readers = ["base", "fwl", "static"]
    source = {"model": str(model_folder), "path": str(texts), "document": "short.txt", "corpus": "text"}
    executed = _run("00_quickstart", tmp_path, **source, readers=readers)
    assert "short.txt" in _said(executed)
    assert open_trace(tmp_path / "trace.zarr").sizes["update"] == 0
    (cell,) = (cell for cell in _code(executed) if "plot_fast_weight_norms" in cell.source)
    assert cell.outputs == []


@pytest.mark.slow  # each starts a kernel
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"readers": ["static", "fwl"]}, "expected 'base' and one that adapts"),
        ({"readers": ["base", "static"]}, "expected 'base' and one that adapts"),
        ({"corpus": "wikitext", "path": "wiki.tokens"}, "WikiText: 04_compare_readers"),
        ({"corpus": "text"}, "give 'stdlib', or 'text' and path"),
    ],
)
def test_quickstart_refuses_what_it_cannot_show(tmp_path, given, message):
    with pytest.raises(NotebookFailed, match=f"ValueError: .*{message}"):
        _run("00_quickstart", tmp_path, **given)


@pytest.mark.slow  # each starts a kernel
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("train", {"validation_documents": 0}),
        ("train", {"validation_tokens": 0}),
        ("04_compare_readers", {"table_tokens": 0}),
        ("04_compare_readers", {"max_tokens": 0}),
    ],
)
def test_nothing_is_read_where_no_token_would_be_measured(tmp_path, name, given):
    with pytest.raises(NotebookFailed, match=r"ValueError: .*\b0\b.*; (give|expected) at least 1"):
        _run(name, tmp_path, **given)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.ipynb"]


def test_training_a_block_leaves_a_model_a_trace_and_where_it_came_from(texts, model_folder, tmp_path):
    options = {"steps": 20, "rows": 1, "tokens": 32, "warmup": 2, "size": 4, "inner_batch": 8, "initial_step": 0.01}
    source = {"model": str(model_folder), "corpus": "text", "path": str(texts)}
    _said(_run("train", tmp_path, **source, **options, validation_documents=1, validation_tokens=100))
    trained, given = load_model(tmp_path / "model"), load_model(model_folder)
    assert trained.block is not None
    assert (trained.block.size, trained.block.rule.inner_batch) == (4, 8)
    assert trained.base.weight_hash() == given.base.weight_hash()
    assert bool(trained.block.W2.any())
    facts = trained.provenance
    assert [run["mode"] for run in facts["training"]] == ["base", "retrofit"]
    run = facts["training"][-1]
    assert run["config"]["steps"] == 20
    assert run["tokens"] == 20 * 32
    assert (run["initial_step"], run["inner_batch"]) == (0.01, 8)
    assert [point["step"] for point in run["curve"]] == [20]
    assert trained.tuned_rule == given.tuned_rule == TunedRule("sgd", lr=0.05)
    # The last tenth of 21 documents, sorted by name, is held out; of these the one long enough is read.
    trace = open_trace(tmp_path / "trace.zarr")
    assert trace.document_name.values.tolist() == ["19.txt"]
    for name in ("base", "static", "fwl"):
        assert facts["validation"][name] == pytest.approx(float(trace.nll.sel(reader=name).mean()))
    ids = _ids(trained, texts / "19.txt", 100)
    expected = FastWeightReader(trained).read(ids).nll[0].numpy()
    np.testing.assert_allclose(_nll(trace, "fwl", 0), expected, atol=1e-5)


@pytest.mark.slow
def test_a_gpt2_of_ones_own_is_retrofitted_on_ones_own_text(texts, tmp_path):
    """As Hugging Face leaves it in a folder: LayerNorm with biases, absolute positions, a tied head."""
    documents = [Document(path.name, path.read_text(encoding="utf-8")) for path in sorted(texts.glob("*.txt"))]
    tokenizer = train_tokenizer(documents, 300)
    ends: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    given = GPT2LMHeadModel(GPT2Config(**shape, **ends))
    given.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    # As on a command line: all of it text.
    options = {
        "mode": "retrofit", "corpus": "text", "size": "4", "inner_batch": "8", "initial_step": "0.01", "decay": "0.01",
        "learn_decay": "True", "schedule": "[100,0.5]", "cap": "0.2", "steps": "2", "rows": "2", "tokens": "32",
        "warmup": "1", "validation_documents": "1", "validation_tokens": "60",
    }  # fmt: skip
    _said(_run("train", tmp_path / "out", model=str(tmp_path / "gpt2"), path=str(texts), **options))

    trained = load_model(tmp_path / "out" / "model", device="cpu")
    rule = {"inner_batch": 8, "decay": 0.01, "learn_decay": True, "schedule": (100, 0.5), "cap": 0.2}
    assert trained.block is not None
    assert (trained.block.size, trained.block.rule) == (4, UpdateRule(initial_step=0.01, **rule))
    run = trained.provenance["training"][-1]
    assert {name: run[name] for name in rule} == rule | {"schedule": [100, 0.5]}
    assert trained.block.decay().item() != pytest.approx(0.01, rel=1e-6)  # it was trained
    for name, parameter in trained.base.network.named_parameters():
        assert torch.equal(parameter, given.get_parameter(name)), name
    ids = _ids(trained, texts / "03.txt", 100)
    fast, static = (kind(trained).read(ids).nll for kind in (FastWeightReader, StaticReader))
    assert bool(fast.isfinite().all()) and not torch.equal(fast, static)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["base", "joint", "slow-control"])
def test_other_kinds_of_training(texts, model_folder, tmp_path, mode):
    shape = {"hidden_size": 128, "layers": 1, "vocab_size": 300, "window": 32}
    options = {"steps": 3, "rows": 2, "tokens": 32, "warmup": 1, "size": 4, "initial_step": 0.01, "dtype": "bfloat16"}
    source = {"corpus": "text", "path": str(texts)} | ({} if mode == "base" else {"model": str(model_folder)})
    _said(_run("train", tmp_path, mode=mode, **source, **options, new_model_shape=shape, validation_tokens=60))
    trained, given = load_model(tmp_path / "model"), load_model(model_folder)
    trace = open_trace(tmp_path / "trace.zarr")
    stored, _ = read_tensors(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim == 2} == {torch.bfloat16}
    if mode == "base":
        assert trained.block is None
        assert (trained.vocab_size, trained.window) == (300, 32)
        assert trace.reader.values.tolist() == ["base"]
        assert trained.tuned_rule is None
        return
    # The base is the given one, stored in bfloat16.
    for name, parameter in trained.base.network.named_parameters():
        assert torch.allclose(parameter, dict(given.base.network.named_parameters())[name], rtol=2**-8, atol=0)
    assert trace.reader.values.tolist() == (["base", "static"] if mode == "slow-control" else ["base", "static", "fwl"])
    assert (trained.network is trained.base.network) == (mode == "slow-control")


@pytest.mark.slow
def test_a_run_started_again_goes_on_from_its_checkpoint(texts, model_folder, tmp_path):
    options = {"steps": 4, "rows": 1, "tokens": 32, "warmup": 1, "size": 4, "initial_step": 0.01, "checkpoint_every": 2}
    source = {"model": str(model_folder), "corpus": "text", "path": str(texts), "validation_tokens": 40}
    _run("train", tmp_path, **source, **options)
    first = load_model(tmp_path / "model").weight_hash()
    written = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    _run("train", tmp_path, **source, **options)
    assert load_model(tmp_path / "model").weight_hash() == first
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == written  # nothing was trained again


@pytest.mark.slow
def test_evaluation_keeps_every_figure_of_its_tables(texts, model_folder, tmp_path):
    executed = _run(
        "04_compare_readers", tmp_path, model=str(model_folder), corpus="text", path=str(texts),
        documents=10, max_tokens=700, table_tokens=300, certified=96,
    )  # fmt: skip
    assert "21 documents; 1 with fewer than 256 tokens left out; 10 read" in _said(executed)
    trace = open_trace(tmp_path / "trace.zarr").load()
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    names = ["base", "static", "neural_cache", "dynamic_evaluation", "fwl", "more_context", "slow_control"]
    parts = summary["wrong_document"]
    assert parts["gain"]["micro"]["mean"] - parts["generic"]["micro"]["mean"] == pytest.approx(
        parts["net"]["micro"]["mean"]
    )
    assert list(summary["readers"]) == trace.reader.values.tolist() == names
    # The control that lies beside the block is here the block itself, so it reads as "static" does.
    np.testing.assert_array_equal(trace.nll.sel(reader="slow_control"), trace.nll.sel(reader="static"))
    assert summary["document_names"] == [f"{i:02}.txt" for i in np.linspace(0, 19, 10).round().astype(int)]
    early = trace.nll.isel(token=trace.position.values < 300)
    for name in names:
        assert summary["readers"][name]["nats_per_token"] == pytest.approx(float(early.sel(reader=name).mean()))
    gain = float((early.sel(reader="base") - early.sel(reader="fwl")).mean())
    micro = summary["readers"]["fwl"]["gain"]["micro"]
    assert micro["mean"] == pytest.approx(gain)
    assert micro["low"] < gain < micro["high"]
    assert [bucket["start"] for bucket in summary["buckets"]] == [0, 512]
    assert sum(bucket["tokens"] for bucket in summary["buckets"]) == trace.sizes["token"]
    seconds = dict(zip(names, trace.seconds.values, strict=True))
    ratio = summary["readers"]["fwl"]["time_over_dynamic_evaluation"]
    assert ratio == pytest.approx(seconds["fwl"] / seconds["dynamic_evaluation"])
    assert summary["provenance"]["corpus_hash"] == trace.attrs["corpus_hash"]
    assert all(certificate.passed for certificate in certificates(trace).values()) and len(certificates(trace)) == 7
    kinds = summary["breakdowns"]
    assert all(sum(row["tokens"] for row in kinds[kind]) == trace.sizes["token"] for kind in kinds)


@pytest.mark.slow
def test_tuning_writes_the_best_rule_into_the_model(texts, model_folder, tmp_path):
    source = {"model": str(model_folder), "corpus": "text", "path": str(texts)}
    _said(_run("tune", tmp_path, **source, documents=1, max_tokens=128, statistics_batches=8))
    tuned, given = load_model(tmp_path / "model"), load_model(model_folder)
    assert tuned.weight_hash() == given.weight_hash()
    assert load_model(tmp_path / "model", block="control").weight_hash() == tuned.weight_hash()
    facts, rule = tuned.provenance["tuning"], tuned.tuned_rule
    nats = [trial["nats"] for trial in facts["trials"] if trial["nats"] is not None]
    assert facts["nats"] == min(nats) == nats[0]
    assert rule is not None and rule.hyperparameters() | {"nats": nats[0]} == facts["trials"][0]
    assert {trial["rule"] for trial in facts["trials"]} == {"sgd", "rms_2018"}
    ids = _ids(given, texts / "19.txt", 128)
    assert facts["base_nats"] == pytest.approx(float(StaticReader(given.base).read(ids).nll.mean()), abs=1e-5)
    # What an RMS rule divides by comes with the model, and the reader takes it up.
    assert (tuned.gradient_statistics is None) == (rule.rule == "sgd")
    read = DynamicEvaluationReader(tuned.base).read(ids).nll
    assert float(read.mean()) == pytest.approx(facts["nats"], abs=1e-5)


def _drawn(executed: Path, part: str) -> list[dict[str, Any]]:
    """What the figure of the one cell whose source holds `part` is made of."""
    (cell,) = (cell for cell in _code(executed) if part in cell.source)
    figures = [output.data["application/vnd.plotly.v1+json"] for output in cell.outputs if "data" in output]
    assert len(figures) == 1
    return list(figures[0]["data"])


def _numbers(drawn: Any) -> np.ndarray:
    """Numbers of a figure, however plotly has written them."""
    if isinstance(drawn, dict):
        drawn = np.frombuffer(base64.b64decode(drawn["bdata"]), drawn["dtype"])
    return np.asarray(drawn, dtype=np.float64)


def test_an_update_by_hand_is_the_librarys(model_folder, tmp_path):
    text = "return value + total\n"
    executed = _run("01_anatomy_of_an_update", tmp_path, model=str(model_folder), text=text, learned=0, later=3)
    said = _said(executed)
    assert "by hand, against the static reader" in said and "by hand, against the fwl reader" in said
    model = load_model(model_folder)
    read = FastWeightReader(model).read(model.encode(text)[None]).nll[0].numpy()
    slow, adapted, library = (_numbers(each["y"]) for each in _drawn(executed, "by the library"))
    np.testing.assert_allclose(library, read, atol=1e-4)
    np.testing.assert_allclose(adapted, library, atol=1e-5)
    np.testing.assert_allclose(slow, StaticReader(model).read(model.encode(text)[None]).nll[0].numpy(), atol=1e-4)
    assert np.abs(slow - adapted).max() > 1e-3
    np.testing.assert_allclose(_nll(open_trace(tmp_path / "trace.zarr"), "fwl", 0), library)
    # What the loudest earlier token says: the length of its update of W2 times the query.
    answers = _numbers(_drawn(executed, "plot_tokens(\n    texts[:later]")[0]["y"])
    assert len(answers) == 3 and (answers >= 0).all() and answers.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"learned": 3, "later": 2}, {"later": 400}, {"text": "value = total\n" * 30}])
def test_an_update_is_taken_apart_within_the_first_inner_batch(model_folder, tmp_path, given):
    with pytest.raises(NotebookFailed, match=r"ValueError: .* expected learned < later < tokens <= 16"):
        _run("01_anatomy_of_an_update", tmp_path, model=str(model_folder), **given)


@pytest.mark.parametrize("parameter", ["W2", pytest.param("W1", marks=pytest.mark.slow)])
def test_what_a_document_makes_of_the_weights(texts, model_folder, tmp_path, parameter):
    options = {"document": str(texts / "04.txt"), "max_tokens": 150, "parameter": parameter}
    executed = _run("02_read_a_document", tmp_path, model=str(model_folder), **options)
    said = _said(executed)
    trace = open_trace(tmp_path / "trace.zarr").load()
    model = load_model(model_folder)
    reader = FastWeightReader(model)
    read = reader.read(_ids(model, texts / "04.txt", 150))
    np.testing.assert_allclose(_nll(trace, "fwl", 0), read.nll[0].numpy(), atol=1e-5)
    base, fwl = (float(trace.nll.sel(reader=name).mean()) for name in ("base", "fwl"))
    assert f"{base:.3f} nats a token by the base" in said and f"{fwl:.3f} with learning" in said
    # Nine inner batches of 16 tokens are complete; the spectrum is that of the reader's own weights after them.
    values = _drawn(executed, "plot_spectrum")
    assert list(_numbers(values[0]["x"])) == list(range(16, 145, 16))
    reader = FastWeightReader(model)
    reader.read(_ids(model, texts / "04.txt", 144))
    expected = torch.linalg.svdvals(reader.fast_weights()[parameter][0])
    ends = [_numbers(line["y"])[-1] for line in values[:16]]
    np.testing.assert_allclose(ends, expected[:16].detach().numpy(), rtol=1e-3, atol=1e-6)
    drift = {line["name"]: _numbers(line["y"])[-1] for line in _drawn(executed, "plot_relative_drift")[:-1]}
    slow = reader.slow_weights()[parameter]
    assert drift[parameter] == pytest.approx(float(reader.fast_weights()[parameter].norm() / slow.norm()), rel=1e-4)


@pytest.mark.slow
def test_a_document_is_shown_as_text_whatever_it_spells(model_folder, tmp_path):
    (tmp_path / "markup.txt").write_text("<script>alert(1)</script> & <b>\n" * 12, encoding="utf-8")
    source = {"model": str(model_folder), "document": str(tmp_path / "markup.txt")}
    executed = _run("02_read_a_document", tmp_path / "out", **source, max_tokens=100)
    (cell,) = (cell for cell in _code(executed) if "times median" in cell.source)
    (table,) = (output.data["text/html"] for output in cell.outputs if "data" in output)
    assert "&lt;" in table and "<script" not in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameter": "b1"}, "expected a matrix of the block, 'W1' or 'W2'"),
        ({"document": "no_such.py"}, "'no_such.py' is no file and not in 'validation'"),
        ({"max_tokens": 20}, "20 tokens to read; expected 64 or more"),
    ],
)
def test_a_document_that_cannot_be_looked_into_is_refused(model_folder, tmp_path, given, message):
    with pytest.raises(NotebookFailed, match=f"ValueError: .*{message}"):
        _run("02_read_a_document", tmp_path, model=str(model_folder), **given)
    assert not (tmp_path / "trace.zarr").exists()


RECEIPTS = {"max_tokens": 160, "targets": 4, "certified_tokens": 32}


@pytest.mark.slow
def test_receipts_name_who_paid_and_the_leaky_reader_is_caught(texts, model_folder, tmp_path):
    document = texts / "05.txt"
    executed = _run("03_receipts_and_surgery", tmp_path, model=str(model_folder), document=str(document), **RECEIPTS)
    said, trace, model = _said(executed), open_trace(tmp_path / "trace.zarr").load(), load_model(model_folder)
    static, fwl = _nll(trace, "static", 0), _nll(trace, "fwl", 0)
    gain = static - fwl
    np.testing.assert_allclose(static, StaticReader(model).read(_ids(model, document, 160)).nll[0].numpy(), atol=1e-5)
    # The shares drawn are those of the token that gained most, and add up to its gain.
    target = int(np.argmax(gain))
    bars = [_numbers(bar["x"]) for bar in _drawn(executed, "plot_receipt") if bar["type"] == "bar"]
    assert np.concatenate(bars).sum() == pytest.approx(gain[target], abs=1e-4)
    kept = trace.receipt_gain.sel(reader="fwl").values
    assert np.flatnonzero(np.isfinite(kept)).tolist() == sorted(np.argsort(-gain)[:4].tolist())
    assert kept[target] == pytest.approx(gain[target], abs=1e-6)
    # Surgery: as it was, and without every second token, read here with a reader of its own.
    whole, here = (_numbers(bar["x"]) for bar in _drawn(executed, "What is left of the gain?"))
    assert (whole[0], here[0]) == pytest.approx((gain.mean(), gain[target]), abs=1e-5)
    halved = operate(FastWeightReader(model), Surgery(drop=range(0, 160, 2))).read(_ids(model, document, 160)).nll[0]
    assert whole[-1] == pytest.approx(float((static - halved.numpy()).mean()), abs=1e-5)
    _, honest, leaky = _drawn(executed, "plot_declared")
    np.testing.assert_allclose(_numbers(honest["y"]), _numbers(honest["x"]), atol=1e-4)
    assert (_numbers(leaky["x"]) - _numbers(leaky["y"])).max() > 1e-3
    assert certificates(trace)["fwl"].passed
    page = write_report(executed, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "leaky</b>: failed: causality, predictions" in page and "FWL</b>: certified" in page
    assert "FWL certified" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"document": "no_such.py"}, "'no_such.py' is no file and not in 'validation'"),
        ({"max_tokens": 20}, "20 tokens of .* expected 1 or more, and 64 tokens"),
        ({"targets": 0}, "0 targets; expected 1 or more"),
        ({"certified_tokens": 8}, "certified_tokens is 8; expected 32 or more"),
    ],
)
def test_receipts_that_cannot_be_written_are_refused(model_folder, tmp_path, given, message):
    with pytest.raises(NotebookFailed, match=f"ValueError: .*{message}"):
        _run("03_receipts_and_surgery", tmp_path, model=str(model_folder), **RECEIPTS | given)
    assert not (tmp_path / "trace.zarr").exists()


def _is_light(path: Path) -> bool:
    """Whether a saved notebook is small, and stores no widget and no state of any."""
    notebook = nbformat.read(path, as_version=4)
    stored = any("widget-view" in kind for cell in _code(path) for o in cell.outputs for kind in o.get("data", {}))
    return path.stat().st_size < 3e6 and not stored and "widgets" not in notebook.metadata


def _still(path: Path, said: str) -> str:
    """The one still picture that a cell which says `said` left in a saved notebook."""
    (cell,) = (cell for cell in _code(path) if cell.source.splitlines()[-1] == said)
    (output,) = cell.outputs
    return str(output.data["text/html"])


def test_live_reads_the_text_it_begins_with(model_folder, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("one fish two fish " * 20)
    path = run_notebook(
        FOLDER / "05_live.ipynb", tmp_path / "live",
        {"model": str(model_folder), "path": str(texts), "text": "one fish two <b>fish</b>"}, progress=False,
    )  # fmt: skip
    assert _is_light(path)
    pad = _still(path, "pad")
    assert "Typing needs a kernel" in pad and "<b>" not in pad.partition("<pre")[2] and "&lt;" in pad
    assert "A console to read 1 document" in _still(path, "console")
    assert "Nothing has been read yet" in str(_code(path)[-1].outputs)


def test_the_gallery_shows_every_view_and_saves_each_as_a_page(tmp_path):
    path = run_notebook(
        FOLDER / "06_widget_gallery.ipynb", tmp_path / "gallery", {"tokens": 600, "documents": 2}, progress=False
    )
    assert _is_light(path)
    for name, part in (("lens", "</pre>"), ("receipts", "</table>"), ("scope", "<img"), ("compare", "</table>")):
        assert part in _still(path, name)
    pages = {page.stem for page in (tmp_path / "gallery").glob("*.html")}
    assert pages >= {"document_lens", "receipts", "update_scope", "reader_compare"}
