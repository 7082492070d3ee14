"""Settings of a training run, checked when they are made."""

import dataclasses
import math
from typing import Literal

MODES = ("base", "retrofit", "joint", "slow-control")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run, apart from its model and documents.

    Attributes
    ----------
    mode : {"base", "retrofit", "joint", "slow-control"}
        base: the whole LM, no block. retrofit: only the block (and `last_layers` of the body) learns. joint: all.
        slow-control: as retrofit or joint (by `last_layers`), the block never adapting.
    steps, rows, tokens : int
        Optimizer steps; documents side by side; tokens of each per step.
    learning_rate, step_size_learning_rate, weight_decay, clip : float
        Of AdamW; the second is for the step sizes η, whose gradients are large. Weight decay is for matrices only.
        Gradients are clipped to the norm `clip`.
    warmup : int
        Steps over which the learning rate rises; after them it falls as a cosine to a tenth.
    last_layers : int
        Layers at the end of the body that learn with the block; -1: the whole LM.
    longest : int or None
        Tokens that are read of a document at most.
    seed : int
        Of the order of documents and of dropout.
    precision : {"float32", "bfloat16"}
        bfloat16: autocast; weights, moments and fast-weight state stay float32.

    Raises
    ------
    ValueError
        A setting out of its range.
    """

    mode: Literal["base", "retrofit", "joint", "slow-control"] = "retrofit"
    steps: int = 1000
    rows: int = 4
    tokens: int = 1024
    learning_rate: float = 1e-3
    step_size_learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int = 100
    last_layers: int = 0
    longest: int | None = 16384
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected {' or '.join(map(repr, PRECISIONS))}.")
        for name in ("steps", "rows", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name, least in (("last_layers", -1), ("warmup", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:  # this form refuses NaN too
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        for name in ("learning_rate", "step_size_learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0.")

    @property
    def body_learns(self) -> bool:
        """True where a run with a block trains parameters of the body too."""
        return self.mode == "joint" or self.last_layers != 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, as a fraction of the highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
