"""What was tuned and measured for dynamic evaluation of a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
