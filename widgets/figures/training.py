"""Plot how a model was made: the training curve, and the trials of dynamic evaluation."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from fwl_lab.trace.schema import TOKENS
from widgets import theme
from widgets.figures.drawing import PER_TOKEN, finish


def plot_training_curve(curve: Sequence[Mapping[str, float]]) -> go.Figure:
    """Plot the training loss over tokens seen, nats per token.

    Parameters
    ----------
    curve : sequence of mappings
        As `fwl_lab.train` returns it: ``step``, ``tokens``, ``loss``. A run of fewer than 20 steps has no point.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[point["tokens"] for point in curve],
        y=[point["loss"] for point in curve],
        customdata=[point["step"] for point in curve],
        hovertemplate="%{y:.4f} nat, step %{customdata:,d}",
        name="training",
        mode="lines" if len(curve) > 1 else "markers",
        line={"color": theme.CATEGORIES[0], "width": 2.5},
    )
    figure.update_xaxes(title_text=f"tokens seen [{TOKENS}]", rangemode="tozero")
    points = f"{len(curve):,} points, each the mean of 20 steps" if curve else "no point yet: each takes 20 steps"
    return finish(figure, "Training loss", points, f"loss [{PER_TOKEN}]").update_layout(showlegend=False)


def plot_trials(trials: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Plot the NLL on validation documents over the step size, a line a rule; trials with a decay are open circles.

    The axis ends a little above what the smallest steps reach, so that the valley is seen; worse trials lie above.

    Parameters
    ----------
    trials : sequence of mappings
        ``rule``, ``lr``, ``nats`` per token (None or infinite: diverged), and ``decay`` where the rule has one.
    """
    finite = sorted((t for t in trials if t["nats"] is not None and math.isfinite(t["nats"])), key=lambda t: t["lr"])
    rules = list(dict.fromkeys(str(trial["rule"]) for trial in finite))
    figure, cautious = go.Figure(), []
    for rule, colour in zip(rules, theme.series(len(rules)), strict=True):
        own = [trial for trial in finite if trial["rule"] == rule]
        cautious.append(own[0]["nats"])
        for decayed, symbol in ((False, "circle"), (True, "circle-open")):
            shown = [trial for trial in own if bool(trial.get("decay")) == decayed]
            figure.add_scatter(
                x=[trial["lr"] for trial in shown],
                y=[trial["nats"] for trial in shown],
                customdata=[trial.get("decay", 0.0) for trial in shown],
                hovertemplate="%{y:.4f} nat, decay %{customdata:g}",
                name=html.escape(f"{rule} with decay" if decayed else rule),
                mode="markers" if decayed else "lines+markers",
                line={"color": colour, "width": 2.5},
                marker={"color": colour, "size": 9, "symbol": symbol},
            )
    best = min((trial["nats"] for trial in finite), default=0.0)
    reach = max(cautious, default=0.0) - best
    if reach > 0:
        figure.update_yaxes(range=[best - 0.1 * reach, best + 1.5 * reach])
    figure.update_xaxes(title_text="step size", type="log", dtick=1, tickformat="~g")
    figure.update_xaxes(unifiedhovertitle_text="step size %{x:.3g}")
    count = f"{len(trials)} trials, {len(trials) - len(finite)} of them diverged"
    return finish(figure, "Dynamic evaluation on validation documents", count, f"NLL [{PER_TOKEN}]")
