"""The tuned rule of dynamic evaluation: which are refused, and what they become."""

import logging
from typing import Any

import pytest
import torch

from fwl_lab import DynamicEvaluationReader, DynamicEvaluationSGD, LanguageModel, TunedRule, attach_fast_weights
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer
from tests.helpers.models import make_model


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"rule": "adam", "lr": 0.1}, "rule is 'adam'; expected one of sgd, rms_2018, rms_2019, gpt2"),
        ({"rule": "sgd", "lr": -0.1}, "lr is -0.1: expected a finite number"),
        ({"rule": "sgd", "lr": float("nan")}, "lr is nan: expected a finite number"),
        ({"rule": "sgd", "lr": True}, "lr is True: expected a finite number"),
        ({"rule": "sgd", "lr": 0.1, "decay": float("inf")}, "decay is inf: expected a finite number"),
        ({"rule": "sgd", "lr": 0.1, "eps": 0.1}, "eps is 0.1, but the rule 'sgd' has none"),
        ({"rule": "rms_2018", "lr": 0.1}, "eps is missing; the rule 'rms_2018' needs one"),
        ({"rule": "rms_2019", "lr": 0.1, "eps": -1.0}, "eps is -1.0: expected a finite number"),
        ({"rule": "gpt2", "lr": 0.1, "eps": 0.1, "decay": 0.1}, "decay is 0.1, but the rule 'gpt2' has none"),
        ({"rule": "sgd", "lr": 0.1, "segment": 0}, "segment is 0; expected a whole number of tokens"),
        ({"rule": "sgd", "lr": 0.1, "documents": ["a"]}, r"documents is \['a'\]; expected text"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TunedRule(**facts)


def test_facts_make_the_same_rule_again() -> None:
    for rule in (TunedRule("sgd", 0.1, 0.01), TunedRule("gpt2", 0.1, eps=1.0, segment=5, documents="a few")):
        assert TunedRule.from_facts(rule.to_facts() | {"nats": 2.5}) == rule
    with pytest.raises(ValueError, match="a tuned rule needs lr; given were rule"):
        TunedRule.from_facts({"rule": "sgd"})


def test_a_model_takes_no_plain_facts() -> None:
    model = make_model("mistral")
    with pytest.raises(ValueError, match=r"tuned_rule is {'rule': 'sgd'.*expected a TunedRule"):
        model.tuned_rule = {"rule": "sgd", "lr": 0.1}
    with pytest.raises(ValueError, match=r"tuned is {'rule': 'sgd'.*expected a TunedRule"):
        make_optimizer({"rule": "sgd", "lr": 0.1})  # type: ignore[arg-type]


def _step_size(model: LanguageModel) -> Any:
    return DynamicEvaluationReader(model).configuration()["lr"]


def test_a_rule_set_on_a_model_is_that_of_its_base(caplog: pytest.LogCaptureFixture) -> None:
    model = attach_fast_weights(make_model("mistral"))
    with caplog.at_level(logging.WARNING, logger="fwl_lab"):
        assert _step_size(model.base) == 1e-3
    assert "no dynamic-evaluation rule was tuned" in caplog.text
    caplog.clear()
    model.tuned_rule = TunedRule("sgd", lr=0.25)
    assert _step_size(model.base) == _step_size(model) == 0.25
    lazy = LanguageModel(model.network, block=model.block)  # its base is made when it is first asked for
    lazy.tuned_rule = TunedRule("sgd", lr=0.5)
    assert _step_size(lazy.base) == 0.5
    assert caplog.text == ""


def test_a_rule_makes_its_optimizer() -> None:
    optimizer = make_optimizer(TunedRule("sgd", lr=0.25, decay=0.125))([torch.ones(3, requires_grad=True)])
    assert isinstance(optimizer, DynamicEvaluationSGD)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["decay"]) == (0.25, 0.125)
