"""Readers under surgery keep the contract of all readers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fwl_lab import Reader, StaticReader, Surgery, operate
from tests.helpers.contract import (
    check_batch,
    check_causality,
    check_partition,
    check_scores_are_predictions,
    read_alone,
)
from tests.helpers.models import INNER_BATCH, READERS, SEGMENT, make_block_model, make_tokens

LENGTH = 45
KINDS = ("fwl", "sgd")
EVERY = {"fwl": INNER_BATCH, "sgd": SEGMENT}
# One of each kind of surgery; the tokens are the last ones of a segment.
SURGERIES = {
    "tokens": Surgery(drop=[SEGMENT - 1], token_scale={2 * SEGMENT - 1: -0.5}),
    "decay": Surgery(decay=0.3),
    "all": Surgery(drop=[SEGMENT - 1], decay=0.1, rank=4),
}


def read(reader: Reader, tokens: Tensor) -> Tensor:
    return reader.read(tokens).nll


@pytest.mark.parametrize("name", KINDS)
def test_a_step_scale_of_zero_stays_static_bitwise(name: str) -> None:
    model, tokens = make_block_model("mistral"), make_tokens(2, LENGTH)
    for surgery in SURGERIES.values():
        frozen = operate(READERS[name](model), surgery).with_step_scale(0)
        assert torch.equal(read(frozen, tokens), read(StaticReader(frozen.model), tokens))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("which", "family"), [("tokens", "mistral"), ("decay", "mistral"), ("all", "mistral"), ("all", "gpt2")]
)
def test_an_operated_reader_keeps_the_contract(which: str, family: str, name: str) -> None:
    model = make_block_model(family, torch.float64)
    surgery = SURGERIES[which]
    if which == "all":
        matrix = next(n for n, weight in READERS[name](model).slow_weights().items() if weight.ndim == 2)
        surgery = dataclasses.replace(surgery, remove_directions={matrix: [0, 2]})

    def make_reader() -> Reader:
        return operate(READERS[name](model), surgery)

    tokens = make_tokens(3, LENGTH)
    one = tokens[:1]
    before = read(make_reader(), one)
    for position in (0, EVERY[name] - 1, EVERY[name], 2 * EVERY[name] + 1, LENGTH - 1):
        check_causality(make_reader, one, position, before=before)
    check_partition(make_reader, one, range(1, LENGTH), tolerance=1e-11)
    check_partition(make_reader, tokens[:2], (7, SEGMENT, 2 * INNER_BATCH), tolerance=1e-11)
    check_batch(make_reader, tokens, read_alone(make_reader, tokens), (31, 5, 20), (2, 0, 1), tolerance=1e-11)
    check_scores_are_predictions(make_reader, tokens[:2, :30], tolerance=1e-11)
    assert float((before - read(READERS[name](model), one)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_an_operated_reader_is_saved_forked_reset_and_frozen(name: str, tmp_path: Path) -> None:
    model = make_block_model("mistral")
    hashes = model.weight_hash(), model.base.weight_hash()

    def make_reader() -> Reader:
        return operate(READERS[name](model), SURGERIES["all"])

    tokens = make_tokens(1, 60)
    reader = make_reader()
    start = read(reader, tokens[:, :29])
    reader.save(tmp_path / "reader.safetensors")
    twin, other, still = reader.fork(), make_reader(), reader.without_learning()
    other.load(tmp_path / "reader.safetensors")
    rest = read(reader, tokens[:, 29:])
    assert torch.equal(read(twin, tokens[:, 29:]), rest) and torch.equal(read(other, tokens[:, 29:]), rest)
    learned = {name: delta.clone() for name, delta in still.fast_weights().items()}
    read(still, tokens[:, 29:])
    assert all(torch.equal(delta, learned[name]) for name, delta in still.fast_weights().items())
    reader.reset()
    assert torch.equal(read(reader, tokens[:, :29]), start)
    assert (model.weight_hash(), model.base.weight_hash()) == hashes
    with pytest.raises(ValueError, match="surgery"):
        operate(READERS[name](model), Surgery(rank=3, drop=[SEGMENT - 1], decay=0.1)).load(
            tmp_path / "reader.safetensors"
        )
