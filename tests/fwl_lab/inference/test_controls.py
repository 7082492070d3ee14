"""Controls: another document's weights against models that hold them, and windows against the plain network."""

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fwl_lab import (
    Document,
    DynamicEvaluationReader,
    FastWeightReader,
    LanguageModel,
    NeuralCacheReader,
    Reader,
    StaticReader,
    UpdateRule,
    analysis,
    attach_fast_weights,
    more_context,
    open_trace,
    save_trace,
    score,
    wrong_document,
)
from tests.helpers.models import DOCUMENTS, WINDOW, fill_block, make_model, make_text_model, make_tokens, sgd, with_bos

# In the order of names: 0, 2, 1, and the shortest lends to a longer one.
THREE = [Document("a", DOCUMENTS[0].text), Document("c", DOCUMENTS[1].text), Document("b", DOCUMENTS[2].text)]
DONORS = [2, 0, 1]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    text_model = make_text_model(dtype=torch.float64)
    return fill_block(attach_fast_weights(text_model, size=6, rule=UpdateRule(inner_batch=10, decay=0.05)))


KINDS: dict[str, Callable[[LanguageModel], Reader]] = {
    "fwl": FastWeightReader,
    "dynamic_evaluation": lambda model: DynamicEvaluationReader(model.base, sgd, 12),
}


def _holding(reader: Reader, kept: float) -> StaticReader:
    """A reader that does not adapt, of a model whose weights are θ₀ and what is `kept` of Δθ of `reader` now."""
    held = copy.deepcopy(reader.model)
    own = dict((held if held.block is None else held.block).named_parameters())
    with torch.no_grad():
        for name, delta in reader.fast_weights().items():
            own[name].add_(kept * delta[0])
    return StaticReader(held)


# A carried document begins an inner batch, where the rule's decay of 0.05 is due.
@pytest.mark.parametrize(("kind", "kept"), [("fwl", 0.95), ("dynamic_evaluation", 1.0)])
def test_wrong_is_a_static_reading_with_another_documents_weights(model, kind, kept):
    trace = wrong_document(model, THREE, lambda: KINDS[kind](model), progress=False)
    assert trace.donor.values.tolist() == DONORS
    assert trace.reader.values.tolist() == ["base", "own", "wrong"]
    ids = [model.encode(document.text) for document in THREE]
    for index, donor in enumerate(DONORS):
        reader = KINDS[kind](model)
        reader.read(ids[donor][None, : len(ids[index])])
        expected = _holding(reader, kept).read(ids[index][None]).nll[0].numpy()
        found = trace.nll.sel(reader="wrong").values[trace.document.values == index]
        np.testing.assert_allclose(found, expected, atol=1e-12)  # worst seen: 4e-15
    plain = score(model, THREE, {"base": StaticReader(model.base), "own": KINDS[kind](model)}, progress=False)
    np.testing.assert_array_equal(trace.nll.sel(reader=["base", "own"]).values, plain.nll.values)
    assert (trace.nll.sel(reader="wrong") != trace.nll.sel(reader="own")).any()


def test_the_trace_is_saved_and_analysed(model, tmp_path):
    trace = wrong_document(model, THREE, lambda: FastWeightReader(model), max_tokens=20, progress=False)
    assert trace.sizes["token"] == 60
    again = open_trace(save_trace(trace, tmp_path / "trace"))
    assert again.donor.values.tolist() == DONORS
    configurations = json.loads(again.attrs["readers"])
    assert (configurations["own"]["learning"], configurations["wrong"]["learning"]) == (True, False)
    assert again.seconds.sel(reader="wrong") > 0
    assert np.isnan(again.flops_per_token.sel(reader="wrong"))
    nll = trace.nll.mean("token")
    net = analysis.net_gain(again)["mean"].sel(average="micro", part="net")
    assert float(net) == pytest.approx(float(nll.sel(reader="wrong") - nll.sel(reader="own")), abs=1e-12)


@pytest.mark.parametrize(
    ("documents", "make", "message"),
    [
        (THREE[:1], FastWeightReader, "1 document given; expected two or more"),
        ([THREE[0], Document("z", THREE[0].text)], FastWeightReader, "'a' would borrow from 'z', which has the same"),
        (THREE, StaticReader, "returned a StaticReader, which has no fast weights to carry"),
        (THREE, NeuralCacheReader, "returned a NeuralCacheReader"),
    ],
)
def test_what_cannot_borrow_is_refused(model, documents, make, message):
    with pytest.raises(ValueError, match=message):
        wrong_document(model, documents, lambda: make(model), progress=False)


def test_more_context_sees_twice_as_far_with_the_same_weights():
    model = make_model("llama", torch.float64)
    tokens = make_tokens(1, 2 * WINDOW)
    reader = more_context(model)
    wide, base = reader.read(tokens).nll[0], StaticReader(model).read(tokens).nll[0]
    logits = model.network(with_bos(tokens)).logits
    expected = -logits.log_softmax(-1)[0].gather(1, tokens[0][:, None])[:, 0]
    torch.testing.assert_close(wide, expected, rtol=0, atol=1e-12)  # worst seen: 2e-15
    torch.testing.assert_close(wide[:WINDOW], base[:WINDOW], rtol=0, atol=1e-12)
    assert (wide[WINDOW:] != base[WINDOW:]).all()
    assert (model.window, reader.model.window) == (WINDOW, 2 * WINDOW)
    assert reader.model.unembedding.weight.data_ptr() == model.unembedding.weight.data_ptr()


def test_more_context_is_the_bases_own_and_not_the_blocks(model):
    ids = model.encode(THREE[1].text)[None]
    bare = LanguageModel(model.base.network, model.tokenizer, window=3 * model.window)
    torch.testing.assert_close(more_context(model, 3).read(ids).nll, StaticReader(bare).read(ids).nll, rtol=0, atol=0)
    for factor in (1, 1.5):
        with pytest.raises(ValueError, match=f"factor is {factor}; expected a whole number of windows, at least 2"):
            more_context(model, factor)


def test_absolute_positions_end_somewhere():
    model = make_model("gpt2", torch.float64)
    with pytest.raises(ValueError, match=f"a window of {2 * WINDOW} needs {2 * WINDOW} positions.* has {WINDOW}"):
        more_context(model)
    narrow = LanguageModel(model.network, window=WINDOW // 2)
    tokens = make_tokens(1, 3 * WINDOW)
    assert more_context(narrow).read(tokens).nll.equal(StaticReader(model).read(tokens).nll)
