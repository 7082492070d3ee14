"""No picture, table or sentence depends on what readers are called: all of them again, with every reader renamed."""

import json
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from plotly.graph_objects import Figure

import fwl_lab
from fwl_lab import DynamicEvaluationReader, FastWeightReader, StaticReader, analysis
from fwl_lab.attribution.summary import receipt_summary
from fwl_lab.trace.lookup import default_baseline, default_reader, reader_facts
from tests.helpers.asking import asked
from tests.helpers.renaming import KINDS, renamed_pair, usual, usual_text
from widgets import (
    DocumentLens,
    LivePad,
    ReaderCompare,
    Receipts,
    RunConsole,
    Selection,
    UpdateScope,
    explore,
    figures,
    theme,
)
from widgets.core.view import View
from widgets.display import comparisons, tables
from widgets.display.badges import badge_html
from widgets.display.document import document_html
from widgets.figures import receipts as receipt_figures
from widgets.figures import weights as weight_figures

TEXT = "def mean_gain(trace):\n    return trace.nll.mean()\n\n\ndef mean_loss(trace):\n    return " * 4


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    return renamed_pair(seed=3, tokens=900, documents=2, failing=True)


@pytest.fixture(scope="module")
def model() -> fwl_lab.LanguageModel:
    return fwl_lab.load_model("bundled")


def test_the_traces_differ_in_names_alone(pair):
    one, other = pair
    assert other.reader.values.tolist() == list(KINDS)
    assert [facts.adapts for facts in reader_facts(other).values()] == [False, False, True, True]
    for name, variable in one.data_vars.items():
        np.testing.assert_array_equal(variable.values, other[name].values)
    assert (default_baseline(other), default_reader(other)) == ("wren", "zebra")


def test_a_selection_starts_at_the_same_place(pair):
    one, other = (Selection(trace) for trace in pair)
    assert [one.reader, one.baseline, one.parameter] == usual([other.reader, other.baseline, other.parameter])


def test_readers_look_the_same_and_keep_their_own_names(pair):
    one, other = (theme.trace_styles(trace) for trace in pair)
    for name, kind in KINDS.items():
        assert other[name] == one[kind]._replace(label=name)
    assert [style.dash for style in other.values()] == ["dot", "dash", "solid", "solid"]


def test_many_readers_of_one_kind_have_different_colours(pair):
    facts = reader_facts(pair[1])
    many = {f"reader {i}": facts["zebra"] for i in range(40)} | {"fwl": facts["zebra"]}
    styles = theme.styles(many)
    assert len({style.colour for style in styles.values()}) == 41
    assert styles["fwl"].colour == theme.COLOURS["fwl"], "the usual name keeps its colour, whoever comes first"


VIEWS: dict[str, Callable[[xr.Dataset], View]] = {
    "lens": lambda trace: DocumentLens(trace, selection=Selection(trace, token=700)),
    "receipts": Receipts,
    "scope": lambda trace: UpdateScope(trace, selection=Selection(trace, token=700)),
    "compare": lambda trace: ReaderCompare(trace, counts=np.arange(400)),
    "compare runs": lambda trace: ReaderCompare({"one": trace, "two": trace.assign(nll=trace.nll * 2)}),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_say_the_same(pair, name):
    one, other = (VIEWS[name](trace) for trace in pair)
    assert _runs(one.head) == _runs(usual(other.head)) and one.data == other.data
    questions = list(one.foreseen())
    assert _runs(questions) == _runs(usual(list(other.foreseen()))) and questions
    for asked_of_one, asked_of_other in zip(questions, other.foreseen(), strict=True):
        content, buffers = asked(one, **asked_of_one)
        same, theirs = asked(other, **asked_of_other)
        assert _runs(content) == _runs(usual(same)) and buffers == theirs, asked_of_one
    assert _runs(usual_text(one.fallback_html())) == _runs(usual_text(other.fallback_html()))
    for view in (one, other):
        view.close()


def _runs(value: object) -> str:
    """JSON in which readers of a later run, "two: zebra", have the label of their kind, whether as name or as label."""
    text = json.dumps(value, ensure_ascii=False)
    for kind in KINDS.values():
        text = text.replace(f"two: {kind}", f"two: {theme.label(kind)}")
    return text


def test_the_explorer_opens_both(pair):
    one, other = (explore(trace) for trace in pair)
    assert (one.selection.reader, one.selection.token) == (usual(other.selection.reader), other.selection.token)
    assert [usual(view.head) for view in other.views] == [view.head for view in one.views]
    for views in (one, other):
        views.close()


FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "cumulative NLL": figures.plot_cumulative_nll,
    "cumulative gain": figures.plot_cumulative_gain,
    "norms": figures.plot_fast_weight_norms,
    "position": lambda trace: figures.plot_gain_by_position(trace, bucket=100),
    "occurrence": figures.plot_gain_by_occurrence,
    "frequency": lambda trace: figures.plot_gain_by_frequency(trace, counts=np.arange(400)),
    "token class": figures.plot_gain_by_token_class,
    "frontier": figures.plot_cost_frontier,
    "memory": lambda trace: figures.plot_cost_frontier(trace, cost="peak_bytes"),
    "seeds": lambda trace: figures.plot_across_seeds([trace, trace.assign_attrs(seed=1)]),
    "net gain": lambda trace: figures.plot_net_gain(trace, own=_at(trace, 3), wrong=_at(trace, 2)),
    "drift": weight_figures.plot_relative_drift,
    "gains": lambda trace: receipt_figures.plot_gains(trace, {_at(trace, 3): "a", _at(trace, 2): "b"}, title="gains"),
    "teachers": lambda trace: receipt_figures.plot_who_teaches({"all": receipt_summary(trace)}),
    "distance": lambda trace: receipt_figures.plot_share_by_distance({"all": receipt_summary(trace)}),
}


def _at(trace: xr.Dataset, row: int) -> str:
    return str(trace.reader.values[row])


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same(pair, name):
    one, other = (FIGURES[name](trace) for trace in pair)
    assert _described(one) == usual_text(_described(other))


def _described(figure: Figure) -> str:
    """A figure as JSON, without the names by which its lines are grouped."""
    described = json.loads(figure.to_json())
    for line in described["data"]:
        line.pop("legendgroup", None)
    return json.dumps(described, ensure_ascii=False)


def test_figures_of_readers_over_theirs_at_slow_weights(pair):
    """A gain beside surgery is over θ₀: the reader with a block that does not adapt."""
    one, other = (
        receipt_figures.plot_gains(trace, {_at(trace, 3): "a"}, title="gains").layout.xaxis.title.text for trace in pair
    )
    assert one == "gain over static [nat / token]" and other == "gain over xerus [nat / token]"


TABLES: dict[str, Callable[[dict], pd.DataFrame | str]] = {
    "accuracy": tables.accuracy_table,
    "cost": tables.cost_table,
    "buckets": tables.bucket_table,
    "provenance": tables.provenance_table,
    "bucket statement": lambda evaluation: tables.bucket_statement(evaluation, documents=1),
    "difference": tables.difference_statement,
}


def test_an_evaluation_has_the_same_numbers(pair):
    one, other = (tables.evaluate(trace, table_tokens=300, bucket=100) for trace in pair)
    one, other = (_without_labels(evaluation) for evaluation in (one, usual(other)))
    assert one == other and one["watched"] == one["fast_weights"] == "fwl"
    assert one["gradient_steps"] == "dynamic_evaluation" and one["baseline"] == "base"


def _without_labels(evaluation: dict) -> dict:
    for configuration in evaluation["configurations"].values():
        configuration.pop("label")
    return evaluation


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_sentences_are_the_same(pair, name):
    one, other = (TABLES[name](tables.evaluate(trace, table_tokens=300, bucket=100)) for trace in pair)
    assert _table(one) == usual_text(_table(other))


def _table(value: pd.DataFrame | str) -> str:
    return value if isinstance(value, str) else json.dumps(value.to_dict(), ensure_ascii=False)


def test_summaries_badges_and_texts_are_the_same(pair):
    one, other = pair
    assert _table(tables.summary_table(one)) == usual_text(_table(tables.summary_table(other)))
    assert list(tables.summary_table(other))[-1] == "time / xerus"
    assert badge_html(one) == usual_text(badge_html(other))
    html = [document_html(trace, reader=default_reader(trace)).html for trace in pair]
    assert usual_text(html[0]) == usual_text(html[1])
    seeds = [comparisons.seeds_record([trace, trace]) for trace in pair]
    assert seeds[0] == usual(seeds[1])
    breakdowns = [comparisons.breakdown_record(analysis.gain_by_occurrence(trace)) for trace in pair]
    assert breakdowns[0] == usual(breakdowns[1])


def _own(model: fwl_lab.LanguageModel, names: Iterable[str] = KINDS) -> dict:
    made = {
        "wren": lambda: StaticReader(model.base),
        "xerus": lambda: StaticReader(model),
        "yak": lambda: DynamicEvaluationReader(model.base),
        "zebra": lambda: FastWeightReader(model),
    }
    return {name: made[name]() for name in names}


def test_a_pad_shows_readers_of_any_name(model):
    pad = LivePad(model, readers=_own(model))
    shown = {name: (one["adapts"], one["takes"]) for name, one in pad.head["readers"].items()}
    assert shown["wren"] == (False, ["step_scale"]) and shown["zebra"] == (True, ["step_scale"])
    assert shown["fwl"] == (True, ["step_scale", "inner_batch"]) and shown["static"] == (False, [])
    assert shown["dynamic_evaluation"] == (True, ["step_scale", "segment"]) and shown["neural_cache"] == (True, [])
    pad.settings = pad.settings | {"readers": ["zebra", "wren", "yak"]}
    trace = pad.read(TEXT)
    assert pad.reading["baseline"] == "wren"
    pad.settings = pad.settings | {"readers": ["base", "fwl", "dynamic_evaluation"]}
    known = pad.read(TEXT)
    for name in ("wren", "yak", "zebra"):
        np.testing.assert_array_equal(trace.nll.sel(reader=name), known.nll.sel(reader=KINDS[name]))
    pad.close()


def test_a_console_reads_and_compares_readers_of_any_name(model, tmp_path):
    document = fwl_lab.Document("text", TEXT)
    console = RunConsole(model, [document], path=tmp_path, readers=_own(model))
    styles = console.head["readers"]
    assert len({style["colour"] for style in styles.values()}) == len(styles)
    assert (styles["wren"]["dash"], styles["xerus"]["dash"], styles["zebra"]["dash"]) == ("dot", "dash", "solid")
    console.settings = console.settings | {"readers": ["zebra", "wren"], "record": "nothing"}
    assert console.start() and console._worker.wait(60)
    assert (console.run["phase"], console.run["over"]) == ("done", "wren")
    nll = {row["reader"]: row["nll"] for row in console.run["summary"]}
    assert console.run["summary"][0]["gain"] == pytest.approx(nll["wren"] - nll["zebra"])
    console.close()
