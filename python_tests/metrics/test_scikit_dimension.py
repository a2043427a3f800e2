"""What README says of scikit-dimension's counterparts: pointwise values, aggregates, and what duplicates do to both.

Agreement on manifolds, on every backend, is tested in kernels/test_manifolds.py.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.metrics import lid_statistics

os.environ.setdefault("MPLBACKEND", "Agg")
import skdim

K = 9
COUNTERPARTS = {
    "mom_amsaleg": skdim.id.MOM,
    "hill": skdim.id.MLE,
    "hill_unbiased": lambda: skdim.id.MLE(unbiased=True),
    "mada": skdim.id.MADA,
}
AGGREGATES = {
    "mom_amsaleg": "arithmetic_mean",
    "hill": "harmonic_mean",
    "hill_unbiased": "harmonic_mean",
    "mada": "arithmetic_mean",
}
CLOSE = {"rtol": 1e-10, "atol": 1e-12, "equal_nan": True}  # float64 on both sides, LIDs below 1e3


def features(copies: int = 0) -> Tensor:
    """[60, 5] float64; row 0 has as many copies, the last rows, as asked for, and is nobody else's neighbour."""
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[0] += 6.0
    x[60 - copies :] = x[0]
    return x


def theirs(name: str, x: Tensor, k: int = K) -> Tensor:
    return torch.from_numpy(COUNTERPARTS[name]().fit(x.numpy(), n_neighbors=k).dimension_pw_)


def ours(name: str, x: Tensor, k: int = K) -> Tensor:
    return ldk.lid(x, k=k, estimator=name)


@pytest.mark.parametrize("k", [4, 9, 32])
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_counterparts_agree_row_by_row(name: str, k: int) -> None:
    torch.testing.assert_close(ours(name, features(), k), theirs(name, features(), k), **CLOSE)


@pytest.mark.parametrize("k", [4, 9, 32])
def test_conversions(k: int) -> None:
    x = features()
    torch.testing.assert_close(ours("mom", x, k), (1 + theirs("mom_amsaleg", x, k)) * (k - 1) / k - 1, **CLOSE)
    torch.testing.assert_close(ours("hill_unbiased", x, k), theirs("hill", x, k) * (k - 2) / (k - 1), **CLOSE)
    # The 1e-4 in the published form's logarithms: each is off by at most 1e-4 d_k / d_j, all are in a sum of k - 1.
    ratio = ldk.knn(x, k=k).distances
    share = 1e-4 * (ratio[:, -1:] / ratio[:, :-1]).sum(1) / (ratio[:, -1:] / ratio[:, :-1]).log().sum(1)
    expected = theirs("hill", x, k) * k / (k - 1)
    error = ours("mle", x, k) / expected - 1
    assert (error >= 0).all()
    assert (error <= 1.1 * share).all()


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_aggregates_agree(name: str) -> None:
    x = features()
    stats = lid_statistics(x, k=K, estimator=name)
    assert getattr(stats, AGGREGATES[name]) == pytest.approx(
        COUNTERPARTS[name]().fit(x.numpy(), n_neighbors=K).dimension_
    )
    median = COUNTERPARTS[name]().fit(x.numpy(), n_neighbors=K, comb="median").dimension_
    assert stats.median == pytest.approx(median)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("copies", [1, K // 2, K - 1, K, K + 3])
@pytest.mark.parametrize("name", ["mom_amsaleg", "hill", "hill_unbiased"])
def test_a_row_with_copies_has_the_same_value_but_is_left_out_here(name: str, copies: int) -> None:
    x = features(copies)
    found = ours(name, x)
    torch.testing.assert_close(found, theirs(name, x), **CLOSE)
    if copies >= K:
        assert found[0].isnan()
    else:
        assert (found[0] > 0) if name == "mom_amsaleg" else (found[0] == 0)
    unusable = copies >= K or name != "mom_amsaleg"
    stats = lid_statistics(x, k=K, estimator=name)
    assert stats.dropped == (copies + 1 if unusable else 0)
    assert 0 < stats.harmonic_mean < stats.geometric_mean < stats.arithmetic_mean
    aggregate = COUNTERPARTS[name]().fit(x.numpy(), n_neighbors=K).dimension_
    assert (aggregate != aggregate or aggregate == 0) == unusable


@pytest.mark.parametrize("copies", [1, K // 2, K - 1, K, K + 3])
def test_mada_passes_over_copies_there_and_counts_them_here(copies: int) -> None:
    x = features(copies)
    found, other = ours("mada", x), theirs("mada", x)
    assert not torch.isclose(found[0], other[0], rtol=1e-3)
    # The same as here without the copies among the references.
    alone = ldk.lid(x[:1], x[1 : 60 - copies], k=K, estimator="mada")
    torch.testing.assert_close(alone, other[:1], **CLOSE)
    # From half of the k neighbours on, copies leave nothing to divide by.
    assert (found[0] > 0) == (copies < K // 2)
    torch.testing.assert_close(found[1 : 60 - copies], other[1 : 60 - copies], **CLOSE)
