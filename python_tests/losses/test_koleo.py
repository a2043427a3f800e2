"""KoLeo against loops over rows in float64: value, gradient of both rows of a pair, groups, duplicates, scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.losses import KoLeoLoss, koleo_loss

EPSILON = 1e-8


def unit(v: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(a * a for a in v))
    return [a / length if length else 0.0 for a in v]


def loop_koleo(
    x: Tensor, y: Tensor | None = None, topk: int = 1, group_size: int | None = None
) -> tuple[float, Tensor]:
    """The loss and its gradient by x, pair by pair: by u_i it is -(u_i - u_j) / (d (d + eps)), by u_j the reverse."""
    rows = [unit(v) for v in x.double().tolist()]
    b, d = x.shape
    others = rows if y is None else [unit(v) for v in y.double().tolist()]
    size = group_size or b
    terms, by_unit = [], [[0.0] * d for _ in range(b)]
    for i in range(b):
        near = []
        for j, other in enumerate(others):
            if y is not None or (j != i and j // size == i // size):
                near.append((math.sqrt(math.fsum((a - c) ** 2 for a, c in zip(rows[i], other, strict=True))), j))
        for distance, j in sorted(near)[:topk]:
            terms.append(-math.log(distance + EPSILON))
            for c in range(d):
                pull = -(rows[i][c] - others[j][c]) / (distance + EPSILON) / distance if distance else 0.0
                by_unit[i][c] += pull / (b * topk)
                if y is None:
                    by_unit[j][c] -= pull / (b * topk)
    gradient = torch.zeros(b, d, dtype=torch.float64)
    for i in range(b):  # by x_i: what is across u_i, over |x_i|
        length = math.sqrt(math.fsum(a * a for a in x[i].double().tolist()))
        along = math.fsum(g * u for g, u in zip(by_unit[i], rows[i], strict=True))
        for c in range(d):
            gradient[i, c] = (by_unit[i][c] - along * rows[i][c]) / length if length else 0.0
    return math.fsum(terms) / (b * topk), gradient


def features(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(n * 100 + d + seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("n", "d", "options"),
    [
        (2, 3, {}),
        (9, 2, {}),
        (16, 8, {"topk": 3}),
        (5, 4, {"topk": 4}),
        (12, 4, {"group_size": 4}),
        (12, 4, {"group_size": 12}),
        (12, 4, {"group_size": 3, "topk": 2}),
        (8, 3, {"group_size": 2}),
    ],
)
def test_value_and_gradient_equal_the_loop(n: int, d: int, options: dict) -> None:
    x = features(n, d).requires_grad_()
    loss = koleo_loss(x, **options)
    loss.backward()
    value, gradient = loop_koleo(x.detach(), **options)
    assert loss.item() == pytest.approx(value, rel=1e-12, abs=1e-14)
    # float64 both; a gradient is 1/d times the cancellation across u.
    torch.testing.assert_close(x.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("topk", [1, 3])
def test_other_rows_are_searched_instead_and_are_constants(topk: int) -> None:
    x, y = features(6, 4).requires_grad_(), features(5, 4, seed=1).requires_grad_()
    loss = koleo_loss(x, y, topk=topk)
    loss.backward()
    value, gradient = loop_koleo(x.detach(), y.detach(), topk)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(x.grad, gradient, rtol=1e-9, atol=1e-12)
    assert y.grad is None
    assert koleo_loss(x[:1], y).isfinite()  # one row has a neighbour among others


def test_both_rows_of_a_pair_are_pulled_apart() -> None:
    """Row 2 is nobody's choice but its own neighbour's partner: rows 0 and 1 choose each other, row 2 chooses 1."""
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    koleo_loss(x).backward()
    alone = torch.tensor([[0.9, 0.1], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    koleo_loss(alone).backward()
    torch.testing.assert_close(x.grad[0], alone.grad[1] * 2 / 3, rtol=1e-12, atol=1e-15)  # of means over 3 and 2 rows
    assert float((x.grad[1] - alone.grad[0] * 2 / 3).norm()) > 0.1  # row 2's pull on it


def test_gradient_by_finite_differences() -> None:
    x, y = features(6, 3).requires_grad_(), features(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: koleo_loss(x, topk=2), (x,))
    assert torch.autograd.gradcheck(lambda x: koleo_loss(x, y), (x,))


def test_known_values() -> None:
    """Of an orthonormal basis every distance is sqrt(2), of opposite rows 2."""
    assert koleo_loss(torch.eye(5).double() * 3, topk=4).item() == pytest.approx(-math.log(2) / 2, rel=1e-7)  # epsilon
    assert koleo_loss(torch.tensor([[2.0], [-5.0]])).item() == pytest.approx(-math.log(2), rel=1e-6)


@given(
    n=st.integers(2, 12),
    d=st.integers(1, 16),
    topk=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_dtype(n: int, d: int, topk: int, seed: int, dtype: torch.dtype) -> None:
    """Also with duplicates: short half rows often agree, and with one column all rows are +-1."""
    x = features(n, d, dtype, seed)
    topk = min(topk, n - 1)
    loss = koleo_loss(x, topk=topk)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value, _ = loop_koleo(x, topk=topk)
    # A logarithm of a distance whose rounding is that of unit rows: 1e-16 or 1e-7, against distances down to 1e-3
    # here. Duplicates are exact in both (float32 of a float64 loop's duplicates: d = 0 on both sides).
    assert loss.item() == pytest.approx(value, abs=1e-10 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_duplicates_are_finite_and_have_no_gradient(dtype: torch.dtype) -> None:
    """facebookresearch/dinov2#101; the other rows keep theirs."""
    x = features(6, 4, dtype)
    x[1] = x[0]
    x[4] = 2 * x[0]  # the same direction
    x.requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert loss.isfinite()
    assert loss.item() == pytest.approx(loop_koleo(x.detach())[0], rel=1e-6)
    assert bool(x.grad.isfinite().all())
    assert float(x.grad[3].abs().sum()) > 0
    same = features(1, 4, dtype).repeat(5, 1).requires_grad_()
    loss = koleo_loss(same, topk=2)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(EPSILON), rel=1e-6)
    assert not bool(same.grad.any())


def test_near_collapse_the_gradient_grows_as_one_over_the_distance() -> None:
    norms = []
    for spread in (1e-2, 1e-4):
        x = (torch.ones(8, 4, dtype=torch.float64) + spread * features(8, 4)).requires_grad_()
        koleo_loss(x).backward()
        norms.append(float(x.grad.norm()))
    assert norms[1] / norms[0] == pytest.approx(100, rel=0.05)  # the curvature of the sphere over 1e-2


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e20, 1e30])
def test_is_the_same_at_every_scale(scale: float) -> None:
    x = features(8, 5, torch.float32)
    scaled = (x * scale).requires_grad_()
    loss = koleo_loss(scaled, topk=2)
    loss.backward()
    value, gradient = loop_koleo(x, topk=2)
    assert loss.item() == pytest.approx(value, rel=1e-5)  # float32 rows, 1e-7 of distances near 1
    assert float((scaled.grad.double() * scale - gradient).norm() / gradient.norm()) < 1e-5


def test_a_zero_row_is_at_distance_1_and_has_no_gradient() -> None:
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double().requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=2e-8)  # ln(1 + epsilon): all rows have one at distance 1
    assert not bool(x.grad[0].any())
    assert bool(x.grad.isfinite().all())
    zeros = torch.zeros(3, 2, requires_grad=True)
    koleo_loss(zeros).backward()
    assert not bool(zeros.grad.any())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_shows(bad: float) -> None:
    x = features(4, 3)
    x[1, 2] = bad
    assert koleo_loss(x).isnan()


def test_no_matrix_of_all_pairs_is_kept() -> None:
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    x = features(512, 4, torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        koleo_loss(x)
    assert saved
    assert max(saved) <= 512 * 4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_backends_agree(backend: str) -> None:
    x = features(40, 8, torch.float32)
    assert koleo_loss(x, topk=3, backend=backend).item() == pytest.approx(loop_koleo(x, topk=3)[0], rel=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(autocast: bool) -> None:
    x, y = features(12, 16, torch.bfloat16), features(5, 16, torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = koleo_loss(x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_koleo(x)[0], rel=1e-5, abs=1e-6)  # of the same, rounded inputs
    if not autocast:
        with pytest.raises(TypeError, match=r"y must have the dtype of x, torch.bfloat16, got torch.float32"):
            koleo_loss(x, y)
        return
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo_loss(x, y).item() == pytest.approx(loop_koleo(x, y)[0], rel=1e-5, abs=1e-6)


def test_module_is_the_function() -> None:
    x, y = features(12, 4), features(3, 4, seed=1)
    module = KoLeoLoss(2, group_size=6, epsilon=1e-4, backend="reference")
    assert torch.equal(module(x), koleo_loss(x, topk=2, group_size=6, epsilon=1e-4, backend="reference"))
    assert torch.equal(KoLeoLoss()(x, y), koleo_loss(x, y))
    assert "topk=2, group_size=6, epsilon=0.0001, backend='reference'" in repr(module)


@pytest.mark.parametrize("options", [{}, {"group_size": 3, "topk": 2}])
def test_compiles_into_one_graph(options: dict) -> None:
    x = features(6, 4, torch.float32).requires_grad_()
    compiled = torch.compile(koleo_loss, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(x, **options), koleo_loss(x, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


X = torch.ones(6, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0],), {}, ValueError, r"x must have shape \[N, D\], got \[2\]"),
        ((X.long(),), {}, TypeError, "x must be a floating point tensor, got torch.int64"),
        ((X[:1],), {}, ValueError, "x must have at least 2 rows without y, got 1"),
        ((X[:0], X), {}, ValueError, "x must have at least 1 rows, got 0"),
        ((X, X[:, :1]), {}, ValueError, r"y must have shape \[K, 2\] with K >= 1, the D of x, got \[6, 1\]"),
        ((X, X[:0]), {}, ValueError, r"y must have shape \[K, 2\] with K >= 1"),
        ((X, X.double()), {}, TypeError, "y must have the dtype of x"),
        ((X, X.to("meta")), {}, ValueError, "y must be on the device of x, cpu, got meta"),
        ((X,), {"topk": 0}, ValueError, r"topk must be in \[1, 5\] for 6 rows with self excluded, got 0"),
        ((X,), {"topk": 6}, ValueError, r"topk must be in \[1, 5\] for 6 rows with self excluded, got 6"),
        ((X, X[:3]), {"topk": 4}, ValueError, r"topk must be in \[1, 3\] for 3 rows, got 4"),
        ((X,), {"topk": 3, "group_size": 3}, ValueError, r"topk must be in \[1, 2\] for 3 rows with self excluded"),
        ((X,), {"topk": 1.0}, TypeError, "topk must be an int"),
        ((X,), {"group_size": 4}, ValueError, "group_size must divide the 6 rows of x, got 4"),
        ((X,), {"group_size": 12}, ValueError, "group_size must divide the 6 rows of x, got 12"),
        ((X,), {"group_size": 1}, ValueError, "group_size must be at least 2, got 1"),
        ((X,), {"group_size": "all"}, TypeError, "group_size must be an int"),
        ((X, X), {"group_size": 2}, ValueError, "group_size must be None with y, whose rows have no groups, got 2"),
        ((X,), {"epsilon": 0.0}, ValueError, r"epsilon must be positive and finite, got 0\.0"),
        ((X,), {"epsilon": None}, TypeError, "epsilon must be a number, got None"),
        ((X,), {"backend": "faiss"}, ValueError, "backend must be one of auto, cuda, triton, cpu, reference"),
    ],
)
def test_bad_input_names_the_argument(arguments, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        koleo_loss(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"topk": 0}, ValueError, "topk must be at least 1, got 0"),
        ({"group_size": 1}, ValueError, "group_size must be at least 2, got 1"),
        ({"epsilon": -1}, ValueError, "epsilon must be positive and finite, got -1"),
        ({"backend": "faiss"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_settings_are_refused_when_the_module_is_built(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KoLeoLoss(**options)
