"""Statistics of the local intrinsic dimensionality (LID) of a set of features.

    arithmetic mean, variance, and geometric mean exp( (1/n) sum_i ln LID_i )

The geometric mean is the one the LDReg paper reports: its logarithm is what the regulariser moves, because
distances between LIDs are distances between logarithms there. Rows whose LID is not a positive finite number
(k identical copies, say) are left out and counted: replacing them by 0 would drive the geometric mean to 0
whatever the other rows do.

What this file does not do: estimate LIDs (`ldreg_kernels.lid`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.lid import lid


@dataclass(frozen=True)
class LIDStatistics:
    """Summary of a set of LIDs; NaN in every mean when no row was usable.

    Attributes:
        geometric_mean: exp(mean ln LID).
        arithmetic_mean: mean LID.
        variance: unbiased variance of LID (0 for a single row).
        rows: how many rows the numbers stand on.
        dropped: how many rows were left out because their LID was not positive and finite.
    """

    geometric_mean: float
    arithmetic_mean: float
    variance: float
    rows: int
    dropped: int


@torch.no_grad()
def summarise_lid(lids: Tensor) -> LIDStatistics:
    """Arithmetic mean, variance and geometric mean of LIDs, unusable rows dropped and counted.

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
    values = lids.double()
    usable = values[torch.isfinite(values) & (values > 0)]  # [n]
    rows = usable.numel()
    nan = float("nan")
    return LIDStatistics(
        geometric_mean=float(usable.log().mean().exp()) if rows else nan,
        arithmetic_mean=float(usable.mean()) if rows else nan,
        variance=float(usable.var()) if rows > 1 else (0.0 if rows else nan),
        rows=rows,
        dropped=values.numel() - rows,
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
