"""Distances far from 1 and far from each other: float64 at 1e-300 to 1e300, float32 rows that differ by 1e-45.

What is asked for is what the format holds: a distance wherever it is a number of the result's dtype, its LID, and the
gradient wherever that is one. Truth: scaled_oracle.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import cases
import pytest
import scaled_oracle
import tolerances
import torch

from ldreg_kernels.kernels import cuda_backend, triton_backend, tuning
from ldreg_kernels.kernels.contract import ESTIMATORS


@pytest.fixture(params=["direct", "tiles"])
def path(request: pytest.FixtureRequest, backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Either way to the neighbours on the GPU backends; the others have one way, and take it once."""
    if request.param == "tiles" and backend.name not in ("triton", "cuda"):
        pytest.skip("the way of the GPU backends")
    monkeypatch.setattr(tuning, "choose_path", lambda shape: request.param)
    for module in (triton_backend, cuda_backend):
        module.forget_plans()
    yield request.param
    for module in (triton_backend, cuda_backend):
        module.forget_plans()


def check(backend, x: torch.Tensor, k: int, estimators: tuple[str, ...]) -> None:
    """Neighbours, LIDs, degenerate rows and gradients of a batch among itself."""
    double = x.dtype == torch.float64
    tolerance = tolerances.DISTANCE_FLOAT64_EXTREME if double else tolerances.DISTANCE
    found = backend.knn(x, k=k)
    scaled_oracle.check_distances(found.distances, scaled_oracle.nearest(x, x, k, True).distances, tolerance)
    truth = scaled_oracle.given(x, x, found.indices)
    scaled_oracle.check_distances(found.distances, truth.distances, tolerance)
    for estimator in estimators:
        leaf = x.clone().requires_grad_()
        loss, stats = backend.loss(leaf, k=k, estimator=estimator, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        lid, degenerate, expected = scaled_oracle.lid(truth, estimator)
        assert torch.equal(stats.lid.isnan(), lid.isnan())
        assert stats.degenerate.item() == degenerate.sum().item()
        assert torch.equal((stats.lid == 0) | stats.lid.isnan(), degenerate)
        known = ~lid.isnan()
        allowed = tolerances.lid("exact", x.dtype, lid)
        assert ((stats.lid - lid).abs() <= allowed)[known].all(), f"LID of {estimator}: {stats.lid}, truth {lid}"
        assert loss.isfinite()
        scaled_oracle.check_gradient(-gradient, expected, scaled_oracle.gradient_tolerance("exact", x.dtype, lid))


# ------------------------------------------------------------------------------------------------- float64


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-155, 1e-154, 1e154, 1e160, 1e200, 1e300])
def test_every_scale_of_float64(backend, scale: float) -> None:
    x = cases.normal(20, 4, dtype=torch.float64) * scale
    check(backend, x, 5, ("mom",))
    check(backend, x, 19, ("hill",))


@pytest.mark.parametrize("k", [5, 19])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e100, 1e154, 1e155, 1e160, 1e300])
def test_a_row_of_another_scale(backend, size: float, k: int) -> None:
    """Below 1 it is two rows, that differ by so much and nothing else."""
    x = cases.normal(20, 4, dtype=torch.float64)
    if size > 1:
        x[3] = size
    else:
        x[3:5] = 0
        x[4, 1] = size
    check(backend, x, k, ("mom", "hill"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_beside_a_row_of_1e160(backend, estimator: str) -> None:
    x = cases.normal(20, 4, dtype=torch.float64)
    x[3] = 1e160
    x[11, :2] = 1e-160
    x[12], x[12, 3] = x[11], x[11, 3] + 1e-3
    check(backend, x, 19, (estimator,))


def test_a_fuzz_of_scales(backend) -> None:
    """Every row has a scale of its own, over a range that float64 squares only with help."""
    for seed in range(2 if backend.emulated else 8):
        g = cases.seeded(seed)
        middle = 300 * (torch.rand((), generator=g, dtype=torch.float64) - 0.5)
        exponent = middle + 240 * (torch.rand(20, 1, generator=g, dtype=torch.float64) - 0.5)
        x = torch.randn(20, 4, generator=g, dtype=torch.float64) * 10**exponent
        check(backend, x, 7, ("mom", "mle"))


def test_distances_beyond_float64_are_infinite(backend) -> None:
    """The distance is, LID and gradient are not: they have no use for its unit."""
    x = cases.normal(20, 4, dtype=torch.float64) / 8 + torch.arange(20)[:, None] / 20
    x *= 1.2e308 / x.abs().max()
    x[4] = -x[4].abs()
    assert scaled_oracle.nearest(x / 2, x / 2, 19, True).distances.max() > 0.5 * torch.finfo(torch.float64).max
    assert backend.knn(x, k=19).distances.isinf().any()
    halved = scaled_oracle.given(x / 2, x / 2, backend.knn(x, k=19).indices)
    lid, _, _ = scaled_oracle.lid(halved, "mom")
    found = backend.lid(x, k=19)
    assert ((found - lid).abs() <= tolerances.lid("exact", x.dtype, lid)).all()


# ------------------------------------------------------------------------------------------------- tiny differences

# Powers of ten from the smallest float32 number to its rounding beside 1
TINY = [1.4e-45, 1e-44, 1e-42, 1e-40, 1e-38, 1e-37, 1e-35, 1e-30, 1e-26, 1e-22, 1e-18, 1e-14, 1e-8]


def near_pairs(sizes: list[float], others: int, dtype: torch.dtype) -> torch.Tensor:
    """Two rows for each size, that differ by it in one feature; and ordinary rows."""
    x = cases.normal(2 * len(sizes) + others, 5, dtype=dtype)
    for i, size in enumerate(sizes):
        x[2 * i, i % 5] = 0
        x[2 * i + 1] = x[2 * i]
        x[2 * i + 1, i % 5] = size if i % 2 else -size
    return x


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_differ_by_next_to_nothing(backend, path: str, estimator: str, k: int) -> None:
    check(backend, near_pairs(TINY, 38, torch.float32), k, (estimator,))


@pytest.mark.parametrize("k", [1, 63])
def test_neighbours_at_next_to_nothing(backend, k: int) -> None:
    """k = 63 leaves out no row but oneself."""
    x = near_pairs(TINY, 38, torch.float32)
    check(backend, x, k, () if k == 1 else ("mom", "hill"))


@pytest.mark.parametrize("size", [1e-22, 1e-25, 1e-27])
def test_next_to_nothing_among_little(backend, size: float) -> None:
    """Terms of the gradient may vanish in float32 where neither weights nor distances do."""
    x = cases.normal(40, 16) * size
    x[:2] = 0
    x[1, 0] = 1e-42
    check(backend, x, 8, ("mom", "mle", "hill"))


@pytest.mark.parametrize("columns", [5, 64])
def test_more_rows_than_are_compared_all_with_all(backend, columns: int) -> None:
    """The CPU's way by candidates, in floats and in 16 bits, which small batches do not take."""
    if backend.name != "cpu":
        pytest.skip("the CPU backend chooses its way by the number of rows")
    x = torch.cat([near_pairs(TINY, 0, torch.float32), cases.normal(300, 5)])
    x = torch.cat([x, torch.zeros(len(x), columns - 5)], dim=1)
    check(backend, x, 8, ("mom", "hill"))
    x = x.double()
    x[30] = 1e200
    x[31, :2] = 1e-200
    x[32] = x[31]
    x[32, 4] = 1e-250
    check(backend, x, 8, ("mom", "hill"))


def test_bfloat16_rows_that_differ_by_next_to_nothing(backend) -> None:
    # Triton's interpreter converts subnormal bfloat16 numbers wrongly (1e-38 becomes 8e-39, 1e-40 becomes 0).
    smallest = [] if backend.name == "triton" and backend.emulated else [1e-40, 1e-38]
    check(backend, near_pairs([*smallest, 1e-37, 1e-30, 1e-20], 20, torch.bfloat16), 4, ("hill", "mom"))


def test_float64_rows_that_differ_by_next_to_nothing(backend) -> None:
    check(backend, near_pairs([1e-300, 1e-200, 1e-160, 1e-100, 1e-40], 20, torch.float64), 4, ("hill", "mom"))


def test_a_cluster_of_next_to_nothing(backend, path: str) -> None:
    """All neighbours of a row at 1e-42 to 1e-30: which are nearer is known, and so is their LID."""
    x = cases.normal(64, 5)
    x[:6] = 0
    x[torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 0])] = torch.tensor([1e-30, 3e-33, 2e-35, 7e-37, 5e-39, 1e-42])
    check(backend, x, 4, ("mom", "hill"))
