"""The table of edge cases, row by row, on every backend: duplicates, degenerate rows, NaN and Inf, extreme
scales.
"""

import cases
import oracle
import pytest
import tolerances
import torch

from ldreg_kernels.kernels.contract import ESTIMATORS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def gradient_of(value, x):
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return gradient


def check_against_truth(backend, x, k, estimator="mom"):
    """LID, NaN included, and the gradient of its sum against float64 over the same neighbours."""
    x = x.detach().requires_grad_()
    indices = backend.knn(x, k=k).indices
    lid = backend.lid(x, k=k, estimator=estimator)
    gradient = gradient_of(lid, x)
    expected, truth = oracle.lid_gradient_given(x, None, indices, estimator, torch.ones(len(x)))
    oracle.check_lid(lid.detach(), truth, backend.name, x.dtype)
    tolerance = tolerances.gradient(backend.name, x.dtype, truth.nan_to_num(0.0).max().item())
    oracle.check_gradient(gradient, expected, tolerance, x.dtype)
    return lid, gradient


# ------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_duplicate_rows(backend, estimator):
    """Some d_j = 0: zero subgradient for that pair, LID finite for mom and mle, 0 where a logarithm of 0
    enters.
    """
    x = cases.normal(60, 8)
    x[40:50] = x[:10]
    lid, gradient = check_against_truth(backend, x, 12, estimator)
    assert gradient.isfinite().all()
    assert lid.isfinite().all()
    duplicated = torch.cat([lid[:10], lid[40:50]])
    if estimator in ("hill", "hill_unbiased"):
        assert (duplicated == 0).all()
    else:
        assert (duplicated > 0).all()
    loss, stats = backend.loss(x.requires_grad_(), k=12, estimator=estimator)
    assert loss.isfinite()
    assert gradient_of(loss, x).isfinite().all()
    assert stats.degenerate.item() == (20 if estimator in ("hill", "hill_unbiased") else 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k_identical_copies(backend, dtype, estimator):
    """d_k = 0: LID NaN, the row left out of the mean, gradient 0, counted."""
    k = 6
    x = cases.normal(40, 8, dtype=dtype)
    x[: k + 1] = x[0].clone()  # seven copies: each has six others
    x.requires_grad_()
    lid = backend.lid(x, k=k, estimator=estimator)
    assert lid[: k + 1].isnan().all()
    assert lid[k + 1 :].isfinite().all()
    assert torch.equal(gradient_of(lid, x)[: k + 1], torch.zeros(k + 1, 8, dtype=dtype))
    loss, stats = backend.loss(x, k=k, estimator=estimator)
    assert stats.degenerate.item() == k + 1
    gradient = gradient_of(loss, x)
    assert gradient.isfinite().all()
    assert (gradient[: k + 1] == 0).all()
    expected = -lid[k + 1 :].double().log().mean()
    assert abs(loss.item() - expected.item()) <= tolerances.LOSS * (1 + expected.abs().item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_distances(backend, estimator):
    """a = 0: rows of a scaled identity, every pair equally far; every row degenerate, loss 0 with zero
    gradient.
    """
    x = (2.5 * torch.eye(24)).requires_grad_()
    lid = backend.lid(x, k=8, estimator=estimator)
    assert lid.isnan().all()
    assert (gradient_of(lid, x) == 0).all()
    for form, target in [("l1", None), ("l1_abs", None), ("l2", None), ("min", None), ("target", 4.0)]:
        loss, stats = backend.loss(x, k=8, estimator=estimator, form=form, target=target)
        assert loss.item() == 0
        assert stats.degenerate.item() == 24
        assert torch.equal(gradient_of(loss, x), torch.zeros(24, 24))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nearly_equal_distances_are_degenerate_not_huge(backend, estimator):
    """An irrational simplex: all distances equal up to rounding, which must not pass for a dimension of a
    million.
    """
    x = torch.eye(33, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(cases.normal(33, 33, dtype=torch.float64))
    x = ((x @ rotation) * 0.3).float().requires_grad_()
    lid = backend.lid(x, k=16, estimator=estimator)
    resolved = lid[~lid.isnan()]
    assert (resolved > tolerances.LID_UNRESOLVED / 10).all()
    assert gradient_of(backend.loss(x, k=16, estimator=estimator)[0], x).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_row_identical(backend, reduction):
    x = torch.full((20, 5), 0.7, requires_grad=True)
    loss, stats = backend.loss(x, k=4, reduction=reduction, track=[("mle", 8)])
    assert (loss == 0).all()
    assert stats.degenerate.item() == 20
    assert stats.lid.isnan().all()
    assert stats.tracked["mle", 8].isnan().all()
    assert torch.equal(gradient_of(loss, x), torch.zeros(20, 5))


def test_degenerate_rows_do_not_dilute_the_mean(backend):
    """The mean is over the rows that count, and its gradient is divided by their number."""
    x = cases.normal(50, 6)
    x[:10] = 30.0  # ten copies, far enough to be nobody else's neighbours
    x.requires_grad_()
    mean, stats = backend.loss(x, k=5)
    total, _ = backend.loss(x, k=5, reduction="sum")
    kept = 50 - stats.degenerate.item()
    assert kept == 40
    assert abs(mean.item() - total.item() / kept) <= tolerances.LOSS * (1 + abs(mean.item()))
    ratio = gradient_of(total, x).double() / kept
    oracle.check_gradient(gradient_of(mean, x), ratio, tolerances.GRADIENT, x.dtype)


# ------------------------------------------------------------------------------------------------- NaN and
# Inf


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_row(backend, dtype, bad):
    """That row is NaN and the loss is NaN; the others, LID and gradient, are as if the row were far away."""
    x = cases.normal(60, 9, dtype=dtype)
    x[7, 3] = bad
    found = backend.knn(x, k=10)
    oracle.check_knn(found, x, k=10, name=backend.name)
    assert found.distances[7].isnan().all()
    assert torch.equal(found.indices[7], torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 9, 10]))
    lid, gradient = check_against_truth(backend, x, 10)
    others = torch.arange(60) != 7
    assert lid[7].isnan()
    assert lid[others].isfinite().all()
    assert gradient[others].isfinite().all()
    alone = backend.lid(x[others], k=10)
    oracle.check_lid(lid[others].detach(), alone.double(), backend.name, dtype)
    loss, stats = backend.loss(x, k=10)
    assert loss.isnan()
    assert stats.degenerate.item() == 0


def test_non_finite_rows_are_taken_last(backend):
    """With k = N - 1 the NaN and Inf rows are taken: last, lower index first; every LID is NaN."""
    x = cases.normal(20, 4)
    x[3] = torch.nan
    x[11, 0] = torch.inf
    x[5, 1] = -torch.inf
    found = backend.knn(x, k=19)
    oracle.check_knn(found, x, k=19, name=backend.name)
    assert found.indices[0, -3:].tolist() == [3, 5, 11]
    assert backend.lid(x, k=19).isnan().all()
    assert backend.lid(x, k=16)[[0, 1, 2, 4]].isfinite().all()


def test_all_rows_nan(backend):
    x = torch.full((12, 3), torch.nan, requires_grad=True)
    found = backend.knn(x, k=4)
    assert found.distances.isnan().all()
    assert found.indices[0].tolist() == [1, 2, 3, 4]
    loss, _ = backend.loss(x, k=4)
    assert loss.isnan()


def test_nan_reference_only(backend):
    """NaN among the references touches only the queries that need it."""
    x, y = cases.normal(10, 4).requires_grad_(), cases.normal(30, 4, seed=2)
    y[::3] = torch.nan
    lid = backend.lid(x, y, k=12)
    assert lid.isfinite().all()
    assert gradient_of(lid, x).isfinite().all()
    assert backend.lid(x, y, k=21).isnan().all()


# ------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize("scale", [1e20, 1e15, 1e-15, 1e-23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_extreme_scale(backend, dtype, scale):
    """Squares leave float32's range; LID, loss, distances and gradient must not notice."""
    x = (cases.normal(80, 24, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    oracle.check_knn(backend.knn(x, k=16), x, k=16, name=backend.name)
    lid, _ = check_against_truth(backend, x, 16)
    loss, stats = backend.loss(x, k=16)
    assert stats.degenerate.item() == 0
    expected = -lid.detach().double().log().mean().item()
    assert abs(loss.item() - expected) <= tolerances.LOSS * (1 + abs(expected))


def test_subnormal_and_largest_numbers(backend):
    """float32 inputs near both ends of the format."""
    grid = torch.randint(1, 1 << 12, (50, 3), generator=cases.seeded(4)).float()
    for scale in (2.0**-149, 2.0**114):  # subnormal throughout; up to 2^126
        x = grid * scale
        found = backend.knn(x, k=8)
        exact = backend.knn(grid.double(), k=8)
        assert torch.equal(found.indices, exact.indices)
        oracle.assert_relative(found.distances, exact.distances * scale, tolerances.DISTANCE, 2.0**-149, "distance")


@pytest.mark.parametrize("size", [1e6, 1e20])
def test_one_outlier_row(backend, size):
    """One row of 1e6 or 1e20 among ordinary ones: neither a centre nor a scale taken from it may hurt the
    others.
    """
    x = cases.outlier(300, 24, size)
    oracle.check_knn(backend.knn(x, k=20), x, k=20, name=backend.name)
    truth, _ = oracle.lid(x, k=20)
    oracle.check_lid(backend.lid(x, k=20), truth, backend.name, x.dtype)


def test_half_precision_norms_that_overflow_half(backend):
    """|x|^2 beyond float16's 65504, in float16."""
    x = (cases.normal(90, 64) * 300).half()
    assert x.isfinite().all()
    check_against_truth(backend, x, 16)


# -------------------------------------------------------------------------------------------------
# conventions


def test_query_not_in_the_references(backend):
    """self_index=None drops nothing: the true nearest neighbour counts."""
    x, y = cases.normal(20, 5), cases.normal(100, 5, seed=2)
    found = backend.knn(x, y, k=10)
    nearest = torch.cdist(x.double(), y.double()).min(dim=1)
    assert torch.equal(found.indices[:, 0], nearest.indices)


def test_self_is_left_out_by_index_not_by_distance(backend):
    """A row with an exact copy keeps the copy, at distance 0, and loses itself."""
    x = cases.normal(30, 5)
    x[20] = x[4].clone()
    found = backend.knn(x, k=3)
    assert found.indices[4, 0] == 20
    assert found.indices[20, 0] == 4
    assert found.distances[4, 0] == 0


def test_stride_zero_batch_is_degenerate_not_a_crash(backend):
    x = backend.put(cases.normal(1, 6)).expand(16, 6)
    lid = backend.lid(x, k=4)
    assert lid.isnan().all()
