"""The published LDReg functions, signature and conventions, on our kernels: changing the import is the whole migration.

    from lid import lid_mom_est, lid_mle            # before
    from ldreg_kernels.compat import lid_mom_est, lid_mle   # after

Conventions kept to the letter: features are flattened to 2-D; the smallest distance of every row is dropped as "self",
whatever it is; k is clamped to `data.shape[0] - 2`, which counts the query rows; `mle` has k in the numerator and 1e-4
inside the logarithm. Gradients reach `data`; `reference` must be constant, as the published training code has it.
Kept in spirit only: with `get_idx` the indices are the k + 1 nearest [B, k + 1], not a full B x N argsort; and rows
whose published value is an Inf, a +-1e7 or a negative number (k equal distances) are NaN, with gradient 0.
For new code use `ldreg_kernels.lid`, which leaves self out by index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.contract import ESTIMATORS
from .ops import validate
from .ops.call import Call
from .ops.knn import knn
from .ops.lid import lid_function

_COMPUTE_MODES = (
    "use_mm_for_euclid_dist_if_necessary",
    "use_mm_for_euclid_dist",
    "donot_use_mm_for_euclid_dist",
)


def lid_mom_est(
    data: Tensor,
    reference: Tensor,
    k: int,
    get_idx: bool = False,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | tuple[Tensor, Tensor]:
    """Method-of-moments LID with the published conventions: mean(r_1..r_{k-1}) / (r_k - mean), r_0 dropped.

    Args:
        data: queries [B, ...], flattened to [B, D]; B >= 4.
        reference: references [N, ...], flattened to [N, D], constant.
        k: neighbours; clamped to B - 2 as published.
        get_idx: also return the indices of the k + 1 nearest references.
        compute_mode: accepted and checked for compatibility; every mode is computed exactly here.

    Returns:
        LID [B], or (idx [B, k + 1], LID [B]).

    Raises:
        ValueError, TypeError: a bad argument, by name.
    """
    return _published("mom", data, reference, k, get_idx, compute_mode)


def lid_mle(
    data: Tensor,
    reference: Tensor,
    k: int = 20,
    get_idx: bool = False,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum-likelihood LID with the published conventions: -k / sum_{j<k} ln(r_j / r_k + 1e-4), r_0 dropped.

    Args, Returns, Raises: as `lid_mom_est`.
    """
    return _published("mle", data, reference, k, get_idx, compute_mode)


def _published(
    estimator: str, data: Tensor, reference: Tensor, k: int, get_idx: bool, compute_mode: str
) -> Tensor | tuple[Tensor, Tensor]:
    assert estimator in ESTIMATORS
    validate.choice("compute_mode", compute_mode, _COMPUTE_MODES)
    for name, value in (("data", data), ("reference", reference)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions (rows, features), got shape {tuple(value.shape)}")
    if torch.is_grad_enabled() and reference.requires_grad:
        raise ValueError(
            "reference must not require grad: pass reference.detach(), as the published training code does"
        )
    x, y = data.flatten(1), reference.flatten(1)
    validate.features(x, y)
    if x.shape[0] < 4:
        raise ValueError(f"data must have at least 4 rows (k is clamped to rows - 2 and needs 2), got {x.shape[0]}")
    k = min(validate.integer("k", k), x.shape[0] - 2)
    if not 2 <= k <= y.shape[0] - 1:
        raise ValueError(
            f"k must be in [2, {y.shape[0] - 1}] for {y.shape[0]} reference rows, after the published clamp "
            f"to rows of data - 2, got {k}"
        )
    lid = lid_function(x, y.detach(), None, None, k, Call(estimator, drop_smallest=True))
    return (knn(x, y, k=k + 1).indices, lid) if get_idx else lid
