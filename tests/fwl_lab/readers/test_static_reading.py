"""What a static reader says, against plain Hugging Face models: every family, every kind of window."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fwl_lab import (
    FastWeightReader,
    LanguageModel,
    StaticReader,
    attach_fast_weights,
)
from fwl_lab.models.context import Context
from fwl_lab.ops.rotary import RotaryEmbedding
from tests.helpers.models import (
    FAMILIES,
    WINDOW,
    band,
    make_block_model,
    make_model,
    make_network,
    make_tokens,
    with_bos,
)

ROTARY = tuple(family for family in FAMILIES if family != "gpt2")
DTYPES = (torch.float32, torch.float64)
# The library's own RMSNorm and softmax round to float32 whatever the dtype; worst seen: 3e-6 nats.
ROUNDING = 1e-5


@torch.no_grad()
def plain_nll(network: PreTrainedModel, tokens: Tensor, **arguments: Tensor) -> Tensor:
    """NLL (B, T) of `tokens` by one call of a Hugging Face model."""
    logits = network(input_ids=with_bos(tokens), **arguments).logits
    return F.cross_entropy(logits.mT, tokens, reduction="none")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_static_reading_of_the_base_is_the_plain_model(family: str, dtype: torch.dtype) -> None:
    expected = plain_nll(make_network(family, dtype), make_tokens(2, WINDOW))
    model = make_block_model(family, dtype)
    scores = StaticReader(model.base).read(make_tokens(2, WINDOW))
    torch.testing.assert_close(scores.nll, expected, rtol=0, atol=ROUNDING)
    assert float((StaticReader(model).read(make_tokens(2, WINDOW)).nll - expected).abs().max()) > 0.1


def test_an_unembedding_with_bias_and_other_ties_are_read_as_they_are() -> None:
    cases: list[dict[str, Any]] = [
        {"biased_unembedding": True},
        *({"tie_word_embeddings": tied} for tied in (True, False)),
    ]
    for settings in cases:
        for family in ("llama", "gpt2"):
            expected = plain_nll(make_network(family, **settings), make_tokens(1, WINDOW))
            model = attach_fast_weights(make_model(family, **settings))
            for reader in (StaticReader(model.base), FastWeightReader(model)):
                nll = reader.read(make_tokens(1, WINDOW)).nll
                torch.testing.assert_close(nll, expected, rtol=0, atol=ROUNDING)


def test_sliding_window_is_the_models_own() -> None:
    """A document five windows long, in one call of the plain model under its own mask."""
    tokens = make_tokens(2, 5 * WINDOW)
    network = make_network("mistral")
    whole, cut = plain_nll(network, tokens), plain_nll(make_network("mistral", sliding_window=None), tokens)
    assert float((whole - cut)[:, WINDOW:].abs().max()) > 0.1  # the window matters
    reader = StaticReader(make_model("mistral"))
    parts = [reader.read(part).nll for part in tokens.split(33, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("family", ROTARY)
def test_rotary_window_is_a_band_in_every_layer(family: str) -> None:
    tokens = make_tokens(1, 70)
    expected = plain_nll(make_network(family), tokens, attention_mask=band(70, WINDOW))
    torch.testing.assert_close(StaticReader(make_model(family)).read(tokens).nll, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("window", [WINDOW, 10, 7])
def test_absolute_windows_start_at_multiples_of_half_a_window(window: int) -> None:
    """Each token alone: in the latest window that gives it at least half a window of context."""
    tokens = make_tokens(1, 50)
    network, half = make_network("gpt2", torch.float64), window // 2
    inputs, expected = with_bos(tokens), []
    for position in range(50):
        start = max(0, position // half - 1) * half
        logits = network(input_ids=inputs[:, start : position + 1]).logits[:, -1]
        expected.append(F.cross_entropy(logits, tokens[:, position]))
    reader = StaticReader(LanguageModel(make_network("gpt2", torch.float64), window=window))
    torch.testing.assert_close(reader.read(tokens).nll[0], torch.stack(expected), rtol=0, atol=1e-12)


def test_rotary_angles_are_exact_far_out() -> None:
    frequencies = 10000.0 ** -(torch.arange(8) / 8)
    positions = torch.tensor([[0, 999_999, 1_000_000]])
    cos, sin = RotaryEmbedding(frequencies, 1.0)(torch.zeros(1, dtype=torch.float64), positions)
    angles = positions[0].numpy().astype(np.float64)[:, None] * np.tile(frequencies.numpy().astype(np.float64), 2)
    np.testing.assert_allclose(cos[0].numpy(), np.cos(angles), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sin[0].numpy(), np.sin(angles), rtol=0, atol=1e-12)
    rounded = np.cos(angles.astype(np.float32))
    assert np.abs(rounded - np.cos(angles)).max() > 0.001  # what float32 would make of it


def test_reading_far_out_is_reading_near() -> None:
    """Rotary attention sees distances only: a document read from position 1,000,000 on scores the same."""
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, 40)
    near, _ = model(with_bos(tokens), Context.empty(1, "cpu"), tokens)
    far, context = model(with_bos(tokens), Context.empty(1, "cpu")._replace(seen=torch.tensor([10**6])), tokens)
    assert int(context.seen) == 10**6 + 40
    torch.testing.assert_close(far, near, rtol=0, atol=1e-9)
