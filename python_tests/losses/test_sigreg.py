"""SIGReg against a loop over directions, knots and rows in float64, the integral's closed form, memory and edges."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.losses import SIGRegLoss, sigreg_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(n * 100 + d + seed), dtype=torch.float64).to(dtype)


def projections_of(x: Tensor, directions: int, seed: int = 0) -> list[list[float]]:
    """Along the same directions: normals, brought to length 1; of float32 inputs normals that are drawn in float32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    normals = torch.randn(directions, x.shape[1], generator=generator(seed), dtype=dtype).double().tolist()
    found = []
    for a in normals:
        length = math.sqrt(math.fsum(c * c for c in a))
        found.append([math.fsum(c * v for c, v in zip(a, row, strict=True)) / length for row in x.double().tolist()])
    return found


def loop_sigreg(x: Tensor, directions: int, knots: int = 17, limit: float = 5.0, seed: int = 0) -> float:
    """The paper's listing: all knots of [-limit, limit], complex exponentials, trapezoids one by one."""
    statistics = []
    for p in projections_of(x, directions, seed):
        heights = []
        for i in range(knots):
            t = -limit + 2 * limit * i / (knots - 1)
            empirical = sum(cmath.exp(1j * t * v) for v in p) / len(p)
            heights.append(abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
        area = math.fsum((a + b) / 2 * 2 * limit / (knots - 1) for a, b in itertools.pairwise(heights))
        statistics.append(len(p) * area)
    return math.fsum(statistics) / directions


def closed_form(p: list[float]) -> float:
    """N times the integral over the real line: three integrals of Gaussians times cosines."""
    n = len(p)
    pairs = math.fsum(math.exp(-((a - b) ** 2) / 2) for a in p for b in p) * math.sqrt(2 * math.pi) / n**2
    singles = math.fsum(math.exp(-a * a / 4) for a in p) * 2 * math.sqrt(math.pi) / n
    return n * (pairs - singles + math.sqrt(2 * math.pi / 3))


@given(
    n=st.integers(1, 8),
    d=st.integers(1, 9),
    directions=st.integers(1, 5),
    half=st.integers(1, 9),
    limit=st.floats(0.5, 6),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_the_loop(n, d, directions, half, limit, seed, dtype) -> None:
    x, knots = rows(n, d, dtype, seed), 2 * half + 1
    loss = sigreg_loss(x, directions=directions, knots=knots, limit=limit, generator=generator(seed))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Cosines of angles up to 6 * 10, rounded to 60 ulp, N times: some 1e-5 in float32.
    bound = 1e-12 if dtype == torch.float64 else 5e-5
    assert loss.item() == pytest.approx(loop_sigreg(x, directions, knots, limit, seed), rel=bound, abs=bound)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (6, 3), (20, 2)])
def test_many_knots_reach_the_integral_over_the_real_line(n: int, d: int) -> None:
    """The trapezoidal rule is exact to exp(-(2 pi / h - |p|)^2 / 2) on the whole line, which ends at exp(-12^2 / 2)."""
    x = rows(n, d)
    loss = sigreg_loss(x, directions=4, knots=121, limit=12.0, generator=generator())
    expected = math.fsum(closed_form(p) for p in projections_of(x, 4)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-11)


def test_the_papers_knots_are_near_the_integral() -> None:
    """What the default cuts off and coarsens: exp(-5^2 / 2) beyond the limit, aliases at 2 pi / 0.625."""
    x = rows(64, 8)
    expected = math.fsum(closed_form(p) for p in projections_of(x, 256)) / 256
    assert sigreg_loss(x, generator=generator()).item() == pytest.approx(expected, rel=1e-3)


def test_standard_normal_rows_have_the_expected_statistic() -> None:
    """E T = integral (1 - g^2) g = sqrt(2 pi) - sqrt(2 pi / 3) at N(0, 1), whatever N; elsewhere it grows with N."""
    x = rows(4000, 4)
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    loss = sigreg_loss(x, generator=generator()).item()
    assert loss == pytest.approx(expected, rel=0.5)  # its deviation is about half of it, of few independent directions
    assert sigreg_loss(1.3 * x, generator=generator()).item() > 20 * expected
    assert sigreg_loss(x + 0.5, generator=generator()).item() > 20 * expected


def test_gradient_by_finite_differences() -> None:
    x = rows(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sigreg_loss(x, directions=4, knots=9, generator=generator()), (x,))
    assert torch.autograd.gradgradcheck(lambda x: sigreg_loss(x, directions=2, knots=5, generator=generator()), (x,))


def test_torch_func_takes_the_gradient() -> None:
    x = rows(5, 3).requires_grad_()
    sigreg_loss(x, directions=4, generator=generator()).backward()
    gradient = torch.func.grad(lambda x: sigreg_loss(x, directions=4, generator=generator()))(x.detach())
    torch.testing.assert_close(gradient, x.grad, rtol=1e-12, atol=0)


def test_gradient_equals_the_formula() -> None:
    """d/dp_n of N |phi - g|^2 is 2 t (S cos(t p_n) - (C - g) sin(t p_n)), for phi = C + iS."""
    x = rows(4, 1).requires_grad_()  # in one dimension every direction is +-1, and both say the same
    sigreg_loss(x, directions=3, knots=11, limit=4.0).backward()
    p = x.detach().flatten().tolist()
    for n, v in enumerate(p):
        total = []
        for i in range(11):
            t, weight = -4 + 0.8 * i, 0.4 if i in (0, 10) else 0.8
            g = math.exp(-t * t / 2)
            c, s = (math.fsum(f(t * u) for u in p) / 4 for f in (math.cos, math.sin))
            total.append(weight * g * 2 * t * (s * math.cos(t * v) - (c - g) * math.sin(t * v)))
        assert x.grad[n].item() == pytest.approx(math.fsum(total), rel=1e-11)


def test_collapsed_rows_move_together_and_nothing_pulls_them_apart() -> None:
    c = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    x = c.repeat(8, 1).requires_grad_()
    sigreg_loss(x, generator=generator()).backward()
    assert float((x.grad - x.grad[0]).abs().max()) < 1e-14
    assert float(x.grad[0] @ c[0]) > 0.1  # downhill is towards 0
    zero = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    sigreg_loss(zero, generator=generator()).backward()
    assert not bool(zero.grad.any())
    apart = []
    for spread in (1e-2, 1e-4):
        x = (c + spread * rows(8, 3)).requires_grad_()
        sigreg_loss(x, generator=generator()).backward()
        apart.append(float((x.grad - x.grad.mean(dim=0)).norm()))
    assert apart[0] / apart[1] == pytest.approx(100, rel=0.05)  # the next order in 1e-2


def test_projections_have_a_period() -> None:
    """2 pi / h for knots h apart: a row at 6 is drawn outwards with the paper's 17, inwards with the released 33."""
    x = rows(50, 1)
    moved = x.clone()
    moved[0] += 2 * math.pi / 0.625
    torch.testing.assert_close(sigreg_loss(moved), sigreg_loss(x), rtol=1e-10, atol=0)
    for options, sign in (({}, -1), ({"knots": 33, "limit": 3.0}, 1)):
        far = torch.full((1, 1), 6.0, dtype=torch.float64, requires_grad=True)
        sigreg_loss(far, **options).backward()
        assert sign * far.grad.item() > 1e-4  # 6 sqrt(pi) exp(-9) inwards, and about 0.1 outwards


def test_memory_does_not_grow_with_knots() -> None:
    """What is kept for backward: two matrices or so, where every knot would keep two of [N, directions]."""

    def kept(knots: int) -> int:
        seen: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        x = rows(64, 4, torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = sigreg_loss(x, directions=32, knots=knots)
        assert loss.requires_grad
        return sum(seen.values())

    few, many = kept(3), kept(33)
    assert 64 * 4 <= few <= 2 * 64 * 32
    assert many - few < 64 * 32


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_rows_are_finite(scale: float) -> None:
    x = (rows(6, 5, torch.float32) * scale).requires_grad_()
    loss = sigreg_loss(x, generator=generator())
    loss.backward()
    assert bool(x.grad.isfinite().all())
    if scale < 1:  # phi = 1: N times the integral of (1 - g)^2 g over the knots
        assert loss.item() == pytest.approx(loop_sigreg(torch.zeros(6, 5), 1), rel=1e-5)
    else:
        assert 0 < loss.item() < 6 * 4 * math.sqrt(2 * math.pi)  # |phi - g|^2 <= 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_shows(bad: float) -> None:
    x = rows(4, 3)
    x[1, 2] = bad
    assert sigreg_loss(x).isnan()


def test_directions_come_from_the_generator_or_torchs_own() -> None:
    x = rows(6, 5)
    loss = sigreg_loss(x, generator=generator(3))
    assert torch.equal(loss, sigreg_loss(x, generator=generator(3)))
    assert not torch.equal(loss, sigreg_loss(x, generator=generator(4)))
    torch.manual_seed(3)
    assert torch.equal(loss, sigreg_loss(x))
    assert not torch.equal(loss, sigreg_loss(x))  # new ones at every call


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    x = rows(8, 6, dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigreg_loss(x, directions=8, generator=generator())
    loss.backward()
    wide = x.detach().float().requires_grad_()
    expected = sigreg_loss(wide, directions=8, generator=generator())
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(x.grad, wide.grad.to(dtype))


def test_module_is_the_function() -> None:
    x = rows(6, 4)
    module = SIGRegLoss(8, knots=33, limit=3.0)
    expected = sigreg_loss(x, directions=8, knots=33, limit=3.0, generator=generator())
    assert torch.equal(module(x, generator()), expected)
    assert "directions=8, knots=33, limit=3.0" in repr(module)


def test_compiles_into_one_graph() -> None:
    x = rows(6, 4, torch.float32).requires_grad_()
    torch.manual_seed(0)
    loss = torch.compile(sigreg_loss, fullgraph=True, backend="aot_eager")(x, directions=8)
    torch.manual_seed(0)
    expected = sigreg_loss(x, directions=8)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


X = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X[0], {}, ValueError, r"x must have shape \[N, D\], got \[2\]"),
        (X.long(), {}, TypeError, "x must be a floating point tensor, got torch.int64"),
        (X[:0], {}, ValueError, "x must have at least 1 row, got 0"),
        (X[:, :0], {}, ValueError, "x must have at least 1 column"),
        (X, {"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
        (X.to("meta"), {"generator": generator()}, ValueError, "generator must be on the device of x, meta, got cpu"),
    ],
)
def test_bad_input_names_the_argument(x: Tensor, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sigreg_loss(x, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"directions": 0}, ValueError, "directions must be at least 1, got 0"),
        ({"directions": 2.0}, TypeError, "directions must be an int"),
        ({"knots": 1}, ValueError, "knots must be at least 3, got 1"),
        ({"knots": 16}, ValueError, "knots must be odd, so that 0 is one of them, got 16"),
        ({"knots": None}, TypeError, "knots must be an int"),
        ({"limit": 0.0}, ValueError, r"limit must be positive and finite, got 0\.0"),
        ({"limit": math.inf}, ValueError, "limit must be positive and finite, got inf"),
        ({"limit": "5"}, TypeError, "limit must be a number, got '5'"),
    ],
)
def test_bad_settings_are_refused_when_the_module_is_built_or_called(options, error, message: str) -> None:
    for call in (SIGRegLoss, lambda **options: sigreg_loss(X, **options)):
        with pytest.raises(error, match=message):
            call(**options)


def test_compiles_with_several_widths_and_in_forward_mode() -> None:
    compiled = torch.compile(sigreg_loss, fullgraph=True, backend="aot_eager")
    for width in (8, 9, 10):
        assert bool(compiled(torch.ones(12, width), directions=4).isfinite())
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return sigreg_loss(t, directions=4, generator=torch.Generator().manual_seed(1))

    _, along = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    (gradient,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    assert float(along) == pytest.approx(float(gradient.sum()), rel=1e-12)
