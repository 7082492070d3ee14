"""No score depends on the future, on batch mates, on padding or on how a document was cut; the checks can fail."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fwl_lab import FastWeightReader, StaticReader
from tests.helpers.contract import (
    check_batch,
    check_causality,
    check_partition,
    check_scores_are_predictions,
    read_alone,
)
from tests.helpers.models import (
    INNER_BATCH,
    READERS,
    SEGMENT,
    VOCABULARY,
    WINDOW,
    MakeReader,
    make_block_model,
    make_tokens,
    reader_maker,
)

LENGTH = 64
# First and last tokens, and the tokens on either side of each boundary: inner batch, segment, window and half window.
BOUNDARIES = (INNER_BATCH, 3 * SEGMENT, WINDOW, WINDOW // 2 * 5)
EDGES = sorted({0, 1, LENGTH - 1} | {at + side for at in BOUNDARIES for side in (-1, 0)})
FAMILIES = ("mistral", "gpt2")  # rotary with a window smaller than the document, absolute positions
DTYPES = (torch.float32, torch.float64)
documents = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=LENGTH).map(lambda ids: torch.tensor([ids]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READERS)
def test_the_future_changes_no_score_bitwise(name: str, family: str, dtype: torch.dtype) -> None:
    make_reader = reader_maker(name, family, dtype)
    tokens = make_tokens(1, LENGTH)
    before = make_reader().read(tokens).nll
    for position in EDGES:
        check_causality(make_reader, tokens, position, before=before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READERS)
def test_a_row_changes_no_other_row_bitwise(name: str, family: str, dtype: torch.dtype) -> None:
    make_reader = reader_maker(name, family, dtype)
    tokens = make_tokens(3, LENGTH)
    before = make_reader().read(tokens).nll
    for position in (0, SEGMENT, 37):
        check_causality(make_reader, tokens, position, row=1, before=before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READERS)
def test_causality_in_any_calls(name: str, family: str) -> None:
    make_reader = reader_maker(name, family)

    @settings(max_examples=6)
    @given(documents, st.data())
    def check(tokens: Tensor, data: st.DataObject) -> None:
        places = st.integers(0, tokens.shape[1] - 1)
        cuts = data.draw(st.lists(places.filter(bool), max_size=4))
        check_causality(make_reader, tokens, data.draw(places), cuts=cuts)

    check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READERS)
def test_calls_may_be_cut_anywhere(name: str, family: str) -> None:
    make_reader = reader_maker(name, family)
    check_partition(make_reader, make_tokens(1, LENGTH), range(1, LENGTH))
    check_partition(make_reader, make_tokens(2, LENGTH), (SEGMENT, WINDOW, 3 * INNER_BATCH))

    @settings(max_examples=6)
    @given(documents, st.lists(st.integers(1, LENGTH - 1), max_size=6))
    def check(tokens: Tensor, cuts: list[int]) -> None:
        check_partition(make_reader, tokens, [cut for cut in cuts if cut < tokens.shape[1]])

    check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READERS)
def test_batch_mates_and_padding_change_nothing(name: str, family: str) -> None:
    make_reader = reader_maker(name, family)
    tokens = make_tokens(3, 48)
    alone = read_alone(make_reader, tokens)
    check_batch(make_reader, tokens, alone, (48, 48, 48), (0, 1, 2))
    check_batch(make_reader, tokens, alone, (31, 5, 16), (2, 0, 1))

    @settings(max_examples=5)
    @given(st.lists(st.integers(1, 47), min_size=3, max_size=3), st.permutations(range(3)))
    def check(lengths: list[int], order: list[int]) -> None:
        check_batch(make_reader, tokens, alone, lengths, order)

    check()


# -- the checks can fail ------------------------------------------------------------------------------------------


class PeeksAhead(StaticReader):
    """Lets a trace of the token after next into a score."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll + 1e-12 * labels.roll(-1, 1), state


class LearnsFirst(FastWeightReader):
    """Learns from each token's own label before it scores the token."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        _, after = super().step(state, inputs, labels, weights)
        residual, _ = self.model.read(inputs, state.context)
        return self.model.block(residual, labels, weights, after.block).nll, after


class LooksAtBatchMates(StaticReader):
    """Subtracts a little of the mean over the batch."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll - 1e-9 * nll.mean(), state


class ForgetsBetweenCalls(StaticReader):
    """Counts tokens from the start of the call."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        nll, state = super().step(state, inputs, labels, weights)
        return nll + 1e-9 * torch.arange(inputs.shape[1]), state


class ReadsPadding(StaticReader):
    """Attends to padding as if it were text."""

    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        return super().step(state, inputs, labels, torch.ones_like(weights))


def leaky(kind: type[StaticReader] | type[FastWeightReader]) -> MakeReader:
    model = make_block_model("mistral", torch.float64)
    return lambda: kind(model)


def test_a_reader_that_peeks_ahead_is_caught() -> None:
    check_causality(leaky(StaticReader), make_tokens(1, 30), 9)
    with pytest.raises(AssertionError, match="changed a score before it"):
        check_causality(leaky(PeeksAhead), make_tokens(1, 30), 9)


def test_a_reader_that_learns_before_it_scores_is_caught() -> None:
    check_scores_are_predictions(leaky(FastWeightReader), make_tokens(1, 30))
    with pytest.raises(AssertionError, match="not close"):
        check_scores_are_predictions(leaky(LearnsFirst), make_tokens(1, 30))


def test_a_reader_that_looks_at_batch_mates_is_caught() -> None:
    tokens = make_tokens(2, 30)
    with pytest.raises(AssertionError, match="changed another row"):
        check_causality(leaky(LooksAtBatchMates), tokens, 0)
    with pytest.raises(AssertionError, match="not close"):
        check_batch(leaky(LooksAtBatchMates), tokens, read_alone(leaky(LooksAtBatchMates), tokens), (30, 30), (0, 1))


def test_a_reader_that_minds_the_cuts_is_caught() -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_partition(leaky(ForgetsBetweenCalls), make_tokens(1, 30), (9,))


def test_a_reader_that_reads_padding_is_caught() -> None:
    tokens = make_tokens(2, 30)
    alone = read_alone(leaky(StaticReader), tokens)
    check_batch(leaky(StaticReader), tokens, alone, (20, 11), (0, 1))
    with pytest.raises(AssertionError, match="not close"):
        check_batch(leaky(ReadsPadding), tokens, alone, (20, 11), (0, 1))
