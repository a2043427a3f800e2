"""The small encoder's convolutions of a single pixel, which bfloat16 training on some processors made NaN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldreg_kernels.trainer.networks.conv import _Convolution


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_is_the_padded_convolution(side: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = _Convolution(3, 5, 3, stride=stride, padding=1, bias=False).double()
    plain = nn.Conv2d(3, 5, 3, stride=stride, padding=1, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    maps = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64, requires_grad=True)
    for one, other in zip(
        torch.autograd.grad(ours(maps).square().sum(), (maps, ours.weight)),
        torch.autograd.grad(plain(maps).square().sum(), (maps, plain.weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_bfloat16_gradients_of_a_single_pixel_are_finite() -> None:
    """Memory that was NaN before is what the gradient of the unused weights was made of: 46 of 200 calls."""
    convolution = _Convolution(32, 64, 3, stride=2, padding=1, bias=False)
    for _ in range(50):
        left = [torch.full((count,), torch.nan) for count in (1000, 30000, 300000)]
        del left
        maps = torch.randn(256, 32, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            value = convolution(maps)
        value.float().square().mean().backward()
        assert bool(convolution.weight.grad.isfinite().all())
        convolution.zero_grad()
