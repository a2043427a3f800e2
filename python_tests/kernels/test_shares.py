"""Batches that are too large to be packed at once: shares of them meet two at a time, lists are put aside between."""

from __future__ import annotations

import cases
import pytest
import torch

import ldreg_kernels as ldk


@pytest.mark.parametrize(
    ("rows", "columns", "k", "dtype"),
    [
        (12_001, 16, 64, torch.float32),  # two shares, in floats
        (8_000, 16, 256, torch.float32),  # several
        (9_000, 64, 256, torch.bfloat16),  # in integers or bfloat16
    ],
)
def test_every_neighbour_is_found(rows: int, columns: int, k: int, dtype: torch.dtype) -> None:
    """Against float64 for some rows of every share; those with NaN and those among thousands of copies too."""
    x = cases.normal(rows, columns, dtype=dtype)
    x[4_000] = torch.nan
    x[-3_000:] = x[-1]
    found = ldk.knn(x, k=k, backend="cpu")
    some = torch.cat([torch.arange(7, rows - 3_000, 97), torch.tensor([rows - 3_000, rows - 1])])
    distances = torch.cdist(x[some].double(), x.double())
    distances[torch.arange(len(some)), some] = torch.inf
    distances[:, 4_000] = torch.inf
    truth = distances.topk(k, largest=False).values
    assert torch.allclose(found.distances[some].double(), truth, rtol=1e-6, atol=0)
    assert torch.equal(found.distances[some].double() == 0, truth == 0)
    at_found = torch.gather(distances, 1, found.indices[some])
    assert torch.allclose(at_found, truth, rtol=1e-6, atol=0)
    assert found.distances[4_000].isnan().all()
    alone = on_threads(1, lambda: ldk.knn(x, k=k, backend="cpu"))
    assert torch.equal(alone.indices, found.indices)
    assert torch.equal(alone.distances.nan_to_num(), found.distances.nan_to_num())


def on_threads(count: int, call):
    """`call()` with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)
