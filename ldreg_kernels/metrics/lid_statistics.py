"""Statistics of the local intrinsic dimensionality (LID) of a set of features.

    arithmetic mean, variance, harmonic mean, median, and geometric mean exp( (1/n) sum_i ln LID_i )

The geometric mean is the one the LDReg paper reports: its logarithm is what the regulariser moves, because
distances between LIDs are distances between logarithms there. The harmonic mean averages the sums of logarithms that
maximum-likelihood estimates are the inverse of (MacKay & Ghahramani 2005); the median does not mind a few wild rows.
Rows whose LID is not a positive finite number are left out and counted: replacing them by 0 would drive the geometric
and the harmonic mean to 0 whatever the other rows do.

Duplicates. A row with copies keeps them as neighbours at distance 0. With k copies it has no LID (NaN). With fewer it
has one by `mom` (0 at k - 1 copies), `mom_amsaleg` and `mle`, which shrinks with every copy; `hill` and `hill_unbiased`
are 0 from the first copy on, `mada` once half of the k neighbours are copies. NaN and 0 are what is left out here.
scikit-dimension gives the same values row by row for MOM and MLE, but aggregates all of them: one row with k copies
makes `dimension_` NaN, one copy makes MLE's default (harmonic) 0. Its MADA passes over copies: distances of 0 count as
the largest of the data.

What this file does not do: estimate LIDs (`ldreg_kernels.lid`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.lid import lid
from ..ops.summary import LIDRows


@dataclass(frozen=True)
class LIDStatistics:
    """Summary of a set of LIDs; NaN in every mean when no row was usable.

    Attributes:
        geometric_mean: exp(mean ln LID).
        arithmetic_mean: mean LID.
        variance: unbiased variance of LID (0 for a single row).
        rows: how many rows the numbers stand on.
        dropped: how many rows were left out because their LID was not positive and finite.
        harmonic_mean: 1 / mean(1 / LID).
        median: the middle LID, or the mean of the two in the middle.
    """

    geometric_mean: float
    arithmetic_mean: float
    variance: float
    rows: int
    dropped: int
    harmonic_mean: float
    median: float


@torch.no_grad()
def summarise_lid(lids: Tensor) -> LIDStatistics:
    """Means, median and variance of LIDs, unusable rows dropped and counted.

    geometric mean = exp((1/n) sum_i ln LID_i)  (Huang et al. 2024, "LDReg", section 4: the Fréchet mean under
    the Fisher-Rao distance |ln LID_a - ln LID_b|).

    Args:
        lids: [B] floating, no unit, as `ldreg_kernels.lid` returns them.

    Returns:
        The statistics, computed in float64.

    Raises:
        ValueError: `lids` is not one-dimensional.
    """
    if lids.ndim != 1:
        raise ValueError(f"lids must have shape [B], got {list(lids.shape)}")
    summary = LIDRows(lids.double())
    usable = summary.lid[summary.usable]  # [n]
    rows = usable.numel()
    return LIDStatistics(
        geometric_mean=float(summary.geometric_mean),
        arithmetic_mean=float(summary.arithmetic_mean),
        variance=float(usable.var()) if rows > 1 else (0.0 if rows else float("nan")),
        rows=rows,
        dropped=lids.numel() - rows,
        harmonic_mean=float(summary.harmonic_mean),
        median=float(summary.median),
    )


@torch.no_grad()
def lid_statistics(features: Tensor, *, k: int, estimator: str = "mom", backend: str = "auto") -> LIDStatistics:
    """Estimate the LID of every row among all the others and summarise.

    LID_i by `ldreg_kernels.lid(features, k=k, estimator=estimator)`, the default being the method of moments
    m/(d_k - m) (Huang et al. 2024, Algorithm 1); then `summarise_lid`. The value depends on N and k: compare
    equals.

    Args:
        features: [N, D], any floating dtype.
        k: neighbours, self not counted, in [2, N - 1].
        estimator: see `ldreg_kernels.lid`.
        backend: see `ldreg_kernels.lid`.

    Returns:
        The statistics over the N rows.

    Raises:
        TypeError, ValueError: as `ldreg_kernels.lid`.
    """
    return summarise_lid(lid(features, k=k, estimator=estimator, backend=backend))
