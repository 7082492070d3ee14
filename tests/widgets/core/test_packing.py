"""What goes to the browser is what was there, to the precision that is stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widgets.core.packing import MISSING, pack, pack_texts, quantise


def _unpack(layout, data):
    """The inverse of pack, as the browser does it."""
    return {
        name: np.frombuffer(data, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)
        for name, (kind, start, shape) in layout.items()
    }


def test_arrays_come_back_each_at_a_multiple_of_eight():
    rng = np.random.default_rng(0)
    given_: dict[str, np.ndarray] = {
        "a": rng.integers(0, 9, 5).astype(np.uint8),
        "b": rng.normal(size=(3, 2)),
        "c": np.zeros((0, 4), np.float32),
        "d": rng.normal(size=(4, 3)).T.astype(np.float32),
        "e": np.arange(3, dtype=">i4"),
    }
    layout, data = pack(given_)
    assert all(start % 8 == 0 for _, start, _ in layout.values())
    for name, array in _unpack(layout, data).items():
        np.testing.assert_array_equal(array, given_[name])


def test_types_that_a_browser_lacks_are_refused():
    with pytest.raises(ValueError, match="n is int64; a browser has"):
        pack({"n": np.arange(3)})


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1))
def test_quantised_values_are_off_by_half_a_step_and_what_is_not_finite_is_missing(values):
    array = np.array(values)
    codes, low, step = quantise(array)
    finite = np.isfinite(array)
    np.testing.assert_array_equal(codes == MISSING, ~finite)
    back = low + step * codes[finite].astype(float)
    assert np.abs(back - array[finite]).max(initial=0) <= step / 2 + 1e-9 * np.abs(array[finite]).max(initial=0)


def test_texts_keep_every_character():
    texts = ["", "def", "\x00", "שלום", "👩‍🚀", "\u202e", "\n"]
    packed = pack_texts(texts)
    ends = np.cumsum(packed["text_bytes"])
    data = packed["text"].tobytes()
    assert [data[end - n : end].decode() for n, end in zip(packed["text_bytes"], ends, strict=True)] == texts
