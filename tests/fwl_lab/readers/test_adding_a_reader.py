"""A reader that is in no registry keeps the contract, and works wherever readers do."""

from pathlib import Path

import numpy as np
import pytest
import torch

import widgets
from fwl_lab import (
    Recorder,
    StaticReader,
    Surgery,
    certify,
    open_trace,
    receipt,
    replay,
    save_trace,
    score,
)
from fwl_lab.analysis import paired_bootstrap, summary
from fwl_lab.trace.lookup import reader_facts
from tests.helpers.bigram import BigramReader
from tests.helpers.contract import (
    check_batch,
    check_causality,
    check_partition,
    check_scores_are_predictions,
    read_alone,
)
from tests.helpers.models import DOCUMENTS, make_model, make_text_model, make_tokens

NAME = "counts pairs"


def make_bigram() -> BigramReader:
    return BigramReader(make_model("mistral", torch.float64), 0.4)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    tokens = make_tokens(3, 48)
    for position in (0, 7, 40):
        check_causality(make_bigram, tokens, position, row=1)
    check_partition(make_bigram, tokens, (1, 16, 33))
    check_batch(make_bigram, tokens, read_alone(make_bigram, tokens), (31, 5, 16), (2, 0, 1))
    check_scores_are_predictions(make_bigram, tokens)
    reader = make_bigram()
    reader.read(tokens[:, :20])
    reader.save(tmp_path / "reader.safetensors")
    resumed = make_bigram()
    resumed.load(tmp_path / "reader.safetensors")
    assert torch.equal(resumed.read(tokens[:, 20:]).nll, reader.fork().read(tokens[:, 20:]).nll)
    still = reader.without_learning()
    still.read(tokens[:, 20:])
    assert torch.equal(still.state.first[still.state.first >= 0], reader.state.first.flatten())
    plain = StaticReader(reader.model).read(tokens).nll
    assert torch.equal(reader.with_step_scale(0.0).read(tokens).nll, plain)
    assert not torch.equal(make_bigram().read(tokens).nll, plain)


def test_it_is_certified() -> None:
    model = make_text_model("mistral")
    ids = model.encode(DOCUMENTS[0].text + DOCUMENTS[1].text)[:80]
    found = certify(lambda: BigramReader(model), ids, entropy_tokens=128)
    assert found.passed, str(found)
    assert all(check.passed for check in found.checks), str(found)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_text_model("mistral")
    readers = {"base": StaticReader(model), NAME: BigramReader(model, 0.3)}
    trace = score(model, DOCUMENTS[:3], readers, Recorder(top=3), progress=False)
    return save_trace(trace, tmp_path_factory.mktemp("scored") / "trace.zarr")


def test_it_is_recorded_as_it_was_read(scored: Path) -> None:
    """A reader that told no observer left -1 for every alternative and rank, without an error."""
    model, trace = make_text_model("mistral"), open_trace(scored)
    facts = reader_facts(trace)[NAME]
    assert (facts.label, facts.adapts, facts.update_every, facts.configuration["share"]) == ("bigram", True, None, 0.3)
    reader, ids = BigramReader(model, 0.3), model.encode(DOCUMENTS[0].text)
    for token in range(len(ids)):
        expected = reader.next_log_probs()[0]
        own, found = expected.topk(3), trace.sel(reader=NAME).isel(token=token)
        np.testing.assert_array_equal(found["top_id"].values, own.indices.numpy())
        np.testing.assert_allclose(found["top_log_prob"].values, own.values.numpy(), atol=1e-5)
        assert int(found["label_rank"]) == int((expected > expected[ids[token]]).sum())
        reader.read(ids[None, token : token + 1])
    unrecorded = score(model, DOCUMENTS[:3], {NAME: BigramReader(model, 0.3)}, progress=False)
    np.testing.assert_array_equal(unrecorded["nll"].values[0], trace["nll"].sel(reader=NAME).values)


def test_it_is_compared_and_shown_in_every_view(scored: Path) -> None:
    trace = open_trace(scored)
    assert NAME in summary(trace)["reader"].values and NAME in paired_bootstrap(trace)["reader"].values
    explorer = widgets.explore(trace)
    assert explorer.selection.reader == NAME and explorer.selection.baseline == "base"
    colours = {}
    for view in explorer.views:
        shown = view.head["readers"]
        assert set(shown) == {"base", NAME} and shown[NAME]["label"] == NAME and shown[NAME]["dash"] == "solid"
        colours = {name: one["colour"] for name, one in shown.items()}
        for question in view.foreseen():
            content, _ = view.reply(question)
            # Of what a reader without updates has none, a view says what would make it.
            assert "error" not in content or "the trace holds no receipts" in content["error"], content
    assert len(set(colours.values())) == 2
    assert NAME in explorer.lens.fallback_html() and NAME in explorer.compare.fallback_html()
    explorer.close()


def test_what_knows_no_updates_of_it_refuses_by_name(scored: Path) -> None:
    model, trace = make_text_model("mistral"), open_trace(scored)
    with pytest.raises(ValueError, match=r"a reader of kind BigramReader cannot be made from what a trace says"):
        receipt(model, trace, 9, NAME)
    factory = {NAME: lambda model: BigramReader(model, 0.3)}
    with pytest.raises(ValueError, match=f"reader '{NAME}' is a BigramReader; receipts are of"):
        receipt(model, trace, 9, NAME, readers=factory)
    with pytest.raises(ValueError, match=r"share 0\.3, this one's is 0\.2"):
        replay(model, trace, Surgery(drop=[3]), reader=NAME, readers={NAME: BigramReader})
    with pytest.raises(ValueError, match="the reader is a BigramReader; surgery knows the updates of"):
        replay(model, trace, Surgery(drop=[3]), reader=NAME, readers=factory)
