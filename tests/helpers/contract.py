"""The reader's contract as checks that any reader can be given; a test shows that each of them can fail."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tests.helpers.models import MakeReader

TOLERANCE = 1e-12  # nats, in float64; worst seen: 2e-14


def read_in_calls(make_reader: MakeReader, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """NLL (B, T), read in calls that end at `cuts`."""
    reader = make_reader()
    edges = [0, *sorted(set(cuts)), tokens.shape[1]]
    return torch.cat([reader.read(tokens[:, a:b]).nll for a, b in pairwise(edges)], 1)


def check_causality(
    make_reader: MakeReader,
    tokens: Tensor,
    position: int,
    *,
    row: int = 0,
    cuts: Sequence[int] = (),
    before: Tensor | None = None,
) -> None:
    """Changing one token changes no score before it and no other row, bitwise; it does change what follows.

    `before` (B, T) is the NLL of the tokens as they are, where it is known already.
    """
    changed = tokens.clone()
    changed[row, position] = (changed[row, position] + 1) % 2
    before = read_in_calls(make_reader, tokens, cuts) if before is None else before
    after = read_in_calls(make_reader, changed, cuts)
    assert torch.equal(before[row, :position], after[row, :position]), f"token {position} changed a score before it"
    assert not torch.equal(before[row, position:], after[row, position:]), f"token {position} changed nothing"
    others = [r for r in range(len(tokens)) if r != row]
    assert torch.equal(before[others], after[others]), f"row {row} changed another row"


def check_partition(
    make_reader: MakeReader, tokens: Tensor, cuts: Sequence[int], *, tolerance: float = TOLERANCE
) -> None:
    """The same scores however a document is cut into calls."""
    torch.testing.assert_close(
        read_in_calls(make_reader, tokens, cuts), read_in_calls(make_reader, tokens, ()), rtol=0, atol=tolerance
    )


def read_alone(make_reader: MakeReader, tokens: Tensor) -> list[Tensor]:
    """NLL (T,) of each row, read by a reader of its own."""
    return [read_in_calls(make_reader, row[None], ())[0] for row in tokens]


def check_batch(
    make_reader: MakeReader,
    tokens: Tensor,
    alone: Sequence[Tensor],
    lengths: Sequence[int],
    order: Sequence[int],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """The same scores as each row `alone`, in any order and whatever padding follows; rows go on after padding."""
    longest, total = max(lengths), tokens.shape[1]
    # First call: each row's first tokens, then rubbish of weight 0. Second call: what each row has left, and rubbish.
    reader, scores = make_reader(), {row: torch.zeros(0) for row in order}
    for starts, stops in (([0] * len(lengths), lengths), (lengths, [total] * len(lengths))):
        width = longest if starts[0] == 0 else total - min(lengths)
        ids, weights = torch.full((len(order), width), -1), torch.zeros(len(order), width)
        for place, row in enumerate(order):
            piece = tokens[row, starts[row] : stops[row]]
            ids[place, : len(piece)], weights[place, : len(piece)] = piece, 1.0
        nll = reader.read(ids, weights).nll
        assert not bool(nll[weights == 0].any()), "padding has a score"
        scores = {row: torch.cat([scores[row], nll[place, weights[place] != 0]]) for place, row in enumerate(order)}
    for row in order:
        torch.testing.assert_close(scores[row], alone[row], rtol=0, atol=tolerance)


def check_scores_are_predictions(make_reader: MakeReader, tokens: Tensor, *, tolerance: float = TOLERANCE) -> None:
    """Each score is that of `next_log_probs` as it stood just before the token."""
    reader = make_reader()
    whole = make_reader().read(tokens).nll
    first = reader.next_log_probs().expand(len(tokens), -1)  # before the first read there is one row
    for t in range(tokens.shape[1]):
        expected = reader.next_log_probs() if t else first
        ones = expected.exp().sum(1)
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-12)
        nll = reader.read(tokens[:, t : t + 1]).nll
        predicted = -expected.gather(1, tokens[:, t : t + 1])
        torch.testing.assert_close(nll, predicted, rtol=0, atol=tolerance)
        torch.testing.assert_close(whole[:, t : t + 1], predicted, rtol=0, atol=tolerance)
