"""Two synthetic traces that differ in their readers' names alone, and the names of one put for those of the other."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import xarray as xr

from fwl_lab.testing.traces import make_trace
from widgets import theme

#: By name under which no reader is known: the usual name of the same kind of reader.
KINDS = {"wren": "base", "xerus": "static", "yak": "dynamic_evaluation", "zebra": "fwl"}


def renamed_pair(**settings: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Make a trace with the usual readers, and the same trace with every reader named otherwise."""
    return make_trace(readers=list(KINDS.values()), **settings), make_trace(readers=KINDS, **settings)


def usual(value: Any, key: str = "") -> Any:
    """Put the usual names into a JSON value: names where a text is a reader's name, labels elsewhere."""
    if isinstance(value, Mapping):
        return {KINDS.get(name) or usual_text(name): usual(one, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [usual(one) for one in value]
    if isinstance(value, str) and value in KINDS and key != "label":
        return KINDS[value]
    return usual_text(value) if isinstance(value, str) else value


def usual_text(text: str) -> str:
    """Put the usual labels into a text, or names where they are quoted; images become SVG, hashes are left out."""
    text = re.sub(r"data:image/svg\+xml;base64,([\w+/=]+)", lambda found: base64.b64decode(found[1]).decode(), text)
    text = re.sub(r"fwl-[0-9a-f]{10}", "fwl-hash", text)
    for name, kind in KINDS.items():
        text = text.replace(repr(name), repr(kind)).replace(name, theme.label(kind))
    return text
