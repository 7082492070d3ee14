"""Choose what `score` keeps of a reading beside the scores."""

import dataclasses
import re
from collections.abc import Sequence

UNIT_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Options for what `score` records beside the scores.

    The norm of every update, and the factor by which a decay or a cap scaled Δθ (retention), are always recorded.

    Attributes
    ----------
    factors : bool
        Record the exact factors of a `FastWeightReader` (keys and updates of each token) and a dense Δθ every 4,096
        tokens, so that Δθ at any token can be computed as a product; see `fwl_lab.fast_weight`. A trace holds the
        factors of one reader: the first that has any.
    snapshots_every : int, optional
        Tokens, counted from a document's start, between two dense Δθ of every reader with fast weights. Each is taken
        at the first update that is at least that many tokens after the last. None: no snapshots.
    rank : int, optional
        Keep this many leading singular directions of each matrix in a snapshot instead of the matrix. It does not
        apply to a reader whose factors are kept: its Δθ stays exact. `fwl_lab.fast_weight` reports what is left out.
    parameters : sequence of str, optional
        Parameters whose factors and dense Δθ are kept. None: all fast parameters.
    top : int
        Number of most likely tokens, with their log-probabilities, to keep at each place. 0: none, and no rank of the
        label either.
    byte_budget : str or int
        Most bytes that may be written beside the scores, such as "1 GiB" or "200 MB", or a number of bytes.

    Raises
    ------
    ValueError
        An option has a wrong type or is out of range.
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
        named = self.parameters is None or all(isinstance(name, str) for name in self.parameters)
        if isinstance(self.parameters, str) or not named:
            raise ValueError(f"parameters is {self.parameters!r}; expected a list of names, such as ['W2'].")
        if not isinstance(self.top, int) or isinstance(self.top, bool) or self.top < 0:
            raise ValueError(f"top is {self.top!r}; expected a whole number of tokens, 0 for none.")
        self.budget()

    def budget(self) -> int:
        """Return `byte_budget` in bytes.

        Raises
        ------
        ValueError
            It is not a size, or has an unknown unit.
        """
        found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", str(self.byte_budget).strip())
        try:
            assert found is not None
            return int(float(found[1]) * UNIT_BYTES[found[2]])
        except (AssertionError, KeyError, OverflowError, ValueError):
            raise ValueError(
                f"byte_budget is {self.byte_budget!r}; expected a size such as '1 GiB', '200 MB' or a number of bytes."
            ) from None


def size_text(size: int) -> str:
    """Return a number of bytes as text with a binary unit, such as "1.5 GiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= UNIT_BYTES[unit]:
            return f"{size / UNIT_BYTES[unit]:.3g} {unit}"
    return f"{size} B"
