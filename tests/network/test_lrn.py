from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alexdeploy.core.spec import LRN
from alexdeploy.network import reference
from alexdeploy.network.lrn import LocalResponseNorm

CONSTANTS = [
    LRN(),
    LRN(k=1.0),
    LRN(size=3, alpha=0.3, beta=0.5, k=1.0),
    LRN(size=15, alpha=2.0),
    LRN(size=1, alpha=1.0),
]


@pytest.mark.parametrize("lrn", CONSTANTS)
@pytest.mark.parametrize("channels", [1, 4, 96])
def test_it_equals_pytorchs_own(lrn: LRN, channels: int) -> None:
    x = torch.randn(3, channels, 5, 4, generator=torch.Generator().manual_seed(0)) * 30
    own = nn.LocalResponseNorm(lrn.size, lrn.alpha, lrn.beta, lrn.k)
    torch.testing.assert_close(LocalResponseNorm(lrn)(x), own(x), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("lrn", CONSTANTS)
def test_it_equals_the_formula_in_float64(lrn: LRN) -> None:
    x = torch.randn(2, 7, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    expected = np.empty(x.shape)
    for channel in range(7):
        window = x[:, max(0, channel - lrn.size // 2) : channel + lrn.size // 2 + 1].numpy()
        total = lrn.k + lrn.alpha / lrn.size * (window**2).sum(axis=1)
        expected[:, channel] = x[:, channel].numpy() / total**lrn.beta
    np.testing.assert_allclose(LocalResponseNorm(lrn)(x).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(reference.lrn(x.numpy(), lrn), expected, rtol=1e-12)


@pytest.mark.parametrize("lrn", CONSTANTS[2:])
@pytest.mark.parametrize("towers", [1, 2])
def test_its_gradient_is_that_of_its_value(lrn: LRN, towers: int) -> None:
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(LocalResponseNorm(lrn, towers), (x,))


def test_its_gradient_equals_pytorchs_own_in_float32() -> None:
    lrn = LRN()
    x = torch.randn(4, 96, 9, 9, generator=torch.Generator().manual_seed(3)) * 50
    gradients = []
    for module in (LocalResponseNorm(lrn), nn.LocalResponseNorm(lrn.size, lrn.alpha, lrn.beta, lrn.k)):
        leaf = x.clone().requires_grad_()
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_a_tower_does_not_see_the_other() -> None:
    lrn = LRN(alpha=1.0)
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(4))
    whole = LocalResponseNorm(lrn, towers=2)(x)
    halves = [LocalResponseNorm(lrn)(half) for half in x.chunk(2, dim=1)]
    torch.testing.assert_close(whole, torch.cat(halves, dim=1), rtol=0, atol=0)
    assert not torch.allclose(whole, LocalResponseNorm(lrn)(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_sums_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    # 300 squared is beyond float16, and five of them beyond its range many times over.
    x = torch.full((2, 8, 3, 3), 300.0).to(dtype).requires_grad_()
    y = LocalResponseNorm(LRN())(x)
    y.float().sum().backward()
    exact = LocalResponseNorm(LRN())(x.detach().double())
    assert y.dtype == dtype
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=0)
