"""Effective rank: how many directions a set of features really uses.

    erank = exp( -sum_i p_i ln p_i ),   p_i = v_i / sum_j v_j,   0 ln 0 = 0      (Roy & Vetterli 2007)

It is 1 when one direction carries everything and min(N, D) when all carry the same. Papers differ in what v
is, and the numbers differ a lot, so the variant is always named; comparing across variants means nothing.
The number has no unit: it is the same for features of any size, 1e-300 to 1e300.

What this file does not do: RankMe's epsilon inside the logarithm (the variant "sv" is RankMe without it).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .spectrum import check, half_deviations, unit_scale

Variant = Literal["cov", "corr", "gram", "sv"]


@torch.no_grad()
def effective_rank(features: Tensor, *, variant: Variant = "cov") -> float:
    """Exponential of the entropy of the normalised spectrum of the features.

    erank = exp(-sum_i p_i ln p_i), p = v / sum v  (Roy & Vetterli 2007, "The effective rank: a measure of
    effective dimensionality", definition 1), computed in float64 with 0 ln 0 = 0. The spectrum v is, by
    `variant`:

    - `cov`: eigenvalues of the centred covariance (default);
    - `corr`: eigenvalues of the correlation matrix, i.e. every feature scaled to unit variance first;
      features that are constant up to a rounding step of their dtype have no correlation and are left out;
    - `gram`: eigenvalues of the uncentred second moment;
    - `sv`: singular values of the uncentred matrix, not squared (RankMe without its epsilon).

    Args:
        features: Z, [N, D], any floating dtype.
        variant: which spectrum, see above.

    Returns:
        A number of directions in [1, min(N, D)], or 0.0 when the spectrum is all zeros (for `cov` and `corr`: every
        row equal). Rows that differ by rounding alone do differ: the rank is then that of the rounding, and
        `singular_values` says how small it is.

    Raises:
        TypeError: `features` is not a floating point tensor.
        ValueError: `features` is not [N, D] with N, D >= 1 or not finite, or `variant` is unknown.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    check(features)
    if variant in ("sv", "gram"):
        z, _ = unit_scale(features.double())
        values = torch.linalg.svdvals(z)
        return _exp_entropy(values if variant == "sv" else values.square())
    z = half_deviations(features)  # [N, D]
    if variant == "corr":
        z = z[:, _varying(features)]
        if z.shape[1] == 0:
            return 0.0
        z = z / z.abs().amax(0)  # column by column, so that squares fit
        z = z - z.mean(0)
        z = z / z.std(0, correction=0)
    else:
        z, _ = unit_scale(z)
        z = z - z.mean(0)
    return _exp_entropy(torch.linalg.svdvals(z).square())


def _varying(features: Tensor) -> Tensor:
    """Which columns vary by more than one rounding step of the dtype at their size: [N, D] -> [D] bool.

    Dividing the others by their standard deviation would make full features of rounding.
    """
    info = torch.finfo(features.dtype)
    size = features.double().abs().amax(0)  # [D]
    step = info.eps * size.clamp(min=info.smallest_normal)  # smaller numbers lie no closer together
    half = features.double() / 2
    return 2 * (half.amax(0) - half.amin(0)) > step


def _exp_entropy(spectrum: Tensor) -> float:
    """exp(-sum p ln p) of a non-negative spectrum [K]; 0.0 when it is empty of mass."""
    total = spectrum.sum()
    if total == 0:
        return 0.0
    p = spectrum / total  # [K]
    return float(torch.exp(-torch.xlogy(p, p).sum()))  # xlogy(0, 0) = 0
