"""A fast-weight block on any family, tied or not, biased or not, in half precision: attached, retrofitted, saved."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fwl_lab import (
    FastWeightReader,
    LanguageModel,
    StaticReader,
    TrainingConfig,
    UpdateRule,
    attach_fast_weights,
    load_model,
    train,
)
from tests.helpers.models import DOCUMENTS, FAMILIES, WIDTH, make_text_model

NARROW = 3  # the block's inner width is then 12, the model's 16
RULE = UpdateRule(inner_batch=10, decay=0.1, learn_decay=True, schedule=(20, 0.5), cap=0.5)


class Case(NamedTuple):
    family: str
    tied: bool
    biased: bool
    dtype: torch.dtype
    size: int | None


# Each family with each value of everything, and each pair of values somewhere.
CASES = [
    case
    for shift, family in enumerate(FAMILIES)
    for case in (
        Case(family, shift % 2 == 0, False, torch.float32, NARROW),
        Case(family, shift % 2 == 1, True, torch.bfloat16, NARROW),
        Case(family, shift % 2 == 0, shift % 2 == 1, torch.bfloat16, None),
    )
]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.family}-{'tied' if c.tied else 'untied'}-{'biased' if c.biased else 'plain'}-"
    f"{str(c.dtype).removeprefix('torch.')}-{c.size or 'wide'}",
)  # fmt: skip


def make(case: Case, rule: UpdateRule = RULE) -> LanguageModel:
    base = make_text_model(case.family, biased_unembedding=case.biased, tie_word_embeddings=case.tied)
    return attach_fast_weights(base.to(case.dtype), case.size, rule)


def text(model: LanguageModel) -> Tensor:
    """(2, T) tokens: a document, and another begun in its middle."""
    ids = model.encode("".join(document.text for document in DOCUMENTS))
    return torch.stack([ids[:90], ids[60:150]])


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@every_case
def test_an_untrained_block_reads_as_its_base_bitwise(case: Case) -> None:
    model = make(case)
    head, embedding = model.unembedding, model.network.get_input_embeddings()
    assert (head.weight is embedding.weight) == case.tied
    assert (head.bias is not None) == case.biased
    assert model.block is not None
    assert {p.dtype for p in model.network.parameters()} == {case.dtype}
    assert {p.dtype for p in model.block.parameters()} == {torch.float32}
    assert model.block.W1.shape == (4 * (case.size or WIDTH), WIDTH)
    ids = text(model)
    # Cut alike: bit for bit, two cuts need not agree.
    parts = (ids[:, :50], ids[:, 50:])
    base = StaticReader(model.base)
    expected = [base.read(part).nll for part in parts]
    assert bool(torch.cat(expected, 1).isfinite().all()) and float(expected[0].std()) > 0.1
    for kind in (StaticReader, FastWeightReader):
        reader = kind(model)
        assert torch.equal(reader.read(parts[0]).nll, expected[0]), kind.__name__
        nexts = reader.next_log_probs().gather(1, ids[:, 50:51])[:, 0]
        assert torch.equal(reader.read(parts[1]).nll, expected[1]), kind.__name__
        # What it expected next is what it then scored; in bfloat16 two cuts round apart.
        close = 1e-5 if case.dtype == torch.float32 else 0.1
        torch.testing.assert_close(-nexts, expected[1][:, 0], rtol=0, atol=close, check_dtype=False)


@every_case
def test_a_retrofit_trains_the_block_alone_and_comes_back_bitwise(case: Case, tmp_path: Path) -> None:
    model = make(case)
    assert model.block is not None
    body, block, ids = weights(model.network), weights(model.block), text(model)
    config = TrainingConfig(steps=2, rows=2, tokens=24, warmup=0, learning_rate=0.05, step_size_learning_rate=0.05)
    train(model, DOCUMENTS, config, progress=False)
    for name, parameter in model.network.named_parameters():
        assert torch.equal(parameter, body[name]), name
    # W1 and b1 learn from the second step on: until then W2 is 0.
    same = [name for name, parameter in model.block.named_parameters() if torch.equal(parameter, block[name])]
    assert same == []
    read = FastWeightReader(model).read(ids).nll
    static, base = StaticReader(model).read(ids).nll, StaticReader(model.base).read(ids).nll
    assert bool(read.isfinite().all())
    assert not torch.equal(read, static) and not torch.equal(static, base)

    model.save(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype=case.dtype)
    assert loaded.block is not None and loaded.block.rule == RULE
    assert (loaded.dtype, loaded.block.W1.dtype) == (case.dtype, torch.float32)
    assert (loaded.weight_hash(), loaded.base.weight_hash()) == (model.weight_hash(), model.base.weight_hash())
    assert torch.equal(FastWeightReader(loaded).read(ids).nll, read)
    assert torch.equal(StaticReader(loaded).read(ids).nll, static)
    assert torch.equal(StaticReader(loaded.base).read(ids).nll, base)
