"""The project's look: one plotly template, and colours that colour-blind readers can tell apart.

Nothing here has a background: ink and grid are chosen to be legible on white and on black.
"""

from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import sample_colorscale

from fwl_lab.trace.schema import BASE

FONT: Final = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK: Final = "#767676"  # contrast 4.5 on white, 4.6 on black
GRID: Final = "rgba(128, 128, 128, 0.18)"
ZERO: Final = "rgba(128, 128, 128, 0.75)"
MAGNITUDE: Final = "cividis"

#: What a reader is called in a picture; a reader not named here keeps its own name.
LABELS: Final = {
    BASE: "base",
    "static": "static",
    "dynamic_evaluation": "dynamic evaluation",
    "dynamic_evaluation_rms": "dynamic evaluation, RMS",
    "fwl": "FWL",
    "neural_cache": "neural cache",
    "slow_control": "slow control",
    "more_context": "more context",
}
#: A reader has the same colour in every picture (after Okabe and Ito, darkened or lightened to show on both grounds).
COLOURS: Final = {
    BASE: "#8a8a8a",
    "static": "#b070a0",
    "dynamic_evaluation": "#db7c00",
    "dynamic_evaluation_rms": "#a8580f",
    "fwl": "#1c86d6",
    "neural_cache": "#009e73",
    "slow_control": "#a08a3a",
    "more_context": "#7a6ad8",
}
#: For lines that are not readers; more than these are coloured along a scale.
CATEGORIES: Final = ("#1c86d6", "#db7c00", "#009e73", "#c0588a", "#7a6ad8", "#a08a3a", "#56a5c9", "#b5651d")
_SPARE: Final = ("#c0588a", "#2aa5a0", "#b5651d", "#56a5c9")
_DASHES: Final = {BASE: "dot", "static": "dash"}


def colours(readers: Sequence[str]) -> dict[str, str]:
    """Colour of each reader: its own if it has one, else one of the spare ones, in order."""
    others = [name for name in readers if name not in COLOURS]
    return COLOURS | {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}


def label(reader: str) -> str:
    """What a reader is called in a picture."""
    return LABELS.get(reader, reader)


def dash(reader: str) -> str:
    """Line style of a reader; those that do not adapt are broken, so that colour is never the only difference."""
    return _DASHES.get(reader, "solid")


def series(count: int) -> list[str]:
    """`count` colours: categories while they last, else along cividis without its ends, lost on black or on white."""
    if count <= len(CATEGORIES):
        return list(CATEGORIES[:count])
    return sample_colorscale(MAGNITUDE, [0.2 + 0.65 * i / max(count - 1, 1) for i in range(count)])


def translucent(colour: str, alpha: float) -> str:
    """A "#rrggbb" colour as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": GRID,
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
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GRID, "activecolor": INK},
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
