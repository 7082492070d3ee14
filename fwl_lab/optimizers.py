"""The published update rules of dynamic evaluation, as torch optimizers.

Dynamic evaluation goes on training a language model on the text it reads, and pulls the parameters back towards
where they started.

===== =================================================================================================
θ     a parameter; θ₀ its value when it was given to the optimizer
g     gradient of the segment just read
η, λ  step size ``lr`` and ``decay``
ε     ``eps``, keeps the step finite where the training gradients were tiny
Σg²   sum over batches of *training* text of the squared gradient, elementwise: ``GradientStatistics``
===== =================================================================================================

Sources: Krause, Kahembwe, Murray and Renals, "Dynamic Evaluation of Neural Sequence Models" (ICML 2018) and "Dynamic
Evaluation of Transformer Language Models" (2019), and the code published with them, which decides where they differ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

Variant = Literal["2018", "2019", "gpt2"]

_BATCHES_KEY = "batches"
_SUM_KEY = "sum_of_squares.{}"


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    """How large the training gradients of each parameter are.

    Attributes
    ----------
    sum_of_squares : tuple of Tensor
        Σ g² over the batches, a tensor for each parameter, of its shape, in the order of the parameters. ValueError
        if there is none, or one is negative or not finite, or all are zero.
    batches : int
        How many batches were summed, at least 1.
    """

    sum_of_squares: tuple[Tensor, ...]
    batches: int

    def __post_init__(self) -> None:
        if self.batches < 1 or not self.sum_of_squares:
            sizes = f"{self.batches} batches and {len(self.sum_of_squares)} parameters"
            raise ValueError(f"statistics of {sizes}: expected one or more of each; give gradients of training text")
        for index, total in enumerate(self.sum_of_squares):
            if not bool(((total >= 0) & total.isfinite()).all()):
                found = f"the sum of squared gradients of parameter {index} is negative or not finite"
                raise ValueError(f"{found}; look for NaN or infinity in the model's weights and losses")
        if not any(bool(total.any()) for total in self.sum_of_squares):
            raise ValueError("every gradient is zero: expected the gradients left by backward() on training text")

    @property
    def mean_of_squares(self) -> tuple[Tensor, ...]:
        """Mean over batches of g², one tensor a parameter."""
        return tuple(total / self.batches for total in self.sum_of_squares)

    @classmethod
    def from_gradients(cls, batches: Iterable[Iterable[Tensor | None]]) -> "GradientStatistics":
        """Sum the squares of gradients, batch by batch.

        Parameters
        ----------
        batches : iterable of iterables of Tensor or None
            For each batch, the gradient of every parameter, in the optimizer's order; None is a gradient of zero.
            One batch is held at a time, and none kept: a generator will do, and may reuse its tensors. The sums are
            float32, or float64 where the gradients are, on the gradients' devices.

        Raises
        ------
        ValueError
            If batches differ in number or shapes of gradients, a parameter has no gradient at all, or as for the class.
        """
        sums: list[Tensor | None] = []
        count = 0
        for batch in batches:
            # Iterating over a tensor would quietly take its rows for parameters.
            if isinstance(batch, Tensor):
                raise ValueError(f"batch {count} is a tensor: expected a list of gradients, one for each parameter")
            gradients = list(batch)
            if count == 0:
                sums = [None] * len(gradients)
            if len(gradients) != len(sums):
                raise ValueError(f"batch {count} has {len(gradients)} gradients, the batches before it {len(sums)}")
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    sums[index] = _add_square(sums[index], gradient, f"parameter {index} in batch {count}")
            count += 1
        missing = [index for index, total in enumerate(sums) if total is None]
        if missing:
            raise ValueError(f"no batch has a gradient for parameters {missing}: leave out those the loss does not use")
        return cls(tuple(total for total in sums if total is not None), count)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as named contiguous tensors, ready for ``safetensors.torch.save_file``."""
        tensors = {_SUM_KEY.format(index): total.contiguous() for index, total in enumerate(self.sum_of_squares)}
        return tensors | {_BATCHES_KEY: torch.tensor(self.batches)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "GradientStatistics":
        """Undo `to_tensors`; ValueError where a name is missing or unknown."""
        names = [_SUM_KEY.format(index) for index in range(len(tensors) - 1)]
        missing, unknown = {_BATCHES_KEY, *names} - set(tensors), set(tensors) - {_BATCHES_KEY, *names}
        if missing or unknown:
            found = f"missing {sorted(missing)}, unknown {sorted(unknown)}"
            raise ValueError(f"not gradient statistics: {found}; give what to_tensors() returned")
        return cls(tuple(tensors[name] for name in names), int(tensors[_BATCHES_KEY]))


def _add_square(total: Tensor | None, gradient: Tensor, name: str) -> Tensor:
    # Squares of half-precision gradients underflow, and sums of many of them stop growing.
    square = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)).square()
    if total is None:
        return square
    if total.shape != square.shape:
        raise ValueError(f"the gradient of {name} has shape {tuple(square.shape)}, before {tuple(total.shape)}")
    return total.add_(square)


class _DynamicEvaluation(Optimizer, ABC):
    """What the rules share: θ₀ kept in the state, checked hyperparameters, the loop over parameters."""

    @abstractmethod
    def _update(self, theta: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Update one parameter in place; ``theta.grad`` is dense or None."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, whose present values become their θ₀."""
        _check_hyperparameters(self.defaults | param_group)
        super().add_param_group(param_group)
        for theta in self.param_groups[-1]["params"]:
            self.state[theta]["theta0"] = theta.detach().clone()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load hyperparameters, θ₀ and statistics (not the parameters); ValueError where they do not fit."""
        for index, own in self.state_dict()["state"].items():
            expected = {key: tuple(value.shape) for key, value in own.items()}
            given = {key: tuple(value.shape) for key, value in state_dict["state"].get(index, {}).items()}
            if given != expected:
                found = f"the state of parameter {index} holds {given}, expected {expected}"
                raise ValueError(f"{found}; load it into an optimizer of the same rule over the same parameters")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter once, from its ``grad``; returns what ``closure``, called first, returns.

        A ``grad`` of None is a gradient of zero: the pull towards θ₀ is left, and applies. The published code comes to
        the same: its parameters without a gradient never move, so nothing pulls them back. Whether gradients are
        finite is for the caller to check: doing it here would make a GPU wait at each step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is not None and theta.grad.is_sparse:
                    raise ValueError("a gradient is sparse: expected dense gradients; use Embedding(sparse=False)")
                self._update(theta, group, self.state[theta])
        return loss


class DynamicEvaluationSGD(_DynamicEvaluation):
    """Dynamic evaluation with plain gradient steps (Krause et al. 2018): ``θ ← θ − η g + λ (θ₀ − θ)``.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor) or of dict
        As for any torch optimizer; groups may have their own ``lr`` and ``decay``.
    lr, decay : float
        η and λ, finite and ≥ 0, else a ValueError. λ is the share of the way back to θ₀ that an update goes.
    """

    def __init__(self, params: ParamsT, lr: float, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    def _update(self, theta: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        if group["decay"]:
            theta.lerp_(state["theta0"], group["decay"])
        if theta.grad is not None:
            theta.add_(theta.grad, alpha=-group["lr"])


class DynamicEvaluationRMS(_DynamicEvaluation):
    """Dynamic evaluation with steps scaled by the training gradients of each weight.

    ======== ===================================================== ======================================
    variant  update                                                with
    ======== ===================================================== ======================================
    "2018"   ``θ ← θ − η g / (m + ε) + λ d (θ₀ − θ)``              m = √(mean g²), d = min(m / m̄, 1/λ)
    "2019"   ``θ ← θ − η g / (√s + ε) + λ √s (θ₀ − θ)``            s = Σ g²
    "gpt2"   ``θ ← θ − η g / (s + ε)``                             s = Σ g²: no square root, no decay
    ======== ===================================================== ======================================

    m̄ is the mean over parameters, of all groups, of the mean of m. The bound 1/λ (none at λ = 0) keeps an update
    from passing θ₀; the 2019 rule has no such bound. "2018" is Krause et al. 2018 as in their PyTorch code, "2019"
    Krause et al. 2019 as in their TensorFlow code, "gpt2" the script published for GPT-2.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor) or of dict
        As for any torch optimizer; groups may have their own ``lr``, ``decay``, ``eps`` and ``variant``.
    lr, decay, eps : float
        η, λ and ε, all ≥ 0. s grows with the number of batches, so good values depend on it; m does not.
    statistics : GradientStatistics
        Of the same parameters in the same order. What the rule needs is copied into the state, in each parameter's
        dtype and on its device; parameters cannot be added later.
    variant : "2018", "2019" or "gpt2"

    Raises
    ------
    ValueError
        If ``lr``, ``decay`` or ``eps`` is negative or not finite, the variant is unknown, ``decay`` is not 0 with
        "gpt2", the statistics do not fit the parameters, or a step would divide by zero (``eps`` = 0 where the
        training gradients are all zero).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        decay: float,
        eps: float,
        statistics: GradientStatistics,
        variant: Variant = "2018",
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps, "variant": variant})
        self._keep_statistics(statistics)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any("scale" in state for state in self.state.values()):
            raise ValueError("parameters cannot be added: make a new optimizer with statistics for all of them")
        super().add_param_group(param_group)

    def _keep_statistics(self, statistics: GradientStatistics) -> None:
        members = [(group, theta) for group in self.param_groups for theta in group["params"]]
        shapes = [tuple(theta.shape) for _, theta in members]
        given = [tuple(total.shape) for total in statistics.sum_of_squares]
        if given != shapes:
            # A large model has hundreds of shapes: the first difference says enough.
            at, (left, right) = next(
                (i, pair) for i, pair in enumerate(zip_longest(given, shapes, fillvalue="absent")) if pair[0] != pair[1]
            )
            raise ValueError(
                f"parameter {at} of {len(shapes)} has shape {right}, in the statistics of {len(given)} it is {left}; "
                "make the statistics from gradients of the same parameters in the same order"
            )
        means = [mean.sqrt().mean().item() for mean in statistics.mean_of_squares]
        for (group, theta), total in zip(members, statistics.sum_of_squares, strict=True):
            state = self.state[theta]
            if group["variant"] == "2018":
                scale = (total / statistics.batches).sqrt()
                state["mean_scale"] = theta.new_tensor(sum(means) / len(means))
            else:
                scale = total.clone() if group["variant"] == "gpt2" else total.sqrt()
            state["scale"] = scale.to(device=theta.device, dtype=theta.dtype)
            divisor = state["scale"] + group["eps"]
            if not bool(((divisor > 0) & divisor.isfinite()).all()):
                raise ValueError(
                    f"eps {group['eps']} leaves a step of a parameter of shape {tuple(theta.shape)} dividing by zero "
                    f"or infinity in {theta.dtype}; give a larger eps, or parameters in float32"
                )

    def _update(self, theta: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        scale = state["scale"]
        if group["decay"]:
            if group["variant"] == "2018":
                # λ min(m/m̄, 1/λ) written so that no λ divides
                pull = (scale * (group["decay"] / state["mean_scale"])).clamp_(max=1)
            else:
                pull = scale * group["decay"]
            theta.lerp_(state["theta0"], pull)
        if theta.grad is not None:
            theta.addcdiv_(theta.grad, scale + group["eps"], value=-group["lr"])


def _check_hyperparameters(group: dict[str, Any]) -> None:
    for name in ("lr", "decay", "eps"):
        value = group.get(name, 0.0)
        if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r}: expected a finite number ≥ 0")
    if "variant" not in group:
        return
    if group["variant"] not in get_args(Variant):
        raise ValueError(f"variant is {group['variant']!r}: expected one of {', '.join(map(repr, get_args(Variant)))}")
    if group["variant"] == "gpt2" and group["decay"]:
        raise ValueError(f"decay is {group['decay']!r}, but the gpt2 rule has none: give decay=0, or another variant")
