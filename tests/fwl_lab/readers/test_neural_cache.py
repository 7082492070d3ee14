"""The continuous cache: the paper's sums, what is kept and forgotten, exactness where it has no say, errors."""

import math

import pytest
import torch
from torch import Tensor

from fwl_lab import LanguageModel, NeuralCacheReader, StaticReader, make_readers
from fwl_lab.models.context import Context
from tests.helpers.models import CACHE, READERS, make_block_model, make_model, make_tokens, with_bos

DTYPES = (torch.float32, torch.float64)


@torch.no_grad()
def oracle(model: LanguageModel, tokens: Tensor, size: int, theta: float, share: float) -> Tensor:
    """NLL (T,) of one document (T,), word by word and pair by pair as the paper writes it."""
    context = Context.empty(1, "cpu")
    hidden = model.slow_output(model.read(with_bos(tokens[None]), context)[0], context.seen)[0]
    hidden = hidden / hidden.norm(dim=1, keepdim=True)
    slow = StaticReader(model).read(tokens[None]).nll[0].neg().exp()
    scores = []
    for t, word in enumerate(tokens.tolist()):
        earlier = range(max(0, t - size), t)
        mass = {i: math.exp(theta * float(hidden[t] @ hidden[i])) for i in earlier}
        cached = sum(mass[i] for i in earlier if int(tokens[i]) == word) / sum(mass.values()) if mass else None
        scores.append(-math.log(float(slow[t]) if cached is None else (1 - share) * float(slow[t]) + share * cached))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("calls", [(60,), (1, 22, 37), (1,) * 60], ids=str)
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_the_sums_are_those_of_the_paper(family: str, calls: tuple[int, ...]) -> None:
    for model in (make_block_model(family, torch.float64), make_model(family, torch.float64)):
        reader, tokens = NeuralCacheReader(model, size=CACHE, theta=7.0, interpolation=0.4), make_tokens(1, 60)
        nll = torch.cat([reader.read(part).nll for part in tokens.split(calls, 1)], 1)
        expected = oracle(model, tokens[0], CACHE, 7.0, 0.4)
        torch.testing.assert_close(nll[0], expected, rtol=0, atol=1e-12)  # worst seen: 1.5e-14
        assert float((nll - StaticReader(model).read(tokens).nll).abs().max()) > 0.1


def test_a_long_call_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(2, 90)
    weights = torch.ones(2, 90)
    weights[0, 33:41] = 0
    whole = NeuralCacheReader(model, size=CACHE, theta=7.0).read(tokens, weights).nll
    monkeypatch.setattr("fwl_lab.readers.neural_cache.QUERIES_AT_ONCE", 7)
    cut = NeuralCacheReader(model, size=CACHE, theta=7.0).read(tokens, weights).nll
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)


def test_padding_is_not_cached_and_no_row_keeps_more_than_size() -> None:
    model, tokens = make_model("mistral"), make_tokens(2, 70)
    weights = torch.ones(2, 70)
    weights[1, 10:50] = 0  # row 1 has read 30 tokens, of which it keeps the last 23 across the padding
    reader = NeuralCacheReader(model, size=CACHE)
    for part, w in zip(tokens.split(9, 1), weights.split(9, 1), strict=True):
        reader.read(part, w)
        assert reader.state.cache.labels.shape[1] <= CACHE and reader.state.cache.keys.shape[1] <= CACHE
    assert torch.equal(reader.state.cache.labels[0], tokens[0, -CACHE:])
    assert torch.equal(reader.state.cache.labels[1], tokens[1, weights[1] != 0][-CACHE:])
    norms = reader.state.cache.keys.norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_it_is_exactly_the_model_until_something_is_cached(family: str, dtype: torch.dtype) -> None:
    model, tokens = make_block_model(family, dtype), make_tokens(2, 2)
    reader, static = NeuralCacheReader(model), StaticReader(model)
    assert torch.equal(reader.next_log_probs(), static.next_log_probs())
    ours, theirs = reader.read(tokens).nll, static.read(tokens).nll
    assert torch.equal(ours[:, 0], theirs[:, 0])
    assert not torch.equal(ours[:, 1], theirs[:, 1])
    # A row of which only padding was read has nothing cached, whatever its neighbour has.
    reader.reset()
    reader.read(tokens, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    static.reset()
    static.read(tokens, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert torch.equal(reader.next_log_probs()[1], static.next_log_probs()[1])
    assert torch.equal(reader.read(tokens).nll[1, 0], static.read(tokens).nll[1, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_a_step_scale_of_zero_is_static_bitwise(family: str, dtype: torch.dtype) -> None:
    model, tokens = make_block_model(family, dtype), make_tokens(3, 40)
    frozen, static = READERS["cache"](model).with_step_scale(0), StaticReader(model)
    weights = torch.ones(3, 40)
    weights[1, 20:30] = 0
    for part, w in zip(tokens.split(13, 1), weights.split(13, 1), strict=True):
        assert torch.equal(frozen.read(part, w).nll, static.read(part, w).nll)
        assert torch.equal(frozen.next_log_probs(), static.next_log_probs())


def test_a_step_scale_multiplies_the_share() -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, 50)
    half = NeuralCacheReader(model, size=CACHE, theta=7.0, interpolation=0.4).with_step_scale(0.5)
    other = NeuralCacheReader(model, size=CACHE, theta=7.0, interpolation=0.2)
    assert torch.equal(half.read(tokens).nll, other.read(tokens).nll)
    assert half.configuration()["step_scale"] == 0.5 and half.configuration()["theta"] == 7.0


def test_it_copies_what_is_repeated() -> None:
    model = make_model("mistral")
    once = torch.randperm(40, generator=torch.Generator().manual_seed(4))[None]
    twice = torch.cat([once, once], 1)
    gain = StaticReader(model).read(twice).nll - NeuralCacheReader(model, theta=60.0).read(twice).nll
    assert float(gain[:, :40].mean()) < 0 < 1 < float(gain[:, 60:].mean())  # 60: both contexts full of the same


def test_a_model_in_bf16_keeps_its_pairs_in_float32() -> None:
    model, tokens = make_model("mistral", torch.bfloat16), make_tokens(1, 50)
    reader = NeuralCacheReader(model, theta=20.0)
    nll = reader.read(tokens).nll
    assert (nll.dtype, reader.state.cache.keys.dtype) == (torch.float32, torch.float32)
    expected = oracle(model, tokens[0], 2000, 20.0, reader.interpolation)
    torch.testing.assert_close(nll[0].double(), expected, rtol=0, atol=0.2)  # bf16; worst seen: 0.06


def test_make_readers_knows_it_and_does_not_make_it_unasked() -> None:
    model = make_block_model("mistral")
    (reader,) = make_readers(model, ["neural_cache"]).values()
    assert isinstance(reader, NeuralCacheReader) and reader.model is model.base
    assert "neural_cache" not in make_readers(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0; expected a whole number of tokens, at least 1"),
        ({"size": 2.5}, "size is 2.5"),
        ({"theta": -1}, "theta is -1; expected a finite number, at least 0"),
        ({"theta": math.nan}, "theta is nan"),
        ({"interpolation": 1}, "interpolation is 1.0 and step_scale 1.0; expected a product of at least 0 and below 1"),
        ({"interpolation": -0.1}, "interpolation is -0.1"),
        ({"interpolation": 0.4, "step_scale": 2.5}, "step_scale 2.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCacheReader(make_model("mistral"), **settings)
