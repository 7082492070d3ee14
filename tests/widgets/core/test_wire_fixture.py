"""Bytes and keys that Python writes and `tests/js` reads: one file, which this test holds to what Python writes now.

After a change of the format: ``python -m tests.widgets.core.test_wire_fixture`` writes the file again.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from widgets.core.packing import pack, pack_texts, quantise
from widgets.core.wire import question_key
from widgets.views.update_scope.tiles import squeeze

FIXTURE = Path(__file__).parents[2] / "js" / "wire.json"
TEXTS = ["", "def", "\x00", "\ufeff", "שלום", "👩‍🚀", "\u202e", "\n", " ·"]
VALUES = [0.0, -1.5, np.nan, 2.25, 1e-3, np.inf, 3.0]
QUESTIONS: list[dict[str, Any]] = [
    {"kind": "tile", "token": 7, "pinned": None, "reader": "a “b”", "order": "length"},
    {"kind": "page", "page": 1, "exact": True},
]


def written() -> dict[str, Any]:
    """Return the fixture, as plain JSON."""
    arrays: dict[str, np.ndarray] = {
        "bytes": np.array([-128, 0, 127], np.int8),
        "none": np.zeros((0, 4), np.float32),
        "matrix": np.array([[1.5, -2.0, 3.25], [0.0, 1e30, -1e-30]]),
        "single": np.array([0.1, np.inf, -0.0], np.float32),
        "big": np.array([-(2**31), 0, 2**31 - 1], dtype=">i4"),
        "wide": np.array([2**32 - 1, 0], np.uint32),
        "short": np.array([-(2**15), 2**15 - 1], np.int16),
    }
    layout, data = pack(arrays)
    text_layout, text_data = pack(pack_texts(TEXTS))
    codes, low, step = quantise(np.array(VALUES))
    squeezed, size = squeeze(np.array(VALUES))
    return {
        "packed": {
            "layout": layout,
            "data": base64.b64encode(data).decode(),
            "values": {
                name: [float(v) if np.isfinite(v) else repr(float(v)) for v in array.ravel()]
                for name, array in arrays.items()
            },
        },
        "texts": {"layout": text_layout, "data": base64.b64encode(text_data).decode(), "values": TEXTS},
        "quantised": {"codes": codes.tolist(), "low": low, "step": step, "values": _plain(VALUES)},
        "squeezed": {"codes": squeezed.tolist(), "size": size, "values": _plain(VALUES)},
        "questions": [[question, question_key(question)] for question in QUESTIONS],
    }


def _plain(values: list[float]) -> list[float | None]:
    """Return values with None where they are not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]


def test_the_browser_tests_read_what_python_writes_today():
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == written()


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(written(), ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
