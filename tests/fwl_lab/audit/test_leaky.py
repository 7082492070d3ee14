"""The leaky reader leaks, and is caught; in all else it is the honest one."""

import torch

from fwl_lab import FastWeightReader, certify
from fwl_lab.audit.leaky import LeakyReader
from tests.helpers.models import INNER_BATCH, make_block_model, make_tokens

TOKENS = make_tokens(1, 48)


def test_each_segment_is_scored_with_the_weights_that_it_left() -> None:
    model = make_block_model("mistral")
    reader, honest = LeakyReader(model), FastWeightReader(model)
    nll = reader.read(TOKENS).nll
    for start in range(0, TOKENS.shape[1], INNER_BATCH):
        part, before = TOKENS[:, start : start + INNER_BATCH], honest.fork()
        honest.read(part)
        # The same context as before the segment, and the weights of after it.
        before.state = before.state._replace(block=honest.state.block)
        twin = before.without_learning()
        torch.testing.assert_close(nll[:, start : start + INNER_BATCH], twin.read(part).nll, atol=1e-5, rtol=0)
    for name, delta in honest.fast_weights().items():
        torch.testing.assert_close(reader.fast_weights()[name], delta, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(nll, FastWeightReader(model).read(TOKENS).nll, atol=1e-3)


def test_what_it_declares_is_honest() -> None:
    model = make_block_model("mistral")
    reader, honest = LeakyReader(model), FastWeightReader(model)
    for each in (reader, honest):
        each.read(TOKENS[:, :17])
    torch.testing.assert_close(reader.next_log_probs(), honest.next_log_probs(), atol=1e-5, rtol=0)


def test_without_learning_there_is_nothing_to_leak() -> None:
    reader = LeakyReader(make_block_model("mistral"))
    for still in (reader.with_step_scale(0), reader.without_learning()):
        expected = FastWeightReader(reader.model, step_scale=0).read(TOKENS).nll
        torch.testing.assert_close(still.read(TOKENS).nll, expected, atol=1e-6, rtol=0)


def test_it_is_caught_for_what_it_does() -> None:
    model = make_block_model("mistral")
    found = certify(lambda: LeakyReader(model), TOKENS[0], places=2, periods=(INNER_BATCH,), entropy_tokens=64)
    assert {"causality", "predictions"} <= {check.name for check in found.failures}
    assert found["step scale 0"].passed and found["base weights"].passed and found["probabilities"].passed
    assert "declared" in found["predictions"].detail
