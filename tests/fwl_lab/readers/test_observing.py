"""What a reader tells an observer in its own cheaper way is what going token by token tells."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fwl_lab import FastWeightReader, LanguageModel, Reader, StaticReader
from fwl_lab.ops.observer import Deltas, Observer
from fwl_lab.readers.observe import observe_token_by_token, observes_its_own_step
from fwl_lab.readers.static import StaticState
from tests.helpers.bigram import BigramReader
from tests.helpers.models import INNER_BATCH, READERS, SEGMENT, make_block_model, make_tokens

CALLS = (7, 20, 1, 31)


class Notes(Observer):
    """All that was expected, and every update."""

    def __init__(self) -> None:
        self.log_probs: list[Tensor] = []
        self.updates: list[tuple[int, dict[str, Tensor]]] = []

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        found = logits(slice(0, count))
        assert found.shape[1] == count
        self.log_probs.append(found[0].log_softmax(-1))

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        self.updates.append((int(seen[0]), {name: delta[0].clone() for name, delta in fast_weights().items()}))


def read_and_note(reader: Reader) -> tuple[Notes, Tensor]:
    notes, scores = Notes(), []
    with reader.observed(notes):
        for part in make_tokens(1, sum(CALLS)).split(CALLS, 1):
            scores.append(reader.read(part).nll)
    return notes, torch.cat(scores, 1)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_the_cheaper_way_tells_the_same(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_block_model(family, torch.float64)
    reader = READERS[name](model)
    assert observes_its_own_step(type(reader)) and type(reader).observe is not Reader.observe
    notes, nll = read_and_note(reader)
    monkeypatch.setattr(type(reader), "observe", observe_token_by_token)
    slow, same = read_and_note(reader.with_step_scale(1.0))
    assert torch.equal(nll, same)
    tokens = make_tokens(1, sum(CALLS))
    for one in (notes, slow):
        declared = torch.cat(one.log_probs)
        torch.testing.assert_close(-declared.gather(1, tokens.T), nll.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat(notes.log_probs), torch.cat(slow.log_probs), rtol=0, atol=1e-10)
    assert [seen for seen, _ in notes.updates] == [seen for seen, _ in slow.updates]
    every = {"sgd": SEGMENT, "rms": SEGMENT}.get(name, INNER_BATCH)
    assert len(notes.updates) == (sum(CALLS) // every if reader.update_every else 0)
    for (_, ours), (_, theirs) in zip(notes.updates, slow.updates, strict=True):
        assert ours.keys() == theirs.keys() != set()
        for parameter, delta in ours.items():
            torch.testing.assert_close(delta, theirs[parameter], rtol=0, atol=1e-10)


class Sharper(FastWeightReader):
    """Redefines `step` alone: its parent's way of telling would tell of another step."""

    def step(self, state, inputs, labels, weights):
        nll, state = super().step(state, inputs, labels, weights)
        return nll + 1.0, state


def test_a_kind_that_redefines_its_step_alone_is_observed_by_that_step() -> None:
    model = make_block_model("mistral", torch.float64)
    assert not observes_its_own_step(Sharper) and not observes_its_own_step(BigramReader)
    notes, nll = read_and_note(Sharper(model))
    plain, expected = read_and_note(FastWeightReader(model))
    torch.testing.assert_close(nll, expected + 1.0)
    assert len(notes.log_probs) == sum(CALLS), "token by token"
    assert [seen for seen, _ in notes.updates] == [seen for seen, _ in plain.updates]
    assert Sharper.learns is None and FastWeightReader.learns == "block"


def test_a_state_can_be_looked_at_without_moving_the_reader() -> None:
    model: LanguageModel = make_block_model("mistral", torch.float64)
    reader = StaticReader(model)
    reader.read(make_tokens(1, 9))
    state = reader.state
    assert isinstance(state, StaticState) and int(state.context.seen[0]) == 9
    expected = reader.next_log_probs()
    reader.step(state, reader.last, make_tokens(1, 1), torch.ones(1, 1))
    assert torch.equal(reader.next_log_probs(), expected) and reader.state is state
