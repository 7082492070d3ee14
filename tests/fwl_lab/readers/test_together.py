"""Dynamic evaluation of many documents at once: the numbers of one at a time."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fwl_lab import DynamicEvaluationReader, DynamicEvaluationSGD, LanguageModel
from fwl_lab.ops.observer import Deltas, Observer
from fwl_lab.ops.state import expand_rows
from fwl_lab.readers.dynamic_evaluation import groups as grouping
from fwl_lab.readers.dynamic_evaluation.batched import Together
from fwl_lab.readers.dynamic_evaluation.row_optimizers import RowOptimizers, take_step
from fwl_lab.readers.dynamic_evaluation.state import DynamicEvaluationState, leaves_of
from tests.helpers.models import FAMILIES, SEGMENT, WINDOW, make_model, make_tokens, rms, sgd


def read_alone(model: LanguageModel, tokens: Tensor, *settings: Any) -> Tensor:
    return torch.cat([DynamicEvaluationReader(model, *settings).read(row[None]).nll for row in tokens])


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents each reading together had."""
    sizes: list[int] = []
    read = Together.read

    def counting(self: Together, *arguments: Any) -> Any:
        sizes.append(len(arguments[2]))
        return read(self, *arguments)

    monkeypatch.setattr(Together, "read", counting)
    return sizes


@pytest.mark.parametrize("rule", [sgd, rms, lambda p: torch.optim.AdamW(p, 1e-2)], ids=["sgd", "rms", "adamw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_together_as_alone(family: str, rule: Any, groups: list[int]) -> None:
    model, tokens = make_model(family, torch.float64), make_tokens(3, 5 * SEGMENT + 3)
    reader = DynamicEvaluationReader(model, rule, SEGMENT)
    nll = reader.read(tokens).nll
    assert groups == [3] * 6
    # Adam divides by the size of the gradient, which makes much of a rounding where there is next to none.
    torch.testing.assert_close(
        nll, read_alone(model, tokens, rule, SEGMENT), rtol=0, atol=1e-10
    )  # worst seen: 1.5e-11, adamw
    assert not torch.equal(nll[0], nll[1])


@pytest.mark.parametrize("parameters", ["mlp", "norm", "last:1", "no-embeddings", "lora:2"])
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_subsets_together_as_alone(family: str, parameters: str, groups: list[int]) -> None:
    model, tokens = make_model(family, torch.float64), make_tokens(3, 40)
    nll = DynamicEvaluationReader(model, sgd, SEGMENT, parameters).read(tokens).nll
    assert groups == [3] * 4
    alone = read_alone(model, tokens, sgd, SEGMENT, parameters)
    torch.testing.assert_close(nll, alone, rtol=0, atol=1e-12)  # worst seen: 4e-15


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_together_as_alone(tied: bool, groups: list[int]) -> None:
    """Tied or not, with a token that learns nothing as an input, and tokens that occur several times."""
    model = make_model("mistral", torch.float64, pad_token_id=4, tie_word_embeddings=tied)
    tokens = make_tokens(3, 3 * SEGMENT) // 8 * 4
    assert bool((tokens == 4).any()) and model.network.get_input_embeddings().padding_idx == 4
    reader = DynamicEvaluationReader(model, sgd, SEGMENT)
    nll = reader.read(tokens).nll
    assert groups == [3] * 3
    alone = read_alone(model, tokens, sgd, SEGMENT)
    torch.testing.assert_close(nll, alone, rtol=0, atol=1e-12)  # worst seen: 0
    moved = reader.fast_weights()["network.model.embed_tokens.weight"][0].any(1)
    assert bool(moved[tokens[0, 0]]) and bool(moved[4]) == tied  # as an output it learns where the two are one


def test_2048_tokens_in_float32() -> None:
    def rule(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return DynamicEvaluationSGD(parameters, 0.01, 0.003)

    cases: list[tuple[str, dict[str, Any]]] = [("mistral", {"sliding_window": 256}), ("gpt2", {"n_positions": 256})]
    for family, settings in cases:
        model, tokens = make_model(family, **settings), make_tokens(3, 2048)
        nll = DynamicEvaluationReader(model, rule, 64).read(tokens).nll
        alone = read_alone(model, tokens, rule, 64)
        torch.testing.assert_close(nll, alone, rtol=0, atol=5e-5)  # worst seen: 3e-6
        # Had they not adapted, they would agree more easily.
        assert float((nll - read_alone(model, tokens, rule, 4096)).abs().max()) > 0.5


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_documents_of_unlike_length(family: str, groups: list[int]) -> None:
    """Rows that have ended, or stand elsewhere in their segment, leave the others together."""
    model, tokens = make_model(family, torch.float64), make_tokens(4, 3 * SEGMENT)
    reader = DynamicEvaluationReader(model, sgd, SEGMENT)
    scores: list[list[Tensor]] = []
    for lengths in ((30, 30, 5, 0), (6, 6, 31, 36)):
        weights = (torch.arange(36) < torch.tensor(lengths)[:, None]).float()
        starts = torch.zeros(4, dtype=torch.long) if not scores else torch.tensor((30, 30, 5, 0))
        ids = tokens.gather(1, (torch.arange(36) + starts[:, None]).clamp(max=35))
        scores.append([n[w != 0] for n, w in zip(reader.read(ids, weights).nll, weights, strict=True)])
    assert {2} == set(groups)
    alone = read_alone(model, tokens, sgd, SEGMENT)
    for row, parts in enumerate(zip(*scores, strict=True)):
        torch.testing.assert_close(torch.cat(parts), alone[row], rtol=0, atol=1e-12)  # worst seen: 5e-15


def test_rotary_documents_may_stand_at_unlike_positions(groups: list[int]) -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(2, 5 * SEGMENT)
    reader = DynamicEvaluationReader(model, sgd, SEGMENT)
    weights = torch.ones(2, 4 * SEGMENT)
    weights[1, 3 * SEGMENT :] = 0
    first = reader.read(tokens[:, : 4 * SEGMENT], weights).nll
    assert 2 * SEGMENT > WINDOW
    groups.clear()
    rest = torch.stack([tokens[0, 4 * SEGMENT :], tokens[1, 3 * SEGMENT : 4 * SEGMENT]])
    second = reader.read(rest).nll
    assert groups == [2]
    alone = read_alone(model, tokens, sgd, SEGMENT)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), alone[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(second[1], alone[1, 3 * SEGMENT : 4 * SEGMENT], rtol=0, atol=1e-12)


def test_groups_are_as_large_as_memory_allows(groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(5, 2 * SEGMENT)
    alone = read_alone(model, tokens, sgd, SEGMENT)
    largest = max(p.numel() for p in model.parameters())
    for limits, sizes in (
        ({"LOGITS_TOGETHER": 2 * SEGMENT * model.vocab_size}, [2, 2, 2, 2]),  # and two groups of one, read as ever
        ({"WEIGHTS_TOGETHER": {"cpu": 3 * largest}}, [3, 2, 3, 2]),
        ({"WEIGHTS_TOGETHER": {"cpu": 1}}, []),
        ({"WEIGHTS_TOGETHER": {}}, [5, 5]),
    ):
        groups.clear()
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(grouping, name, value)
            nll = DynamicEvaluationReader(model, sgd, SEGMENT).read(tokens).nll
        assert groups == sizes
        torch.testing.assert_close(nll, alone, rtol=0, atol=1e-12)


def test_observers_see_every_row_of_an_update() -> None:
    model, tokens = make_model("mistral"), make_tokens(3, 2 * SEGMENT + 1)
    reader, seen = DynamicEvaluationReader(model, sgd, SEGMENT), []

    class Watch(Observer):
        def updated(self, now: Tensor, fast_weights: Deltas) -> None:
            seen.append((now.tolist(), fast_weights()))

    with reader.observed(Watch()):
        reader.read(tokens)
    assert [now for now, _ in seen] == [[SEGMENT] * 3, [2 * SEGMENT] * 3]
    for name, delta in seen[-1][1].items():
        assert torch.equal(delta, reader.fast_weights()[name])


def test_documents_share_a_stack_that_an_optimizer_steps_row_by_row() -> None:
    model = make_model("mistral")
    reader = DynamicEvaluationReader(model, lambda p: torch.optim.SGD(p, 1.0), SEGMENT, "norm")
    state = expand_rows(reader.initial_state(1), 3)
    assert isinstance(state, DynamicEvaluationState)
    name = next(iter(state.weights))
    own, optimizer = reader._row_optimizers.of(state)[1]
    take_step(list(own.values()), optimizer, [torch.ones_like(w) for w in own.values()], 0.5)
    expected = reader.slow_weights()[name].repeat(3, 1)
    expected[1] -= 0.5
    torch.testing.assert_close(state.weights[name], expected)
    assert torch.equal(leaves_of(state, [0, 2])[name], state.weights[name][[0, 2]])
    neighbours = leaves_of(state, [1, 2])[name]
    assert torch.equal(neighbours, state.weights[name][1:])
    assert neighbours.untyped_storage().data_ptr() == state.weights[name].untyped_storage().data_ptr()


@pytest.mark.parametrize("rule", [sgd, rms], ids=["sgd", "rms"])
def test_documents_share_what_their_optimizers_never_change(rule: Any) -> None:
    theta0 = [torch.arange(6.0).view(2, 3).requires_grad_()]
    rows = RowOptimizers(theta0, rule(theta0))
    weights = [[theta0[0].detach().clone().requires_grad_()] for _ in range(3)]
    optimizers = [rows.over(own, {}) for own in weights]
    first, *others = (optimizer.state[own[0]] for own, optimizer in zip(weights, optimizers, strict=True))
    assert torch.equal(first["theta0"], theta0[0])
    for state in others:
        assert all(state[name] is constant for name, constant in first.items())
    take_step(weights[1], optimizers[1], [torch.ones(2, 3)], 1.0)
    assert torch.equal(first["theta0"], theta0[0]) and not torch.equal(weights[1][0], theta0[0])
    assert torch.equal(weights[0][0], theta0[0]) and rows.kept(weights[1], optimizers[1]) == {}


def test_an_optimizers_own_tensors_go_along_with_the_document() -> None:
    theta0 = [torch.zeros(2, 3, requires_grad=True)]
    rows = RowOptimizers(theta0, torch.optim.SGD(theta0, 1.0, momentum=0.5))
    weights = [[torch.zeros(2, 3, requires_grad=True)] for _ in range(2)]
    optimizer = rows.over(weights[0], {})
    take_step(weights[0], optimizer, [torch.ones(2, 3)], 1.0)
    kept = rows.kept(weights[0], optimizer)
    assert kept.keys() == {"0.momentum_buffer"} and torch.equal(kept["0.momentum_buffer"], torch.ones(2, 3))
    take_step(weights[1], rows.over(weights[1], kept), [torch.zeros(2, 3)], 1.0)
    assert torch.equal(weights[1][0], torch.full((2, 3), -0.5))  # half of the step before goes on
    assert torch.equal(kept["0.momentum_buffer"], torch.ones(2, 3)), "the other document's own was changed"


@pytest.mark.parametrize("parameters", ["all", "norm", "lora:2"])
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_a_reader_that_is_let_go_frees_its_models_at_once(family: str, parameters: str) -> None:
    """The copy that reads documents together held itself, until Python next looked for such circles."""
    model = make_model(family)
    reader = DynamicEvaluationReader(model, sgd, SEGMENT, parameters)
    gc.collect()
    gc.disable()
    try:
        reader.read(make_tokens(2, 2 * SEGMENT + 1))
        reader.next_log_probs()
        together = reader._together
        layers = [m for m in together.model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
        held = [weakref.ref(m) for m in (model, reader, together, together.model, *layers)]
        del model, reader, together, layers
        assert [r() for r in held] == [None] * len(held)
    finally:
        gc.enable()
