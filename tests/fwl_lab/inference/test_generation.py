"""Adaptive generation: equal to reading the same tokens; frozen where it is not to learn; draws, ends, errors."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fwl_lab import NeuralCacheReader, Reader, StaticReader, generate
from fwl_lab.inference.generate import _choose, end_of_text
from tests.helpers.models import (
    ADAPTING,
    CACHE,
    INNER_BATCH,
    READERS,
    SEGMENT,
    VOCABULARY,
    WINDOW,
    make_model,
    make_text_model,
    make_tokens,
    reader_maker,
)

PROMPT = make_tokens(1, 2 * SEGMENT + 5)  # mid segment, mid inner batch
LIKELY = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("name", READERS)
def test_writing_is_reading_the_same_tokens(name: str, family: str) -> None:
    make_reader, tokens = reader_maker(name, family), make_tokens(2, 29)
    writer, again, whole = make_reader(), make_reader(), make_reader()
    out = generate(writer, tokens, 14, seed=5)
    assert out.reader is writer and out.tokens.shape == (2, 14) and out.lengths.tolist() == [14, 14]
    again.read(tokens)
    # The same calls give the same bits, other calls the same numbers.
    nll = torch.cat([again.read(token).nll for token in out.tokens.split(1, 1)], 1)
    assert torch.equal(out.log_probs, -nll)
    assert torch.equal(writer.next_log_probs(), again.next_log_probs())
    nll = whole.read(torch.cat([tokens, out.tokens], 1)).nll[:, 29:]
    torch.testing.assert_close(-out.log_probs, nll, rtol=0, atol=1e-12)
    for parameter, delta in whole.fast_weights().items():
        torch.testing.assert_close(writer.fast_weights()[parameter], delta, rtol=0, atol=1e-12)


def adapted_twin(reader: Reader) -> StaticReader:
    """A fresh static reader over a copy of the reader's model whose weights are those the document has made."""
    model = copy.deepcopy(reader.model)
    module = model if reader.slow_weights().keys() == dict(model.named_parameters()).keys() else model.block
    weights = dict(module.named_parameters())
    with torch.no_grad():
        for name, delta in reader.fast_weights().items():
            weights[name] += delta[0]
    return StaticReader(model)


@pytest.mark.parametrize("name", ADAPTING)
def test_a_frozen_reader_reads_on_with_the_weights_of_then(name: str) -> None:
    make_reader, following = reader_maker(name, "mistral"), make_tokens(1, 80, seed=6)
    reader = make_reader()
    reader.read(PROMPT)
    frozen, before = reader.without_learning(), reader.next_log_probs()
    assert torch.equal(frozen.next_log_probs(), before)
    learned = {n: delta.clone() for n, delta in frozen.fast_weights().items()}
    assert any(bool(delta.any()) for delta in learned.values())
    nll = torch.cat([frozen.read(part).nll for part in following.split(17, 1)], 1)
    for parameter, delta in frozen.fast_weights().items():
        assert torch.equal(delta, learned[parameter])
    # What was cached by earlier weights has left a context of two layers after twice the window.
    reach = 2 * WINDOW
    expected = adapted_twin(reader).read(torch.cat([PROMPT, following], 1)).nll[:, PROMPT.shape[1] :]
    torch.testing.assert_close(nll[:, reach:], expected[:, reach:], rtol=0, atol=1e-12)
    assert torch.equal(reader.next_log_probs(), before)  # the reader itself stayed
    assert float((reader.read(following).nll - nll).abs().max()) > 0.01


def test_frozen_weights_do_not_decay_at_an_inner_batch_s_end() -> None:
    """A step scale of 0 would: inner batches move on with what is read, and decay with them."""
    reader = reader_maker("fwl", "mistral")()
    reader.read(make_tokens(1, 3 * INNER_BATCH + 4))
    frozen = reader.without_learning()
    for token in make_tokens(1, 3 * INNER_BATCH, seed=6).split(1, 1):
        expected = frozen.next_log_probs()
        nll = frozen.read(token).nll
        torch.testing.assert_close(nll, -expected.gather(1, token), rtol=0, atol=1e-12)
    assert torch.equal(frozen.state.block.pending["W1"], reader.state.block.pending["W1"])
    assert (
        torch.equal(frozen.state.block.seen, reader.state.block.seen)
        and int(frozen.state.context.seen[0]) == 6 * INNER_BATCH + 4
    )


def test_a_frozen_cache_is_looked_into_and_takes_in_no_more() -> None:
    model, following = make_model("mistral", torch.float64), make_tokens(1, 40, seed=6)
    reader = NeuralCacheReader(model, size=CACHE, theta=7.0, interpolation=0.4)
    reader.read(PROMPT)
    frozen = reader.without_learning()
    pairs, scores, predicted = frozen.state.cache, [], []
    for token in following.split(1, 1):
        predicted.append(-frozen.next_log_probs().gather(1, token))
        scores.append(frozen.read(token).nll)
    assert frozen.state.cache is pairs
    torch.testing.assert_close(torch.cat(scores, 1), torch.cat(predicted, 1), rtol=0, atol=1e-12)
    at_once = reader.without_learning().read(following).nll
    torch.testing.assert_close(at_once, torch.cat(scores, 1), rtol=0, atol=1e-12)
    static = StaticReader(model)
    static.read(PROMPT)
    assert float((static.read(following).nll - at_once).abs().max()) > 0.1
    assert float((reader.read(following).nll - at_once)[:, 2:].abs().max()) > 0.1


@pytest.mark.parametrize("name", READERS)
def test_a_reader_need_not_learn_from_its_own_words(name: str) -> None:
    make_reader = reader_maker(name, "mistral")
    reader, prompted = make_reader(), make_reader()
    prompted.read(PROMPT)
    out = generate(reader, PROMPT, 2 * SEGMENT, seed=3, learn=False)
    for parameter, delta in prompted.fast_weights().items():
        assert torch.equal(out.reader.fast_weights()[parameter], delta)
    assert torch.equal(reader.next_log_probs(), prompted.next_log_probs())  # it stands at the prompt's end
    frozen = prompted.without_learning()
    nll = torch.cat([frozen.read(token).nll for token in out.tokens.split(1, 1)], 1)
    assert torch.equal(out.log_probs, -nll)
    learned = generate(make_reader(), PROMPT, 2 * SEGMENT, seed=3)
    assert torch.equal(out.tokens[:, 0], learned.tokens[:, 0])
    assert torch.equal(out.log_probs, learned.log_probs) == (name in ("base", "static"))


@pytest.mark.parametrize("name", READERS)
def test_a_frozen_reader_begins_anew_without_having_learned(name: str) -> None:
    reader, tokens = reader_maker(name, "mistral")(), make_tokens(2, 30)
    reader.read(PROMPT)
    frozen = reader.without_learning()
    frozen.reset()
    assert torch.equal(frozen.read(tokens).nll, StaticReader(reader.model).read(tokens).nll)
    unfrozen, fresh = frozen.with_step_scale(1.0), reader_maker(name, "mistral")()
    assert torch.equal(unfrozen.read(tokens).nll, fresh.read(tokens).nll)


# -- which token comes next ---------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_likeliest_token() -> None:
    reader, again = (reader_maker("fwl", "mistral")() for _ in range(2))
    out = generate(reader, PROMPT, 12, temperature=0.0)
    again.read(PROMPT)
    for token in out.tokens[0]:
        assert int(token) == int(again.next_log_probs().argmax())
        again.read(token[None, None])
    assert torch.equal(out.tokens, generate(reader_maker("fwl", "mistral")(), PROMPT, 12, 0.0, seed=9).tokens)


def draws(temperature: float, top_p: float, count: int = 4000) -> list[float]:
    """How often each token of LIKELY is drawn."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    tokens = _choose(LIKELY.log().expand(count, -1), temperature, top_p, generators)
    return (torch.bincount(tokens[:, 0], minlength=4) / count).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1.0, 0.79, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        (1.0, 0.81, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (1.0, 1e-9, [1, 0, 0, 0]),
        (0.5, 0.9, [0.25 / 0.34, 0.09 / 0.34, 0, 0]),  # the set is chosen at the temperature given
        (1e-320, 1.0, [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_p: float, expected: list[float]) -> None:
    found = draws(temperature, top_p)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))
    assert [f == 0 for f, e in zip(found, expected, strict=True) if e == 0] == [True] * expected.count(0)


def test_a_seed_is_all_that_chance_depends_on() -> None:
    make_reader = reader_maker("static", "mistral")
    before = torch.random.get_rng_state()
    first, second, other = (generate(make_reader(), PROMPT, 20, seed=seed).tokens for seed in (7, 7, 8))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    # A row's text does not depend on its neighbours.
    rows = torch.cat([make_tokens(1, PROMPT.shape[1], seed=4), PROMPT])
    assert torch.equal(generate(make_reader(), rows, 20, seed=6).tokens[1], first[0])


# -- text and its end ---------------------------------------------------------------------------------------------


def ending(model_reader: Reader, at: Tensor) -> Reader:
    """The reader, made to expect end-of-text wherever it has read one of `at`; else never."""
    end, logits = end_of_text(model_reader.model), model_reader.logits

    def chosen(state: Any, last: Tensor) -> Tensor:
        out = logits(state, last)
        out[:, end] = torch.where(torch.isin(last[:, 0], at), 1e3, -1e3)
        return out

    model_reader.logits = chosen
    return model_reader


def test_rows_end_with_their_own_end_of_text() -> None:
    model, tokens = make_text_model("mistral", torch.float64), make_tokens(2, 9)
    end = end_of_text(model)
    free = generate(ending(StaticReader(model), torch.tensor([-1])), tokens, 12, temperature=0.0).tokens
    first = free[0].tolist()
    stop = next(t for t in range(1, 12) if first[t] not in first[:t] and first[t] not in free[1, :-1])
    out = generate(ending(StaticReader(model), free[0, stop : stop + 1]), tokens, 12, temperature=0.0)
    assert out.lengths.tolist() == [stop + 2, 12]
    assert out.tokens[0].tolist() == first[: stop + 1] + [end] * (11 - stop)
    assert torch.equal(out.tokens[1], free[1])
    assert not bool(out.log_probs[0, stop + 2 :].any()) and bool((out.log_probs[0, : stop + 2] < 0).all())
    assert out.texts == [model.decode(free[0, : stop + 1]), model.decode(free[1])]
    # What follows a row's end is padding: the reader stands at the end-of-text token.
    alone = StaticReader(model)
    alone.read(torch.cat([tokens[:1], out.tokens[:1, : stop + 2]], 1))
    del out.reader.logits
    torch.testing.assert_close(out.reader.next_log_probs()[:1], alone.next_log_probs(), rtol=0, atol=1e-12)
    on = generate(ending(StaticReader(model), free[0, stop : stop + 1]), tokens, 12, temperature=0.0, stop=False)
    assert on.lengths.tolist() == [12, 12] and int(on.tokens[0, stop + 1]) == end
    with pytest.raises(ValueError, match="2 texts were written side by side"):
        out.text  # noqa: B018


def test_text_goes_in_and_comes_out() -> None:
    model = make_text_model("mistral")
    reader = StaticReader(model)
    out = generate(reader, "def read(", 8, seed=1, stop=False)
    assert out.text == model.decode(out.tokens[0]) and len(out.text) > 0
    again = StaticReader(model)
    assert torch.equal(generate(again, model.encode("def read("), 8, seed=1, stop=False).tokens, out.tokens)
    # An empty prompt goes on from where the reader stands.
    more, expected = generate(reader, "", 5, seed=2), generate(again, make_tokens(1, 0), 5, seed=2)
    assert torch.equal(more.tokens, expected.tokens)
    assert generate(StaticReader(model), "", 3).tokens.shape == (1, 3)  # a fresh reader has read BOS


def test_a_fork_keeps_the_reader_where_it_is() -> None:
    reader = reader_maker("fwl", "mistral")()
    reader.read(PROMPT)
    before = reader.next_log_probs()
    generate(reader.fork(), PROMPT, 5)
    assert torch.equal(reader.next_log_probs(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number, at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"temperature": -0.1}, "temperature is -0.1; expected a finite number, at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "x"}, "temperature is 'x'; expected a finite number"),
        ({"top_p": "x"}, "top_p is 'x'; expected a probability"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a probability above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"prompt": torch.ones(2, 3)}, r"prompt is \(2, 3\); expected text, or a long tensor"),
        ({"prompt": [1, 2]}, "prompt is list; expected text, or a long tensor"),
        ({"prompt": torch.zeros(0, 4, dtype=torch.long)}, "prompt holds no documents; expected at least one row"),
        ({"prompt": torch.tensor([VOCABULARY])}, f"token 0 of document 0 is {VOCABULARY}; expected 0 to"),
        ({"prompt": "text"}, "this model has no tokenizer"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_reader_alone(settings: dict, message: str) -> None:
    reader = StaticReader(make_model("mistral"))
    before = reader.next_log_probs()
    with pytest.raises(ValueError, match=message):
        generate(reader, **({"prompt": PROMPT} | settings))
    assert torch.equal(reader.next_log_probs(), before)


def test_only_a_reader_writes() -> None:
    with pytest.raises(
        ValueError, match=r"reader is a LanguageModel; expected a reader, such as StaticReader\(model\)"
    ):
        generate(make_model("mistral"), PROMPT)
