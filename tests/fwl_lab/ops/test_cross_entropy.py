"""The streamed cross-entropy: its values, its first and second derivatives, and what it takes for granted."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab.ops import cross_entropy
from fwl_lab.ops.cross_entropy import Gathered, linear_cross_entropy, token_losses, token_nll

TOKENS, WIDTH, VOCABULARY = 4, 3, 11


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles of unequal width in place of one."""
    monkeypatch.setattr(cross_entropy, "TILE", 12)
    monkeypatch.setattr(cross_entropy, "NARROWEST_TILE", 3)


def make(dtype: torch.dtype = torch.float64, *, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden (N, D), weight (V, D), bias (V,), labels (N,)."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((TOKENS, WIDTH), (vocabulary, WIDTH), (vocabulary,))
    )
    return hidden, weight, bias, torch.randint(0, vocabulary, (TOKENS,), generator=g)


def definition(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """NLL and δ with all logits at hand."""
    nll = F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="none")
    return nll, torch.autograd.grad(nll.sum(), hidden, create_graph=True)[0]


def test_first_second_and_third_derivatives() -> None:
    """δ is a first derivative already, so `gradgradcheck` looks at third ones too."""
    hidden, weight, bias, labels = make()
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)

    def all_learn(h: Tensor, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(h, u, c, labels, weights)

    def frozen(h: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(h, weight.detach(), None, labels)

    assert torch.autograd.gradcheck(all_learn, (hidden, weight, bias))
    assert torch.autograd.gradgradcheck(all_learn, (hidden, weight, bias))
    assert torch.autograd.gradcheck(frozen, (hidden,))
    assert torch.autograd.gradgradcheck(frozen, (hidden,))


@pytest.mark.parametrize("biased", [True, False])
def test_equals_the_definition(biased: bool) -> None:
    hidden, weight, bias, labels = make()
    arguments = (hidden, weight, bias if biased else None)
    leaves = [x for x in arguments if x is not None]
    results = [function(*arguments, labels) for function in (linear_cross_entropy, definition)]
    mix = torch.linspace(-1, 1, TOKENS * WIDTH, dtype=torch.float64).view(TOKENS, WIDTH)
    gradients = [torch.autograd.grad((nll * mix[:, 0] + (d * mix).sum(1)).sum(), leaves) for nll, d in results]
    for ours, theirs in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)  # worst seen: 2e-15


def test_a_weight_of_zero_hides_anything() -> None:
    hidden, weight, bias, labels = make()
    rubbish, wrong = hidden.detach().clone(), labels.clone()
    rubbish[1], wrong[1] = torch.nan, -100
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    ours = linear_cross_entropy(rubbish.requires_grad_(), weight, bias, wrong, weights)
    theirs = linear_cross_entropy(hidden, weight, bias, labels)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[[0, 2, 3]], other[[0, 2, 3]], rtol=0, atol=0)
        assert not bool(mine[1].any())
    (ours[0].sum() + ours[1].sum()).backward()
    assert rubbish.grad is not None and bool(rubbish.grad.isfinite().all()) and not bool(rubbish.grad[1].any())


def test_logits_far_apart_do_not_overflow() -> None:
    hidden, weight, bias, labels = (x.detach() * 300 if x.is_floating_point() else x for x in make(torch.float32))
    nll, delta = linear_cross_entropy(hidden, weight, bias, labels)
    expected = definition(hidden.double().requires_grad_(), weight.double(), bias.double(), labels)
    torch.testing.assert_close(nll.double(), expected[0], rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(delta.double(), expected[1], rtol=1e-5, atol=1e-2)


def test_bfloat16_inputs_are_summed_in_float32() -> None:
    """Over 20,000 words a sum in bfloat16 would stop growing at 256."""
    hidden, weight, _, labels = make(torch.bfloat16, vocabulary=20_000)
    nll, delta = linear_cross_entropy(hidden, weight, None, labels)
    expected = definition(hidden.detach().double().requires_grad_(), weight.detach().double(), None, labels)
    assert nll.dtype == delta.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected[0], rtol=0, atol=0.02)  # worst seen: 5e-3; logits are rounded
    torch.testing.assert_close(delta.double(), expected[1], rtol=0, atol=0.02)


def test_no_nll_is_negative_in_bfloat16() -> None:
    """The label's logit is rounded as the others are, so that a token foreseen with certainty costs 0, not less."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 16, generator=g).bfloat16()
    labels = torch.randint(0, 500, (64,), generator=g)
    nll, _ = linear_cross_entropy(4 * weight[labels].float(), weight, None, labels)
    assert float(nll.min()) >= 0 and float(nll.min()) < 1e-3


def test_gathered_gradients_equal_those_that_autograd_adds() -> None:
    hidden, weight, bias, labels = make()

    def unrolled(shared: bool) -> Tensor:
        gathered = Gathered() if shared else None
        u = gathered.share(weight) if gathered is not None else weight
        x, loss = hidden, torch.zeros((), dtype=torch.float64)
        for _ in range(3):
            nll, delta = linear_cross_entropy(x, u, bias, labels, gathered=gathered)
            x, loss = x + 0.3 * delta, loss + nll.sum()
        return loss + 0.1 * u.square().sum()

    expected = torch.autograd.grad(unrolled(False), (hidden, weight, bias))
    loss = unrolled(True)
    torch.autograd.grad(loss, hidden, retain_graph=True)  # a pass that U is no part of leaves nothing behind
    for _ in range(2):
        ours = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
        for mine, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)  # worst seen: 2e-15


def test_losses_that_are_given_are_not_computed_again() -> None:
    hidden, weight, bias, labels = make()
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    first = linear_cross_entropy(hidden, weight, bias, labels, weights)
    losses = token_losses(hidden, weight, bias, labels, weights)
    assert not any(x.requires_grad for x in losses)
    again = linear_cross_entropy(hidden, weight.detach() * torch.nan, bias, labels, weights, losses=losses)
    for mine, other in zip(again, first, strict=True):
        assert torch.equal(mine, other)
    again = linear_cross_entropy(hidden, weight, bias, labels, weights, losses=losses)
    leaves, mix = (hidden, weight, bias), torch.linspace(-1, 1, TOKENS * WIDTH, dtype=torch.float64).view(TOKENS, WIDTH)
    for mine, other in zip(
        *(torch.autograd.grad((nll.sum() + (d * mix).sum()), leaves) for nll, d in (again, first)), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_token_nll_streams_what_does_not_fit(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = make()
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    valid = torch.tensor([True, False, True, True])
    expected = definition(hidden, weight, bias, labels)[0].where(valid, 0.0)
    ours = token_nll(hidden, weight, bias, labels, valid)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), (hidden, weight, bias)),
        torch.autograd.grad(expected.square().sum(), (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(token_nll(hidden, weight, bias, labels, valid), expected, rtol=0, atol=1e-13)
