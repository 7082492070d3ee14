"""The norms that are written once: bitwise the modules' values, and autograd's gradients."""

import pytest
import torch
from torch import Tensor, nn

from fwl_lab.ops.norms import Normalisation, RMSNorm

WIDTH = 7


def make_norm(kind: str, dtype: torch.dtype = torch.float64) -> nn.LayerNorm | RMSNorm:
    """A norm with a random gain (and bias) and an ε that matters."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(WIDTH, eps=0.1) if kind == "layer" else RMSNorm(nn.Parameter(torch.ones(WIDTH)), 0.1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm.to(dtype)


def make_input(dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_gives_bitwise_what_its_module_gives(kind: str, dtype: torch.dtype) -> None:
    norm, z = make_norm(kind, dtype), make_input(dtype)
    rule = Normalisation.of(norm)
    assert rule == Normalisation(kind, 0.1)  # type: ignore[arg-type]
    assert torch.equal(rule.apply(z, norm.weight, getattr(norm, "bias", None)), norm(z))
    assert torch.equal(rule.apply(z), rule.forward(z)[0])


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_definition(kind: str) -> None:
    z = make_input()
    normed, scale = Normalisation(kind, 0.1).forward(z)  # type: ignore[arg-type]
    centred = z - z.mean(-1, keepdim=True) if kind == "layer" else z
    sigma = (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(normed, centred / sigma, rtol=0, atol=1e-14)  # worst seen: 4e-16
    torch.testing.assert_close(scale, 1 / sigma, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_backward_is_the_gradient_and_can_be_differentiated(kind: str) -> None:
    rule, z = Normalisation(kind, 0.1), make_input().requires_grad_()  # type: ignore[arg-type]
    upstream = make_input().flip(0).requires_grad_()
    normed, scale = rule.forward(z)
    ours = rule.backward(upstream, normed, scale)
    (theirs,) = torch.autograd.grad(normed, z, upstream, create_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)  # worst seen: 1e-15
    mix = make_input().flip(1)
    second = [torch.autograd.grad((x * mix).sum(), (z, upstream), retain_graph=True) for x in (ours, theirs)]
    for mine, other in zip(*second, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)  # worst seen: 9e-15
