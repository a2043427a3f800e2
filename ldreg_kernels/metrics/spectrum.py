"""Singular values of a feature matrix and the eigenvalues of its covariance.

With Z [N, D] and its centred form Zc = Z - mean, the covariance C = Zc^T Zc / N has eigenvalues s_k^2 / N,
where s_k are the singular values of Zc. They are taken from the SVD of Zc, not from C: forming C squares the
condition number, and the small end of the spectrum, which is what a collapse plot is read for, would be
rounding noise: singular values below 1e-8 of the largest are lost that way, here below 1e-16.

The mean is taken of differences to the first row, so equal rows are exactly zero and a common offset costs no digits;
and the SVD sees a matrix whose largest number is 1, so features of any size are the same to it.

What this file does not do: plots, and sums over the spectrum (effective_rank.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def singular_values(features: Tensor, *, center: bool = False) -> Tensor:
    """Singular values of a feature matrix, in float64, largest first.

    s = svdvals(Z), or svdvals(Z - mean_i z_i) with `center`.

    Args:
        features: Z, [N, D], any floating dtype.
        center: subtract the mean row first.

    Returns:
        [min(N, D)] float64 on the device of `features`, descending. Features may have any finite size; only a value
        that is itself beyond float64 comes out as inf, or below its normal numbers (2e-308) without all its digits.

    Raises:
        TypeError: `features` is not a floating point tensor.
        ValueError: `features` is not [N, D] with N, D >= 1, or holds NaN or Inf.
    """
    check(features)
    if not center:
        return _svdvals(features.double())
    half = half_deviations(features)
    return 2 * _svdvals(half - half.mean(0))


@torch.no_grad()
def covariance_spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of the features, in float64, largest first.

    lambda_k = s_k^2 / N, the singular values of C = (1/N) sum_i (z_i - z)(z_i - z)^T (Jing et al. 2022,
    "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", section 3).

    Args:
        features: Z, [N, D], any floating dtype.

    Returns:
        [min(N, D)] float64, descending, in squared feature units: a square, so float64 holds it for features that
        spread over 1e-154 to 1e154; beyond it is inf, below it is 0. (`effective_rank` has no unit and no such
        bound.) With N <= D the last one is 0 up to rounding.

    Raises:
        TypeError, ValueError: as `singular_values`.
    """
    s = singular_values(features, center=True)
    return s * (s / features.shape[0])  # in this order, the square itself need not fit


def half_deviations(features: Tensor) -> Tensor:
    """(z_i - z_1) / 2 in float64, [N, D]: exactly 0 for equal rows; halves, whose difference cannot overflow."""
    half = features.double() / 2
    return half - half[0]


def unit_scale(z: Tensor) -> tuple[Tensor, Tensor]:
    """z over its largest magnitude, and that magnitude; 1 for zeros."""
    largest = z.abs().amax()
    scale = torch.where(largest > 0, largest, 1.0)
    return z / scale, scale


def _svdvals(z: Tensor) -> Tensor:
    """Singular values of float64 z of any finite size: LAPACK squares on the way, and would under- or overflow."""
    unit, scale = unit_scale(z)
    return torch.linalg.svdvals(unit) * scale


def check(features: Tensor) -> None:
    """Raise unless `features` is a finite floating [N, D] with N, D >= 1."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = getattr(features, "dtype", type(features).__name__)
        raise TypeError(f"features must be a floating point tensor, got {kind}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must have shape [N, D] with N, D >= 1, got {list(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or Inf")
