"""Dynamic evaluation's update rules against arrays computed from their published definitions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from fwl_lab.models.tuned_rule import GradientStatistics
from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationRMS, DynamicEvaluationSGD

VARIANTS = {"rms_2018": "2018", "rms_2019": "2019", "gpt2": "gpt2"}
RULES = ("sgd", *VARIANTS)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    with np.load(Path(__file__).parents[2] / "data" / "dynamic_evaluation_rules.npz") as file:
        return dict(file)


def tensors(arrays: Arrays, name: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[f"{name}_{index}"]) for index in range(3)]


def parameters(arrays: Arrays) -> list[Tensor]:
    return [theta.clone().requires_grad_() for theta in tensors(arrays, "theta0")]


def training_gradients(arrays: Arrays) -> Iterator[list[Tensor]]:
    yield from (list(batch) for batch in zip(*tensors(arrays, "train_grads"), strict=True))


def make(rule: str, params: Any, arrays: Arrays) -> DynamicEvaluationSGD | DynamicEvaluationRMS:
    lr, decay, eps = arrays["hyper_" + rule.removeprefix("rms_")].tolist()
    if rule == "sgd":
        return DynamicEvaluationSGD(params, lr, decay)
    statistics = GradientStatistics.from_gradients(training_gradients(arrays))
    return DynamicEvaluationRMS(params, lr, decay, eps, statistics, VARIANTS[rule])  # type: ignore[arg-type]


def update(optimizer: torch.optim.Optimizer, params: list[Tensor], arrays: Arrays, t: int) -> None:
    for theta, gradients in zip(params, tensors(arrays, "grads"), strict=True):
        theta.grad = gradients[t].clone()
    optimizer.step()


def one_parameter_statistics(*values: float) -> GradientStatistics:
    return GradientStatistics((torch.tensor(values, dtype=torch.float64).square(),), 1)


@pytest.mark.parametrize("rule", RULES)
def test_the_published_rules_after_every_update(arrays: Arrays, rule: str) -> None:
    params = parameters(arrays)
    optimizer = make(rule, params, arrays)
    for t in range(len(arrays["grads_0"])):
        update(optimizer, params, arrays, t)
        for theta, expected in zip(params, tensors(arrays, rule), strict=True):
            # Worst seen: 8.9e-16 (rms_2019).
            assert (theta - expected[t]).abs().max() < 1e-12, t
    for theta, start in zip(params, tensors(arrays, "theta0"), strict=True):
        kept = optimizer.state[theta]["theta0"]
        assert torch.equal(kept, start) and not kept.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_a_state_dict_continues_a_sequence_bitwise(arrays: Arrays, rule: str) -> None:
    params = parameters(arrays)
    optimizer = make(rule, params, arrays)
    for t in range(4):
        update(optimizer, params, arrays, t)
    resumed_params = [theta.detach().clone().requires_grad_() for theta in params]
    # Built at the adapted parameters and with other settings: θ₀ and the hyperparameters must come from the state.
    resumed = make(rule, resumed_params, arrays | {"hyper_" + rule.removeprefix("rms_"): np.array([9.0, 0.0, 9.0])})
    resumed.load_state_dict(optimizer.state_dict())
    for t in range(4, 9):
        update(optimizer, params, arrays, t)
        update(resumed, resumed_params, arrays, t)
    for theta, other, start in zip(params, resumed_params, tensors(arrays, "theta0"), strict=True):
        assert torch.equal(theta, other) and torch.equal(resumed.state[other]["theta0"], start)


def test_a_foreign_state_dict_is_refused(arrays: Arrays) -> None:
    saved = make("sgd", parameters(arrays), arrays).state_dict()
    with pytest.raises(ValueError, match=r"parameter 0 holds .*theta0.*expected .*scale.*same rule"):
        make("rms_2018", parameters(arrays), arrays).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"parameter 0 holds .*\(4, 3\).*expected .*\(5,\)"):
        make("sgd", parameters(arrays)[::-1][1:] + parameters(arrays)[:1], arrays).load_state_dict(saved)


@pytest.mark.parametrize("rule", RULES)
def test_param_groups_have_their_own_step_sizes(arrays: Arrays, rule: str) -> None:
    params = parameters(arrays)
    optimizer = make(rule, [{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], arrays)
    for t in range(9):
        update(optimizer, params, arrays, t)
    # Worst seen: 2.3e-16. The second group must not move, nor change the first one's normaliser.
    assert (params[0] - tensors(arrays, rule)[0][-1]).abs().max() < 1e-12
    assert all(torch.equal(params[i], tensors(arrays, "theta0")[i]) for i in (1, 2))


def test_a_later_group_is_anchored_where_it_was_added(arrays: Arrays) -> None:
    first, later = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = DynamicEvaluationSGD([first], 0.5, 0.25)
    later.data.fill_(3.0)
    optimizer.add_param_group({"params": [later], "decay": 0.5})
    later.data.add_(2.0)
    optimizer.step()
    assert torch.equal(later, torch.full((2,), 4.0))
    with pytest.raises(ValueError, match="cannot be added"):
        make("rms_2019", parameters(arrays), arrays).add_param_group({"params": [later]})


@pytest.mark.parametrize("variant", ["2018", "2019", "gpt2"])
def test_no_decay_is_a_scaled_gradient_step(variant: Any) -> None:
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = DynamicEvaluationRMS([theta], 0.5, 0.0, 0.125, one_parameter_statistics(2.0, 0.0), variant)
    theta.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer.step()
    root = 4.0 if variant == "gpt2" else 2.0
    # Worst seen: 0; numbers of a few bits, divided once.
    expected = torch.tensor([1.0 - 0.5 / (root + 0.125), -2.0 - 0.5 * 3.0 / 0.125], dtype=torch.float64)
    assert (theta - expected).abs().max() < 1e-15


def test_the_2018_decay_never_passes_theta0() -> None:
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    # m = (1, 3), its mean 2, λ = 0.8: λ m / mean = (0.4, 1.2), the second bounded at 1.
    optimizer = DynamicEvaluationRMS([theta], 0.5, 0.8, 0.0, one_parameter_statistics(1.0, 3.0), "2018")
    theta.data.add_(10.0)
    optimizer.step()
    # Worst seen: 0.
    assert (theta - torch.tensor([6.0, 0.0])).abs().max() < 1e-15


@pytest.mark.parametrize("rule", RULES)
def test_no_gradient_is_a_gradient_of_zero(arrays: Arrays, rule: str) -> None:
    after: list[list[Tensor]] = []
    for set_to_none in (False, True):
        params = parameters(arrays)
        optimizer = make(rule, params, arrays)
        update(optimizer, params, arrays, 0)
        moved = [theta.detach().clone() for theta in params]
        optimizer.zero_grad(set_to_none)
        optimizer.step()
        after.append(params)
    for zero, none, before in zip(*after, moved, strict=True):
        assert torch.equal(zero, none)
        # Only the pull is left, and the gpt2 rule has none.
        assert torch.equal(none, before) == (rule == "gpt2")


def test_a_closure_is_evaluated_with_gradients() -> None:
    theta = torch.tensor([2.0], requires_grad=True)
    optimizer = DynamicEvaluationSGD([theta], 0.25)

    def closure() -> float:
        optimizer.zero_grad()
        loss = theta.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert theta.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_the_dtype_of_the_parameters_is_kept(arrays: Arrays, rule: str, dtype: torch.dtype) -> None:
    params = [theta.detach().to(dtype).requires_grad_() for theta in parameters(arrays)]
    optimizer = make(rule, params, arrays)
    for theta, gradients in zip(params, tensors(arrays, "grads"), strict=True):
        theta.grad = gradients[0].to(dtype)
        assert {value.dtype for value in optimizer.state[theta].values()} == {dtype}
    optimizer.step()
    for theta, expected in zip(params, tensors(arrays, rule), strict=True):
        # Worst seen, in units of eps times the largest parameter: 0.51 (float32), 0.40 (bfloat16).
        error = (theta.double() - expected[0]).abs().max() / expected[0].abs().max() / torch.finfo(dtype).eps
        assert error < 2


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1"])
@pytest.mark.parametrize("name", ["lr", "decay", "eps"])
def test_hyperparameters_are_checked(name: str, value: Any) -> None:
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    arguments = {"lr": 0.1, "decay": 0.1, "eps": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is .*expected a finite number ≥ 0"):
        DynamicEvaluationRMS([theta], statistics=one_parameter_statistics(1.0, 1.0), **arguments)
    if name != "eps":
        with pytest.raises(ValueError, match=f"{name} is .*expected a finite number ≥ 0"):
            DynamicEvaluationSGD([{"params": [theta], name: value}], 0.1)


def test_rules_that_cannot_be_are_refused() -> None:
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    statistics = one_parameter_statistics(1.0, 0.0)
    with pytest.raises(ValueError, match="variant is '2020': expected one of '2018', '2019', 'gpt2'"):
        DynamicEvaluationRMS([theta], 0.1, 0.0, 0.1, statistics, "2020")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the gpt2 rule has none: give decay=0"):
        DynamicEvaluationRMS([theta], 0.1, 0.1, 0.1, statistics, "gpt2")
    with pytest.raises(ValueError, match=r"eps 0.0 .*shape \(2,\) dividing by zero"):
        DynamicEvaluationRMS([theta], 0.1, 0.1, 0.0, statistics, "2019")
    with pytest.raises(ValueError, match=r"infinity in torch\.float16"):
        DynamicEvaluationRMS([theta.detach().half()], 0.1, 0.0, 0.1, one_parameter_statistics(1.0, 1e4), "gpt2")


def test_statistics_must_fit_the_parameters(arrays: Arrays) -> None:
    statistics = GradientStatistics.from_gradients(training_gradients(arrays))
    params = parameters(arrays)
    with pytest.raises(ValueError, match=r"parameter 0 of 3 has shape \(2, 2, 2\), .* it is \(4, 3\)"):
        DynamicEvaluationRMS(params[::-1], 0.1, 0.1, 0.1, statistics)
    with pytest.raises(ValueError, match=r"parameter 2 of 2 has shape absent, in .* of 3 it is \(2, 2, 2\)"):
        DynamicEvaluationRMS(params[:2], 0.1, 0.1, 0.1, statistics)
    with pytest.raises(ValueError, match=r"parameter 3 of 4 has shape \(1,\), in the statistics of 3 it is absent"):
        DynamicEvaluationRMS([*params, torch.zeros(1)], 0.1, 0.1, 0.1, statistics)


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse: expected dense"):
        DynamicEvaluationSGD(embedding.parameters(), 0.1).step()


def test_statistics_are_sums_and_means_of_squares(arrays: Arrays) -> None:
    def reused() -> Iterator[list[Tensor]]:
        # As gradients are in a training loop: one set of buffers, overwritten by the next batch.
        buffers = [torch.empty_like(theta) for theta in tensors(arrays, "theta0")]
        for batch in training_gradients(arrays):
            yield [buffer.copy_(gradient) for buffer, gradient in zip(buffers, batch, strict=True)]

    statistics = GradientStatistics.from_gradients(reused())
    assert statistics.batches == 7
    for i, gradients in enumerate(tensors(arrays, "train_grads")):
        # Worst seen: 2.3e-16 of the value, from the order of the sum.
        assert (statistics.sum_of_squares[i] / gradients.square().sum(0) - 1).abs().max() < 1e-15
        assert (statistics.mean_of_squares[i] / gradients.square().mean(0) - 1).abs().max() < 1e-15


def test_an_absent_gradient_counts_as_zero() -> None:
    batches = [[None, torch.tensor([1.0])], [torch.tensor([2.0]), None], [torch.tensor([4.0]), None]]
    statistics = GradientStatistics.from_gradients(batches)
    assert [total.item() for total in statistics.sum_of_squares] == [20.0, 1.0]
    assert [mean.item() for mean in statistics.mean_of_squares] == pytest.approx([20 / 3, 1 / 3], rel=1e-7)


def test_half_precision_gradients_are_summed_in_float32() -> None:
    tiny = torch.tensor([2.0**-14], dtype=torch.float16)
    (total,) = GradientStatistics.from_gradients([tiny] for _ in range(3)).sum_of_squares
    assert total.dtype == torch.float32 and total.item() == 3 * 2.0**-28


def test_statistics_survive_safetensors(arrays: Arrays) -> None:
    # Transposed, hence not contiguous, which safetensors refuses.
    statistics = GradientStatistics.from_gradients([batch[0].mT, *batch[1:]] for batch in training_gradients(arrays))
    loaded = GradientStatistics.from_tensors(load(save(statistics.to_tensors())))
    assert loaded.batches == 7 and len(loaded.sum_of_squares) == 3
    for before, after in zip(statistics.sum_of_squares, loaded.sum_of_squares, strict=True):
        assert before.dtype == after.dtype and torch.equal(before, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("batches"), r"missing \['batches'"),
        (lambda saved: saved.pop("sum_of_squares.0"), r"missing \['sum_of_squares.0'\], unknown \['sum_.*2'\]"),
        (lambda saved: saved.update(other=torch.ones(1)), r"missing \['sum_of_squares.3'\], unknown \['other'\]"),
        (lambda saved: saved["sum_of_squares.1"].neg_(), "parameter 1 is negative"),
        (lambda saved: saved["batches"].zero_(), "statistics of 0 batches and 3 parameters"),
    ],
)
def test_foreign_tensors_are_refused(arrays: Arrays, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    saved = GradientStatistics.from_gradients(training_gradients(arrays)).to_tensors()
    change(saved)
    with pytest.raises(ValueError, match=message):
        GradientStatistics.from_tensors(saved)


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "0 batches and 0 parameters: expected one or more"),
        ([TWO], "batch 0 is a tensor: expected a list"),
        ([[ONE], [ONE, TWO]], "batch 1 has 2 gradients, the batches before it 1"),
        ([[ONE, TWO], [ONE, ONE]], r"parameter 1 in batch 1 has shape \(1,\), before \(2,\)"),
        ([[ONE, None], [ONE, None]], r"no batch has a gradient for parameters \[1\]"),
        ([[ONE], [ONE * float("nan")]], "parameter 0 is negative or not finite"),
        ([[ONE * 0, TWO * 0]], "every gradient is zero"),
    ],
)
def test_gradients_that_make_no_statistics(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientStatistics.from_gradients(iter(batches))
