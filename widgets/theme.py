"""The project's look: one plotly template, and labels, colours and line styles of readers.

Colours are told apart by colour-blind readers too. Nothing here has a background: ink and grid are legible on white and
on black. This is the lowest room of `widgets`: it knows what a reader says of itself, and nothing of views or figures.
"""

import colorsys
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import plotly.graph_objects as go
import plotly.io as pio
import xarray as xr
from plotly.colors import sample_colorscale

from fwl_lab.trace.lookup import ReaderFacts, reader_facts
from fwl_lab.trace.schema import BASE, DYNAMIC_EVALUATION, FWL, NEURAL_CACHE, STATIC

FONT: Final = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK: Final = "#767676"  # contrast 4.5 on white, 4.6 on black
GRID_INK: Final = "rgba(128, 128, 128, 0.18)"
ZERO: Final = "rgba(128, 128, 128, 0.75)"
MAGNITUDE: Final = "cividis"
#: What a picture is about, and what it is compared with, where these are no readers.
ACCENT: Final = "#1c86d6"
NEUTRAL: Final = "#8a8a8a"

#: Labels of readers under the names that the library and the notebooks give them; any other name is its own label.
LABELS: Final = {
    BASE: "base",
    STATIC: "static",
    DYNAMIC_EVALUATION: "dynamic evaluation",
    "dynamic_evaluation_rms": "dynamic evaluation, RMS",
    FWL: "FWL",
    NEURAL_CACHE: "neural cache",
    "slow_control": "slow control",
    "more_context": "more context",
}
#: Colours of the same readers (after Okabe and Ito, darkened or lightened to show on both grounds).
COLOURS: Final = {
    BASE: NEUTRAL,
    STATIC: "#b070a0",
    DYNAMIC_EVALUATION: "#db7c00",
    "dynamic_evaluation_rms": "#a8580f",
    FWL: ACCENT,
    NEURAL_CACHE: "#009e73",
    "slow_control": "#a08a3a",
    "more_context": "#7a6ad8",
}
#: Names that the library gives to one kind of reader, and whether that kind adapts.
USUAL_KINDS: Final = {BASE: False, STATIC: False, DYNAMIC_EVALUATION: True, FWL: True, NEURAL_CACHE: True}
#: For lines that are not readers; more than these are coloured along a scale.
CATEGORIES: Final = (ACCENT, "#db7c00", "#009e73", "#c0588a", "#7a6ad8", "#a08a3a", "#56a5c9", "#b5651d")
#: For readers of any other name, before the colours above that no reader has taken.
_SPARE: Final = ("#c0588a", "#2aa5a0", "#b5651d", "#56a5c9")
#: Line styles of readers that say nothing of themselves; the others are solid.
_DASHES: Final = {BASE: "dot", STATIC: "dash"}
_GOLDEN: Final = 0.618034  # of the circle of hues from one further colour to the next, so that neighbours differ


class Style(NamedTuple):
    """How a reader is shown.

    Attributes
    ----------
    label : str
    colour : str
        As "#rrggbb".
    dash : str
        Name of a line style that plotly and the views know.
    """

    label: str
    colour: str
    dash: str


def styles(readers: Mapping[str, ReaderFacts]) -> dict[str, Style]:
    """Return how each of some readers is shown beside the others, by name."""
    chosen = _colours(readers)
    labels = {name: label(name) if _is_usual(facts) else name for name, facts in readers.items()}
    return {name: Style(labels[name], chosen[name], _dash(facts)) for name, facts in readers.items()}


def trace_styles(trace: xr.Dataset) -> dict[str, Style]:
    """Return how each reader of a trace is shown, by name; the same in every picture of that trace."""
    return styles(reader_facts(trace))


def name_styles(readers: Iterable[str]) -> dict[str, Style]:
    """Return how readers are shown of which only the names are known."""
    return styles({name: ReaderFacts.of(name, {}) for name in readers})


def label(reader: str) -> str:
    """Return what a reader of this name is called in a picture."""
    return LABELS.get(reader, reader)


def _dash(facts: ReaderFacts) -> str:
    """Return a line style: broken for readers that do not adapt, so that colour is never the only difference."""
    if not _described(facts):
        return _DASHES.get(facts.name, "solid")
    return "solid" if facts.adapts else "dash" if facts.block else "dot"


def _colours(readers: Mapping[str, ReaderFacts]) -> dict[str, str]:
    """Return a colour for each reader: its name's, else its kind's where that is free, else one that is left."""
    chosen = {name: COLOURS[name] for name, facts in readers.items() if name in COLOURS and _is_usual(facts)}
    for name, facts in readers.items():
        if name not in chosen and _described(facts) and (colour := COLOURS[_kind(facts)]) not in chosen.values():
            chosen[name] = colour
    taken = set(chosen.values())
    free = [colour for colour in (*_SPARE, *COLOURS.values()) if colour not in taken]
    others = [name for name in readers if name not in chosen]
    free += [_further(index) for index in range(len(others) - len(free))]
    return chosen | dict(zip(others, free, strict=False))


def _described(facts: ReaderFacts) -> bool:
    """Return whether the trace holds what the reader said of itself."""
    return "adapts" in facts.configuration


def _is_usual(facts: ReaderFacts) -> bool:
    """Return whether a reader is of the kind that the library makes under its name; other names mean no kind."""
    if not _described(facts) or facts.name not in USUAL_KINDS:
        return True
    return facts.adapts == USUAL_KINDS[facts.name] and (not facts.adapts or _kind(facts) == facts.name)


def _kind(facts: ReaderFacts) -> str:
    """Return the name under which the library makes a reader of this kind."""
    if not facts.adapts:
        return STATIC if facts.block else BASE
    if facts.every_token:
        return FWL
    return DYNAMIC_EVALUATION if facts.stepwise else NEURAL_CACHE


def _further(index: int) -> str:
    """Return a colour of middling lightness for a reader beyond those that have one of their own."""
    channels = colorsys.hls_to_rgb(index * _GOLDEN % 1, 0.47, 0.35)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def series(count: int) -> list[str]:
    """Return `count` colours: categories while they last, else along cividis.

    Its ends are left out, which would be lost on black or on white.
    """
    if count <= len(CATEGORIES):
        return list(CATEGORIES[:count])
    return sample_colorscale(MAGNITUDE, [0.2 + 0.65 * i / max(count - 1, 1) for i in range(count)])


def translucent(colour: str, alpha: float) -> str:
    """Return a "#rrggbb" colour as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": GRID_INK,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "automargin": True,
        "separatethousands": True,
        "title": {"standoff": 14, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 0.96, "yanchor": "top", "font": {"size": 18}},
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "margin": {"l": 64, "r": 24, "t": 112, "b": 56},
            "height": 440,
            "colorway": [*COLOURS.values()],
            "colorscale": {"sequential": MAGNITUDE},
            "hovermode": "x unified",
            # Dark on either ground: a transparent paper would leave the hover box without one.
            "hoverlabel": {
                "bgcolor": "rgba(32, 36, 43, 0.94)",
                "bordercolor": "rgba(32, 36, 43, 0.94)",
                "font": {"family": FONT, "size": 13, "color": "#f2f4f7"},
                "namelength": -1,
            },
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GRID_INK, "activecolor": INK},
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "title": {"text": ""},
            },
            "xaxis": axis | {"showgrid": False},
            "yaxis": axis,
            "bargap": 0.28,
            "bargroupgap": 0.06,
            "barcornerradius": 3,
        }
    )


TEMPLATE: Final = _template()


def use_theme() -> None:
    """Show figures as data that JupyterLab and reports draw, and not as a copy of plotly.js in each notebook."""
    pio.renderers.default = "plotly_mimetype"
