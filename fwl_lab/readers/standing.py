"""Where a reader stands between two calls, and what a call returns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwl_lab.ops.state import expand_rows, from_tensors, to_tensors

STATE = "state."  # prefix of a kind's own tensors in a state dict


class Scores(NamedTuple):
    """Scores of the tokens of one call.

    Attributes
    ----------
    nll : (B, T) float, nats
        Of each token given all read before it; 0 where the weight is 0.
    """

    nll: Tensor


class Standing(NamedTuple):
    """Where a reader stands between two calls. It is replaced as a whole when a call is complete.

    Attributes
    ----------
    state : NamedTuple of tensors
        Of the reader's kind; see `Reader.initial_state`.
    last : (B, 1) long
        Token that was read, and that the body has not seen yet.
    seen : (B,) long
        Tokens read in the document, padding not counted.
    fresh : bool
        Whether nothing has been read, so that one row may still become several.
    """

    state: Any
    last: Tensor
    seen: Tensor
    fresh: bool

    @classmethod
    def begin(cls, state: Any, rows: int, bos: int, device: torch.device) -> "Standing":
        """Return the start of `rows` documents: BOS has been read."""
        last = torch.full((rows, 1), bos, device=device)
        return cls(state, last, torch.zeros(rows, dtype=torch.long, device=device), True)

    @property
    def may_expand(self) -> bool:
        """Whether this is the start of one document, which may still become that of several."""
        return self.fresh and len(self.last) == 1

    def expand(self, rows: int) -> "Standing":
        """Return the start of one document as that of `rows`."""
        return Standing(expand_rows(self.state, rows), self.last.expand(rows, 1), self.seen.expand(rows), self.fresh)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return it as a flat dict of tensors."""
        standing = {name: x.clone().contiguous() for name, x in (("last", self.last), ("seen", self.seen))}
        return standing | {"fresh": torch.tensor(self.fresh)} | to_tensors(self.state, STATE)

    @classmethod
    def from_tensors(cls, like: Any, tensors: Mapping[str, Tensor], device: torch.device) -> "Standing":
        """Return what :meth:`to_tensors` made flat; `like` is a state of the kind that the tensors hold."""
        last, seen = (tensors[name].to(device).clone() for name in ("last", "seen"))
        return cls(from_tensors(like, tensors, STATE), last, seen, bool(tensors["fresh"]))
