"""Calls with other weights: their values and gradients, and that nobody else sees these weights."""

import threading

import pytest
import torch
from torch import Tensor, nn

from fwl_lab.ops.functional_call import FunctionalCalls, structural_copy


class Tied(nn.Module):
    """Embedding, a layer that can wait, and an unembedding tied to the embedding."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.unembedding = nn.Linear(4, 5, bias=False)
        self.unembedding.weight = self.embedding.weight
        self.register_buffer("calls", torch.zeros(()))
        self.dictionary = {"a": [1]}
        self.waiting: threading.Barrier | None = None

    def hidden(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, 4)"""
        self.calls.add_(1)
        out = self.layer(self.embedding(ids))
        if self.waiting is not None:
            self.waiting.wait(10)
            out = out + self.layer(self.embedding(ids))  # whatever weights stand there by now
        return out

    def forward(self, ids: Tensor) -> Tensor:
        return self.unembedding(self.hidden(ids))


IDS = torch.tensor([0, 3, 1])


def make_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=g).requires_grad_() for name, p in module.named_parameters()}


def expected(weights: dict[str, Tensor]) -> Tensor:
    """The module's logits, written out."""
    table = weights["embedding.weight"]
    return (table[IDS] @ weights["layer.weight"].T + weights["layer.bias"]) @ table.T


def test_values_and_gradients_are_those_of_the_weights_put_in() -> None:
    module = Tied()
    calls, weights = FunctionalCalls(module), make_weights(module, 1)
    ours, theirs = calls(weights, Tied.forward, IDS), expected(weights)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    leaves = list(weights.values())
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), leaves),
        torch.autograd.grad(theirs.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)
    part = calls(weights, Tied.hidden, ids=IDS)  # any part, arguments by name too
    torch.testing.assert_close(part @ weights["embedding.weight"].T, theirs, rtol=0, atol=1e-5)


def test_what_is_not_named_keeps_the_modules_own_weights() -> None:
    module = Tied()
    bias = torch.full((4,), 3.0, requires_grad=True)
    ours = FunctionalCalls(module)({"layer.bias": bias}, Tied.hidden, IDS)
    with torch.no_grad():
        own = module.hidden(IDS)
    torch.testing.assert_close(ours, own - module.layer.bias + 3.0, rtol=0, atol=1e-6)
    ours.sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [3.0] * 4
    assert all(p.grad is None for p in module.parameters())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Tied has no parameter 'layer\.gain'"):
        FunctionalCalls(Tied())({"layer.gain": torch.ones(4)}, Tied.forward, IDS)


def in_threads(*functions: object) -> list[Tensor]:
    """The results of functions that run at the same time."""
    found: dict[int, Tensor] = {}

    def run(index: int, function: object) -> None:
        found[index] = function()  # type: ignore[operator]

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[index] for index in range(len(functions))]


def test_two_threads_give_the_numbers_of_each_alone() -> None:
    """Both are inside the module at once, which a barrier in the middle of the call proves."""
    module = Tied()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    all_weights = [make_weights(module, seed) for seed in (1, 2)]
    alone = [FunctionalCalls(module)(weights, Tied.hidden, IDS) for weights in all_weights]
    module.waiting = barrier = threading.Barrier(3)
    users = [FunctionalCalls(module, keep=[barrier]) for _ in all_weights]

    def own() -> Tensor:  # the module itself is read all the while
        with torch.no_grad():
            return module.hidden(IDS)

    first, second, third = in_threads(
        lambda: users[0](all_weights[0], Tied.hidden, IDS), lambda: users[1](all_weights[1], Tied.hidden, IDS), own
    )
    assert torch.equal(first, 2 * alone[0]) and torch.equal(second, 2 * alone[1])
    module.waiting = None
    assert torch.equal(third, 2 * module.hidden(IDS))
    module.calls.zero_()
    after = module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_two_threads_through_one_object_wait_for_each_other() -> None:
    module = Tied()
    calls, weights = FunctionalCalls(module), [make_weights(module, seed) for seed in (1, 2)]
    alone = [calls(own, Tied.forward, IDS) for own in weights]

    def many(index: int) -> Tensor:
        return torch.stack([calls(weights[index], Tied.forward, IDS) for _ in range(200)])

    for found, value in zip(in_threads(lambda: many(0), lambda: many(1)), alone, strict=True):
        assert torch.equal(found, value.expand_as(found))


def test_a_structural_copy_shares_parameters_and_nothing_else() -> None:
    module = Tied()
    twin = structural_copy(module, keep=[module.dictionary])
    for (name, ours), (other, theirs) in zip(twin.named_parameters(), module.named_parameters(), strict=True):
        assert name == other and ours is not theirs and not ours.requires_grad and theirs.requires_grad
        assert ours.data_ptr() == theirs.data_ptr()
    assert twin.unembedding.weight is twin.embedding.weight
    assert twin.dictionary is module.dictionary
    assert structural_copy(module).dictionary is not module.dictionary
    twin.layer = nn.Linear(4, 4)
    twin.hidden(IDS)
    assert float(module.calls) == 0 and float(twin.calls) == 1
    assert module.layer is not twin.layer
