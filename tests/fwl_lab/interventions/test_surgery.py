"""Surgery on updates: what is dropped, scaled, forgotten or truncated, against the oracle and by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fwl_lab import (
    DynamicEvaluationReader,
    FastWeightReader,
    LanguageModel,
    Reader,
    StaticReader,
    Surgery,
    UpdateRule,
    attach_fast_weights,
    operate,
)
from fwl_lab.fast_weights import reference as oracle
from fwl_lab.interventions.readers import keep_directions
from fwl_lab.models.context import Context
from fwl_lab.ops.observer import Deltas, Observer
from fwl_lab.trace.configurations import differences
from tests.helpers.models import (
    INNER_BATCH,
    READERS,
    SEGMENT,
    fill_block,
    make_block_model,
    make_tokens,
    sgd,
    with_bos,
)

LENGTH = 45
KINDS = ("fwl", "sgd")
EVERY = {"fwl": INNER_BATCH, "sgd": SEGMENT}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_block_model("mistral", torch.float64)


def read(reader: Reader, tokens: Tensor) -> Tensor:
    return reader.read(tokens).nll


def a_matrix(reader: Reader) -> str:
    """A matrix that adapts, in the middle of the model."""
    names = [name for name, weight in reader.slow_weights().items() if weight.ndim == 2]
    return names[len(names) // 2]


# -- the reader ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_surgery_changes_no_bit(name: str) -> None:
    reader, tokens = READERS[name](make_block_model("mistral")), make_tokens(2, LENGTH)
    assert torch.equal(read(operate(reader, Surgery()), tokens), read(reader, tokens))
    assert torch.equal(reader.last, tokens[:, -1:])  # the operated one read for itself


@pytest.mark.parametrize(
    "own",
    [{"inner_batch": 3}, {"inner_batch": None}, {"inner_batch": 5, "decay": 0.1, "cap": 0.2, "schedule": (8, 0.5)}],
)
def test_a_reader_keeps_its_own_rule(own: dict[str, Any]) -> None:
    """It was operated on under its block's rule: a surgery that changes nothing changed scores by up to 6 nats."""
    model, tokens = make_block_model("mistral"), make_tokens(2, LENGTH)
    assert model.block is not None
    reader = FastWeightReader(model, rule=dataclasses.replace(model.block.rule, **own))
    operated, plain = operate(reader, Surgery()), read(reader, tokens)
    unlike = differences(operated.configuration() | {"kind": "FastWeightReader"}, reader.configuration())
    assert unlike == {"surgery": (Surgery().facts(), None)}
    assert torch.equal(read(operated, tokens), plain)
    assert not torch.equal(read(FastWeightReader(model), tokens), plain)
    dropped = read(operate(reader, Surgery(drop=[1])), tokens)
    assert torch.equal(dropped[:, :2], plain[:, :2]) and not torch.equal(dropped, plain)


@pytest.mark.parametrize("name", KINDS)
def test_dropping_all_is_static(name: str, model: LanguageModel) -> None:
    reader, tokens = READERS[name](model), make_tokens(2, LENGTH)
    everything = range(LENGTH // SEGMENT * SEGMENT) if name == "sgd" else range(LENGTH)
    static = read(reader.with_step_scale(0), tokens)
    for surgery in (
        Surgery(drop=everything),
        Surgery(drop=np.ones(len(everything), dtype=bool)),
        Surgery(token_scale=np.zeros(len(everything))),
        Surgery(scale=dict.fromkeys(reader.slow_weights(), 0.0)),
    ):
        operated = operate(reader, surgery)
        # Dynamic evaluation of no effect is another call of the same functions; worst seen: 3e-15
        torch.testing.assert_close(read(operated, tokens), static, rtol=0, atol=1e-13 if name == "sgd" else 0.0)
        assert not any(bool(delta.any()) for delta in operated.fast_weights().values())
    assert float((read(reader, tokens) - static).abs().max()) > 0.05


def oracle_under(
    monkeypatch: pytest.MonkeyPatch, model: LanguageModel, tokens: Tensor, factor: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """NLL and Δθ by the oracle, the gradient of the t-th token by parameter p multiplied by `factor(t, p)`."""
    assert model.block is not None
    block, plain, count = model.block, oracle._gradients, iter(range(tokens.shape[1]))

    def gradients(*given: Any) -> tuple[Tensor, ...]:
        token = next(count)
        return tuple(factor(token, p) * g for p, g in zip(block.fast_parameters, plain(*given), strict=True))

    monkeypatch.setattr(oracle, "_gradients", gradients)
    with torch.no_grad():
        residual, _ = model.read(with_bos(tokens), Context.empty(1, "cpu"))
        nll, _, delta = oracle.read(block, residual, tokens)
    return nll, delta


@pytest.mark.parametrize("inner_batch", [1, INNER_BATCH, None])
def test_factors_are_those_of_gradients_in_the_oracle(inner_batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_block_model("qwen3", torch.float64, inner_batch=inner_batch, scale=0.005)
    tokens = make_tokens(1, 35)
    surgery = Surgery(drop=[7, 20], token_scale={3: 2.0, 21: -0.5}, scale={"W1": 0.0, "g": 3.0})
    by_token = {7: 0.0, 20: 0.0, 3: 2.0, 21: -0.5}
    expected, delta = oracle_under(
        monkeypatch, model, tokens, lambda t, p: by_token.get(t, 1.0) * {"W1": 0.0, "g": 3.0}.get(p, 1.0)
    )
    reader = operate(FastWeightReader(model), surgery)
    nll = torch.cat([read(reader, part) for part in tokens.split(13, dim=1)], 1)
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-10)  # worst seen: 9e-15
    for parameter, value in reader.fast_weights().items():
        torch.testing.assert_close(value, delta[parameter], rtol=0, atol=1e-10)
    assert float((nll - read(FastWeightReader(model), tokens)).abs().max()) > 0.01


def test_one_dropped_token_is_missing_from_what_follows_alone(model: LanguageModel) -> None:
    tokens, reader = make_tokens(1, LENGTH), FastWeightReader(model)
    plain, without = read(reader, tokens), read(operate(reader, Surgery(drop=[17])), tokens)
    assert torch.equal(plain[:, :18], without[:, :18])  # token 17 is learned after it is scored
    assert bool((plain[:, 18:] != without[:, 18:]).all())


def test_decay_is_that_of_the_rule() -> None:
    tokens = make_tokens(2, LENGTH)
    for own in (0.0, 0.05):
        plain = make_block_model("mistral", torch.float64, decay=own)
        rule = make_block_model("mistral", torch.float64, decay=1 - (1 - own) * 0.75)
        operated = operate(FastWeightReader(plain), Surgery(decay=0.25))
        torch.testing.assert_close(read(operated, tokens), read(FastWeightReader(rule), tokens), rtol=0, atol=1e-13)
    learned = fill_block(
        attach_fast_weights(plain.base, 6, UpdateRule(inner_batch=INNER_BATCH, decay=0.2, learn_decay=True)), scale=0.02
    )
    assert learned.block is not None and learned.block.forgetting is not None
    logit = learned.block.forgetting.detach().clone()
    found = operate(FastWeightReader(learned), Surgery(decay=0.25)).configuration()["decay"]
    assert found == pytest.approx(1 - (1 - float(logit.sigmoid())) * 0.75, rel=1e-6)
    assert torch.equal(learned.block.forgetting, logit)  # the model's own is as it was


class Ranks(Observer):
    """Rank of each matrix' Δθ whenever an update is complete."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ranks: list[dict[str, int]] = []

    def updated(self, seen: Tensor, fast_weights: Deltas) -> None:
        self.seen.append(int(seen[0]))
        matrices = {name: delta[0] for name, delta in fast_weights().items() if delta.ndim == 3}
        self.ranks.append({n: int(torch.linalg.matrix_rank(m, rtol=1e-9)) for n, m in matrices.items()})


@pytest.mark.parametrize("inner_batch", [INNER_BATCH, None])
@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_matrix_has_that_rank_after_each_update(name: str, inner_batch: int | None) -> None:
    model = make_block_model("mistral", torch.float64, inner_batch=inner_batch, scale=0.005)
    tokens = make_tokens(1, 150)
    for rank in (1, 3):
        reader, plain = operate(READERS[name](model), Surgery(rank=rank)), READERS[name](model)
        watch, free = Ranks(), Ranks()
        with reader.observed(watch), plain.observed(free):
            nll, without = (torch.cat([read(r, part) for part in tokens.split(37, 1)], 1) for r in (reader, plain))
        every = reader.update_every
        assert every is not None and watch.seen == free.seen == list(range(every, 151, every))
        assert {r for ranks in watch.ranks for r in ranks.values()} == {rank}
        assert max(free.ranks[-1].values()) > rank
        assert torch.equal(nll[:, :every], without[:, :every]) and not torch.equal(nll[:, every:], without[:, every:])


@pytest.mark.parametrize("name", KINDS)
def test_a_full_rank_is_the_plain_reading(name: str, model: LanguageModel) -> None:
    reader, tokens = READERS[name](model), make_tokens(2, LENGTH)
    largest = max(min(w.shape) for w in reader.slow_weights().values() if w.ndim == 2)
    assert torch.equal(read(operate(reader, Surgery(rank=largest)), tokens), read(reader, tokens))
    if name == "fwl":
        # Edited, but an inner batch of ten tokens makes no more than ten directions.
        assert largest > INNER_BATCH
        short, part = operate(reader, Surgery(rank=INNER_BATCH)), tokens[:, : INNER_BATCH + 5]
        torch.testing.assert_close(read(short, part), read(reader.with_step_scale(1), part), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_removed_directions_are_gone_after_the_update_and_nothing_else(name: str, model: LanguageModel) -> None:
    reader, tokens = READERS[name](model), make_tokens(1, EVERY[name])
    parameter = a_matrix(reader)
    operated = operate(reader, Surgery(remove_directions={parameter: [0, 2]}))
    read(reader, tokens)
    read(operated, tokens)
    for key, delta in reader.fast_weights().items():
        found = operated.fast_weights()[key]
        if key != parameter:
            torch.testing.assert_close(found, delta, rtol=0, atol=0)
            continue
        u, s, vh = np.linalg.svd(delta[0].numpy())
        removed = sum(s[i] * np.outer(u[:, i], vh[i]) for i in (0, 2))
        np.testing.assert_allclose(found[0].numpy(), delta[0].numpy() - removed, atol=1e-14)
        assert s[2] > 1e-4


def test_directions_are_kept_in_their_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 5, 4, generator=generator).bfloat16()
    kept = keep_directions(matrix, [0, 1, 2, 3])
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, matrix)
    assert not bool(keep_directions(matrix, []).any())


# -- dynamic evaluation by hand -----------------------------------------------------------------------------------


def test_dynamic_evaluation_under_surgery_is_its_steps_by_hand(model: LanguageModel) -> None:
    """Three segments of plain SGD: one dropped, one scaled, all decayed; one parameter scaled, one slow."""
    base, tokens = model.base, make_tokens(1, 3 * SEGMENT)
    lr, decay, own = 0.05, 0.2, 0.01
    reader = DynamicEvaluationReader(base, sgd, SEGMENT)
    scaled, slow = (list(reader.slow_weights())[i] for i in (3, -2))
    surgery = Surgery(
        drop=[2 * SEGMENT - 1], token_scale={3 * SEGMENT - 1: 0.5}, scale={scaled: 2.0, slow: 0.0}, decay=decay
    )
    operated = operate(reader, surgery)
    gradients: list[dict[str, Tensor]] = []

    class Catch(DynamicEvaluationReader):
        def _update(self, place: int, weights: Any, optimizer: Any, given: Any) -> None:
            zero = {name: torch.zeros_like(w) for name, w in weights.items()}
            gradients.append({n: zero[n] if g is None else g for n, g in zip(zero, given, strict=True)})

    theta0 = {name: weight.clone() for name, weight in reader.slow_weights().items()}
    theta = dict(theta0)
    for index, (part, factor) in enumerate(zip(tokens.split(SEGMENT, 1), (1.0, 0.0, 0.5), strict=True)):
        before = operated.fork()
        read(operated, part)
        # The gradient where the reader stood, from a reader that only catches it.
        catch = Catch(base, sgd, SEGMENT)
        catch.load_state_dict(before.state_dict())
        read(catch, part)
        gradient = gradients.pop()
        for name in theta:
            step = own * (theta0[name] - theta[name]) - lr * gradient[name]
            step = step * factor * {scaled: 2.0, slow: 0.0}.get(name, 1.0)
            if factor:
                theta[name] = theta0[name] + (1 - decay) * (theta[name] + step - theta0[name])
            torch.testing.assert_close(operated.fast_weights()[name][0], theta[name] - theta0[name], rtol=0, atol=1e-14)
        assert float((theta[scaled] - theta0[scaled]).abs().max()) > 1e-3, index
    assert torch.equal(theta[slow], theta0[slow])


def test_a_dropped_segment_is_not_seen_by_an_optimizer_with_moments(model: LanguageModel) -> None:
    tokens = make_tokens(1, 2 * SEGMENT)
    reader = DynamicEvaluationReader(model.base, lambda p: torch.optim.Adam(p, 1e-3), SEGMENT)
    operated = operate(reader, Surgery(drop=range(SEGMENT)))
    read(operated, tokens)
    assert {int(v) for k, v in operated.state_dict().items() if k.endswith(".step")} == {1}
    assert any(bool(delta.any()) for delta in operated.fast_weights().values())


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drop": [-1]}, "drop is .* expected indices of tokens, from 0, or a mask"),
        ({"drop": [0.5]}, "drop is .* expected indices of tokens"),
        ({"drop": np.ones((2, 2), dtype=bool)}, "(?s)drop is .* expected indices of tokens"),
        ({"token_scale": {-3: 1.0}}, "token_scale names token -3"),
        ({"token_scale": [1.0, float("nan")]}, "the factor of 1 is nan"),
        ({"scale": {"W1": float("inf")}}, "the factor of W1 is inf"),
        ({"scale": ["W1"]}, "scale is .* expected a mapping"),
        ({"decay": 1.0}, r"decay is 1.0; expected a number in \[0, 1\)"),
        ({"decay": "a"}, r"decay is 'a'; expected a number in \[0, 1\)"),
        ({"drop": 5}, "drop is 5; expected indices of tokens, from 0, or a mask"),
        ({"rank": 0}, "rank is 0; expected a whole number from 1"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"remove_directions": {"W1": [-1]}}, "direction -1 of W1"),
    ],
)
def test_a_surgery_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Surgery(**given)


def test_what_a_reader_cannot_do_is_refused(model: LanguageModel) -> None:
    fwl, dynamic = FastWeightReader(model), DynamicEvaluationReader(model.base, sgd, SEGMENT)
    endless = FastWeightReader(make_block_model("mistral", inner_batch=None, decay=0.0))
    cases: list[tuple[Reader, Surgery, str]] = [
        (StaticReader(model), Surgery(), "the reader is a StaticReader; surgery knows"),
        (operate(fwl, Surgery()), Surgery(), "say all of it in one Surgery"),
        (fwl, Surgery(scale={"W3": 0.0}), "scale names 'W3'; expected a fast parameter of this reader: W1, b1, W2"),
        (fwl, Surgery(remove_directions={"b1": [0]}), "'b1'; expected a fast matrix of this reader: W1, W2"),
        (fwl, Surgery(remove_directions={"W1": [16]}), r"direction 16 of W1 .* \(24, 16\) has 16; expected 0 to 15"),
        (endless, Surgery(decay=0.1), "the block's inner batch is None"),
        ("fwl", Surgery(), "given are a str and a Surgery; expected a Reader"),
        (dynamic, Surgery(drop=[SEGMENT]), f"position {SEGMENT} .* expected its last token, {2 * SEGMENT - 1},"),
        (dynamic, Surgery(token_scale={3: 2.0, SEGMENT - 1: 2.0}), "all of its tokens with one factor"),
    ]
    for reader, surgery, message in cases:
        with pytest.raises(ValueError, match=message):
            operate(reader, surgery)


def test_a_surgery_says_what_it_does() -> None:
    surgery = Surgery(
        drop=[5, 1, 2, 3], token_scale=[1.0, 1.0, 1.0, 1.0, 0.5], scale={"W1": 0.0}, decay=0.1, rank=4,
        remove_directions={"W2": (1, 0)},
    )  # fmt: skip
    assert str(surgery) == "4 tokens dropped, 1 token scaled, W1 × 0, decay 0.1, rank 4, W2 without directions 0, 1"
    assert (str(Surgery()), str(Surgery(rank=1, name="thin"))) == ("nothing changed", "thin")
    assert surgery.facts() == {
        "drop": ["1-3", "5"], "scale": {"W1": 0.0}, "token_scale": {"4": 0.5}, "decay": 0.1, "rank": 4,
        "remove_directions": {"W2": [0, 1]},
    }  # fmt: skip
    assert surgery.token_factors == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.5, 5: 0.0}
