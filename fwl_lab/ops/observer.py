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
        """Receive the factors of the updates that a fast-weight block made for the next n tokens, in reading order.

        Parameters
        ----------
        factors : dict
            Per fast parameter a pair (k, δ): keys k (B, n, columns), or None where the parameter is a vector, and
            updates δ (B, n, rows), which include the factor −η·w. Each token adds δ kᵀ to Δθ of a matrix, δ to Δθ of
            a vector. Documents that have ended are left out.
        """

    def retained(self, keep: Tensor) -> None:
        """Receive the factor (B,) by which decay or a cap has multiplied all that was learned so far."""

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        """Receive Δθ after each complete update.

        A block's update is complete after each inner batch; where its rule has none, after every 64 tokens.

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
