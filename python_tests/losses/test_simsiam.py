"""SimSiam's loss against loops over rows in float64: value, gradient by the quotient rule, BYOL, scale and edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.losses import SimSiamLoss, byol_loss, simsiam_loss


def norm(v: list[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in v))


def loop_simsiam(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> tuple[float, Tensor, Tensor]:
    """The loss and its gradients by p1 and p2, number by number: d cos / dp = (z/|z| - cos p/|p|) / |p|."""
    n = len(p1)
    means, gradients = [], []
    for predictions, targets in ((p1, z2), (p2, z1)):
        gradient = torch.zeros(predictions.shape, dtype=torch.float64)
        cosines = []
        for i in range(n):
            p, z = predictions[i].double().tolist(), targets[i].double().tolist()
            cosines.append(math.fsum(a * b for a, b in zip(p, z, strict=True)) / (norm(p) * norm(z)))
            for j in range(len(p)):
                gradient[i, j] = -1 / (2 * n) * (z[j] / norm(z) - cosines[i] * p[j] / norm(p)) / norm(p)
        means.append(math.fsum(cosines) / n)
        gradients.append(gradient)
    return -(means[0] + means[1]) / 2, gradients[0], gradients[1]


def outputs(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n * 100 + d + seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


@pytest.mark.parametrize(("n", "d"), [(1, 2), (2, 1), (5, 3), (8, 32)])
def test_value_and_gradient_equal_the_loop(n: int, d: int) -> None:
    p1, p2, z1, z2 = outputs(n, d)
    value, by_p1, by_p2 = loop_simsiam(p1, p2, z1, z2)
    loss = simsiam_loss(p1.requires_grad_(), p2.requires_grad_(), z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12, abs=1e-15)
    # float64 both; a cosine near 1 cancels some digits of its gradient, which is 0 up to rounding with one column.
    torch.testing.assert_close(p1.grad, by_p1, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(p2.grad, by_p2, rtol=1e-10, atol=1e-15)


def test_gradient_by_finite_differences() -> None:
    p1, p2, z1, z2 = outputs(3, 4)
    assert torch.autograd.gradcheck(lambda a, b: simsiam_loss(a, b, z1, z2), (p1.requires_grad_(), p2.requires_grad_()))


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 16),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_byol_is_four_plus_four_times_simsiam(n: int, d: int, seed: int, dtype: torch.dtype) -> None:
    """In value and gradient, in every dtype; and each equals the loop of its inputs."""
    rows = outputs(n, d, dtype, seed)
    loss, other = simsiam_loss(*rows), byol_loss(*rows)
    rounding = 1e-12 if dtype == torch.float64 else 2e-6  # of sums of some cosines, in float32 for half inputs
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(loop_simsiam(*rows)[0], abs=rounding)
    assert -1 - rounding <= loss.item() <= 1 + rounding
    assert other.item() == pytest.approx(4 + 4 * loss.item(), abs=8 * rounding)
    wide = [row.to(loss.dtype) for row in rows]  # gradients that are not rounded to half precision
    leaves = [p.requires_grad_() for p in wide[:2]]
    ours, theirs = (torch.autograd.grad(f(*wide), leaves) for f in (simsiam_loss, byol_loss))
    for p, quarter, whole in zip(leaves, ours, theirs, strict=True):  # per unit of a row's length
        assert float(((4 * quarter - whole) * p.detach().norm(dim=1, keepdim=True)).abs().max()) < 8 * rounding


def test_known_values() -> None:
    p = outputs(4, 6)[0]
    assert simsiam_loss(p, p, p, p).item() == pytest.approx(-1, rel=1e-14)
    assert simsiam_loss(p, p, -p, -p).item() == pytest.approx(1, rel=1e-14)
    one, other = torch.eye(4, dtype=torch.float64).chunk(2)  # orthogonal views: each meets the other's target
    assert simsiam_loss(one, other, other, one).item() == pytest.approx(-1, rel=1e-14)
    assert simsiam_loss(one, other, one, other).item() == 0


def test_targets_get_no_gradient() -> None:
    p1, p2, z1, z2 = (t.requires_grad_() for t in outputs(4, 3))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert float(p1.grad.abs().sum()) > 0


def test_full_collapse_is_the_minimum_without_gradient() -> None:
    row = outputs(1, 5)[0].expand(6, 5)
    p = row.clone().requires_grad_()
    loss = simsiam_loss(p, p, row, row)
    loss.backward()
    assert loss.item() == pytest.approx(-1, rel=1e-14)
    assert float(p.grad.abs().max()) < 1e-15  # the rounding of z/|z| - cos p/|p|


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e20, 1e30])
def test_is_the_same_at_every_scale(scale: float) -> None:
    p1, p2, z1, z2 = outputs(6, 5, torch.float32)
    loss = simsiam_loss(p1, p2, z1, z2)
    scaled = (p1 * scale).requires_grad_()
    again = simsiam_loss(scaled, p2 * scale, z1 / scale, z2)
    again.backward()
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)  # float32 cosines of both signs, 1e-7 each
    _, by_p1, _ = loop_simsiam(p1, p2, z1, z2)  # the gradient goes with 1 / scale
    assert float((scaled.grad.double() * scale - by_p1).norm() / by_p1.norm()) < 1e-6


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    p1, p2, z1, z2 = outputs(3, 4)
    p1[1], z1[2] = 0, 0
    loss = simsiam_loss(p1.requires_grad_(), p2.requires_grad_(), z1, z2)
    loss.backward()
    a, b = p1.detach(), p2.detach()
    rest = [float(torch.cosine_similarity(a[i], z2[i], dim=0)) for i in (0, 2)]
    rest += [float(torch.cosine_similarity(b[i], z1[i], dim=0)) for i in (0, 1)]
    assert loss.item() == pytest.approx(-sum(rest) / 6, rel=1e-12)
    assert p1.grad[1].tolist() == [0] * 4
    assert p2.grad[2].tolist() == [0] * 4
    assert bool((p1.grad[0] != 0).all())


def test_a_row_that_is_not_finite_shows() -> None:
    p1, p2, z1, z2 = outputs(3, 4)
    for bad in (math.inf, math.nan):
        p1[1, 2] = bad
        assert simsiam_loss(p1, p2, z1, z2).isnan()


def test_autocast_takes_the_widest_dtype() -> None:
    rows = outputs(8, 16, torch.float32)
    rows = [*(p.bfloat16() for p in rows[:2]), *rows[2:]]
    with torch.autocast("cpu", torch.bfloat16):
        loss = simsiam_loss(*rows)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_simsiam(*rows)[0], abs=1e-6)
    with pytest.raises(TypeError, match=r"z1 must have the dtype of p1, torch.bfloat16, got torch.float32"):
        simsiam_loss(*rows)


def test_module_is_the_function() -> None:
    rows = outputs(5, 4)
    assert torch.equal(SimSiamLoss()(*rows), simsiam_loss(*rows))


def test_compiles_into_one_graph() -> None:
    rows = outputs(5, 4, torch.float32)
    compiled = torch.compile(simsiam_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*rows), simsiam_loss(*rows))


ROWS = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3), ROWS, ROWS, ROWS), ValueError, r"p1 must have shape \[N, D\], got \[3\]"),
        ((ROWS, torch.ones(2, 2), ROWS, ROWS), ValueError, r"p2 must have the shape of p1, \[3, 2\], got \[2, 2\]"),
        ((ROWS, ROWS, ROWS.long(), ROWS), TypeError, "z1 must be a floating point tensor, got torch.int64"),
        ((ROWS, ROWS, ROWS, ROWS.double()), TypeError, "z2 must have the dtype of p1"),
        ((ROWS, ROWS, ROWS, None), TypeError, "z2 must be a floating point tensor, got NoneType"),
        ((torch.ones(0, 2),) * 4, ValueError, "p1 must have at least 1 row"),
        ((torch.ones(2, 0),) * 4, ValueError, "p1 must have at least 1 column"),
    ],
)
def test_bad_input_names_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simsiam_loss(*arguments)
