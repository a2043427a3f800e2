"""NT-Xent against an explicit double loop in float64, its gradient, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldreg_kernels.losses import NTXentLoss, nt_xent_loss


def loop_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """The formula of the SimCLR paper, written out: no matrix product, no cross_entropy, no masking."""
    z = [row / math.sqrt(float(row @ row)) for row in torch.cat([z1, z2]).double()]
    rows, n = len(z), len(z1)
    total = 0.0
    for i in range(rows):
        s = [float(z[i] @ z[j]) / temperature for j in range(rows)]
        total += -s[(i + n) % rows] + math.log(sum(math.exp(s[j]) for j in range(rows) if j != i))
    return total / rows


def views(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 1, 0.5), (5, 3, 0.1), (7, 16, 1.0), (16, 8, 0.07)])
def test_equals_the_double_loop(n: int, d: int, temperature: float) -> None:
    z1, z2 = views(n, d)
    assert nt_xent_loss(z1, z2, temperature=temperature).item() == pytest.approx(
        loop_nt_xent(z1, z2, temperature), rel=1e-12
    )


def test_gradient_by_finite_differences() -> None:
    z1, z2 = (z.requires_grad_() for z in views(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, temperature=0.3), (z1, z2))


def test_known_value_for_orthogonal_pairs() -> None:
    """Positives at cosine 1, all 2N - 2 negatives at cosine 0: l = -1/t + ln(e^(1/t) + 2N - 2)."""
    z = torch.eye(4, dtype=torch.float64)
    expected = -2.0 + math.log(math.exp(2.0) + 6)
    assert nt_xent_loss(z, z, temperature=0.5).item() == pytest.approx(expected, rel=1e-14)


def test_does_not_see_scale_of_rows_or_order_of_images() -> None:
    z1, z2 = views(6, 5)
    loss = nt_xent_loss(z1, z2, temperature=0.2)
    scaled = nt_xent_loss(z1 * torch.rand(6, 1, dtype=z1.dtype).add(0.1), 100 * z2, temperature=0.2)
    order = torch.randperm(6)
    torch.testing.assert_close(scaled, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(nt_xent_loss(z2[order], z1[order], temperature=0.2), loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = views(8, 16, dtype=dtype)
    loss = nt_xent_loss(z1, z2, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1), rel=1e-6)  # of the same, rounded inputs


def test_autocast_does_not_lower_the_precision() -> None:
    z1, z2 = views(8, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(z1, z2, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_nt_xent(z1, z2, 0.1), rel=1e-6)


def test_module_is_the_function() -> None:
    z1, z2 = views(5, 4)
    module = NTXentLoss(temperature=0.3)
    assert torch.equal(module(z1, z2), nt_xent_loss(z1, z2, temperature=0.3))
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize(
    ("z1", "z2", "temperature", "error", "message"),
    [
        (
            torch.ones(3, 2),
            torch.ones(3, 2),
            0.0,
            ValueError,
            "temperature must be positive and finite, got 0.0",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), math.nan, ValueError, "temperature must be positive"),
        (torch.ones(3), torch.ones(3), 0.1, ValueError, r"z1 must have shape \[N, D\], got \[3\]"),
        (torch.ones(3, 2), torch.ones(2, 2), 0.1, ValueError, r"z2 must have the shape of z1, \[3, 2\]"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), 0.1, TypeError, "z2 must have the dtype of z1"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), 0.1, TypeError, "z1 must be a floating point tensor"),
        (torch.ones(1, 2), torch.ones(1, 2), 0.1, ValueError, "z1 must have at least 2 rows"),
    ],
)
def test_bad_input_names_the_argument(
    z1: Tensor, z2: Tensor, temperature: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nt_xent_loss(z1, z2, temperature=temperature)


def test_bad_temperature_is_refused_when_the_module_is_built() -> None:
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature=-1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e20, 1e30])
def test_is_the_same_at_every_scale(scale: float) -> None:
    z1, z2 = views(16, 8, dtype=torch.float32)
    z1.requires_grad_()
    loss = nt_xent_loss(z1, z2, temperature=0.1)
    loss.backward()
    scaled = (z1.detach() * scale).requires_grad_()
    again = nt_xent_loss(scaled, z2 * scale, temperature=0.1)
    again.backward()
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert float((scaled.grad.double() * scale - z1.grad).norm() / z1.grad.norm()) < 1e-5  # 1/t times rounding


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    z1, z2 = views(4, 3)
    z1[2] = 0
    loss = nt_xent_loss(z1.requires_grad_(), z2, temperature=0.1)
    loss.backward()
    z = [row / max(math.sqrt(float(row @ row)), 1e-300) for row in torch.cat([z1.detach(), z2])]
    s = [[float(a @ b) / 0.1 for b in z] for a in z]
    expected = [math.log(sum(math.exp(s[i][j]) for j in range(8) if j != i)) - s[i][(i + 4) % 8] for i in range(8)]
    assert loss.item() == pytest.approx(sum(expected) / 8, rel=1e-12)
    assert z1.grad[2].tolist() == [0] * 3
    assert bool(z1.grad.isfinite().all())
