"""Update rule of fast weights: which parameters learn, with which step sizes, and where gradients are taken."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

PARAMETERS = ("W1", "b1", "W2", "b2", "g", "b")  # of the block, in the order of the README's mathematics


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """Update rule θ_t = θ_c − Σ_{i=c}^{t−1} η ⊙ w_i ∇ℓ_i(θ_c), c the start of the inner batch that holds t.

    Attributes
    ----------
    inner_batch : int or None
        M, tokens between re-linearisations: at each the point where gradients are taken moves to a new θ_c, the fast
        weights reached by then. None is the published rule (batch gradient descent at θ₀), 1 is online gradient
        descent.
    steps : tuple of tuples of str
        The i-th tuple names the parameters updated with the i-th learned step size; one in no tuple stays slow.
    initial_step : float
        Step sizes of a new block. 0: it adapts nothing until it is trained.
    decay : float
        Part of Δθ forgotten at each re-linearisation, in [0, 1). (With M = None there is none.)
    learn_decay : bool
        Whether the decay is trained too; it starts at `decay`, which is then more than 0.
    schedule : (float, float) or None
        n₀ and α: the gradient of token t is multiplied by (1 + t/n₀)^−α, t counting the tokens that were learned from
        since the start of the document under way, also where fast weights are carried on from another.
    cap : float or None
        At each re-linearisation Δθ is shrunk to at most this times the norm of θ₀, both over all fast parameters.
    normaliser : {"none", "batch"}
        "batch" divides every gradient by the sum of the weights in the whole batch, as published. A score then
        depends on batch mates and on the length of the future, so readers refuse it.
    """

    inner_batch: int | None = 64
    steps: tuple[tuple[str, ...], ...] = tuple((name,) for name in PARAMETERS)
    initial_step: float = 0.0
    decay: float = 0.0
    learn_decay: bool = False
    schedule: tuple[float, float] | None = None
    cap: float | None = None
    normaliser: Literal["none", "batch"] = "none"

    def __post_init__(self) -> None:
        inner = self.inner_batch
        if inner is not None and (isinstance(inner, bool) or not isinstance(inner, int) or inner < 1):
            raise ValueError(f"inner_batch is {inner!r}; expected an int of at least 1, or None for all tokens.")
        if not _is_number(self.decay) or not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay!r}; expected a number in [0, 1).")
        if self.learn_decay and not self.decay:
            raise ValueError("learn_decay is True and decay 0; expected a decay to start from, such as 0.01.")
        if self.schedule is not None:
            pair = tuple(self.schedule) if isinstance(self.schedule, Sequence) else ()
            if len(pair) != 2 or not all(map(_is_number, pair)) or not (pair[0] > 0 and pair[1] >= 0):
                raise ValueError(f"schedule is {self.schedule!r}; expected (n₀ > 0, α ≥ 0), or None.")
            object.__setattr__(self, "schedule", pair)  # JSON gives a list
        if not _is_number(self.initial_step):
            raise ValueError(f"initial_step is {self.initial_step!r}; expected a finite number.")
        if self.cap is not None and not (_is_number(self.cap) and self.cap > 0):
            raise ValueError(f"cap is {self.cap!r}; expected a finite number above 0, or None.")
        if inner is None and (self.learn_decay or self.cap is not None):
            raise ValueError(
                "inner_batch is None, so nothing is re-linearised, and a learned decay or a cap never acts."
            )
        if self.normaliser not in ("none", "batch"):
            raise ValueError(f"normaliser is {self.normaliser!r}; expected 'none' or 'batch'.")
        driven = [name for group in self.steps for name in group]
        if len(set(driven)) < len(driven) or set(driven) - set(PARAMETERS):
            raise ValueError(f"steps is {self.steps!r}; expected each of {', '.join(PARAMETERS)} at most once.")

    @classmethod
    def published_jax(cls) -> "UpdateRule":
        """Return the rule of the published JAX code.

        One step size a layer (that of the activation is unused); the dense layers' biases stay slow.
        """
        return cls(inner_batch=None, steps=(("W1",), (), ("W2",), ("g", "b")), normaliser="batch")

    @classmethod
    def published_tf(cls) -> "UpdateRule":
        """Return the rule of the published TensorFlow code: all parameters are fast, each with its own step size."""
        return cls(inner_batch=None, normaliser="batch")

    def step_of(self, parameter: str) -> int | None:
        """Return the index of the step size that updates a parameter, or None where it stays slow."""
        return next((i for i, group in enumerate(self.steps) if parameter in group), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
