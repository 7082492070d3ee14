"""Write numbers for people and for JSON: signs, intervals, and nothing that is not finite."""

import math
from collections.abc import Mapping
from typing import Any, Final

import xarray as xr

from fwl_lab import analysis

#: Variables of a result that make an interval.
INTERVAL: Final = (analysis.MEAN, analysis.LOW, analysis.HIGH)


def number(value: Any) -> float | None:
    """Return a float that JSON can hold; None where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def signed(value: float) -> str:
    """Return a number with its sign, to a thousandth: +0.120, −0.120."""
    return f"{value:+.3f}".replace("-", "−")


def interval(row: xr.Dataset) -> dict[str, float | None]:
    """Return mean, low and high of a result without dimensions, as JSON values."""
    return {edge: number(row[edge]) for edge in INTERVAL}


def interval_text(gain: Mapping[str, float | None] | None) -> str:
    """Return "+0.123 [+0.101, +0.145]", or as much of it as there is."""
    if gain is None or gain[analysis.MEAN] is None:
        return "–"
    mean, low, high = (gain[edge] for edge in INTERVAL)
    return f"{mean:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")
