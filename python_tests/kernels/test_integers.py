"""Integers small enough that every sum of squares is exact in float32: the distances must be exact too, bit
for bit.

Zero tolerance. An indexing slip, a lost tail, a stray rounding or a low-precision product left in the result
shows here, whatever the data. Ties abound, and the lower index must win every one of them.
"""

import numpy as np
import pytest
import torch

# |x| <= 127 at D = 64 and |x| <= 15 at D = 2048 keep (2 |x|)^2 D below 2^24
SHAPES = [
    (96, 96, 64, 127, 17),
    (50, 131, 64, 127, 33),
    (64, 257, 2048, 15, 64),
    (40, 300, 1, 127, 20),
    (33, 129, 7, 3, 128),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def truth(x: torch.Tensor, y: torch.Tensor, k: int, own: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances [B, k] in int64 and the indices of a stable sort."""
    square = (x[:, None] - y[None]).square().sum(2)  # [B, N]
    if own is not None:
        square[torch.arange(len(x)), own] = torch.iinfo(torch.int64).max
    ordered = square.sort(dim=1, stable=True)
    return ordered.values[:, :k], ordered.indices[:, :k]


def integers(rows: int, D: int, largest: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (rows, D), generator=g)


def root(square: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The correctly rounded root: numpy's, because torch.sqrt on the CPU is often an ulp off.

    A double root rounded to float32 is the correctly rounded float32 root (a double has more than 2 * 24 + 2
    bits).
    """
    exact = torch.from_numpy(np.sqrt(square.numpy().astype(np.float64)))
    return exact if dtype == torch.float64 else exact.float()


def assert_bit_identical(found, square, indices, dtype):
    assert torch.equal(found.distances, root(square, dtype))
    assert torch.equal(found.indices, indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "N", "D", "largest", "k"), SHAPES)
def test_references_apart(backend, dtype, B, N, D, largest, k):
    x, y = integers(B, D, largest, 1), integers(N, D, largest, 2)
    found = backend.knn(x.to(dtype), y.to(dtype), k=k)
    assert_bit_identical(found, *truth(x, y, k, None), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "D", "largest", "k"), [(200, 64, 127, 63), (150, 2048, 15, 16), (256, 3, 4, 64)])
def test_own_batch(backend, dtype, rows, D, largest, k):
    x = integers(rows, D, largest, 3)
    found = backend.knn(x.to(dtype), k=k)
    assert_bit_identical(found, *truth(x, x, k, torch.arange(rows)), dtype)


def test_large_common_offset(backend):
    """2^20 plus small integers: the offset must leave no trace, and float32 still holds every difference
    exactly.
    """
    small = integers(180, 48, 7, 4)
    found = backend.knn((small + 2**20).float(), k=31)
    assert_bit_identical(found, *truth(small, small, 31, torch.arange(180)), torch.float32)


@pytest.mark.parametrize("exponent", [-30, -7, 5, 30])
def test_powers_of_two_only_shift_the_exponent(backend, exponent):
    small = integers(120, 40, 31, 5)
    found = backend.knn(small.float() * 2.0**exponent, k=24)
    square, indices = truth(small, small, 24, torch.arange(120))
    assert torch.equal(found.distances, root(square) * 2.0**exponent)
    assert torch.equal(found.indices, indices)


def test_scaled_identity(backend):
    """Every pair at the same distance: neighbours are the lowest indices, the row itself left out."""
    x = 3 * torch.eye(80)
    found = backend.knn(x, k=20)
    assert torch.equal(found.distances, root(torch.full((80, 20), 18)))
    every = torch.arange(80).expand(80, 80)
    others = every[every != torch.arange(80)[:, None]].view(80, 79)
    assert torch.equal(found.indices, others[:, :20])


def test_many_copies(backend):
    """Each point three to five times: copies come first, at distance 0, lower index first."""
    distinct = integers(40, 16, 9, 6)
    x = distinct[torch.randint(0, 40, (160,), generator=torch.Generator().manual_seed(7))]
    found = backend.knn(x.float(), k=12)
    assert_bit_identical(found, *truth(x, x, 12, torch.arange(160)), torch.float32)


def test_fast_is_exact_on_integers_that_bfloat16_holds(backend):
    """Selection in low precision loses nothing here, so `fast` has no excuse."""
    x = integers(150, 32, 15, 8)
    found = backend.knn(x.float(), k=16, precision="fast")
    square, _ = truth(x, x, 16, torch.arange(150))
    assert torch.equal(found.distances, root(square))
