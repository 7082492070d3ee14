"""What can be seen of a reading while it goes on."""

from collections.abc import Callable, Sequence

from torch import Tensor

Deltas = Callable[[], dict[str, Tensor]]


class Observer:
    """Watches a reader; a kind of observer overrides what it wants to see.

    Tensors belong to the reading and stay as they are: an observer that keeps one copies it, and changes none. B are
    the documents under way, n the tokens of a piece, V the vocabulary.
    """

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        """The next `count` tokens of each document are being scored.

        `logits(part)`: what was expected in the places `part` of these, (B, n, V), as unnormalised log-probabilities.
        It is computed when it is asked for.
        """

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        """A fast-weight block has learned from the next n tokens, in reading order.

        `factors`: per fast parameter the keys k (B, n, columns), None for a vector, and the updates δ (B, n, rows),
        −η·w in them; each token adds δ kᵀ, or δ, to Δθ. Documents that have ended are left out.
        """

    def retained(self, keep: Tensor) -> None:
        """All that was learned so far has been multiplied by `keep` (B,), by decay or a cap."""

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """An update (of a block: an inner batch, where there is none 64 tokens) is complete.

        `seen`: tokens read so far, (B,). `fast_weights()`: Δθ now, per parameter, (B, ...).
        """


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        for observer in self.observers:
            observer.expected(count, logits)

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        for observer in self.observers:
            observer.learned(factors)

    def retained(self, keep: Tensor) -> None:
        for observer in self.observers:
            observer.retained(keep)

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        for observer in self.observers:
            observer.updated(seen, fast_weights)
