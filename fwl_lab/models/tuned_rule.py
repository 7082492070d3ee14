"""Hold what was tuned and measured for dynamic evaluation of one model: update rule and gradient statistics.

Both are plain data that a model carries and saves. The optimizers that use them are in
`fwl_lab.readers.dynamic_evaluation.optimizers`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

SEGMENT = 64  # tokens between two updates where nothing else is said
SGD, GPT2 = "sgd", "gpt2"
RMS_RULES = ("rms_2018", "rms_2019", GPT2)  # rules that divide by gradient statistics
RULES = (SGD, *RMS_RULES)
_BATCHES_KEY = "batches"
_SUM_KEY = "sum_of_squares.{}"


@dataclass(frozen=True)
class TunedRule:
    """Update rule of dynamic evaluation with its hyperparameters, as tuned on validation documents.

    Attributes
    ----------
    rule : {"sgd", "rms_2018", "rms_2019", "gpt2"}
        Update rule; see `DynamicEvaluationSGD` and `DynamicEvaluationRMS`.
    lr : float
        Step size η, finite and ≥ 0.
    decay : float
        λ, the pull towards θ₀ at each update, finite and ≥ 0. Must be 0 for "gpt2".
    eps : float, optional
        ε of the rules other than "sgd", which need it, finite and ≥ 0.
    segment : int
        Tokens between two updates while tuning.
    documents : str
        Which documents it was tuned on, in words or as a corpus hash; "" where that is not known.

    Raises
    ------
    ValueError
        An unknown rule, a hyperparameter out of range, or one that the rule does not have or lacks.
    """

    rule: str
    lr: float
    decay: float = 0.0
    eps: float | None = None
    segment: int = SEGMENT
    documents: str = ""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}; expected one of {', '.join(RULES)}.")
        check_hyperparameter("lr", self.lr)
        check_hyperparameter("decay", self.decay)
        if self.rule == SGD:
            if self.eps is not None:
                raise ValueError(f"eps is {self.eps!r}, but the rule {SGD!r} has none; leave it out.")
        elif self.eps is None:
            raise ValueError(f"eps is missing; the rule {self.rule!r} needs one.")
        else:
            check_hyperparameter("eps", self.eps)
        if self.rule == GPT2 and self.decay:
            raise ValueError(f"decay is {self.decay!r}, but the rule {GPT2!r} has none; leave it out.")
        if not isinstance(self.segment, int) or self.segment < 1:
            raise ValueError(f"segment is {self.segment!r}; expected a whole number of tokens, at least 1.")
        if not isinstance(self.documents, str):
            raise ValueError(f"documents is {self.documents!r:.80}; expected text.")

    def hyperparameters(self) -> dict[str, Any]:
        """Return `rule`, `lr`, `decay` and, where the rule has one, `eps`."""
        return {"rule": self.rule, "lr": self.lr, "decay": self.decay} | ({} if self.eps is None else {"eps": self.eps})

    def to_facts(self) -> dict[str, Any]:
        """Return everything as plain facts for JSON; `from_facts` makes the rule of them again."""
        return self.hyperparameters() | {"segment": self.segment, "documents": self.documents}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "TunedRule":
        """Make a rule of plain facts; those of other names, such as measured scores, are ignored.

        Raises
        ------
        ValueError
            `rule` or `lr` is missing, or as for the class.
        """
        missing = [name for name in ("rule", "lr") if name not in facts]
        if missing:
            raise ValueError(
                f"a tuned rule needs {' and '.join(missing)}; given were {', '.join(facts) or 'no facts'}."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in names})


def check_hyperparameter(name: str, value: object) -> None:
    """Raise ValueError unless a step size, decay or ε is a finite number ≥ 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value!r}: expected a finite number ≥ 0")


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    """Sum over batches of squared training gradients, elementwise; `mean_of_squares` divides by `batches`.

    Attributes
    ----------
    sum_of_squares : tuple of Tensor
        Σ g² over the batches, a tensor for each parameter, of its shape, in the optimizer's order.
    batches : int
        Number of batches that were summed, at least 1.

    Raises
    ------
    ValueError
        There is no batch or no tensor, an entry is negative or not finite, or all are zero.
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
        """Mean over batches of g², one tensor for each parameter."""
        return tuple(total / self.batches for total in self.sum_of_squares)

    @classmethod
    def from_gradients(cls, batches: Iterable[Iterable[Tensor | None]]) -> "GradientStatistics":
        """Sum the squares of gradients, batch by batch.

        Parameters
        ----------
        batches : iterable of iterables of Tensor or None
            For each batch, the gradient of every parameter, in the optimizer's order; None is a gradient of zero.
            One batch is held at a time and none is kept, so a generator may reuse its tensors. The sums are float32,
            or float64 where the gradients are, on the gradients' devices.

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
        """Return everything as named contiguous tensors, ready for ``safetensors.torch.save_file``."""
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
