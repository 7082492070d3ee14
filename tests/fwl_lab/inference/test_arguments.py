"""Arguments that were taken, or failed without a word that helps, and made numbers of no meaning."""

from typing import Any

import pytest
import torch

from fwl_lab import (
    Document,
    FastWeightBlock,
    NeuralCacheReader,
    Reader,
    Recorder,
    StaticReader,
    generate,
    score,
)
from fwl_lab.analysis import gain_by_position
from fwl_lab.testing import make_trace
from tests.helpers.models import DOCUMENTS, make_block_model, make_model, make_text_model


def test_one_reader_under_two_names_is_refused() -> None:
    """The second name read on where the first had stopped: a gain made up of 1.35 nats a token."""
    model = make_text_model()
    one = StaticReader(model)
    with pytest.raises(ValueError, match=r"readers\['base'\] and readers\['again'\] are one object"):
        score(model, DOCUMENTS[:1], {"base": one, "again": one}, progress=False)
    twin = {"base": one, "again": one.with_step_scale(1.0)}
    nll = score(model, DOCUMENTS[:1], twin, progress=False)["nll"].values
    assert (nll[0] == nll[1]).all()


@pytest.mark.parametrize("carry", ["no", 1, None])
def test_carry_is_a_truth_value(carry: Any) -> None:
    model = make_text_model()
    with pytest.raises(ValueError, match=r"carry is .*; expected True or False"):
        score(model, DOCUMENTS[:1], {"base": StaticReader(model)}, carry=carry, progress=False)


def test_documents_have_names_of_their_own() -> None:
    model, twice = make_text_model(), [Document("a", "def"), Document("b", "x"), Document("a", "class")]
    with pytest.raises(ValueError, match="two documents are named 'a'"):
        score(model, twice, {"base": StaticReader(model)}, progress=False)
    with pytest.raises(ValueError, match="max_tokens is True"):
        score(model, DOCUMENTS[:1], {"base": StaticReader(model)}, max_tokens=True, progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"theta": "x"}, "theta is 'x'; expected a finite number"),
        ({"theta": -1.0}, r"theta is -1\.0; expected a finite number, at least 0"),
        ({"theta": True}, "theta is True"),
        ({"interpolation": None}, "interpolation is None"),
        ({"interpolation": float("nan")}, "interpolation is nan"),
        ({"size": True}, "size is True"),
    ],
)
def test_a_cache_takes_numbers(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCacheReader(make_model("mistral"), **given)


@pytest.mark.parametrize("given", [{"parameters": [5]}, {"byte_budget": "9" * 400}])
def test_a_recorder_takes_names_and_sizes(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        Recorder(**given)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True, None])
def test_a_step_scale_is_a_finite_number(scale: Any) -> None:
    reader: Reader = StaticReader(make_model("mistral"))
    with pytest.raises(ValueError, match=r"step_scale is .*; expected a finite number"):
        reader.with_step_scale(scale)


@pytest.mark.parametrize("bucket", [2.5, 0, True, "512"])
def test_a_bucket_is_a_whole_number_of_positions(bucket: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 1 token, not .*; expected a whole number"):
        gain_by_position(make_trace(tokens=50), bucket)


@pytest.mark.parametrize("seed", [2**64, 1.5, True])
def test_a_seed_has_64_bits(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed is .*; expected a whole number of 64 bits"):
        generate(StaticReader(make_text_model()), "def", 2, seed=seed)


def test_a_block_takes_tokens_with_finite_weights() -> None:
    block = FastWeightBlock(8, 4, 16)
    with pytest.raises(ValueError, match="hidden holds no token"):
        block(torch.zeros(1, 0, 8), torch.zeros(1, 0, dtype=torch.long))
    weights = torch.ones(1, 3)
    weights[0, 1] = float("nan")
    with pytest.raises(ValueError, match="the weight of token 1 in row 0 is nan"):
        block(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long), weights)
    model = make_block_model("mistral")
    assert model.block is not None and model.block(torch.zeros(1, 3, 16)).hidden.shape == (1, 3, 16)
