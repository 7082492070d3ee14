"""Write breakdowns and controls as JSON values, and as tables and sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.lookup import default_baseline
from fwl_lab.trace.schema import READER
from widgets import theme
from widgets.display.numbers import INTERVAL, interval, interval_text, number


def breakdown_record(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return a breakdown (`analysis.gain_by_…`): of each bucket label, tokens, documents and each reader's gain."""
    return [
        {
            "label": str(column[analysis.LABEL].values),
            "tokens": int(column[analysis.TOKEN_COUNT]),
            "documents": int(column[analysis.DOCUMENT_COUNT]),
            "gain": {str(name): interval(column.sel({READER: name})) for name in result[READER].values},
        }
        for column in (result.isel({analysis.BUCKET: index}) for index in range(result.sizes[analysis.BUCKET]))
    ]


def net_gain_record(trace: xr.Dataset) -> dict[str, Any]:
    """Return the part of a reader's gain that is its document's own: of each part and average an interval.

    Parameters
    ----------
    trace : Dataset
        Of `fwl_lab.inference.controls.wrong_document`.
    """
    result = analysis.net_gain(trace, baseline=default_baseline(trace))
    return {
        str(part): {str(a): interval(result.sel({analysis.PART: part, analysis.AVERAGE: a})) for a in averages(result)}
        for part in result[analysis.PART].values
    }


def net_gain_statement(evaluation: Mapping[str, Any]) -> str:
    """Say in words what :func:`net_gain_record` holds, from the key "wrong_document" of an evaluation."""
    record = evaluation.get("wrong_document")
    if record is None:
        return "No other document's weights were tried."
    whole, generic, net = (record[name][analysis.MICRO] for name in (analysis.GAIN, analysis.GENERIC, analysis.NET))
    gained, mean = whole[analysis.MEAN] or 0.0, generic[analysis.MEAN] or 0.0
    # A loss of another document's weights is no part of a gain.
    share = f", {mean / gained:.0%} of it" if gained > 0 and mean > 0 else ""
    swapped = f"gains {interval_text(generic)}{share}" if mean > 0 else f"loses {_lost(generic)}"
    return (
        f"The reader gains {interval_text(whole)} nats per token. With another document's fast weights it {swapped}. "
        f"Its own document's part is {interval_text(net)}."
    )


def reset_and_carry_record(result: xr.Dataset) -> dict[str, Any]:
    """Return `analysis.reset_and_carry` as JSON values: of each state, reader and average an interval."""
    return {
        str(state): {
            str(name): {
                str(a): interval(result.sel({analysis.STATE: state, READER: name, analysis.AVERAGE: a}))
                for a in averages(result)
            }
            for name in result[READER].values
        }
        for state in result[analysis.STATE].values
    }


def reset_and_carry_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of gains with weights reset and carried: a row a reader, micro average, nats per token."""
    states = (analysis.RESET, analysis.CARRIED, analysis.DIFFERENCE)
    return pd.DataFrame(
        {state: [interval_text(row[analysis.MICRO]) for row in record[state].values()] for state in states},
        index=[theme.label(name) for name in record[analysis.RESET]],
    )


def seeds_record(traces: Sequence[xr.Dataset]) -> dict[str, dict[str, float | None]]:
    """Return `analysis.across_seeds` as JSON values: of each reader mean, standard deviation, least and most."""
    result = analysis.across_seeds(traces, baseline=default_baseline(traces[0]))
    edges = (analysis.MEAN, analysis.STD, analysis.LEAST, analysis.MOST)
    return {str(name): {e: number(result[e].sel({READER: name})) for e in edges} for name in result[READER].values}


def averages(result: xr.Dataset) -> list[str]:
    """Return the names of the averages that a result holds."""
    return [str(name) for name in result[analysis.AVERAGE].values]


def _lost(gain: Mapping[str, float | None]) -> str:
    """Return a gain below zero as a loss: "0.215 [0.130, 0.300]"."""
    mean, low, high = (gain[edge] for edge in INTERVAL)
    between = "" if low is None or high is None else f" [{-high:.3f}, {-low:.3f}]"
    return f"{-(mean or 0.0):.3f}{between}"
