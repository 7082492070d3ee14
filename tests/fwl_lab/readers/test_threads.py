"""Readers of one model in several threads give the scores of each alone, and the model stays what it is."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from fwl_lab import Reader
from tests.helpers.bigram import BigramReader
from tests.helpers.models import READERS, SEGMENT, make_block_model, make_tokens, sgd

KINDS = READERS | {"bigram": lambda model: BigramReader(model, 0.4)}
CALLS = (3, 20, 7, 30, 12)


def read_all(reader: Reader, tokens: Tensor) -> Tensor:
    return torch.cat([reader.read(part).nll for part in tokens.split(CALLS, 1)], 1)


def together(jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """Run jobs in a thread each, begun at once; what is raised in one is raised here."""
    found: list[Tensor | BaseException] = [torch.zeros(0)] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(index: int) -> None:
        start.wait(60)
        try:
            found[index] = jobs[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if isinstance(one, Tensor)]


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_all_kinds_at_once_read_as_alone(family: str) -> None:
    """Two of each kind, of other documents, for several rounds: state swapped into a shared module would show."""
    model = make_block_model(family, torch.float64)
    kinds = KINDS | {"with block": lambda model: READERS["sgd"](model).__class__(model, sgd, SEGMENT)}
    texts = [make_tokens(rows, sum(CALLS), seed) for seed, rows in ((5, 1), (6, 2))]
    hashed = model.weight_hash()
    names = [(name, which) for name in kinds for which in range(len(texts))]
    alone = [read_all(kinds[name](model), texts[which]) for name, which in names]
    for _ in range(3):
        jobs = [partial(lambda n, w: read_all(kinds[n](model), texts[w]), name, which) for name, which in names]
        for (name, which), nll, expected in zip(names, together(jobs), alone, strict=True):
            assert torch.equal(nll, expected), f"{name}, text {which}"
    assert model.weight_hash() == hashed
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_forks_of_one_reader_go_their_own_ways_in_threads(name: str) -> None:
    model = make_block_model("mistral", torch.float64)
    reader = KINDS[name](model)
    reader.read(make_tokens(1, 20))
    ways = [make_tokens(1, sum(CALLS), seed) for seed in (7, 8, 9)]
    alone = [read_all(reader.fork(), tokens) for tokens in ways]
    forks = [reader.fork() for _ in ways]
    found = together([partial(read_all, fork, tokens) for fork, tokens in zip(forks, ways, strict=True)])
    for nll, expected in zip(found, alone, strict=True):
        assert torch.equal(nll, expected)
