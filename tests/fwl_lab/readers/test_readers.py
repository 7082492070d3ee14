"""The reader's contract beside causality: predictions, forks, saved states, resets, errors; fast weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fwl_lab import (
    FastWeightReader,
    LanguageModel,
    StaticReader,
    UpdateRule,
    attach_fast_weights,
)
from fwl_lab.fast_weights import reference as oracle
from fwl_lab.models.context import Context
from fwl_lab.ops.observer import Deltas, Observer
from tests.helpers.contract import check_scores_are_predictions
from tests.helpers.models import (
    ADAPTING,
    FAMILIES,
    INNER_BATCH,
    READERS,
    SEGMENT,
    VOCABULARY,
    WINDOW,
    MakeReader,
    make_block_model,
    make_model,
    make_tokens,
    reader_maker,
    with_bos,
)

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_scores_are_what_was_predicted(name: str, family: str) -> None:
    check_scores_are_predictions(reader_maker(name, family), make_tokens(2, 45))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_block_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    base, tokens = make_model(family, dtype), make_tokens(2, 40)
    expected = StaticReader(base).read(tokens).nll
    model = attach_fast_weights(base, rule=UpdateRule(inner_batch=INNER_BATCH))
    for reader in (StaticReader(model), FastWeightReader(model), StaticReader(model.base)):
        assert torch.equal(reader.read(tokens).nll, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ADAPTING)
def test_step_scale_zero_is_static_bitwise(name: str, family: str, dtype: torch.dtype) -> None:
    model, tokens = make_block_model(family, dtype), make_tokens(2, 40)
    reader = READERS[name](model)
    static = StaticReader(reader.model)
    frozen = reader.with_step_scale(0)
    for part in tokens.split(27, dim=1):
        expected = static.read(part).nll
        assert torch.equal(frozen.read(part).nll, expected)
        adapted = reader.read(part).nll
    assert not torch.equal(adapted, expected)
    assert torch.equal(frozen.next_log_probs(), static.next_log_probs())


def test_step_scale_zero_is_static_bitwise_for_several_rows_token_by_token() -> None:
    """Rows read one by one multiply matrices of another shape than rows read together, and round otherwise."""
    for name in ADAPTING:
        frozen = reader_maker(name, "mistral", torch.float32)().with_step_scale(0)
        static, tokens = StaticReader(frozen.model), make_tokens(3, 24)
        for column in tokens.split(1, 1):
            assert torch.equal(frozen.read(column).nll, static.read(column).nll), name
        fork, saved = frozen.fork(), frozen.state_dict()
        again = reader_maker(name, "mistral", torch.float32)().with_step_scale(0)
        again.load_state_dict(saved)
        expected = static.read(tokens).nll
        assert torch.equal(fork.read(tokens).nll, expected) and torch.equal(again.read(tokens).nll, expected)


@pytest.mark.parametrize("name", ADAPTING)
def test_a_step_scale_scales_the_first_step(name: str) -> None:
    model = make_block_model("mistral", torch.float64, decay=0.0)
    tokens = make_tokens(1, SEGMENT if name in ("sgd", "rms") else min(INNER_BATCH, SEGMENT))
    whole, half = READERS[name](model), READERS[name](model).with_step_scale(0.5)
    whole.read(tokens)
    half.read(tokens)
    for parameter, delta in whole.fast_weights().items():
        torch.testing.assert_close(half.fast_weights()[parameter], delta / 2, rtol=1e-9, atol=1e-13)
    assert max(float(delta.abs().max()) for delta in whole.fast_weights().values()) > 1e-3


@pytest.mark.parametrize("name", READERS)
def test_the_models_weights_stay_as_they_are(name: str) -> None:
    model = make_block_model("mistral")
    before = model.weight_hash(), model.base.weight_hash()
    reader = READERS[name](model)
    reader.read(make_tokens(1, 50))
    assert (model.weight_hash(), model.base.weight_hash()) == before
    moved = [delta for delta in reader.fast_weights().values() if bool(delta.any())]
    assert bool(moved) == (name in ADAPTING)
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1e-6
    assert model.weight_hash() != before[0]  # the hash sees one weight


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_a_fork_goes_its_own_way(name: str, family: str) -> None:
    make_reader, tokens = reader_maker(name, family), make_tokens(1, 60)
    whole = make_reader().read(tokens).nll
    reader = make_reader()
    reader.read(tokens[:, :29])
    twin = reader.fork()
    twin.read(make_tokens(1, 31, seed=9))
    assert torch.equal(reader.read(tokens[:, 29:]).nll, reader_after(make_reader, tokens, 29))
    torch.testing.assert_close(reader.fork().next_log_probs(), reader.next_log_probs(), rtol=0, atol=0)
    torch.testing.assert_close(reader_after(make_reader, tokens, 29), whole[:, 29:], rtol=0, atol=1e-12)


def reader_after(make_reader: MakeReader, tokens: Tensor, cut: int) -> Tensor:
    """Scores of what follows `cut`, read in two calls by one reader."""
    reader = make_reader()
    reader.read(tokens[:, :cut])
    return reader.read(tokens[:, cut:]).nll


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_a_saved_state_goes_on_bitwise(name: str, family: str, rows: int, tmp_path: Path) -> None:
    make_reader, tokens = reader_maker(name, family, torch.float32), make_tokens(rows, 60)
    weights = torch.ones(rows, 29)
    weights[-1, 20:] = 0
    reader = make_reader()
    reader.read(tokens[:, :29], weights)
    save_file(reader.state_dict(), tmp_path / "reader.safetensors")
    expected = reader.read(tokens[:, 29:]).nll, reader.next_log_probs()
    other = make_reader()
    other.load_state_dict(load_file(tmp_path / "reader.safetensors"))
    assert torch.equal(other.read(tokens[:, 29:]).nll, expected[0])
    assert torch.equal(other.next_log_probs(), expected[1])


def test_a_state_of_another_kind_is_refused() -> None:
    model = make_block_model("mistral")
    static = StaticReader(model)
    static.read(make_tokens(1, 20))
    with pytest.raises(ValueError, match="is missing from a saved state"):
        FastWeightReader(model).load_state_dict(static.state_dict())
    with pytest.raises(ValueError, match="this is no reader's state"):
        static.load_state_dict({})


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_reset_forgets_and_carry_keeps_the_fast_weights_alone(name: str, family: str) -> None:
    make_reader, first, second = reader_maker(name, family), make_tokens(1, 47), make_tokens(1, 30, seed=5)
    fresh = make_reader().read(second).nll
    reader = make_reader()
    reader.read(first)
    learned = {n: delta.clone() for n, delta in reader.fast_weights().items()}
    carried = reader.fork()
    carried.reset(carry=True)
    for parameter, delta in carried.fast_weights().items():
        assert torch.equal(delta, learned[parameter])
    assert torch.equal(carried.read(second).nll, fresh) == (name not in ADAPTING)
    reader.reset()
    assert not any(bool(delta.any()) for delta in reader.fast_weights().values())
    assert torch.equal(reader.read(second).nll, fresh)


@pytest.mark.parametrize("name", ADAPTING)
def test_carried_fast_weights_serve_every_row_that_follows(name: str) -> None:
    """One document is carried into two: both go on with what it taught."""
    make_reader, second = reader_maker(name, "mistral"), make_tokens(1, 30, seed=5)
    reader = make_reader()
    reader.read(make_tokens(1, 47))
    reader.reset(carry=True)
    alone = reader.fork().read(second).nll
    both = reader.read(second.expand(2, -1)).nll
    torch.testing.assert_close(both, alone.expand(2, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", READERS)
def test_bad_tokens_are_refused_and_leave_the_reader_alone(name: str) -> None:
    make_reader = reader_maker(name, "mistral")
    reader, good = make_reader(), make_tokens(1, 20)
    bad = good.clone()
    bad[0, 7] = VOCABULARY
    for tokens, weights, message in (
        (bad, None, f"token 7 of document 0 is {VOCABULARY}; expected 0 to {VOCABULARY - 1}"),
        (good[0], None, r"expected a long tensor \(documents, tokens\)"),
        (good.float(), None, r"expected a long tensor \(documents, tokens\)"),
        (good, torch.ones(1, 3), "expected finite numbers"),
        (good, torch.full((1, 20), torch.nan), "expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(tokens, weights)
    assert torch.equal(reader.read(good).nll, make_reader().read(good).nll)
    with pytest.raises(ValueError, match="hold 2 documents, but this reader is reading 1"):
        reader.read(make_tokens(2, 5))


@pytest.mark.parametrize("name", READERS)
def test_a_call_without_tokens_changes_nothing(name: str) -> None:
    make_reader, tokens = reader_maker(name, "gpt2"), make_tokens(2, 30)
    reader = make_reader()
    parts = [reader.read(tokens[:, a:b]).nll for a, b in ((0, 0), (0, 13), (13, 13), (13, 30))]
    assert parts[0].shape == (2, 0)
    expected = make_reader()
    first = expected.read(tokens[:, :13]).nll
    assert torch.equal(torch.cat(parts, 1), torch.cat([first, expected.read(tokens[:, 13:]).nll], 1))


def test_weights_are_those_of_the_block() -> None:
    model, tokens = make_block_model("mistral", torch.float64), make_tokens(1, 40)
    weights = torch.linspace(0.1, 1.9, 40, dtype=torch.float64)[None]
    nll = FastWeightReader(model).read(tokens, weights).nll
    with torch.no_grad():
        expected = oracle.read(model.block, *block_inputs(model, tokens), weights)[0]
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-10)  # worst seen: 9e-15
    assert float((nll - FastWeightReader(model).read(tokens).nll).abs().max()) > 0.01


@pytest.mark.parametrize("name", ADAPTING)
def test_observers_see_each_update_and_are_gone_after_an_exception(name: str) -> None:
    reader = reader_maker(name, "mistral")()
    seen: list[int] = []

    class Watch(Observer):
        def updated(self, now: Tensor, fast_weights: Deltas) -> None:
            seen.append(int(now[0]))

    def read_and_fail() -> None:
        with reader.observed(Watch()):
            for part in make_tokens(1, 50).split(7, dim=1):
                reader.read(part)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        read_and_fail()
    every = SEGMENT if name in ("sgd", "rms") else INNER_BATCH
    assert seen == list(range(every, 51, every))
    reader.read(make_tokens(1, 50))
    assert len(seen) == 50 // every


@pytest.mark.parametrize("name", ADAPTING)
def test_a_score_that_is_not_finite_is_an_error_that_says_where(name: str) -> None:
    reader = reader_maker(name, "mistral", torch.float32)().with_step_scale(1e38)
    with pytest.raises(FloatingPointError, match=r"the score of token \d+ of this call in document 0 is (nan|inf)"):
        reader.read(make_tokens(1, 60))


def block_inputs(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and labels that a block reads of a document's tokens (B, T)."""
    with torch.no_grad():
        residual, _ = model.read(with_bos(tokens), Context.empty(len(tokens), "cpu"))
    return residual, tokens


@pytest.mark.parametrize("inner_batch", [1, INNER_BATCH, None])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_fast_weight_reader_is_the_oracle_on_the_models_states(family: str, inner_batch: int | None) -> None:
    model, tokens = make_block_model(family, torch.float64, inner_batch=inner_batch, scale=0.005), make_tokens(2, 35)
    reader = FastWeightReader(model)
    nll = torch.cat([reader.read(part).nll for part in tokens.split(13, dim=1)], 1)
    with torch.no_grad():
        expected, _, delta = oracle.read(model.block, *block_inputs(model, tokens))
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-10)  # worst seen: 9e-15
    for parameter, value in reader.fast_weights().items():
        torch.testing.assert_close(value, delta[parameter], rtol=0, atol=1e-10)
    assert float((nll - StaticReader(model).read(tokens).nll).abs().max()) > 0.05


def test_a_reader_needs_a_block_and_a_rule_of_the_past_alone() -> None:
    base = make_model("mistral")
    with pytest.raises(ValueError, match="no fast-weight block"):
        FastWeightReader(base)
    for rule in (UpdateRule.published_jax(), UpdateRule.published_tf()):
        with pytest.raises(ValueError, match="divides by the weights of the whole batch"):
            FastWeightReader(attach_fast_weights(base, rule=rule))
    with pytest.raises(ValueError, match="has a fast-weight block already"):
        attach_fast_weights(attach_fast_weights(base))


def test_another_rule_over_the_same_weights_reads_as_a_block_made_with_it() -> None:
    model, other = make_block_model("qwen3", inner_batch=INNER_BATCH), make_block_model("qwen3", inner_batch=3)
    reader, tokens = FastWeightReader(model, rule=other.block.rule), make_tokens(2, 35)
    assert model.weight_hash() == other.weight_hash() and reader.block.W1 is model.block.W1
    assert torch.equal(reader.read(tokens).nll, FastWeightReader(other).read(tokens).nll)
    assert not torch.equal(FastWeightReader(model).read(tokens).nll, reader.fork().read(tokens).nll)
    assert reader.configuration()["inner_batch"] == 3 and FastWeightReader(model).update_every == INNER_BATCH


def test_another_rule_must_fit_the_blocks_weights() -> None:
    learned = UpdateRule(decay=0.25, learn_decay=True)
    plain, forgetting = (attach_fast_weights(make_model("mistral"), 4, rule) for rule in (UpdateRule(), learned))
    with pytest.raises(ValueError, match="learned no decay"):
        FastWeightReader(plain, rule=learned)
    with pytest.raises(ValueError, match="for which the block has step sizes"):
        FastWeightReader(plain, rule=UpdateRule(steps=(("W1",),)))
    reader = FastWeightReader(forgetting, rule=UpdateRule(decay=0.5))
    assert (reader.configuration()["decay"], FastWeightReader(forgetting).configuration()["decay"]) == (0.5, 0.25)


def test_a_fast_weight_readers_configuration_names_all_of_its_rule() -> None:
    rule = UpdateRule(inner_batch=10, decay=0.25, learn_decay=True, schedule=(100.0, 0.5), cap=0.3)
    found = FastWeightReader(attach_fast_weights(make_model("mistral"), 4, rule)).configuration()
    assert found["decay"] == pytest.approx(0.25)
    assert (found["inner_batch"], found["schedule"], found["cap"]) == (10, [100.0, 0.5], 0.3)


def test_a_window_that_holds_only_padding_is_read() -> None:
    """Absolute positions read window by window; a last one of padding alone was an error of shapes."""
    model, tokens = make_block_model("gpt2"), make_tokens(2, WINDOW + 1)
    weights = torch.ones(tokens.shape)
    weights[:, -1] = 0
    for name in ("base", "fwl"):
        expected = READERS[name](model).read(tokens[:, :-1]).nll
        assert torch.equal(READERS[name](model).read(tokens, weights).nll[:, :-1], expected)
    alone = READERS["base"](model)
    assert not bool(alone.read(tokens, torch.zeros(tokens.shape)).nll.any())
    assert torch.equal(alone.read(tokens[:, :-1]).nll, READERS["base"](model).read(tokens[:, :-1]).nll)
