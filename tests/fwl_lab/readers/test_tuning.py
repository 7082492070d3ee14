"""Tuning of dynamic evaluation: which trials are made, in which order they come back, what they measure."""

from typing import Any

import pytest
import torch
from tqdm.auto import tqdm

from fwl_lab import DynamicEvaluationReader, GradientStatistics, LanguageModel, gradient_statistics
from fwl_lab.readers.dynamic_evaluation import tune as tuning
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer
from fwl_lab.readers.dynamic_evaluation.tune import Trial, tune_dynamic_evaluation
from tests.helpers.models import DOCUMENTS, make_text_model

GRID = {"sgd": {"lr": (1e-4, 1e-2), "decay": (0.0,)}, "rms_2018": {"lr": (1e-4,), "decay": (0.0,), "eps": (0.3,)}}
VALIDATION = DOCUMENTS[:2]


def tune(model: LanguageModel, statistics: GradientStatistics | None = None, **settings: Any) -> list[Trial]:
    chosen: dict[str, Any] = {"grid": GRID, "segment": 8, "max_tokens": 40, "progress": False, **settings}
    return tune_dynamic_evaluation(model, VALIDATION, statistics=statistics, **chosen)


def test_the_best_comes_first_and_is_what_a_reader_scores() -> None:
    model = make_text_model()
    weights = model.weight_hash()
    trials = tune(model)
    nats = [trial.nats for trial in trials]
    assert nats == sorted(nats) and nats[0] < nats[-1]
    assert model.weight_hash() == weights
    for trial in (trials[0], trials[-1]):
        losses = []
        for document in VALIDATION:  # each document anew
            reader = DynamicEvaluationReader(model, make_optimizer(trial.tuned_rule), 8)
            losses.append(reader.read(model.encode(document.text)[None, :40]).nll[0].double())
        assert trial.nats == pytest.approx(float(torch.cat(losses).mean()), rel=1e-9)


def test_neighbours_and_decays_of_the_best_step_are_tried() -> None:
    trials = tune(make_text_model())
    nats = {(trial.tuned_rule.lr, trial.tuned_rule.decay): trial.nats for trial in trials}
    best = min((1e-4, 1e-2), key=lambda lr: nats[lr, 0.0])
    steps = {1e-4, 1e-2, *(best * factor for factor in tuning.FINER)}
    assert {lr for lr, decay in nats if decay == 0} == steps
    finest = min(steps, key=lambda lr: nats[lr, 0.0])
    assert {key for key in nats if key[1]} == {(finest, decay) for decay in tuning.DECAYS}
    assert len(trials) == len(nats) == 2 + len(tuning.FINER) + len(tuning.DECAYS)


def test_rms_rules_are_tried_with_statistics_only() -> None:
    model = make_text_model()
    statistics = gradient_statistics(model, DOCUMENTS[2:], segment=8, batches=4)
    assert {trial.tuned_rule.rule for trial in tune(model)} == {"sgd"}
    rms = [trial for trial in tune(model, statistics) if trial.tuned_rule.rule == "rms_2018"]
    assert len(rms) == 1 + len(tuning.FINER) + len(tuning.DECAYS)
    # ε of the grid is relative to the gradients.
    scale = sum(float(m.double().sqrt().mean()) for m in statistics.mean_of_squares) / len(statistics.mean_of_squares)
    assert [trial.tuned_rule.eps for trial in rms] == [pytest.approx(0.3 * scale)] * len(rms)


def test_a_rule_that_diverges_is_last_and_raises_nothing() -> None:
    trials = tune(make_text_model(), grid={"sgd": {"lr": (1e-4, 1e30), "decay": (0.0,)}})
    diverged = [trial for trial in trials if trial.tuned_rule.lr == 1e30]
    assert trials[-1:] == diverged and diverged[0].nats == float("inf")
    assert trials[0].nats < float("inf")


def test_a_search_is_deterministic() -> None:
    torch.manual_seed(1)
    first = tune(make_text_model())
    torch.manual_seed(2)
    assert tune(make_text_model()) == first


def test_the_bar_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    def keep(*args: Any, **settings: Any) -> Any:
        bars.append(tqdm(*args, **settings))
        return bars[-1]

    monkeypatch.setattr(tuning, "tqdm", keep)
    trials = tune(make_text_model(), grid={"sgd": {"lr": (1e-4, 1e30), "decay": (0.0,)}}, progress=True)
    length = sum(min(40, len(make_text_model().encode(document.text))) for document in VALIDATION)
    assert bars[0].unit == "tok" and bars[0].n == bars[0].total == len(trials) * length
