"""Uniformity against a loop over pairs in float64, closed forms, its gradient, edges and settings."""

from __future__ import annotations

import re

import pytest
import torch
from contrastive_loops import (
    assert_gradients_equal,
    assert_half_rows_are_the_rows,
    assert_near,
    assert_no_gradient_on_a_line,
    cosine,
    lengths,
    rows,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ldreg_kernels.losses import UniformityLoss, uniformity_loss


def loop_uniformity(x: Tensor, t: float | Tensor) -> Tensor:
    """Every pair once; a squared distance is 2 - 2 cos."""
    pairs = [torch.exp(-t * (2 - 2 * cosine(x[i], x[j]))) for i in range(len(x)) for j in range(i)]
    return torch.stack(pairs).mean().log()


@pytest.mark.parametrize(("n", "d", "t"), [(2, 1, 2.0), (2, 3, 0.5), (7, 4, 2.0), (9, 16, 10.0)])
def test_equals_the_loop_over_pairs(n: int, d: int, t: float) -> None:
    """In value and in every gradient: rows and t."""
    x, slope = rows(1, n, d)[0].requires_grad_(), torch.tensor(t, dtype=torch.float64, requires_grad=True)
    assert_gradients_equal(uniformity_loss(x, t=slope), loop_uniformity(x, slope), [x, slope])


def test_equals_torchs_distances() -> None:
    x = rows(1, 8, 5)[0]
    expected = torch.pdist(F.normalize(x)).square().mul(-2).exp().mean().log()
    assert uniformity_loss(x).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_by_finite_differences() -> None:
    x, t = rows(1, 5, 3)[0].requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: uniformity_loss(x, t=t), (x, t))


@pytest.mark.parametrize("t", [0.5, 2.0, 50.0])
def test_closed_forms(t: float) -> None:
    """Two opposite rows, orthogonal rows, a regular simplex: all pairs at one distance."""
    opposite = torch.tensor([[2.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    orthogonal = torch.eye(5, dtype=torch.float64)
    for x, squared in ((opposite, 4), (orthogonal, 2), (orthogonal - 1 / 5, 2 + 2 / 4)):
        assert uniformity_loss(x, t=t).item() == pytest.approx(-t * squared, rel=1e-13)


@pytest.mark.parametrize("t", [0.5, 50.0])
def test_collapse(t: float) -> None:
    """All rows equal: 0, the largest value; on a line: no gradient."""
    x = torch.linspace(0.1, 3, 6, dtype=torch.float64)[:, None] * torch.tensor([[1.0, -2.0, 0.5]]).double()
    assert uniformity_loss(x, t=t).item() == pytest.approx(0, abs=1e-15 * (1 + 4 * t))
    assert_no_gradient_on_a_line(lambda x: uniformity_loss(x, t=t), [6], 4 * t)


def test_a_zero_row_has_cosine_0_and_gradient_0() -> None:
    x = rows(1, 5, 3)[0]
    x[2] = 0
    loss = uniformity_loss(x.requires_grad_())
    loss.backward()
    assert loss.item() == pytest.approx(loop_uniformity(x.detach(), 2).item(), rel=1e-12)
    assert x.grad[2].tolist() == [0] * 3
    assert bool(x.grad.isfinite().all())


@given(
    n=st.integers(2, 8),
    d=st.integers(1, 16),
    exponent=st.floats(-30, 30),
    spread=st.floats(0, 1),
    t=st.floats(0.01, 50),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_scale(n, d, exponent, spread, t, double, seed) -> None:
    leaves = lengths(rows(1, n, d, seed), exponent, spread, seed, torch.float64 if double else torch.float32)
    # The logits are 2t cosines.
    assert_near(lambda x: uniformity_loss(x, t=t), lambda x: loop_uniformity(x, t), leaves, 2 * t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = rows(1, 6, 8, dtype=dtype)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = uniformity_loss(x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_uniformity(x, 2).item(), rel=1e-6)  # of the same, rounded inputs


def test_half_precision_rows_with_a_factor(monkeypatch) -> None:
    assert_half_rows_are_the_rows(
        monkeypatch,
        "uniformity",
        lambda x: uniformity_loss(x, backend="reference"),
        rows(1, 6, 8, dtype=torch.float16),
    )


def test_compiles_into_one_graph_whatever_t_and_n_are() -> None:
    compiled = torch.compile(uniformity_loss, fullgraph=True, backend="aot_eager")
    for n, t in ((4, 2.0), (6, 3.0), (7, 4.0)):
        x = rows(1, n, 8, dtype=torch.float32)[0]
        torch.testing.assert_close(compiled(x, t=t), uniformity_loss(x, t=t))


def test_module_is_the_function() -> None:
    x = rows(1, 5, 4)[0]
    assert torch.equal(UniformityLoss(3.0)(x), uniformity_loss(x, t=3.0))
    assert repr(UniformityLoss()) == "UniformityLoss(t=2.0)"
    assert [name for name, _ in UniformityLoss(nn.Parameter(torch.tensor(2.0))).named_parameters()] == ["t"]


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (torch.ones(3), {}, ValueError, "x must have shape [N, D], got [3]"),
        (torch.ones(3, 2).long(), {}, TypeError, "x must be a floating point tensor, got torch.int64"),
        (torch.ones(1, 2), {}, ValueError, "x must have at least 2 rows, so that pairs exist, got 1"),
        (torch.ones(3, 2), {"t": 0}, ValueError, "t must be positive and finite, got 0"),
        (torch.ones(3, 2), {"t": "2"}, TypeError, "t must be a number or a 0-d tensor, got '2'"),
        (torch.ones(3, 2), {"t": torch.ones(2)}, ValueError, "t must be a number or a 0-d tensor, got shape [2]"),
        (
            torch.ones(3, 2),
            {"backend": "gpu"},
            ValueError,
            "backend must be one of auto, triton, cpu, reference, got 'gpu'",
        ),
    ],
)
def test_bad_arguments_are_named(x, options, error, message: str) -> None:
    for call in (lambda: uniformity_loss(x, **options), lambda: UniformityLoss(**options)(x)):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()
