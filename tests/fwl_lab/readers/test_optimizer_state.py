"""Whatever a document's optimizer keeps goes along with a fork, and a saved state says what it cannot hold."""

from typing import Any

import pytest
import torch

from fwl_lab import DynamicEvaluationReader
from tests.helpers.models import SEGMENT, make_model, make_tokens, rms, sgd


class Halving(torch.optim.SGD):
    """Halves its step after each one: kept in the group, not in the state of a parameter."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            group["lr"] /= 2


class Noting(torch.optim.SGD):
    """Keeps what is no tensor."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["note"] = "done"


def test_a_fork_goes_on_with_the_optimizer_as_it_stands() -> None:
    tokens = make_tokens(1, 5 * SEGMENT)
    reader = DynamicEvaluationReader(make_model("mistral", torch.float64), lambda p: Halving(p, 0.3), SEGMENT)
    reader.read(tokens[:, : 3 * SEGMENT])
    twin = reader.fork()
    assert torch.equal(twin.read(tokens[:, 3 * SEGMENT :]).nll, reader.read(tokens[:, 3 * SEGMENT :]).nll)


def test_carried_weights_serve_several_documents_with_their_optimizer() -> None:
    model = make_model("mistral", torch.float64)
    reader, alone = (DynamicEvaluationReader(model, lambda p: Halving(p, 0.3), SEGMENT) for _ in range(2))
    for one in (reader, alone):
        one.read(make_tokens(1, 2 * SEGMENT))
        one.reset(carry=True)
    more = make_tokens(1, 2 * SEGMENT, seed=9)
    both = reader.read(more.expand(2, -1)).nll
    torch.testing.assert_close(both, alone.read(more).nll.expand(2, -1), rtol=0, atol=1e-12)


def test_what_is_no_tensor_reads_on_and_is_not_saved_in_silence() -> None:
    reader = DynamicEvaluationReader(make_model("mistral"), lambda p: Noting(p, 0.1), SEGMENT)
    assert bool(reader.read(make_tokens(1, 2 * SEGMENT)).nll.isfinite().all())
    with pytest.raises(ValueError, match=r"Noting keeps 'note', a str; expected tensors or numbers"):
        reader.state_dict()


def test_a_state_of_another_rule_is_refused() -> None:
    model = make_model("mistral")
    saved = DynamicEvaluationReader(model, sgd, SEGMENT)
    saved.read(make_tokens(1, SEGMENT))
    with pytest.raises(ValueError, match="steps with DynamicEvaluationSGD, this one steps with DynamicEvaluationRMS"):
        DynamicEvaluationReader(model, rms, SEGMENT).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("parameters", ["all", "lora:2"])
def test_a_reset_takes_up_weights_that_were_changed(parameters: str) -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, 3 * SEGMENT)
    reader = DynamicEvaluationReader(model, sgd, SEGMENT, parameters)
    reader.read(tokens)
    with torch.no_grad():
        model.unembedding.weight.mul_(1.1)
    reader.reset()
    assert torch.equal(
        reader.read(tokens).nll, DynamicEvaluationReader(model, sgd, SEGMENT, parameters).read(tokens).nll
    )
    model.float()
    reader.reset()
    assert torch.equal(
        reader.read(tokens).nll, DynamicEvaluationReader(model, sgd, SEGMENT, parameters).read(tokens).nll
    )


def test_a_twin_leaves_the_optimizers_of_its_reader_alone() -> None:
    """It forgot them, and stepped through the same object from another thread."""
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, 5 * SEGMENT)
    reader, alone = (DynamicEvaluationReader(model, lambda p: Halving(p, 0.3), SEGMENT) for _ in range(2))
    for one in (reader, alone):
        one.read(tokens[:, : 2 * SEGMENT])
    twin = reader.with_step_scale(0.5)
    twin.read(tokens[:, :SEGMENT])
    assert twin._row_optimizers is not reader._row_optimizers
    expected = alone.read(tokens[:, 2 * SEGMENT :]).nll
    assert torch.equal(reader.read(tokens[:, 2 * SEGMENT :]).nll, expected)


def test_a_loaded_state_brings_its_own_optimizers() -> None:
    """A reader that had read one document took that one's optimizer for all that were loaded."""
    model, tokens = make_model("mistral", torch.float64), make_tokens(2, 4 * SEGMENT)

    def make() -> DynamicEvaluationReader:
        return DynamicEvaluationReader(model, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), SEGMENT)

    saved, used, unused = make(), make(), make()
    saved.read(tokens[:, : 2 * SEGMENT])
    used.read(make_tokens(1, 3 * SEGMENT, seed=9))
    for reader in (used, unused):
        reader.load_state_dict(saved.state_dict())
    assert torch.equal(used.read(tokens[:, 2 * SEGMENT :]).nll, unused.read(tokens[:, 2 * SEGMENT :]).nll)
