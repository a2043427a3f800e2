"""LID statistics: means by hand, unusable rows left out and counted."""

from __future__ import annotations

import math

import pytest
import torch

import ldreg_kernels as ldk
from ldreg_kernels.metrics import lid_statistics, summarise_lid


def test_means_by_hand() -> None:
    stats = summarise_lid(torch.tensor([1.0, 4.0, 16.0]))
    assert stats.geometric_mean == pytest.approx(4.0)
    assert stats.arithmetic_mean == pytest.approx(7.0)
    assert stats.variance == pytest.approx(63.0)  # ((6^2 + 3^2 + 9^2) / 2)
    assert stats.harmonic_mean == pytest.approx(3 / (1 + 1 / 4 + 1 / 16))
    assert stats.median == 4.0
    assert summarise_lid(torch.tensor([16.0, 1.0, 2.0, 4.0])).median == 3.0
    assert (stats.rows, stats.dropped) == (3, 0)


def test_unusable_rows_are_dropped_and_counted() -> None:
    lids = torch.tensor([2.0, math.nan, 8.0, math.inf, 0.0, -1.0])
    stats = summarise_lid(lids)
    assert stats.geometric_mean == pytest.approx(4.0)  # one zero among them would have made it 0
    assert stats.harmonic_mean == pytest.approx(3.2)
    assert stats.median == 5.0
    assert (stats.rows, stats.dropped) == (2, 4)


def test_nothing_usable_gives_nan_not_an_exception() -> None:
    stats = summarise_lid(torch.tensor([math.nan, math.inf]))
    assert math.isnan(stats.geometric_mean)
    assert math.isnan(stats.arithmetic_mean)
    assert math.isnan(stats.variance)
    assert math.isnan(stats.harmonic_mean)
    assert math.isnan(stats.median)
    assert (stats.rows, stats.dropped) == (0, 2)


def test_a_single_row_has_no_variance() -> None:
    assert summarise_lid(torch.tensor([3.0])).variance == 0.0


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lids must have shape \[B\], got \[2, 2\]"):
        summarise_lid(torch.ones(2, 2))


def test_of_features_is_the_summary_of_their_lids() -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stats = lid_statistics(x, k=10, backend="reference")
    lids = ldk.lid(x, k=10, backend="reference")
    assert stats.geometric_mean == pytest.approx(math.exp(lids.log().mean().item()))
    assert stats.arithmetic_mean == pytest.approx(lids.mean().item())


def test_copies_of_one_row_are_dropped() -> None:
    """A row with k identical copies has no LID. They lie apart, so that they are no other row's
    neighbours.
    """
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    x[:9] = 100.0
    stats = lid_statistics(x, k=8, backend="reference")
    assert stats.dropped == 9
    assert math.isfinite(stats.geometric_mean)


def test_no_graph_is_built() -> None:
    x = torch.randn(20, 4, requires_grad=True)
    assert isinstance(lid_statistics(x, k=5, backend="reference").geometric_mean, float)
    assert x.grad is None
