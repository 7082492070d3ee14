"""Interface by which a recorder is told what a reader does while it reads."""

from collections.abc import Callable, Sequence

from torch import Tensor

Deltas = Callable[[], dict[str, Tensor]]


class Observer:
    """Receiver of a reader's events; a subclass overrides the methods of those that it records.

    Tensors belong to the reader: an observer changes none, and copies what it keeps. B documents under way, n tokens of
    a piece, V vocabulary.
    """

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        """Receive the prediction of the next `count` tokens of each document, which are being scored.

        Parameters
        ----------
        count : int
        logits : callable
            From a slice of these tokens to unnormalised log-probabilities (B, n, V), computed when called.
        """

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        """Receive what a fast-weight block has learned from the next n tokens, in reading order.

        Parameters
        ----------
        factors : dict
            Per fast parameter the keys k (B, n, columns), None for a vector, and the updates δ (B, n, rows), −η·w in
            them; each token adds δ kᵀ, or δ, to Δθ. Documents that have ended are left out.
        """

    def retained(self, keep: Tensor) -> None:
        """Receive the factor (B,) by which decay or a cap has multiplied all that was learned so far."""

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """Receive Δθ after an update is complete (of a block: an inner batch or, where there is none, 64 tokens).

        Parameters
        ----------
        seen : (B,) long
            Tokens read so far.
        fast_weights : callable
            Returns Δθ now, per parameter, (B, ...).
        """


class Observers(Observer):
    """Several observers as one: each event goes to all of them, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def expected(self, count: int, logits: Callable[[slice], Tensor]) -> None:
        """Pass on; see `Observer.expected`."""
        for observer in self.observers:
            observer.expected(count, logits)

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        """Pass on; see `Observer.learned`."""
        for observer in self.observers:
            observer.learned(factors)

    def retained(self, keep: Tensor) -> None:
        """Pass on; see `Observer.retained`."""
        for observer in self.observers:
            observer.retained(keep)

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """Pass on; see `Observer.updated`."""
        for observer in self.observers:
            observer.updated(seen, fast_weights)
