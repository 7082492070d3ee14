"""What to keep of a reading beside the scores."""

import dataclasses
import re
from collections.abc import Sequence

BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True)
class Recorder:
    """What to record.

    Norms of every update, and what a decay or a cap left of the past, are always kept.

    Attributes
    ----------
    factors : bool
        Keep the exact factors of a `FastWeightReader` (keys and updates, each token) and a dense Δθ every 4,096 tokens,
        so that Δθ at any token is a product; see `fwl_lab.fast_weight`. A trace holds the factors of one reader:
        the first of that kind.
    snapshots_every : int, optional
        Tokens, counted from a document's start, between two dense Δθ of every reader that adapts. Each is taken at
        the first update that many tokens, or more, after the last.
    rank : int, optional
        Keep so many leading singular directions of each matrix in a snapshot, and not the matrix; where factors are
        kept Δθ is exact anyway. What is left out is told by `fast_weight`.
    parameters : sequence of str, optional
        Whose factors and dense Δθ are kept. None: all that are fast.
    top : int
        How many of the likeliest tokens to keep of what a reader expected in each place; 0: none, nor the label's rank.
    byte_budget : str or int
        The most that may be written beside the scores, such as "1 GiB" or "200 MB", or a number of bytes.
    """

    factors: bool = True
    snapshots_every: int | None = None
    rank: int | None = None
    parameters: Sequence[str] | None = None
    top: int = 10
    byte_budget: str | int = "1 GiB"

    def __post_init__(self) -> None:
        for name, of in (("snapshots_every", "tokens"), ("rank", "directions")):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
                raise ValueError(f"{name} is {given!r}; expected a whole number of {of} from 1, or None.")
        if isinstance(self.parameters, str):
            raise ValueError(f"parameters is {self.parameters!r}; expected a list of names, such as ['W2'].")
        if not isinstance(self.top, int) or isinstance(self.top, bool) or self.top < 0:
            raise ValueError(f"top is {self.top!r}; expected a whole number of tokens, 0 for none.")
        self.budget()

    def budget(self) -> int:
        """The byte budget as a number."""
        found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", str(self.byte_budget).strip())
        try:
            assert found is not None
            return int(float(found[1]) * BYTES[found[2]])
        except (AssertionError, KeyError, ValueError):
            raise ValueError(
                f"byte_budget is {self.byte_budget!r}; expected a size such as '1 GiB', '200 MB' or a number of bytes."
            ) from None


def size_text(size: int) -> str:
    """A number of bytes for people: "1.5 GiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= BYTES[unit]:
            return f"{size / BYTES[unit]:.3g} {unit}"
    return f"{size} B"
