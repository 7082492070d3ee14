"""Implement the published update rules of dynamic evaluation as torch optimizers.

Dynamic evaluation continues to train a language model on the text it reads, and pulls the parameters back towards
their initial values.

===== =================================================================================================
θ     a parameter; θ₀ its value when it was given to the optimizer
g     gradient of the segment just read
η, λ  step size ``lr`` and ``decay``
ε     ``eps``, keeps the step finite where the training gradients were close to 0
Σg²   sum over batches of *training* text of the squared gradient, elementwise: ``GradientStatistics``
===== =================================================================================================

Sources: Krause, Kahembwe, Murray and Renals, "Dynamic Evaluation of Neural Sequence Models" (ICML 2018) and "Dynamic
Evaluation of Transformer Language Models" (2019), and the code published with them, which decides where they differ.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import GPT2, SGD, GradientStatistics, TunedRule, check_hyperparameter

Variant = Literal["2018", "2019", "gpt2"]
UNTUNED = TunedRule(SGD, lr=1e-3)  # cautious gradient descent, for a model without a tuned rule
log = logging.getLogger("fwl_lab")
VARIANTS: dict[str, Variant] = {"rms_2018": "2018", "rms_2019": "2019", GPT2: "gpt2"}  # by the name of a tuned rule


class _DynamicEvaluation(Optimizer, ABC):
    """Base of the rules: keeps θ₀ in the state, checks hyperparameters, loops over parameters."""

    @abstractmethod
    def _update(self, theta: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Update one parameter in place; ``theta.grad`` is dense or None."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; their present values become their θ₀."""
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
        """Update every parameter once, from its ``grad``, and return the value of ``closure``, which is called first.

        A ``grad`` of None counts as a gradient of zero: only the pull towards θ₀ applies. The published code gives the
        same result: its parameters without a gradient never move, so nothing pulls them back. The caller must check
        that gradients are finite, since a check here would synchronise a GPU at each step.

        Raises
        ------
        ValueError
            A gradient is sparse.
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
        """Add parameters; ValueError once the statistics are assigned, which are for the first parameters only."""
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
        check_hyperparameter(name, group.get(name, 0.0))
    if "variant" not in group:
        return
    if group["variant"] not in get_args(Variant):
        raise ValueError(f"variant is {group['variant']!r}: expected one of {', '.join(map(repr, get_args(Variant)))}")
    if group["variant"] == "gpt2" and group["decay"]:
        raise ValueError(f"decay is {group['decay']!r}, but the gpt2 rule has none: give decay=0, or another variant")


MakeOptimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


def make_optimizer(tuned: TunedRule, statistics: GradientStatistics | None = None) -> MakeOptimizer:
    """Make the optimizer factory of a tuned rule.

    Parameters
    ----------
    tuned : TunedRule
        Its `segment` is not the optimizer's concern.
    statistics : GradientStatistics, optional
        Of the parameters that the optimizer is to update; all rules but "sgd" need it.

    Raises
    ------
    ValueError
        `tuned` is no TunedRule, or the rule needs statistics and none are given.
    """
    if not isinstance(tuned, TunedRule):
        raise ValueError(f"tuned is {tuned!r:.80}; expected a TunedRule, such as TunedRule('sgd', lr=0.05).")
    if tuned.rule == SGD:
        return lambda parameters: DynamicEvaluationSGD(parameters, tuned.lr, tuned.decay)
    if statistics is None:
        raise ValueError(
            f"the rule {tuned.rule!r} needs gradient statistics; see gradient_statistics(model, documents)."
        )
    eps, variant = tuned.eps, VARIANTS[tuned.rule]
    assert eps is not None
    return lambda parameters: DynamicEvaluationRMS(parameters, tuned.lr, tuned.decay, eps, statistics, variant)


def tuned_optimizer(model: LanguageModel, statistics: GradientStatistics | None) -> MakeOptimizer:
    """Make a factory of the rule tuned for a model; where none was, of plain gradient descent, with a warning."""
    if model.tuned_rule is None:
        log.warning("no dynamic-evaluation rule was tuned for this model; SGD with step %g", UNTUNED.lr)
    return make_optimizer(model.tuned_rule or UNTUNED, statistics)


def optimizer_from(configuration: Mapping[str, Any], statistics: GradientStatistics | None) -> MakeOptimizer:
    """Make a factory of the published rule that a reader's configuration names, with the hyperparameters it says.

    Raises
    ------
    ValueError
        Another optimizer, of which a configuration does not say all; or an RMS rule without statistics.
    """
    name = configuration.get("optimizer")
    if name == DynamicEvaluationSGD.__name__:
        return lambda parameters: DynamicEvaluationSGD(parameters, configuration["lr"], configuration["decay"])
    if name != DynamicEvaluationRMS.__name__:
        raise ValueError(
            f"the reader's optimizer was {name}, and a configuration says all only of {DynamicEvaluationSGD.__name__} "
            f"and {DynamicEvaluationRMS.__name__}; hand in the reader that read: readers={{name: reader}}."
        )
    if statistics is None:
        raise ValueError("an RMS rule needs gradient statistics; see gradient_statistics(model, documents).")
    lr, decay, eps, variant = (configuration[key] for key in ("lr", "decay", "eps", "variant"))
    return lambda parameters: DynamicEvaluationRMS(parameters, lr, decay, eps, statistics, variant)
