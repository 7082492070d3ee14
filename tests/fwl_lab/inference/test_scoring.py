"""The loop that scores: a valid trace, the readers' own numbers, norms of what they learned."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fwl_lab import (
    Document,
    DynamicEvaluationReader,
    FastWeightReader,
    LanguageModel,
    Reader,
    Recorder,
    StaticReader,
    TunedRule,
    UpdateRule,
    attach_fast_weights,
    corpus_hash,
    make_readers,
    open_trace,
    replay,
    save_trace,
    score,
)
from fwl_lab.inference import read_loop
from fwl_lab.inference.skeleton import vocabulary_texts
from fwl_lab.interventions.surgery import Surgery
from fwl_lab.trace.schema import VOCABULARY_TEXT, validate
from tests.helpers.models import DOCUMENTS, INNER_BATCH, READERS, SEGMENT, fill_block, make_network, make_text_model
from widgets.display.document import document_html


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fill_block(attach_fast_weights(make_text_model("mistral"), 6, UpdateRule(inner_batch=INNER_BATCH)))


def readers_of(model: LanguageModel, *names: str) -> dict[str, Reader]:
    return {name: READERS[name](model) for name in names or READERS}


def test_a_trace_holds_the_readers_own_scores(model: LanguageModel) -> None:
    trace = validate(score(model, DOCUMENTS, readers_of(model), progress=False))
    assert [str(name) for name in trace["reader"].values] == list(READERS)
    encodings = [model.encode_text(document.text) for document in DOCUMENTS]
    for name in READERS:
        expected = [READERS[name](model).read(encoding.ids[None]).nll[0] for encoding in encodings]
        # Calls and rows are the same, so the numbers are; a trace keeps them in float64.
        np.testing.assert_array_equal(trace["nll"].sel(reader=name).values, torch.cat(expected).double().numpy())
    np.testing.assert_array_equal(trace["token_id"].values, torch.cat([e.ids for e in encodings]).numpy())
    assert "".join(trace["token_text"].values) == "".join(document.text for document in DOCUMENTS)
    assert trace["byte_count"].values.sum() == sum(len(document.text.encode()) for document in DOCUMENTS)
    assert trace["document_name"].values.tolist() == [document.name for document in DOCUMENTS]
    assert bool((trace["seconds"] > 0).all()) and "update_norm" not in trace
    configurations = json.loads(trace.attrs["readers"])
    assert configurations["fwl"]["inner_batch"] == INNER_BATCH and configurations["sgd"]["lr"] == 0.05
    assert trace.attrs["corpus_hash"] == corpus_hash(DOCUMENTS)
    assert trace.attrs["model_hash"] == model.weight_hash()
    assert (trace.attrs["dtype"], trace.attrs["carry"], trace.attrs["max_tokens"]) == ("float32", "false", 0)


def test_alternatives_come_with_what_each_token_id_reads_as(model: LanguageModel, tmp_path: Path) -> None:
    readers = readers_of(model, "base", "fwl")
    trace = score(model, DOCUMENTS, readers, Recorder(top=3), path=tmp_path / "a.zarr", progress=False)
    texts = trace[VOCABULARY_TEXT].values.tolist()
    assert texts == [model.tokenizer.decode([token]) for token in range(model.vocab_size)]
    whole = [(texts[i], t) for i, t in zip(trace["token_id"].values, trace["token_text"].values, strict=True) if t]
    assert len(whole) > 100 and all(alone == text or "\ufffd" in alone for alone, text in whole)
    assert any(alone == text and len(text) > 2 for alone, text in whole)
    replayed = replay(model, trace, Surgery(), readers=readers, record=Recorder(top=3))
    for other in (replayed, open_trace(save_trace(trace, tmp_path / "b.zarr"))):
        assert other[VOCABULARY_TEXT].values.tolist() == texts
    for record in (None, Recorder(top=0)):
        plain = score(model, DOCUMENTS, readers, record, progress=False)
        assert VOCABULARY_TEXT not in plain.variables
        assert VOCABULARY_TEXT not in replay(model, plain, Surgery(), readers=readers, record=record).variables
    later = replay(model, plain, Surgery(), readers=readers, record=Recorder())
    assert later[VOCABULARY_TEXT].values.tolist() == texts


def test_a_token_keeps_the_space_that_a_tokenizer_drops_where_a_text_begins() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xF0>": 2, "▁the": 3, "a": 4, "▁": 5, "b": 6}
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    pieces.decoder = decoders.Sequence(steps)
    llama = LanguageModel(make_network("llama", vocabulary=9), PreTrainedTokenizerFast(tokenizer_object=pieces))
    assert llama.decode(torch.tensor([3])) == "the"
    assert vocabulary_texts(llama) == ["<unk>", "\n", "\ufffd", " the", "a", " ", "b", "", ""]


def test_no_score_depends_on_the_call_s_length(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, DOCUMENTS[:1], readers_of(model, "base", "fwl"), progress=False)
    monkeypatch.setattr("fwl_lab.inference.read_loop.TOKENS_PER_CALL", 7)
    cut = score(model, DOCUMENTS[:1], readers_of(model, "base", "fwl"), progress=False)
    np.testing.assert_allclose(cut["nll"], whole["nll"], rtol=0, atol=1e-4)  # float32


@pytest.mark.parametrize("name", ["fwl", "sgd"])
@pytest.mark.parametrize("carry", [False, True])
def test_norms_are_those_of_the_fast_weights(name: str, carry: bool, model: LanguageModel) -> None:
    readers = readers_of(model, "base", name)
    trace = validate(score(model, DOCUMENTS[:3], readers, Recorder(), carry=carry, progress=False))
    every, start = (SEGMENT if name in ("sgd", "rms") else INNER_BATCH), 0
    reader = READERS[name](model)
    grid = trace["update_token"].values.tolist()
    recorded = trace.sel(reader=name)
    zero = {n: torch.zeros(()) for n in reader.slow_weights()}
    expected_grid, before = [], zero
    for document in DOCUMENTS[:3]:
        reader.reset(carry=carry)
        before = before if carry else zero
        ids = model.encode(document.text)
        for stop in range(every, len(ids) + 1, every):
            reader.read(ids[None, stop - every : stop])
            expected_grid.append(start + stop - 1)
            now = {n: delta[0].clone() for n, delta in reader.fast_weights().items()}
            update = recorded.isel(update=grid.index(start + stop - 1))
            for n, delta in now.items():
                values = update.sel(parameter=n)
                assert float(values["drift"]) == pytest.approx(float(delta.norm()), rel=1e-3, abs=1e-6)
                assert float(values["update_norm"]) == pytest.approx(
                    float((delta - before[n]).norm()), rel=1e-2, abs=1e-5
                )
            before = now
        rest = ids[None, len(ids) // every * every :]
        reader.read(rest)
        if carry:
            # What a partial inner batch taught is carried too, and counts from the next document's start.
            before = {n: delta[0].clone() for n, delta in reader.fast_weights().items()}
        start += len(ids)
    assert grid == expected_grid and len(grid) > 6
    assert bool(trace.sel(reader="base")["drift"].isnull().all())
    assert float(recorded["drift"].max()) > 0.01


def test_carry_keeps_what_was_learned(model: LanguageModel) -> None:
    reset, carried = (
        score(model, DOCUMENTS[:2], readers_of(model, "base", "fwl"), carry=carry, progress=False)
        for carry in (False, True)
    )
    first = reset["document"].values == 0
    difference = np.abs(reset["nll"] - carried["nll"])
    assert float(difference.sel(reader="base").max()) == 0.0
    assert float(difference.sel(reader="fwl").values[first].max()) == 0.0
    assert float(difference.sel(reader="fwl").values[~first].max()) > 0.01
    assert carried.attrs["carry"] == "true"


def test_a_used_reader_is_read_afresh(model: LanguageModel) -> None:
    readers = readers_of(model, "fwl")
    traces = [score(model, DOCUMENTS[:2], readers, carry=True, progress=False) for _ in range(2)]
    np.testing.assert_array_equal(*(trace["nll"].values for trace in traces))


def test_max_tokens_cuts_every_document(model: LanguageModel) -> None:
    whole = score(model, DOCUMENTS, readers_of(model, "base"), progress=False)
    cut = validate(score(model, DOCUMENTS, readers_of(model, "base"), max_tokens=9, progress=False))
    assert cut.sizes["token"] == 9 * len(DOCUMENTS) and cut.attrs["max_tokens"] == 9
    kept = whole["position"].values < 9
    np.testing.assert_allclose(cut["nll"].values, whole["nll"].values[:, kept], rtol=0, atol=1e-5)
    assert cut["document_bytes"].values.tolist() == [
        sum(model.encode_text(document.text).bytes[:9]) for document in DOCUMENTS
    ]


def test_a_path_gives_the_saved_trace(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trace.zarr"
    trace = score(model, DOCUMENTS[:1], readers_of(model, "base"), path=path, progress=False)
    np.testing.assert_array_equal(open_trace(path)["nll"].values, trace["nll"].values)
    assert trace["nll"].encoding.get("source") or trace.encoding.get("source")  # opened from the folder


def test_bad_arguments(model: LanguageModel, tmp_path: Path) -> None:
    readers = readers_of(model, "base")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"readers": {}}, "readers is empty; expected at least one"),
        ({"documents": []}, "documents is empty; expected at least one Document"),
        ({"max_tokens": 0}, "max_tokens is 0; expected at least 1"),
        ({"documents": [Document("nothing", "")]}, "is empty: a document needs at least one character"),
        ({"documents": [Document("half", "ab\udc80")]}, r"lone surrogate U\+DC80 at character 2"),
        ({"path": tmp_path / "other"}, "exists and is not a trace"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            score(**({"model": model, "documents": DOCUMENTS, "readers": readers, "progress": False} | arguments))
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_nothing_is_read_for_a_path_that_cannot_be_written(model: LanguageModel, tmp_path: Path) -> None:
    class Untouchable(StaticReader):
        def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            raise AssertionError("a document was read")

    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a trace"):
        score(model, DOCUMENTS, {"base": Untouchable(model)}, path=tmp_path, progress=False)


class Fails(StaticReader):
    """Gives up in its second document."""

    def reset(self, *, carry: bool = False) -> None:
        super().reset(carry=carry)
        self.documents = getattr(self, "documents", 0) + 1

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        if self.documents > 3:  # made, score() has reset it, two documents
            raise FloatingPointError("the score of token 3 is nan")
        return super().step(state, inputs, labels, weights)


def test_an_error_leaves_no_observer_and_what_was_read(model: LanguageModel, tmp_path: Path) -> None:
    readers = readers_of(model, "fwl") | {"fails": Fails(model)}
    with pytest.raises(FloatingPointError, match="token 3 is nan") as failed:
        score(model, DOCUMENTS, readers, Recorder(), path=tmp_path / "trace.zarr", progress=False)
    assert "reader 'fails' failed in tokens 0 to" in failed.value.__notes__[0]
    # The first document was read by both.
    kept = open_trace(tmp_path / "trace.zarr")
    assert kept.sizes["token"] == len(model.encode(DOCUMENTS[0].text)) and "progress" in kept.attrs
    assert bool(kept["nll"].notnull().all())
    assert all(not reader._observers for reader in readers.values())


def test_the_usual_readers_read(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.base, "tuned_rule", TunedRule("sgd", lr=0.05))
    document = Document("all", "".join(document.text for document in DOCUMENTS))  # more than one segment
    trace = validate(score(model, [document], make_readers(model), Recorder(), progress=False))
    assert trace["reader"].values.tolist() == ["base", "static", "dynamic_evaluation", "fwl"]
    nll = trace["nll"].values
    assert all(float(np.abs(nll[0] - nll[i]).max()) > 0.01 for i in (1, 2, 3))
    assert json.loads(trace.attrs["readers"])["dynamic_evaluation"]["lr"] == 0.05


def test_a_document_of_traps_survives_the_disk_and_shows_as_text(model: LanguageModel, tmp_path: Path) -> None:
    text = "a\x00b 🙂👩\u200d🚀 שלום \u202eمرحبا\u202c \\ud800 <script>alert(1)</script></style>&amp; \ufffd '\" end"
    readers = readers_of(model, "base", "fwl")
    kept = score(model, [Document("traps\x00<b>", text)], readers, path=tmp_path / "t.zarr", progress=False)
    again = open_trace(save_trace(kept, tmp_path / "again.zarr"))
    for trace in (kept, again):
        assert "".join(trace["token_text"].values) == text
        assert int(trace["byte_count"].sum()) == len(text.encode())
        assert trace["document_name"].values.tolist() == ["traps\x00<b>"]
    page = BeautifulSoup(document_html(again, reader="fwl").html, "html.parser")
    shown = page.get_text()
    assert not page.find("script") and "<script>" in shown and "\\ud800" in shown and "&amp;" in shown
    assert [tag.get_text() for tag in page.find_all("b")] == ["traps\x00<b>"]  # the heading; the name holds no tag
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 3"):
        score(model, [Document("half", "abc\ud800")], readers, path=tmp_path / "no.zarr", progress=False)
    assert not (tmp_path / "no.zarr").exists()


@pytest.mark.parametrize("folder", [True, False])
def test_a_reading_that_is_stopped_keeps_its_complete_blocks(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    monkeypatch.setattr(read_loop, "TOKENS_PER_CALL", 8)
    path = tmp_path / "trace.zarr" if folder else None
    names, told = ("base", "fwl"), []

    def until_the_third_block(name: str, done: int, total: int) -> bool:
        told.append((name, done, total))
        return (name, done) != ("base", 24)  # the other reader has read two

    whole = score(model, DOCUMENTS[:1], readers_of(model, *names), Recorder(), progress=False)
    cut = score(model, DOCUMENTS[:1], readers_of(model, *names), Recorder(), path, progress=until_the_third_block)
    tokens = whole.sizes["token"]
    assert told == [("base", 0, tokens), *[(name, done, tokens) for done in (8, 16, 24) for name in names][:5]]
    assert tokens > 24 and cut.sizes["token"] == 16 and json.loads(cut.attrs["progress"])["token"] == 16
    updates = cut.sizes["update"]
    assert 0 < updates < whole.sizes["update"]
    for name in ("nll", "top_id", "key_W1", "delta_W2", "drift", "token_text"):
        expected = whole[name].isel(token=slice(16)) if "token" in whole[name].dims else whole[name][:, :updates]
        np.testing.assert_array_equal(validate(cut)[name].values, expected.values)
    if path is not None:
        np.testing.assert_array_equal(open_trace(path)["nll"].values, cut["nll"].values)


def test_following_a_reading_changes_nothing_and_stopping_it_at_once_leaves_nothing(model: LanguageModel) -> None:
    told: list[tuple[str, int]] = []
    followed = score(model, DOCUMENTS[:2], readers_of(model, "base"), progress=lambda *seen: told.append(seen[:2]))
    plain = score(model, DOCUMENTS[:2], readers_of(model, "base"), progress=False)
    np.testing.assert_array_equal(followed["nll"].values, plain["nll"].values)
    first = len(model.encode(DOCUMENTS[0].text))
    # The last time before what it costs is counted.
    assert told == [("base", done) for done in (0, first, *[plain.sizes["token"]] * 2)]
    assert "progress" not in followed.attrs
    with pytest.raises(ValueError, match="has not finished its first block; there is nothing yet"):
        score(model, DOCUMENTS[:2], readers_of(model, "base", "fwl"), progress=lambda *_: False)


def another_tokenizer() -> LanguageModel:
    words = make_text_model("mistral")
    vocabulary = {f"word{i}": i for i in range(words.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    words.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="word0")
    return words


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": "bundled"}, r"model is 'bundled'; expected a LanguageModel, such as load_model"),
        ({"documents": DOCUMENTS[0]}, r"documents is one Document; expected a list"),
        ({"documents": ["text"]}, r"expected Document\(name, text\)"),
        ({"readers": {"s": "static"}}, r"readers\['s'\] is 'static'; expected a reader"),
        ({"readers": {"s": StaticReader}}, r"readers\['s'\] is <class .*expected a reader"),
        ({"readers": {"s": StaticReader(another_tokenizer())}}, r"readers\['s'\] reads with the tokenizer of"),
        ({"record": True}, r"record is True; expected a Recorder"),
        ({"record": Recorder}, r"record is <class .*expected a Recorder"),
        ({"max_tokens": 10.5}, r"max_tokens is 10\.5; expected at least 1"),
    ],
)
def test_what_is_no_argument_is_told(model: LanguageModel, wrong: dict[str, Any], words: str) -> None:
    right = {"model": model, "documents": DOCUMENTS, "readers": {"base": StaticReader(model.base)}}
    with pytest.raises(ValueError, match=words):
        score(**(right | wrong), progress=False)


@pytest.mark.parametrize("make", [StaticReader, FastWeightReader, DynamicEvaluationReader, make_readers])
def test_a_name_is_no_model(make: Any) -> None:
    with pytest.raises(ValueError, match="model is 'bundled'; expected a LanguageModel"):
        make("bundled")


def test_a_rule_is_an_update_rule(model: LanguageModel) -> None:
    for make in (partial(attach_fast_weights, model.base), partial(FastWeightReader, model)):
        with pytest.raises(ValueError, match="rule is 64; expected an UpdateRule"):
            make(rule=64)
    with pytest.raises(ValueError, match="initial_step is nan; expected a finite number"):
        UpdateRule(initial_step=float("nan"))


def test_a_reader_of_another_model_says_which(model: LanguageModel) -> None:
    """One trace compares a model with its control; each reader's numbers are traced to the weights they are from."""
    other = fill_block(attach_fast_weights(make_text_model("mistral"), 6, UpdateRule(inner_batch=INNER_BATCH)), seed=5)
    trace = score(model, DOCUMENTS, {"base": StaticReader(model.base), "other": StaticReader(other)}, progress=False)
    assert json.loads(trace.attrs["reader_hashes"]) == {"other": other.weight_hash()}
    assert other.weight_hash() != model.weight_hash() == trace.attrs["model_hash"]


def test_a_readers_model_need_not_be_a_language_model(model: LanguageModel) -> None:
    class Bare:
        """What reads, without a tokenizer or a hash."""

        def __getattr__(self, name: str) -> Any:
            if name in ("tokenizer", "weight_hash"):
                raise AttributeError(name)
            return getattr(model.base, name)

    readers = {"base": StaticReader(model.base), "bare": StaticReader(model.base)}
    readers["bare"].model = Bare()
    trace = score(model, DOCUMENTS[:1], readers, progress=False)
    np.testing.assert_array_equal(trace.nll[0], trace.nll[1])
