"""Effective rank: how many directions a set of features really uses.

    erank = exp( -sum_i p_i ln p_i ),   p_i = v_i / sum_j v_j,   0 ln 0 = 0      (Roy & Vetterli 2007)

It is 1 when one direction carries everything and min(N, D) when all carry the same. Papers differ in what v
is, and the numbers differ a lot, so the variant is always named; comparing across variants means nothing.

What this file does not do: RankMe's epsilon inside the logarithm (the variant "sv" is RankMe without it).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .spectrum import singular_values

Variant = Literal["cov", "corr", "gram", "sv"]


@torch.no_grad()
def effective_rank(features: Tensor, *, variant: Variant = "cov") -> float:
    """Exponential of the entropy of the normalised spectrum of the features.

    erank = exp(-sum_i p_i ln p_i), p = v / sum v  (Roy & Vetterli 2007, "The effective rank: a measure of
    effective dimensionality", definition 1), computed in float64 with 0 ln 0 = 0. The spectrum v is, by
    `variant`:

    - `cov`: eigenvalues of the centred covariance (default);
    - `corr`: eigenvalues of the correlation matrix, i.e. every feature scaled to unit variance first;
      features of zero variance have no correlation and are left out;
    - `gram`: eigenvalues of the uncentred second moment;
    - `sv`: singular values of the uncentred matrix, not squared (RankMe without its epsilon).

    Args:
        features: Z, [N, D], any floating dtype.
        variant: which spectrum, see above.

    Returns:
        A number of directions in [1, min(N, D)], or 0.0 when the spectrum is all zeros (every row equal, for
        `cov`).

    Raises:
        TypeError: `features` is not a floating point tensor.
        ValueError: `features` is not [N, D] with N, D >= 1 or not finite, or `variant` is unknown.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    if variant == "sv":
        return _exp_entropy(singular_values(features))
    if variant == "gram":
        return _exp_entropy(singular_values(features).square())
    if variant == "corr":
        features = _unit_variance(features)
        if features.shape[1] == 0:
            return 0.0
    return _exp_entropy(singular_values(features, center=True).square())


def _unit_variance(features: Tensor) -> Tensor:
    """Scale every column to unit variance and drop the constant ones: [N, D] -> [N, D'] float64."""
    z = features.double()
    std = z.std(0, correction=0)  # [D]
    # A constant column has a standard deviation of rounding size, not 0. Dividing by it would count noise as
    # a full feature.
    alive = std > 1e-12 * z.abs().amax(0)  # [D]
    return (z[:, alive] - z[:, alive].mean(0)) / std[alive]


def _exp_entropy(spectrum: Tensor) -> float:
    """exp(-sum p ln p) of a non-negative spectrum [K]; 0.0 when it is empty of mass."""
    total = spectrum.sum()
    if total == 0:
        return 0.0
    p = spectrum / total  # [K]
    return float(torch.exp(-torch.xlogy(p, p).sum()))  # xlogy(0, 0) = 0
