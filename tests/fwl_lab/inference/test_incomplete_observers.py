"""A reader whose own way of telling leaves something out is not recorded as if it had told all."""

from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor

from fwl_lab import (
    DynamicEvaluationReader,
    FastWeightReader,
    LanguageModel,
    Reader,
    Recorder,
    StaticReader,
    UpdateRule,
    attach_fast_weights,
    fast_weight,
    generate,
    receipt,
    score,
)
from tests.helpers.models import DOCUMENTS, SEGMENT, fill_block, make_block_model, make_text_model, make_tokens, sgd


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fill_block(attach_fast_weights(make_text_model("mistral"), 6, UpdateRule(inner_batch=10, decay=0.05)))


def recorded(model: LanguageModel, reader: Reader, **settings: Any) -> xr.Dataset:
    return score(model, DOCUMENTS[:1], {"r": reader}, Recorder(**settings), progress=False)


class Silent(StaticReader):
    def observe(self, state, inputs, labels, weights, observer):
        return self.step(state, inputs, labels, weights)


class SilentBlock(FastWeightReader):
    def observe(self, state, inputs, labels, weights, observer):
        return self.step(state, inputs, labels, weights)


class SilentGradients(DynamicEvaluationReader):
    def observe(self, state, inputs, labels, weights, observer):
        return self.step(state, inputs, labels, weights)


class Wrapped(FastWeightReader):
    def step(self, state, inputs, labels, weights):
        return super().step(state, inputs, labels, weights)


def test_silence_is_an_error(model: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match=r"reader 'r' told its observer of 0 of \d+ values of 'top_id'"):
        recorded(model, Silent(model))
    with pytest.raises(RuntimeError, match=r"of 0 of \d+ values of 'delta_W1'"):
        recorded(model, SilentBlock(model), top=0)
    with pytest.raises(RuntimeError, match=r"of 0 of \d+ values of 'updates'"):
        recorded(model, SilentGradients(model.base, sgd, SEGMENT), top=0)
    assert recorded(model, Silent(model), top=0).sizes["token"] > 0, "nothing was asked for"


def test_a_subclass_that_redefines_its_step_alone_has_no_factors(model: LanguageModel) -> None:
    """They were NaN without a word."""
    with pytest.raises(ValueError, match="the factors of reader 'r' would not add up to its Δθ"):
        recorded(model, Wrapped(model))
    trace = recorded(model, Wrapped(model), factors=False, snapshots_every=10)
    plain = recorded(model, FastWeightReader(model), factors=False, snapshots_every=10)
    xr.testing.assert_allclose(fast_weight(trace, "r", "W1", 20), fast_weight(plain, "r", "W1", 20), atol=1e-6)


class Adding(StaticReader):
    """Adds to a vector of its own in place: Δθ that it returns is what it goes on changing."""

    adapts, update_every = True, 5

    @property
    def in_place(self) -> bool:
        return True

    def initial_state(self, rows: int) -> Any:
        self.total = torch.zeros(rows, 3)
        return super().initial_state(rows)

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        found = super().step(state, inputs, labels, weights)
        self.total += (weights != 0).sum()
        return found

    def fast_weights(self, state: Any = None) -> dict[str, Tensor]:
        return {"total": self.total}

    def observe(self, state, inputs, labels, weights, observer):
        nll = []
        for start in range(0, labels.shape[1], 5):
            at = slice(start, start + 5)
            logits = self.model(inputs[:, at], state.context)[0]
            observer.expected(logits.shape[1], lambda part, logits=logits: logits[:, part])
            found, state = self.step(state, inputs[:, at], labels[:, at], weights[:, at])
            nll.append(found)
            if labels[:, at].shape[1] == 5:
                observer.updated(state.context.seen, self.fast_weights)
        return torch.cat(nll, 1), state


def test_what_is_changed_in_place_is_copied_before(model: LanguageModel) -> None:
    trace = recorded(model, Adding(model), factors=False)
    norms = trace["update_norm"].values[0, :, 0]
    assert norms.tolist() == pytest.approx([5 * 3**0.5] * len(norms), rel=1e-6)


class Narrow(StaticReader):
    def step(self, state, inputs, labels, weights):
        nll, state = super().step(state, inputs, labels, weights)
        return nll[:, :1], state


class Timeless(StaticReader):
    def fast_weights(self, state: Any = None) -> dict[str, Tensor]:
        return {"w": torch.zeros(1, 2)}


class Foreign:
    def __init__(self, model: LanguageModel) -> None:
        self.model, self.read, self.reset = model, StaticReader(model).read, lambda **_: None


def test_what_breaks_the_contract_is_told(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"Narrow\.step returned scores \(1, 1\); expected \(1, 9\)"):
        Narrow(make_block_model("mistral")).read(make_tokens(1, 9))
    with pytest.raises(ValueError, match="has fast weights and no `update_every`"):
        recorded(model, Timeless(model))
    with pytest.raises(ValueError, match="Foreign, which can be scored and not recorded"):
        score(model, DOCUMENTS[:1], {"r": Foreign(model)}, Recorder(), progress=False)


class Sharper(StaticReader):
    def step(self, state, inputs, labels, weights):
        nll, state = super().step(state, inputs, labels, weights)
        return nll / 2, state


def test_a_receipt_takes_only_a_static_reader_for_the_start(model: LanguageModel) -> None:
    readers = {"sharp": Sharper(model), "static": StaticReader(model), "fwl": FastWeightReader(model)}
    trace = score(model, DOCUMENTS[:1], readers, progress=False)
    found = receipt(model, trace, 30, "fwl", replay=False)
    nll = trace["nll"].values[:, 30]
    assert found.attrs["gain"] == pytest.approx(float(nll[1] - nll[2])) and abs(found.attrs["residual"]) < 1e-4


def test_rows_without_a_prompt_are_written(model: LanguageModel) -> None:
    written = generate(StaticReader(model.base), torch.zeros(3, 0, dtype=torch.long), 5, 0.0, stop=False)
    assert written.tokens.shape == (3, 5) and torch.equal(written.tokens[0], written.tokens[2])
