"""Singular values of a feature matrix and the eigenvalues of its covariance.

With Z [N, D] and its centred form Zc = Z - mean, the covariance C = Zc^T Zc / N has eigenvalues s_k^2 / N,
where s_k are the singular values of Zc. They are taken from the SVD of Zc, not from C: forming C squares the
condition number, and the small end of the spectrum, which is what a collapse plot is read for, would be
rounding noise: singular values below 1e-8 of the largest are lost that way, here below 1e-16.

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
        [min(N, D)] float64 on the device of `features`, descending.

    Raises:
        TypeError: `features` is not a floating point tensor.
        ValueError: `features` is not [N, D] with N, D >= 1, or holds NaN or Inf.
    """
    _check(features)
    z = features.double()
    return torch.linalg.svdvals(z - z.mean(0) if center else z)


@torch.no_grad()
def covariance_spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of the features, in float64, largest first.

    lambda_k = s_k^2 / N, the singular values of C = (1/N) sum_i (z_i - z)(z_i - z)^T (Jing et al. 2022,
    "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", section 3).

    Args:
        features: Z, [N, D], any floating dtype.

    Returns:
        [min(N, D)] float64, descending, in squared feature units. With N <= D the last one is 0 up to
        rounding.

    Raises:
        TypeError, ValueError: as `singular_values`.
    """
    return singular_values(features, center=True).square() / features.shape[0]


def _check(features: Tensor) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = getattr(features, "dtype", type(features).__name__)
        raise TypeError(f"features must be a floating point tensor, got {kind}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must have shape [N, D] with N, D >= 1, got {list(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or Inf")
