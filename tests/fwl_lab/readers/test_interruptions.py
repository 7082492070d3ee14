"""A call of a reader is atomic: interrupted anywhere, it leaves the reader where it stood, or broken in words."""

import random
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fwl_lab import Reader
from tests.helpers.bigram import BigramReader
from tests.helpers.models import READERS, make_block_model, make_tokens

KINDS = READERS | {"bigram": lambda model: BigramReader(model, 0.4)}
BEFORE, CALL, AFTER = 17, 30, 9  # tokens; the call ends segments and inner batches, and goes past the window

RECOVERED = 5  # broken readers that are reset and read again; each takes as long as three others


class InterruptAt(TorchFunctionMode):
    """Raises KeyboardInterrupt in place of the n-th operation."""

    def __init__(self, operation: int) -> None:
        super().__init__()
        self.left = operation

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is not torch._C._set_grad_enabled:  # the end of `no_grad`, where a call is over
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return function(*arguments, **(named or {}))


def operations(reader: Reader, tokens: torch.Tensor) -> int:
    """How many operations a call makes."""
    counter = InterruptAt(0)
    with counter:
        reader.read(tokens)
    return -counter.left


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_call_leaves_the_reader_where_it_stood_or_says_that_it_is_broken(name: str, count: int) -> None:
    model = make_block_model("mistral", torch.float64)
    before, call, after = make_tokens(2, BEFORE + CALL + AFTER).split([BEFORE, CALL, AFTER], 1)
    hashed = model.weight_hash()

    fresh = KINDS[name](model)
    fresh.read(before)
    expected = fresh.fork()
    scores = (expected.read(call).nll, expected.read(after).nll)
    last = operations(fresh.fork(), call)
    draw, broken = random.Random(3), 0
    moments = [1, last, *(draw.randint(1, last) for _ in range(count - 2))]
    for moment in moments:
        reader = fresh.fork()
        with pytest.raises(KeyboardInterrupt), InterruptAt(moment):
            reader.read(call)
        try:
            again = (reader.read(call).nll, reader.read(after).nll)
        except RuntimeError as error:
            if not reader.in_place or "interrupted while it was changing its weights" not in str(error):
                raise
            broken += 1
            if broken > RECOVERED:
                continue
            for ask in (reader.next_log_probs, reader.fork, reader.state_dict, lambda r=reader: r.reset(carry=True)):
                with pytest.raises(RuntimeError, match="reset\\(\\) it, or go on from a fork or a saved state"):
                    ask()
            reader.reset()
            reader.read(before)
            again = (reader.read(call).nll, reader.read(after).nll)
        assert torch.equal(again[0], scores[0]) and torch.equal(again[1], scores[1]), f"operation {moment} of {last}"
    assert model.weight_hash() == hashed
    assert (broken > 0) == KINDS[name](model).in_place


def test_a_score_that_is_not_finite_changes_nothing() -> None:
    model = make_block_model("mistral", torch.float64)
    tokens = make_tokens(1, 40)
    reader = READERS["fwl"](model)
    expected = reader.fork()
    with torch.no_grad():
        kept = model.unembedding.weight.clone()
        model.unembedding.weight[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match="the score of token 0"):
            reader.read(tokens)
        model.unembedding.weight.copy_(kept)
    assert torch.equal(reader.read(tokens).nll, expected.read(tokens).nll)
