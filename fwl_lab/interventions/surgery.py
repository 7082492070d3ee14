"""Describe changes to a reader's updates: a `Surgery`, for `operate` (a reader) and `replay` (a trace).

Imports no torch.

An *update* is what a token (of a fast-weight block) or a segment (of dynamic evaluation) adds to Δθ. A surgery can
multiply the update of a token by a factor (0 drops it) and all updates of a parameter by a factor (0 keeps it slow). It
can also edit Δθ itself each time an update of the reader, an inner batch or a segment, is complete.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Surgery:
    """Changes to what a reader learns; one with no arguments changes nothing.

    Tokens are given as indices: into the trace for :func:`fwl_lab.replay`, into the document for
    :func:`fwl_lab.operate`. An index names the token that is *learned*, the label. Dynamic evaluation learns by
    segments: give the last token of a segment, or all of its tokens.

    Attributes
    ----------
    drop : sequence of int, or mask (T,) of bool
        Tokens whose updates are not made. They are still read and counted, and enter the context.
    scale : mapping from parameter to float
        Factor of all updates of that parameter; 0: it stays slow.
    token_scale : mapping from token to float, or (T,) floats, optional
        Factor of the updates of that token.
    decay : float
        Fraction of Δθ, in [0, 1), that is removed at each update, in addition to the decay of the reader's own rule.
    rank : int, optional
        Number of leading singular directions to which Δθ of every matrix is reduced at each update.
    remove_directions : mapping from parameter to sequence of int
        Singular directions of a matrix's Δθ (0 is the leading one) that are removed at each update.
    name : str, optional
        Name of the surgery; None: a description of its changes.
    masked : int or None
        Length of the mask, if `drop` was one.

    Raises
    ------
    ValueError
        An argument has a wrong type or is out of range.
    """

    drop: Iterable[Any] = ()
    scale: Mapping[str, float] = dataclasses.field(default_factory=dict)
    token_scale: Mapping[int, float] | Iterable[float] | None = None
    decay: float = 0.0
    rank: int | None = None
    remove_directions: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    name: str | None = None
    masked: int | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, given in (("scale", self.scale), ("remove_directions", self.remove_directions)):
            if not isinstance(given, Mapping):
                raise ValueError(f"{name} is {given!r}; expected a mapping from names of parameters.")
        scale = {parameter: float(factor) for parameter, factor in self.scale.items()}
        tokens = _factors(self.token_scale)
        for whose, factor in (*scale.items(), *tokens.items()):
            if not math.isfinite(factor):
                raise ValueError(f"the factor of {whose} is {factor}; expected a finite number.")
        removed = {p: tuple(sorted({int(i) for i in which})) for p, which in self.remove_directions.items()}
        for parameter, which in removed.items():
            if which and which[0] < 0:
                raise ValueError(
                    f"direction {which[0]} of {parameter} is to be removed; expected 0, the leading, or up."
                )
        dropped, masked = _tokens(self.drop)
        fields = {"drop": dropped, "scale": scale, "token_scale": tokens, "remove_directions": removed,
                  "masked": masked}  # fmt: skip
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        if not isinstance(self.decay, int | float) or not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay!r}; expected a number in [0, 1), the part that is forgotten.")
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(
                f"rank is {self.rank!r}; expected a whole number from 1, or None. A matrix is kept slow by scale 0."
            )

    @cached_property
    def token_factors(self) -> dict[int, float]:
        """Factor of each token's update, by token, where it is not 1."""
        return {**dict(self.token_scale), **dict.fromkeys(self.drop, 0.0)}  # type: ignore[arg-type]

    def kept_directions(self, parameter: str, shape: Sequence[int]) -> list[int] | None:
        """Return the singular directions of a parameter's Δθ that are kept; None: all, or it is not a matrix."""
        if len(shape) != 2:
            return None
        removed = self.remove_directions.get(parameter, ())
        count = min(shape)
        kept = [i for i in range(min(count, self.rank or count)) if i not in removed]
        return None if len(kept) == count else kept

    def facts(self) -> dict[str, Any]:
        """Return the changes as JSON values, without those that change nothing; runs of tokens as "first-last"."""
        scaled = dict(self.token_scale)  # type: ignore[arg-type]
        found = {
            "name": self.name, "drop": _runs(self.drop), "scale": self.scale,
            "token_scale": {run: f for f in sorted(set(scaled.values()))
                            for run in _runs(token for token in scaled if scaled[token] == f)},
            "decay": self.decay, "rank": self.rank,
            "remove_directions": {p: list(which) for p, which in self.remove_directions.items()},
        }  # fmt: skip
        return {name: value for name, value in found.items() if value}

    def __str__(self) -> str:
        """Return its name, or a description of its changes."""
        if self.name is not None:
            return self.name
        dropped, scaled = len(tuple(self.drop)), len(dict(self.token_scale))  # type: ignore[arg-type]
        parts = [f"{dropped} token{'s' * (dropped > 1)} dropped"] if dropped else []
        parts += [f"{scaled} token{'s' * (scaled > 1)} scaled"] if scaled else []
        some = len(self.scale) <= 6
        parts += [f"{p} × {f:g}" for p, f in self.scale.items()] if some else [f"{len(self.scale)} parameters scaled"]
        parts += [f"decay {self.decay:g}"] if self.decay else []
        parts += [f"rank {self.rank}"] if self.rank else []
        parts += [
            f"{p} without direction{'s' * (len(which) > 1)} {', '.join(map(str, which))}"
            for p, which in self.remove_directions.items()
        ]
        return ", ".join(parts) or "nothing changed"


def _tokens(given: Iterable[Any]) -> tuple[tuple[int, ...], int | None]:
    """Return rising indices from indices or a mask, and the length of the mask, or None; ValueError for neither."""
    found = np.asarray(given if hasattr(given, "__array__") or not isinstance(given, Iterable) else list(given))
    if found.ndim == 1 and (not found.size or found.dtype.kind in "biu"):
        masked = found.size if found.dtype.kind == "b" else None
        found = np.unique(found) if masked is None else np.flatnonzero(found)
        if not found.size or found[0] >= 0:
            return tuple(map(int, found)), masked
    raise ValueError(f"drop is {given!r}; expected indices of tokens, from 0, or a mask with a bool for each token.")


def _factors(given: Mapping[int, float] | Iterable[float] | None) -> dict[int, float]:
    """Return the factors other than 1, by token; ValueError where an index is negative."""
    if given is None:
        return {}
    items = given.items() if isinstance(given, Mapping) else enumerate(given)
    factors = {int(token): float(factor) for token, factor in items}
    if factors and min(factors) < 0:
        raise ValueError(f"token_scale names token {min(factors)}; expected indices of tokens, from 0.")
    return {token: factor for token, factor in sorted(factors.items()) if factor != 1}


def _runs(tokens: Iterable[int]) -> list[str]:
    """Return rising indices as runs: 1, 2, 3, 7 become "1-3", "7"."""
    runs = []
    for _, group in groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0]):
        run = [token for _, token in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return runs
