"""What a synthetic trace holds agrees with itself, as a real one does."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fwl_lab import open_trace, save_trace
from fwl_lab import trace as schema
from fwl_lab.testing import make_trace
from fwl_lab.trace import validate

READERS = ("base", "static", "dynamic_evaluation", "fwl")


@pytest.fixture(scope="module")
def trace() -> xr.Dataset:
    return make_trace(tokens=3000)


def test_the_same_seed_gives_the_same_trace_and_another_one_another() -> None:
    assert make_trace(seed=5).identical(make_trace(seed=5))
    first, second = make_trace(seed=5), make_trace(seed=6)
    for name in (schema.TOP_ID, schema.NLL):
        assert not np.array_equal(first[name].values, second[name].values), name


class TestAlternatives:
    @pytest.mark.parametrize("vocab", [1, 2, 5, 11, 400])
    def test_they_agree_with_the_score_and_the_rank_of_what_came(self, vocab: int) -> None:
        trace = make_trace(tokens=500, vocab=vocab)
        ids, log_probs = trace[schema.TOP_ID].values, trace[schema.TOP_LOG_PROB].values
        rank, nll = trace[schema.LABEL_RANK].values, trace[schema.NLL].values
        top = min(10, vocab)
        assert ids.shape == (4, 500, top) and (np.diff(log_probs, axis=-1) <= 0).all()
        assert ids.min() >= 0 and rank.min() >= 0 and max(ids.max(), rank.max()) < vocab
        assert all(len(set(row)) == top for row in ids.reshape(-1, top).tolist())
        own = ids == trace[schema.TOKEN_ID].values[:, None]
        np.testing.assert_array_equal(own.any(-1), rank < top)
        np.testing.assert_array_equal(own.argmax(-1)[rank < top], rank[rank < top])
        np.testing.assert_allclose(log_probs[own], -nll[rank < top], rtol=1e-6)
        # Where it is not listed it is less likely than all that are.
        assert (log_probs[rank >= top].min(-1, initial=0) > -nll[rank >= top]).all()
        # What is left is no more than the tokens that are not listed can fill (scores know no vocabulary of one).
        left = 1 - np.exp(log_probs.astype(np.float64)).sum(-1)
        assert (left > -1e-6).all()
        assert vocab == 1 or (left <= (vocab - top) * np.exp(log_probs[..., -1]) + 1e-6).all()

    def test_readers_that_adapt_expect_them_in_another_order(self, trace: xr.Dataset) -> None:
        ids, token_id = trace[schema.TOP_ID].values, trace[schema.TOKEN_ID].values
        listed = [
            [[i for i in row if i != own][:8] for row, own in zip(rows, token_id, strict=True)] for rows in ids.tolist()
        ]
        assert listed[0] == listed[1]
        moved = np.mean([a != b for a, b in zip(listed[0], listed[3], strict=True)])
        kept = np.mean([len(set(a) & set(b)) for a, b in zip(listed[0], listed[3], strict=True)])
        assert moved > 0.8 and kept > 5

    def test_every_id_has_its_own_text(self, trace: xr.Dataset) -> None:
        texts = trace[schema.VOCABULARY_TEXT].values
        np.testing.assert_array_equal(texts[trace[schema.TOKEN_ID].values], trace[schema.TOKEN_TEXT].values)
        assert len(set(texts.tolist())) == len(texts) == 400
        assert {"</script>", "\x00", "\u202e", "🙂"} <= set(texts.tolist())


def test_recording_can_be_left_out() -> None:
    plain = make_trace(recorded=False)
    assert not {schema.TOP_ID, schema.LABEL_RANK, schema.VOCABULARY_TEXT} & set(plain.variables)
    np.testing.assert_array_equal(plain[schema.NLL].values, make_trace()[schema.NLL].values)


def test_all_of_it_survives_saving(trace: xr.Dataset, tmp_path: Path) -> None:
    again = open_trace(save_trace(trace, tmp_path / "trace.zarr"))
    xr.testing.assert_identical(validate(again).load(), trace)
