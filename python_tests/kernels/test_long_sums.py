"""Distances of wide rows: 1e-6 at every D, whatever the squares are that are added up.

Squared differences that are all equal are the worst case: the same rounding is made at every addition, in the same
direction. Rank-one features, constant rows and binary codes have them. Truth: scaled_oracle.py.
"""

from __future__ import annotations

import cases
import pytest
import scaled_oracle
import tolerances
import torch

from ldreg_kernels.kernels import cuda_backend, triton_backend, tuning

WIDTHS = [2048, 8191, 8192, 8193, 16384, 65536]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def wide_rows(D: int, dtype: torch.dtype, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [5, D] and references [24, D]: rank-one, constant, codes, and ordinary rows."""
    g = cases.seeded(seed)
    a = 0.5 + torch.rand(8, 1, generator=g, dtype=torch.float64)
    a[0] = 1.42610764503479
    rank_one = a * torch.ones(D, dtype=torch.float64)
    codes = a[0] * torch.randint(0, 2, (8, D), generator=g, dtype=torch.float64)
    ordinary = torch.randn(8, D, generator=g, dtype=torch.float64)
    queries = torch.cat([torch.zeros(1, D, dtype=torch.float64), rank_one[:1] / 3, codes[:1], ordinary[:2] / 2])
    return (queries * scale).to(dtype), (torch.cat([rank_one, codes, ordinary]) * scale).to(dtype)


def within_reach(backend, D: int) -> None:
    if backend.name == "cuda" and cuda_backend.LARGEST_COLUMNS < D:
        pytest.skip(f"backend 'cuda' takes rows of at most {cuda_backend.LARGEST_COLUMNS} columns")


def check(backend, x: torch.Tensor, y: torch.Tensor) -> None:
    """All distances: those of the returned rows, and those of the true neighbours."""
    found = backend.knn(x, y, k=len(y))
    tolerance = tolerances.distance(backend.name, x.dtype, x.shape[1])
    scaled_oracle.check_distances(found.distances, scaled_oracle.nearest(x, y, len(y), False).distances, tolerance)
    returned = scaled_oracle.given(x, y, found.indices).distances
    scaled_oracle.check_distances(found.distances, returned, tolerance)


@pytest.mark.parametrize("D", WIDTHS)
def test_distances_of_wide_rows(backend, D: int) -> None:
    """Every scale that float32 can square and many it cannot, dtypes in turn; fewer draws where a GPU is emulated."""
    within_reach(backend, D)
    draws = 1 if backend.emulated else 3
    for draw in range(draws):
        dtype = DTYPES[draw % 3]
        scale = 10.0 ** torch.randint(-30, 31, (), generator=cases.seeded(100 * D + draw)).item()
        if dtype == torch.float16:
            scale = min(max(scale, 1e-1), 1e3)  # all it can hold
        check(backend, *wide_rows(D, dtype, scale, draw))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scales_of_wide_rows(backend, dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale = {1e-30: 1e-2, 1e30: 1e4}.get(scale, scale)
    check(backend, *wide_rows(4099, dtype, scale, 7))


def test_a_constant_row() -> None:
    """The smallest input that went wrong: one query, one reference, 8192 equal squares."""
    x, y = torch.full((1, 8192), 1.42610764503479), torch.zeros(1, 8192)
    truth = scaled_oracle.nearest(x, y, 1, False)
    assert truth.distances.item() == pytest.approx(x[0, 0].item() * 8192**0.5, rel=1e-15)


@pytest.mark.parametrize("D", [4000, 20000])
@pytest.mark.parametrize("path", ["direct", "tiles"])
def test_lid_and_gradient_of_wide_rows(backend, path: str, D: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way to the neighbours on the GPU backends; the others have one way, and take it once."""
    within_reach(backend, D)
    if path == "tiles" and backend.name not in ("triton", "cuda"):
        pytest.skip("the way of the GPU backends")
    monkeypatch.setattr(tuning, "choose_path", lambda shape: path)
    for module in (triton_backend, cuda_backend):
        module.forget_plans()
    try:
        a = 0.5 + torch.rand(48, 1, generator=cases.seeded(D))
        x = a * torch.ones(D) + 0.01 * cases.normal(48, D)
        leaf = x.clone().requires_grad_()
        loss, stats = backend.loss(leaf, k=6, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        found = scaled_oracle.given(x, x, backend.knn(x, k=6).indices)
    finally:
        for module in (triton_backend, cuda_backend):
            module.forget_plans()
    lid, _, expected = scaled_oracle.lid(found, "mom")
    assert ((stats.lid - lid).abs() <= tolerances.lid(backend.name, x.dtype, lid)).all()
    scaled_oracle.check_gradient(-gradient, expected, scaled_oracle.gradient_tolerance(backend.name, x.dtype, lid))
