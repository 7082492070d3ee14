"""The formulas of the work say what is executed."""

import pytest
import torch
from torch.nn import functional as F

from fwl_lab.ops import cross_entropy
from fwl_lab.profiling import flop_formulas as flops
from fwl_lab.profiling.flop_formulas import (
    DYNAMIC,
    FROZEN,
    FWL,
    FWL_TRAINING,
    PLAIN_TRAINING,
    STATIC,
    WORK,
    flops_per_token,
)
from fwl_lab.profiling.flops import count_flops
from fwl_lab.profiling.workloads import workload
from tests.helpers.models import make_block_model, make_tokens


def test_what_torch_leaves_out_is_counted():
    a, b, x = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4)
    counted = {
        "addmm_": count_flops(lambda: torch.zeros(3, 5).addmm_(a, b)),
        "baddbmm_": count_flops(lambda: torch.zeros(2, 3, 5).baddbmm_(a.expand(2, 3, 4), b.expand(2, 4, 5))),
        "mv": count_flops(lambda: a.mv(x)),
        "addmv": count_flops(lambda: torch.addmv(torch.zeros(3), a, x)),
        "addmv_": count_flops(lambda: torch.zeros(3).addmv_(a, x)),
        "dot": count_flops(lambda: x.dot(x)),
    }
    assert counted == {"addmm_": 120, "baddbmm_": 240, "mv": 24, "addmv": 24, "addmv_": 24, "dot": 8}


def test_attention_is_two_products_and_five_back():
    query, key = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 10, 8, requires_grad=True)
    mask = torch.ones(6, 10, dtype=torch.bool)
    product = 2 * 2 * 6 * 10 * 8
    assert count_flops(lambda: F.scaled_dot_product_attention(query, key, key, mask)) == 2 * product
    assert count_flops(lambda: F.scaled_dot_product_attention(query, key, key, mask).sum().backward()) == 7 * product


# Lengths that are whole inner batches, that are whole windows and segments, and that are none of these.
@pytest.mark.parametrize(("family", "tokens"), [("gpt2", 64), ("gpt2", 77), ("mistral", 1), ("mistral", 60)])
@pytest.mark.parametrize("what", WORK)
def test_formula_and_execution_agree(what, family, tokens):
    model = make_block_model(family)
    counted = count_flops(workload(model, what, make_tokens(1, tokens))) / tokens
    assert counted == pytest.approx(flops_per_token(model, what, tokens), rel=0.02)


@pytest.mark.parametrize("what", [FWL_TRAINING, FWL_TRAINING + FROZEN])
def test_formula_and_execution_agree_where_logits_are_too_many(what, monkeypatch):
    for module in (cross_entropy, flops):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 100)
    test_formula_and_execution_agree(what, "gpt2", 60)


def test_formula_of_the_smallest_case_by_hand():
    """One token: body and head of static reading, written out from the model's sizes."""
    model = make_block_model("gpt2", n_layer=1, n_embd=8, n_head=2, vocabulary=20)
    body = 8 * 24 + 8 * 8 + 2 * 8 * 32  # attention in, attention out, feed-forward
    attention = 2 * 8  # one query, one key: score and value, all heads together
    assert flops_per_token(model, STATIC, 1) == 2 * (body + attention + 20 * 8)


def test_what_adapting_adds():
    model = make_block_model("mistral", inner_batch=10)
    wide, width = model.block.W1.shape
    added = flops_per_token(model, FWL, 60) - flops_per_token(model, STATIC, 60)
    assert added == pytest.approx(2 * (2 * model.vocab_size * width + 6 * wide * width + 2 * 10 * (wide + width)))
    assert flops_per_token(model, DYNAMIC, 64) > 2.9 * flops_per_token(model, STATIC, 64)
    for what in (FWL_TRAINING, PLAIN_TRAINING):
        assert flops_per_token(model, what, 60) > flops_per_token(model, what + FROZEN, 60) > added


def test_refusals():
    model = make_block_model("gpt2")
    with pytest.raises(ValueError, match=r"'reading'; expected one of static, fwl"):
        flops_per_token(model, "reading", 4)
    with pytest.raises(ValueError, match="tokens is 0"):
        flops_per_token(model, STATIC, 0)
    with pytest.raises(ValueError, match="no fast-weight block, which 'fwl' needs"):
        flops_per_token(model.base, FWL, 4)
    with pytest.raises(ValueError, match="inner batches of 500 tokens are computed in pieces"):
        flops_per_token(make_block_model("gpt2", inner_batch=None), FWL, 500)
