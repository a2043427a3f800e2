"""The published LDReg module, name for name and convention for convention, on our kernels: changing the import is the
whole migration.

    import lid                             # before; or: from lid import lid_mom_est, lid_mle, gmean
    from ldreg_kernels import compat as lid    # after; or: from ldreg_kernels.compat import lid_mom_est, lid_mle, gmean

Conventions kept to the letter: features are flattened to 2-D; the smallest distance of every row is dropped as "self",
whatever it is; k is clamped to `data.shape[0] - 2`, which counts the query rows; `lid_mle` has k in the numerator and
1e-4 inside the logarithm; `get_idx` returns the order of all references [B, N].

Two ways lead to the same value. The fused one has O(B k) memory and a constant `reference`, as the published training
code has it. The other is torch's own: exact float64 distances [B, N], sorted, differentiable on both sides. It serves
a `reference` that requires grad, `lid_mom_est_eps`, and k < 2 after the clamp (up to 3 rows of data), where it gives
what the published arithmetic gives: NaN, an Inf, a negative number.

Kept in spirit only: distances are exact in every `compute_mode`; and with k >= 2, rows whose published value is an
Inf, a +-1e7 or a negative number (k equal distances) are NaN, with gradient 0.
For new code use `ldreg_kernels.lid`, which leaves self out by index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kernels import reference as torch_form
from .kernels.contract import MLE_EPSILON
from .ops import validate
from .ops.call import Call
from .ops.knn import knn, result_dtype
from .ops.lid import lid_function

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

_COMPUTE_MODES = (
    "use_mm_for_euclid_dist_if_necessary",
    "use_mm_for_euclid_dist",
    "donot_use_mm_for_euclid_dist",
)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MOM_EPSILON = 1e-4  # the published constant beside the gap of `lid_mom_est_eps`: a distance, not a ratio


# ------------------------------------------------------------------------------------------------- torch in, torch out


def gmean(input_x: Tensor, dim: int = 0) -> Tensor:
    """Geometric mean along `dim`: exp(mean(ln x)); NaN where an entry is NaN, a degenerate row's LID for example."""
    return input_x.log().mean(dim=dim).exp()


def get_lid_r(data: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All distances, and their order: (r, sorted r, idx), each [B, N], self included; O(B N) memory.

    Args:
        data: queries [B, ...], flattened to [B, D].
        reference: references [N, ...], flattened to [N, D]. Gradients reach both.

    Returns:
        Euclidean distances, the same ascending, and whose they are; ties by the lower index.

    Raises:
        ValueError, TypeError: a bad argument, by name.
    """
    x, y = _features(data, reference)
    r = _distances(x, y)
    ordered, idx = r.sort(dim=1, stable=True)
    dtype = result_dtype(x)
    return r.to(dtype), ordered.to(dtype), idx


def lid_mom_est(
    data: Tensor,
    reference: Tensor,
    k: int,
    get_idx: bool = False,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | tuple[Tensor, Tensor]:
    """Method-of-moments LID with the published conventions: mean(r_1..r_{k-1}) / (r_k - mean), r_0 dropped.

    Where `reference` requires grad, gradients reach both sides, also with `lid_mom_est(x, x, k)`, and memory is
    O(B N); otherwise, and always with `reference.detach()`, it is O(B k).

    Args:
        data: queries [B, ...], flattened to [B, D].
        reference: references [N, ...], flattened to [N, D]; dtype and device of data. Under autocast two
            dtypes become the wider one: a half dtype and float32 meet in float32, as in `torch.cdist`.
        k: neighbours, an integer of any kind; clamped to B - 2 as published. k < 2 gives what the published arithmetic
            gives: NaN for 0 and 1; a negative k counts from the largest distance.
        get_idx: also return the order of all N references, nearest first.
        compute_mode: accepted and checked for compatibility; every mode is computed exactly here.

    Returns:
        LID [B], or (idx [B, N], LID [B]).

    Raises:
        ValueError: k, after the clamp, beyond the reference rows (the published code's IndexError); a bad shape.
        TypeError: a bad argument, by name.
    """
    validate.choice("compute_mode", compute_mode, _COMPUTE_MODES)
    return _published("mom", data, reference, k, get_idx)


def lid_mle(
    data: Tensor,
    reference: Tensor,
    k: int = 20,
    get_idx: bool = False,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum-likelihood LID with the published conventions: -k / sum_{j<k} ln(r_j / r_k + 1e-4), r_0 dropped.

    Gradients, Args, Returns, Raises: as `lid_mom_est`; k = 1 gives -Inf.
    """
    validate.choice("compute_mode", compute_mode, _COMPUTE_MODES)
    return _published("mle", data, reference, k, get_idx)


def lid_mom_est_eps(data: Tensor, reference: Tensor, k: int, get_idx: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """`lid_mom_est` with 1e-4 added to the gap r_k - mean: finite where k distances are equal, and not scale-free.

    Computed by torch, with O(B N) memory; the published training code does not call it. Args, Returns, Raises: as
    `lid_mom_est`.
    """
    return _published("mom_eps", data, reference, k, get_idx)


def _published(
    estimator: str, data: Tensor, reference: Tensor, k: int, get_idx: bool
) -> Tensor | tuple[Tensor, Tensor]:
    x, y = _features(data, reference)
    k = min(_integer("k", k), x.shape[0] - 2)
    N = y.shape[0]
    if not -N <= k < N:
        raise ValueError(
            f"k must be in [{-N}, {N - 1}] for {N} reference rows, after the published clamp to rows of data - 2, "
            f"got {k}"
        )
    if k < 2 or estimator == "mom_eps" or (torch.is_grad_enabled() and y.requires_grad):
        ordered, idx = _distances(x, y).sort(dim=1, stable=True)
        lid = _estimate(ordered, k, estimator).to(result_dtype(x))
        return (idx, lid) if get_idx else lid
    y = y.detach() if y.requires_grad else y
    lid = lid_function(x, y, None, None, k, Call(estimator, drop_smallest=True))
    if not get_idx:
        return lid
    # The GPU kernels are made for short lists: there a whole row is left to torch's sort, by the reference.
    return knn(x, y, k=N, backend="auto" if x.is_cpu else "reference").indices, lid


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances [B, N] in float64, from differences, differentiable on both sides (subgradient 0 at distance 0)."""
    x, y = x.double(), y.double()
    unit = torch_form.unit_of(x, y) if x.numel() and y.numel() else 1.0  # so that no square overflows
    return torch.cdist(x * unit, y * unit, compute_mode=torch_form.DIRECT) / unit


def _estimate(ordered: Tensor, k: int, estimator: str) -> Tensor:
    """LID [B] of sorted distances [B, N], the nearest still among them."""
    if k >= 2 and estimator != "mom_eps":
        # NaN for the rows that the fused way has NaN for.
        lid, _ = torch_form.estimate(ordered[:, 1 : k + 1], estimator)
        return lid
    nearer, last = ordered[:, 1:k], ordered[:, k]  # empty for k of 0 and 1; counted from the end for k < 0
    if estimator == "mle":
        return -k / (nearer / last[:, None] + MLE_EPSILON).log().sum(dim=1)
    mean = nearer.mean(dim=1)
    return mean / (last - mean + (_MOM_EPSILON if estimator == "mom_eps" else 0.0))


def _features(data: Any, reference: Any) -> tuple[Tensor, Tensor]:
    """Both sides as checked matrices of one dtype; a view of what was given wherever one exists."""
    for name, value in (("data", data), ("reference", reference)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions (rows, features), got shape {tuple(value.shape)}")
    x, y = validate.features(data.flatten(1), reference.flatten(1), names=("data", "reference"))
    assert y is not None
    return x, y


def _integer(name: str, value: Any) -> int:
    """`value` as an int: also an integer tensor without dimensions, as a slice takes it."""
    if isinstance(value, Tensor) and value.dim() == 0 and value.dtype in _INTEGERS:
        value = int(value)
    return validate.integer(name, value)


# ------------------------------------------------------------------------------------------------- numpy in, numpy out


def mle_batch(data: ArrayLike, batch: ArrayLike, k: int) -> np.ndarray:
    """Hill's estimator with k in the numerator: -k / sum_{j<=k} ln(r_j / r_k), the smallest distance dropped.

    Args:
        data: references [N, D], an array or what numpy makes one of; taken in float32, as published.
        batch: queries [B, D], likewise.
        k: neighbours; clamped to N - 1.

    Returns:
        LID [B], float64; 0 where a distance is 0, -Inf for k = 1.

    Raises:
        ValueError, TypeError: a bad argument, by name; no neighbour left.
    """
    references, queries = _rows("data", data), _rows("batch", batch)
    k = min(_integer("k", k), len(references) - 1)
    return _hill(_nearest("batch", queries, references, k), k)


def mle_single(data: ArrayLike, x: ArrayLike, k: int = 20, dist: bool = True, metric: str = "euclidean") -> np.floating:
    """LID of one point, by the formula of `mle_batch`.

    Args:
        data: references [N, D]; with dist=False distances [B, n], of which the first row is used, whole.
        x: the point [D], or points [B, D], of which the first is used; not looked at with dist=False.
        k: neighbours; clamped to N - 1, with dist=False neither clamped nor used for selecting.
        dist: whether distances have to be taken.
        metric: any other than "euclidean" is scipy's.

    Returns:
        LID, float64; float32 with dist=False.

    Raises:
        ValueError, TypeError: a bad argument, by name; no neighbour left.
        ImportError: another metric without scipy.
    """
    import numpy as np

    references = _rows("data", data)
    k = _integer("k", k)
    if not dist:
        return _hill(np.sort(_first("data", references), axis=1), k)[0]
    k = min(k, len(references) - 1)
    point = np.asarray(x, dtype=np.float32)
    point = _first("x", _rows("x", point[None] if point.ndim == 1 else point))
    if metric == "euclidean":
        return _hill(_nearest("x", point, references, k), k)[0]
    try:
        from scipy.spatial.distance import cdist
    except ImportError as error:
        raise ImportError(f'metric={metric!r} needs scipy (pip install scipy); metric="euclidean" does not') from error
    return _hill(np.sort(cdist(point, references, metric=metric), axis=1)[:, 1 : k + 1], k)[0]


def _rows(name: str, value: ArrayLike) -> np.ndarray:
    import numpy as np

    array = np.asarray(value, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"{name} must be 2-D (rows, features), got shape {array.shape}")
    return array


def _first(name: str, rows: np.ndarray) -> np.ndarray:
    if len(rows) == 0:
        raise ValueError(f"{name} must have at least one row, got shape {rows.shape}")
    return rows[:1]


def _nearest(name: str, queries: np.ndarray, references: np.ndarray, k: int) -> np.ndarray:
    """Distances 1 to k of every query in float64, by the fused search; all but the last -k - 1 for k < 0."""
    x, y = (torch.from_numpy(array).double() for array in (queries, references))
    validate.features(y, x, names=("data", name))
    count = min(k + 1, len(y)) if k >= 0 else len(y)
    return knn(x, y, k=count).distances.numpy()[:, 1 : k + 1]


def _hill(nearest: np.ndarray, k: int) -> np.ndarray:
    import numpy as np

    if nearest.shape[1] == 0:
        raise ValueError(f"k must leave at least one neighbour beside the nearest, which is dropped, got k = {k}")
    with np.errstate(divide="ignore", invalid="ignore"):  # distances of 0, and k = 1
        return -k / np.log(nearest / nearest[:, -1:]).sum(axis=1)
