"""Choose the tokens of each training step, by documents, seed and step number alone, so that a run can resume.

Two orders: :class:`PackedBatches` for a model that keeps no state, :class:`DocumentBatches` for one that does.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Tokens of one training step. B rows, T tokens.

    Attributes
    ----------
    inputs, labels : (B, T) long
        Tokens, and for each the token that follows it.
    valid : (B, T) bool
        False after the end of a document.
    fresh : (B,) bool
        True where a row begins a document.
    """

    inputs: Tensor
    labels: Tensor
    valid: Tensor
    fresh: Tensor


class PackedBatches:
    """Windows of `tokens` tokens of all documents joined, in a new order each epoch; for a model without state.

    Raises
    ------
    ValueError
        The documents are shorter than one step.
    """

    def __init__(self, documents: Sequence[np.ndarray], bos: int, *, rows: int, tokens: int, seed: int) -> None:
        self.documents = [np.concatenate([[bos], d]) for d in documents]
        self.rows, self.tokens, self.seed = rows, tokens, seed
        self.windows = (sum(map(len, self.documents)) - 1) // tokens
        if self.windows < rows:
            raise ValueError(
                f"the documents hold {self.windows} windows of {tokens} tokens, fewer than {rows} rows; "
                "give more text, or fewer rows or tokens."
            )
        self._epoch, self._stream, self._order = -1, np.zeros(0, int), np.zeros(0, int)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one step; steps may be asked for in any order."""
        steps = self.windows // self.rows
        epoch, index = divmod(step, steps)
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._stream = np.concatenate([self.documents[i] for i in random.permutation(len(self.documents))])
            self._order, self._epoch = random.permutation(self.windows), epoch
        starts = self._order[index * self.rows : (index + 1) * self.rows] * self.tokens
        window = torch.from_numpy(np.stack([self._stream[s : s + self.tokens + 1] for s in starts]).astype(np.int64))
        ones = torch.ones(self.rows, self.tokens, dtype=torch.bool)
        return Batch(window[:, :-1], window[:, 1:], ones, ones[:, 0])


class DocumentBatches:
    """Consecutive windows of documents; each row continues its document of the step before, or begins a new one.

    Raises
    ------
    ValueError
        No document holds a token.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        bos: int,
        *,
        rows: int,
        tokens: int,
        seed: int,
        longest: int | None = None,
    ) -> None:
        self.documents = [np.concatenate([[bos], d[:longest]]) for d in documents if len(d)]
        if not self.documents:
            raise ValueError("no document holds a token; training needs text.")
        self.rows, self.tokens, self.seed = rows, tokens, seed
        self._plan: list[list[tuple[int, int]]] = []  # per step, per row: document, position
        self._next = self._shuffled()

    def _shuffled(self) -> Iterator[int]:
        """Yield document indices epoch by epoch, each in an order of its own."""
        epoch = 0
        while True:
            yield from np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))
            epoch += 1

    def _grow(self) -> None:
        """Plan one more step."""
        last = self._plan[-1] if self._plan else [(0, len(self.documents[0]))] * self.rows
        row = []
        for document, position in last:
            position += self.tokens
            if not self._plan or position >= len(self.documents[document]) - 1:
                document, position = int(next(self._next)), 0
            row.append((document, position))
        self._plan.append(row)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one step; steps may be asked for in any order."""
        while len(self._plan) <= step:
            self._grow()
        window = np.full((self.rows, self.tokens + 1), -1)
        for b, (document, position) in enumerate(self._plan[step]):
            piece = self.documents[document][position : position + self.tokens + 1]
            window[b, : len(piece)] = piece
        ids = torch.from_numpy(window.astype(np.int64))
        fresh = torch.tensor([position == 0 for _, position in self._plan[step]])
        return Batch(ids[:, :-1].clamp(min=0), ids[:, 1:].clamp(min=0), ids[:, 1:] >= 0, fresh)
