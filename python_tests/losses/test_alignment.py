"""Alignment against a loop in float64, closed forms, rows that are equal or nearly so, edges and settings."""

from __future__ import annotations

import math
import re

import pytest
import torch
from contrastive_loops import assert_near, assert_no_gradient_on_a_line, lengths, mean, rows
from hypothesis import given
from hypothesis import strategies as st
from ntxent_loops import unit
from torch import Tensor

from ldreg_kernels.losses import AlignmentLoss, alignment_loss, byol_loss

POWERS = pytest.mark.parametrize("alpha", [1, 1.5, 2, 3.0])


def loop_alignment(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    squared = [(unit(a.double()) - unit(b.double())).square().sum() for a, b in zip(x, y, strict=True)]
    return mean(squared) if alpha == 2 else mean([s ** (alpha / 2) for s in squared])


@POWERS
@pytest.mark.parametrize(("n", "d"), [(1, 2), (5, 3), (8, 32)])
def test_equals_the_loop(n: int, d: int, alpha: float) -> None:
    x, y = (z.requires_grad_() for z in rows(2, n, d))
    loss, truth = alignment_loss(x, y, alpha=alpha), loop_alignment(x, y, alpha)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-13)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, y)), torch.autograd.grad(truth, (x, y)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@POWERS
def test_gradient_by_finite_differences(alpha: float) -> None:
    x, y = (z.requires_grad_() for z in rows(2, 3, 4))
    assert torch.autograd.gradcheck(lambda x, y: alignment_loss(x, y, alpha=alpha), (x, y))


@POWERS
def test_closed_forms(alpha: float) -> None:
    z = torch.eye(4, dtype=torch.float64)
    assert alignment_loss(z, -3 * z, alpha=alpha).item() == pytest.approx(2**alpha, rel=1e-14)
    assert alignment_loss(z, z.flip(0), alpha=alpha).item() == pytest.approx(2 ** (alpha / 2), rel=1e-14)


def test_is_half_of_byols_loss_with_a_zero_row_too() -> None:
    x, y = rows(2, 5, 3)
    x[1], y[2], x[3], y[3] = 0, 0, 0, 0
    assert alignment_loss(x, y).item() == pytest.approx(byol_loss(x, x, y, y).item() / 2, rel=1e-14)


@POWERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_rows_have_loss_0_and_gradient_0(alpha: float, dtype: torch.dtype) -> None:
    """Beside rows that are not equal, which keep theirs."""
    x, y = rows(2, 4, 3, dtype=dtype)
    y[:2] = x[:2]
    alone = x[2:].clone().requires_grad_()
    alignment_loss(alone, y[2:], alpha=alpha).backward()
    alignment_loss(x.requires_grad_(), y.requires_grad_(), alpha=alpha).backward()
    for z in (x, y):
        assert z.grad[:2].tolist() == [[0] * 3] * 2
    torch.testing.assert_close(x.grad[2:], alone.grad / 2, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert alignment_loss(x[:2], y[:2], alpha=alpha).item() == 0


@pytest.mark.parametrize("apart", [1e-4, 1e-2])
def test_rows_that_are_close_keep_the_digits_they_have(apart: float) -> None:
    """Of 2 - 2 cos = apart^2 nothing would be left in float32 at 1e-4; of the difference, rounding / apart is lost."""
    x, noise = rows(2, 8, 16, dtype=torch.float32)
    y = x + apart * noise
    for alpha in (1, 2):
        truth = loop_alignment(x, y, alpha).item()
        assert alignment_loss(x, y, alpha=alpha).item() == pytest.approx(truth, rel=alpha * 1.2e-7 / apart)


@POWERS
def test_no_gradient_on_a_line(alpha: float) -> None:
    assert_no_gradient_on_a_line(lambda x, y: alignment_loss(x, y, alpha=alpha), [6, 6], alpha * 2**alpha)


@POWERS
def test_a_zero_row_has_cosine_0_and_gradient_0(alpha: float) -> None:
    x, y = rows(2, 4, 3)
    x[1], y[1], x[2] = 0, 0, 0
    loss = alignment_loss(x.requires_grad_(), y.requires_grad_(), alpha=alpha)
    loss.backward()
    others = loop_alignment(x.detach()[[0, 3]], y.detach()[[0, 3]], alpha).item()
    assert loss.item() == pytest.approx((others + math.sqrt(2) ** alpha) / 2, rel=1e-13)
    assert x.grad[1:3].tolist() == y.grad[1:3].tolist() == [[0] * 3] * 2
    assert bool(x.grad.isfinite().all() & y.grad.isfinite().all())


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 16),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    alpha=st.floats(2, 5),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_scale(n, d, exponent, spread, alpha, double, seed) -> None:
    leaves = lengths(rows(2, n, d, seed), exponent, spread, seed, torch.float64 if double else torch.float32)
    # alpha roundings of a distance, of a power up to 2^alpha.
    assert_near(
        lambda x, y: alignment_loss(x, y, alpha=alpha),
        lambda x, y: loop_alignment(x, y, alpha),
        leaves,
        alpha,
        2**alpha,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    x, y = rows(2, 6, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for other in (y, y.float()):
            loss = alignment_loss(x, other)
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(loop_alignment(x, y, 2).item(), rel=1e-6)  # of the rounded inputs


def test_compiles_into_one_graph_whatever_alpha_is() -> None:
    compiled = torch.compile(alignment_loss, fullgraph=True, backend="aot_eager")
    x, y = rows(2, 4, 8, dtype=torch.float32)
    for alpha in (2.0, 1.0, 1.5):
        torch.testing.assert_close(compiled(x, y, alpha=alpha), alignment_loss(x, y, alpha=alpha))


def test_module_is_the_function() -> None:
    x, y = rows(2, 5, 4)
    assert torch.equal(AlignmentLoss(1.5)(x, y), alignment_loss(x, y, alpha=1.5))
    assert repr(AlignmentLoss()) == "AlignmentLoss(alpha=2.0)"


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (torch.ones(3), torch.ones(3), {}, ValueError, "x must have shape [N, D], got [3]"),
        (torch.ones(0, 2), torch.ones(0, 2), {}, ValueError, "x must have at least 1 row, got 0"),
        (torch.ones(3, 2), None, {}, TypeError, "y must be a floating point tensor, got NoneType"),
        (torch.ones(3, 2), torch.ones(3, 1), {}, ValueError, "y must have the shape of x, [3, 2], got [3, 1]"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2).double(),
            {},
            TypeError,
            "y must have the dtype of x, torch.float32, got torch.float64",
        ),
        (
            torch.ones(3, 2),
            torch.ones(3, 2),
            {"alpha": 0},
            ValueError,
            "alpha must be at least 1 and finite, got 0",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), {"alpha": "2"}, TypeError, "alpha must be a number, got '2'"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2),
            {"alpha": math.inf},
            ValueError,
            "alpha must be at least 1 and finite, got inf",
        ),
    ],
)
def test_bad_arguments_are_named(x, y, options, error, message: str) -> None:
    for call in (lambda: alignment_loss(x, y, **options), lambda: AlignmentLoss(**options)(x, y)):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()
