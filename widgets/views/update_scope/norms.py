"""Tell how far reading has moved each parameter, for the browser, and at which tokens Δθ itself is there."""

from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import reader_facts, reader_names
from widgets import theme
from widgets.display.document import MUTED, picture, visible

#: Bytes of norms in a first message; beyond it updates are left out evenly, of all readers alike.
NORM_BYTES: Final = 800_000
#: Points of all lines of a still picture, and its size.
_PICTURE_POINTS: Final = 3000
_WIDTH, _HEIGHT = 760, 220
#: Tokens between two snapshots that :func:`advice` names for a reader without updates.
_USUAL_SEGMENT: Final = 64


def drifts(trace: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Return the norms of Δθ after each update, of all readers that have any.

    Returns
    -------
    arrays
        "updates": (U,) the token of each update; "drawn": (V,) the updates whose norms are there; "norms_<i>": (P, V)
        ‖Δθ‖ of the i-th reader's parameters, NaN where it made no update.
    moved
        By reader: "norms", the name of its array; "parameters", with name, short label, colour, and norm of θ₀ or None;
        "bad", the first token before which a norm is not finite, or None.
    """
    if schema.DRIFT not in trace or schema.UPDATE_TOKEN not in trace.variables:
        return {"updates": np.zeros(0, np.int32), "drawn": np.zeros(0, np.int32)}, {}
    grid = trace[schema.UPDATE_TOKEN].values.astype(np.int32)
    norms = trace[schema.DRIFT].transpose(schema.READER, schema.PARAMETER, schema.UPDATE)
    names = [str(name) for name in trace[schema.PARAMETER].values]
    slow = trace.get(schema.SLOW_NORM)
    every: dict[str, np.ndarray] = {}
    moved: dict[str, dict[str, Any]] = {}
    for index, reader in enumerate(reader_names(trace)):
        values = norms.isel({schema.READER: index}).values
        has = np.flatnonzero(~np.isnan(values).all(1))
        if not len(has):
            continue
        known = slow.sel({schema.READER: reader}).values if slow is not None else np.full(len(names), np.nan)
        every[f"norms_{index}"] = values = values[has]
        moved[reader] = {
            "norms": f"norms_{index}",
            "parameters": [
                {"name": names[i], "label": short(names[i]), "colour": colour}
                | {"slow": float(known[i]) if np.isfinite(known[i]) and known[i] > 0 else None}
                for i, colour in zip(has, theme.series(len(has)), strict=True)
            ],
            "bad": _first_bad(values, grid),
        }
    width = 4 * sum(len(values) for values in every.values())
    step = max(1, -(-width * len(grid) // NORM_BYTES))
    drawn = np.unique(np.append(np.arange(0, len(grid), step), _last_updates(trace, grid))).astype(np.int32)
    small = {name: values[:, drawn].astype(np.float32) for name, values in every.items()}
    return {"updates": grid, "drawn": drawn} | small, moved


def document_starts(trace: xr.Dataset) -> np.ndarray:
    """Return the first token of each document."""
    return np.searchsorted(trace[schema.DOCUMENT].values, np.arange(trace.sizes[schema.DOCUMENT]))


def kept_tokens(trace: xr.Dataset, reader: str, parameter: str) -> np.ndarray:
    """Return the tokens just after an update at which Δθ is there, rising; factors give it at all others as well."""
    none = np.zeros(0, dtype=np.int64)
    if schema.UPDATE_TOKEN not in trace.variables:
        return none
    grid, document = trace[schema.UPDATE_TOKEN].values.astype(np.int64), trace[schema.DOCUMENT].values
    if not (trace.attrs.get(schema.FACTORED) == reader and schema.delta_name(parameter) in trace):
        dense = {schema.fast_weight_name(parameter), schema.left_name(parameter)}
        if not dense & set(trace.variables) or schema.ANCHORED not in trace:
            return none
        grid = grid[trace[schema.ANCHORED].sel({schema.READER: reader}).values]
    after = grid[grid + 1 < len(document)] + 1
    # A document's last update is of use to the next one only where fast weights are carried.
    return after if str(trace.attrs.get(schema.CARRY)) == "true" else after[document[after] == document[after - 1]]


def advice(trace: xr.Dataset, reader: str) -> str:
    """Say how to record, so that Δθ of a reader is there."""
    facts = reader_facts(trace)[reader]
    if facts.every_token:
        return "Recorder(factors=True)"
    return f"Recorder(snapshots_every={facts.update_every or _USUAL_SEGMENT})"


def short(name: str) -> str:
    """Return a parameter's name without the parts that all of a network's parameters share."""
    return name.removeprefix("network.").removeprefix("model.").removesuffix(".weight")


def still_picture(trace: xr.Dataset, reader: str, parameter: str) -> str:
    """Return ‖Δθ‖ of each parameter over the tokens, the given one bold: inert HTML, small."""
    arrays, moved = drifts(trace)
    label = visible(theme.label(reader))
    if reader not in moved:
        return f"<p>No Δθ of reader {label}: it does not adapt, or its updates were not recorded.</p>"
    parameters = moved[reader]["parameters"]
    x, norms = arrays["updates"][arrays["drawn"]], arrays[moved[reader]["norms"]].astype(np.float64)
    relative = all(entry["slow"] for entry in parameters)
    if relative:
        norms = norms / np.array([entry["slow"] for entry in parameters])[:, None]
    most = float(norms[np.isfinite(norms)].max(initial=0.0)) or 1.0
    picked = np.unique(np.linspace(0, len(x) - 1, min(len(x), max(24, _PICTURE_POINTS // len(parameters)))).astype(int))
    across = 50 + (_WIDTH - 60) * x[picked] / max(trace.sizes[schema.TOKEN] - 1, 1)
    # A line for each document, from 0 where it begins, unless what was learned is carried on.
    documents = trace[schema.DOCUMENT].values
    carried = str(trace.attrs.get(schema.CARRY)) == "true"
    own = np.zeros(len(picked), int) if carried else documents[x[picked]]
    begins = 50 + (_WIDTH - 60) * np.searchsorted(documents, own) / max(len(documents) - 1, 1)
    lines = []
    for entry, row in sorted(zip(parameters, norms, strict=True), key=lambda pair: pair[0]["name"] == parameter):
        up = _HEIGHT - 30 - (_HEIGHT - 50) * row[picked] / most
        finite = np.isfinite(up)
        width = 3 if entry["name"] == parameter else 1
        for document in np.unique(own[finite]):
            here = finite & (own == document)
            points = " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(across[here], up[here], strict=True))
            points = f"{begins[here][0]:.0f},{_HEIGHT - 30} {points}"
            lines.append(f'<polyline points="{points}" fill="none" stroke="{entry["colour"]}" stroke-width="{width}"/>')
    unit = "‖Δθ‖ / ‖θ₀‖" if relative else "‖Δθ‖"
    ink = f'fill="{MUTED[0]}"'
    drawing = (
        f'<path d="M50 20V{_HEIGHT - 30}H{_WIDTH - 10}" fill="none" stroke="{MUTED[0]}"/>{"".join(lines)}'
        f'<text x="44" y="26" text-anchor="end" {ink}>{most:.2g}</text>'
        f'<text x="44" y="{_HEIGHT - 26}" text-anchor="end" {ink}>0</text>'
        f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 10}" text-anchor="end" {ink}>'
        f"token (of {trace.sizes[schema.TOKEN]:,})</text>"
    )
    image = picture(drawing, f"0 0 {_WIDTH} {_HEIGHT}", f"{unit} over the tokens")
    return (
        f'<figure style="margin:8px 0"><figcaption>How far {label} moved its weights while reading: {unit} of '
        f"{len(parameters)} parameters, {visible(short(parameter))} drawn bold.</figcaption>"
        f'<div style="max-width:{_WIDTH}px">{image}</div></figure>'
    )


def _first_bad(values: np.ndarray, grid: np.ndarray) -> int | None:
    """Return the token of the first update with a norm that is infinite, or NaN where others of that update are not."""
    missing = np.isnan(values)
    bad = (np.isinf(values) | (missing & ~missing.all(0))).any(0)
    return int(grid[bad.argmax()]) if bad.any() else None


def _last_updates(trace: xr.Dataset, grid: np.ndarray) -> np.ndarray:
    """Return the last update of each document that has one."""
    return np.flatnonzero(np.diff(trace[schema.DOCUMENT].values[grid], append=-1))
