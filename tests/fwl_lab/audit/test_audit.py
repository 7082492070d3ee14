"""Shipped readers are certified; every wrong one fails, for its own reason."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fwl_lab import (
    DynamicEvaluationReader,
    FastWeightReader,
    LanguageModel,
    NeuralCacheReader,
    Reader,
    StaticReader,
    TunedRule,
    certify,
    gradient_statistics,
    load_model,
    stdlib_corpus,
)
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer
from tests.helpers.models import READERS, SEGMENT, VOCABULARY, make_block_model, make_tokens
from tests.helpers.wrong_readers import (
    AdaptsBeforeScoring,
    AdaptsInPlace,
    AddsWithoutNormalising,
    Boasts,
    Constant,
    Counts,
    DividesByTheBatch,
    ForgetsAfterCalls,
    ForksItself,
    GivesUp,
    HidesTokens,
    IgnoresStepScale,
    KeepsWhatItWasGiven,
    KnowsItsLabels,
    LooksAtMates,
    PeeksAtRepeats,
    ReadsPadding,
    RemembersAfterReset,
    Rolls,
    SavesTooLittle,
    ScoresAnother,
    ScoresOnlyTheLast,
    UsesWholeGradient,
)

# The wrong reader that hides the last tokens of the vocabulary must not be met by them.
TOKENS = make_tokens(1, 48)[0] % (VOCABULARY - 3)
QUICK = {"places": 2, "periods": (SEGMENT,), "entropy_tokens": 64}
OPTIONAL = {"reset", "fork", "saved state", "step scale 0", "base weights"}


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_shipped_readers_are_certified(family: str, name: str) -> None:
    model = make_block_model(family)
    found = certify(lambda: READERS[name](model), TOKENS, **QUICK)
    assert found.passed, str(found)
    assert len(found.checks) == 15
    assert [check.name for check in found.checks if check.passed is not True] == []
    assert all(check.worst is not None and check.worst <= check.limit for check in found.checks)
    assert {0, 1, 47, SEGMENT - 1, SEGMENT, 15, 16} <= set(found.about["places"])
    assert found.about["configuration"] == READERS[name](model).configuration()


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return load_model("bundled", device="cpu")


def _rms(model: LanguageModel) -> DynamicEvaluationReader:
    tuned = TunedRule("rms_2018", lr=0.00015, eps=0.00048)  # for this model
    statistics = gradient_statistics(model, stdlib_corpus("train")[:2], batches=8)
    return DynamicEvaluationReader(model, make_optimizer(tuned, statistics))


BUNDLED: dict[str, Callable[[LanguageModel], Reader]] = {
    "base": lambda model: StaticReader(model.base),
    "static": StaticReader,
    "fwl": FastWeightReader,
    "sgd": lambda model: DynamicEvaluationReader(model.base),
    "rms": lambda model: _rms(model.base),
    "cache": lambda model: NeuralCacheReader(model.base),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_shipped_readers_are_certified_on_the_bundled_model(name: str, bundled: LanguageModel) -> None:
    first = BUNDLED[name](bundled)
    # Past the window of 512, so that something is forgotten.
    ids = next(ids for d in stdlib_corpus("validation") if len(ids := bundled.encode(d.text)) >= 600)[:600]
    found = certify(lambda: first.with_step_scale(1.0), ids, places=2, entropy_tokens=512)
    assert [check.name for check in found.checks if check.passed is not True] == [], str(found)
    assert {511, 512, 599} <= set(found.about["places"])


class Wrong(NamedTuple):
    """A wrong reader, the checks that must fail, no other, and what the first of these must say (a pattern)."""

    make: Callable[[], Callable[[], Any]]
    fails: tuple[str, ...]
    says: str


def over_model(kind: Callable[[LanguageModel], Any]) -> Callable[[], Callable[[], Any]]:
    """A maker of makers, each with a model of its own, which a wrong reader may spoil."""

    def make() -> Callable[[], Any]:
        model = make_block_model("mistral", torch.float64, scale=0.1)
        return lambda: kind(model)

    return make


def alone(kind: Callable[[], Any]) -> Callable[[], Callable[[], Any]]:
    """The same for readers without a model."""
    return lambda: kind


BITWISE = ("each token once", "determinism", "causality", "batch mates", "padding", "reset", "fork", "saved state")
WRONG: dict[str, Wrong] = {
    "adapts before scoring": Wrong(
        over_model(AdaptsBeforeScoring),
        ("causality", "predictions", "partition", "padding"),
        r"^changing (token|all tokens from) \d+ (on )?changes the score of token \d+, before it$",
    ),
    "whole gradient": Wrong(
        over_model(UsesWholeGradient),
        ("causality", "predictions", "partition", "batch mates", "padding"),
        r"^changing (token|all tokens from) \d+ (on )?changes the score of token \d+, before it$",
    ),
    "scores another": Wrong(
        over_model(ScoresAnother), ("predictions",), r"^token \d+, read right after, has the score [\d.]+; declared was"
    ),
    "knows its labels": Wrong(
        over_model(KnowsItsLabels),
        ("predictions",),
        r"^token 1?[13]1, read .*, has the score [\d.]+; declared was",
    ),
    "divides by the batch": Wrong(
        over_model(DividesByTheBatch),
        ("batch", "padding"),
        r"^beside two others, token \d+ has another score than alone$",
    ),
    "looks at mates": Wrong(over_model(LooksAtMates), ("batch mates",), r"^changing all of row 2, .* of row 1$"),
    "adapts in place": Wrong(
        over_model(AdaptsInPlace),
        ("base weights", "predictions", "partition", "batch", "step scale 0", *BITWISE),
        r"^the model's hash was \w{16}, and became \w{16}$",
    ),
    "rolls": Wrong(
        over_model(Rolls),
        ("determinism", "step scale 0", *BITWISE),
        r"^a second fresh reader scores token \d+ otherwise",
    ),
    "adds without normalising": Wrong(
        over_model(AddsWithoutNormalising), ("probabilities",), r"^before token \d+ the probabilities add up to 1\.2"
    ),
    "forgets after calls": Wrong(
        over_model(ForgetsAfterCalls), ("partition", "predictions", "padding"), r"^read in .* than read in one call$"
    ),
    "reads padding": Wrong(over_model(ReadsPadding), ("padding",), r"^(with padding|other tokens of weight 0)"),
    "ignores step scale": Wrong(over_model(IgnoresStepScale), ("step scale 0",), r"^with a step scale of 0, token \d+"),
    "remembers after reset": Wrong(over_model(RemembersAfterReset), ("reset",), r"^read again after reset\(\), token"),
    "forks itself": Wrong(over_model(ForksItself), ("fork",), r"fork.* scores token \d+ otherwise$"),
    "saves too little": Wrong(
        over_model(SavesTooLittle), ("saved state",), r"^a reader that was given the state scores"
    ),
    "boasts": Wrong(
        over_model(Boasts), ("entropy floor", "predictions", "step scale 0"), r"ln V 3\.871.*nobody can know so much$"
    ),
    "hides tokens": Wrong(
        over_model(HidesTokens), ("probabilities", "predictions"), r"is over 45 tokens, the model's are 48$"
    ),
    "keeps what it was given": Wrong(
        alone(KeepsWhatItWasGiven),
        ("each token once",),
        r"once what earlier calls were given and returned is overwritten",
    ),
    "constant": Wrong(
        alone(Constant), ("causality", "predictions", "entropy floor"), "^no changed token has another score"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_readers_fail_for_their_own_reason(name: str) -> None:
    wrong = WRONG[name]
    found = certify(wrong.make(), TOKENS, **QUICK)
    assert not found.passed
    assert {check.name for check in found.failures} == set(wrong.fails), str(found)
    assert re.search(wrong.says, found[wrong.fails[0]].detail), str(found)


def test_what_a_reader_lacks_is_not_checked_and_never_passed() -> None:
    found = certify(Counts, TOKENS.numpy(), **QUICK)
    assert found.passed
    assert {check.name for check in found.checks if check.passed is None} == OPTIONAL
    assert all(found[name].detail.startswith("the reader has no ") for name in OPTIONAL)
    assert found["step scale 0"].texts()[1:3] == ("not checked", "–")
    assert "10 passed, 0 failed, 5 not checked" in str(found)


def test_a_look_ahead_is_seen_wherever_it_is_of_use() -> None:
    model, tokens = make_block_model("mistral"), TOKENS.clone()
    repeats = 29
    tokens[1:][tokens[1:] == tokens[:-1]] = 0
    tokens[repeats + 1] = tokens[repeats]
    found = certify(lambda: PeeksAtRepeats(model), tokens, **QUICK)
    assert not {repeats, repeats + 1} & set(found.about["places"])
    assert found["predictions"].detail.startswith(f"token {repeats}, read in one call, has the score")
    assert [check.name for check in found.failures] == ["predictions", "partition"]


@pytest.mark.parametrize("kind", [GivesUp, ScoresOnlyTheLast])
def test_an_exception_fails_the_check_with_its_text(kind: type) -> None:
    model = make_block_model("mistral")
    found = certify((lambda: kind(model)) if kind is GivesUp else kind, TOKENS, **QUICK)
    said = r"RuntimeError: out of patience \ud800" if kind is GivesUp else "scored as (1, 1) of torch.float64"
    assert said in found["causality"].detail  # the surrogate as text: it could not be stored
    # What gives one score a call can be read token by token.
    passed = {check.name for check in found.checks if check.passed is True}
    assert passed == (set() if kind is GivesUp else {"probabilities"})


def test_the_same_seed_asks_the_same_questions() -> None:
    first, second, other = (certify(Counts, TOKENS, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert first == second
    assert first.about["places"] != other.about["places"]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.zeros(2, 20, dtype=torch.long), r"\(2, 20\) of torch.int64; expected one document"),
        (torch.zeros(20), r"\(20,\) of torch.float32"),
        (np.zeros(20), "an array of float64; expected whole numbers"),
        ([1] * 20, "tokens are list"),
        (torch.zeros(15, dtype=torch.long), "tokens hold 15; expected at least 16"),
    ],
)
def test_other_tokens_are_refused(tokens: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        certify(Counts, tokens)


def test_what_makes_no_fresh_reader_is_refused() -> None:
    reader = Counts()
    with pytest.raises(ValueError, match="the same reader twice"):
        certify(lambda: reader, TOKENS)
    with pytest.raises(ValueError, match="make_reader is a Counts"):
        certify(reader, TOKENS)
    with pytest.raises(ValueError, match=r"returned a object, which has no read\(\)"):
        certify(lambda: object(), TOKENS)
    with pytest.raises(ValueError, match="entropy_tokens 1"):
        certify(Counts, TOKENS, entropy_tokens=1)


def test_tokens_outside_the_vocabulary_are_named() -> None:
    found = certify(Counts, TOKENS + VOCABULARY, **QUICK)
    assert "over 48 tokens, but the document holds tokens 48 to" in found["predictions"].detail
