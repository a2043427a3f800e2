"""The naive truth: cdist, sort, autograd. Every other backend is judged against this file in float64.

Three parts, top to bottom: neighbours, estimators (numbers of equation in the docstrings), loss forms; then the
functions of the backend contract, whose gradients come from autograd on purpose, so that no closed form is trusted.
The last part is the published LDReg code's computation, kept as the baseline of benchmarks.
It materialises B x N matrices and makes no attempt to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .contract import LID_MAX, MLE_EPSILON, KnnResult, LdregResult, LidResult, Problem, Track
from .reference_pairs import formula as formula  # the rest of the contract, in a file of its own
from .reference_pairs import pair_gradients as pair_gradients
from .reference_pairs import pair_sums as pair_sums

DIRECT = "donot_use_mm_for_euclid_dist"  # differences, not the matrix-product form: accurate at any offset

# float32 is the naive baseline of benchmarks and the demo, and keeps to what its sums can do: not many columns, and
# distances whose squares have all their digits. All else is in float64.
_LONGEST_SUM = 2048
_SMALLEST = 1e-15

# float64 features are scaled so that the largest reaches 2^500: then no square overflows. Distances below 2^-400 of
# that unit are taken once more from features 2^500 times as large.
_TOP, _TINY, _LIFT = 500, 2.0**-400, 2.0**500


def unavailable_reason(device: torch.device | None = None) -> str | None:
    """The reference runs wherever torch does."""
    return None


# ------------------------------------------------------------------------------------------------- neighbours


def working_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """float32 unless features are float64, rows are long, or squares would leave float32's range."""
    if x.dtype == torch.float64 or x.shape[1] > _LONGEST_SUM:
        return torch.float64
    largest = _largest(x, y)
    return torch.float32 if largest == 0.0 or 1e-12 < largest < 1e12 else torch.float64


def _largest(x: Tensor, y: Tensor) -> float:
    """The largest finite |feature|."""
    return max(float(t.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in (x, y))


def unit_of(x: Tensor, y: Tensor) -> float:
    """A power of two by which features are multiplied before distances are taken; 1 in float32."""
    largest = _largest(x, y)
    if x.dtype != torch.float64 or largest == 0.0:
        return 1.0
    return 2.0 ** min(_TOP - math.frexp(largest)[1], 1000)  # its inverse is a normal number, too


def result_dtype(x: Tensor) -> torch.dtype:
    """What every backend returns: float64 for float64 features, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def neighbours(problem: Problem, compute_mode: str = DIRECT) -> KnnResult:
    """The k nearest rows of y for every row of x by a full sort, in the dtype of x; distances are differentiable in x.

    A pair with NaN or Inf in either row is at distance NaN and comes after every finite one, lower index first.
    """
    x, y = problem.x, problem.y.detach()
    x_finite, y_finite = x.detach().isfinite().all(1), y.isfinite().all(1)
    # Such rows must not enter cdist: its backward would multiply their NaN by 0 and give NaN to every other row.
    x = torch.where(x_finite[:, None], x, torch.zeros_like(x))
    y = torch.where(y_finite[:, None], y, torch.zeros_like(y))
    r = _distances(x, y, compute_mode)  # [B, N]
    finite = x_finite[:, None] & y_finite  # [B, N]
    key = torch.where(finite, r.detach(), torch.inf)
    key = _mask_self(key, problem.self_index)
    idx = key.sort(dim=1, stable=True).indices[:, : problem.k + int(problem.drop_smallest)]
    if problem.drop_smallest:
        idx = idx[:, 1:]
    distances = torch.where(finite.gather(1, idx), r.gather(1, idx), torch.nan)
    return KnnResult(distances, idx.contiguous())


def _distances(x: Tensor, y: Tensor, compute_mode: str) -> Tensor:
    """Euclidean distances [B, N]; in float64, of features in `unit_of`, from 2^-1000 of it on.

    Rows nearer than _TINY, yet not equal, differ in features that are themselves so small: features are 53 bits
    long. So all others may be cut off where those are lifted; equal ones stay equal.
    """
    r = torch.cdist(x, y, compute_mode=compute_mode)
    small = (x.detach() != 0) & (x.detach().abs() < _TINY * 2**60), (y != 0) & (y.abs() < _TINY * 2**60)
    if x.dtype != torch.float64 or not (small[0].any() or small[1].any()):
        return r
    most = 2.0**_TOP
    near = torch.cdist((x * _LIFT).clamp(-most, most), (y * _LIFT).clamp(-most, most), compute_mode=compute_mode)
    return torch.where(r.detach() < _TINY, near / _LIFT, r)


def _mask_self(key: Tensor, self_index: int | Tensor | None) -> Tensor:
    """Put every row's own column behind all others (NaN sorts last)."""
    if self_index is None:
        return key
    rows = torch.arange(key.shape[0], device=key.device)
    own = rows + self_index if isinstance(self_index, int) else self_index
    present = own >= 0
    key = key.clone()
    key[rows[present], own[present]] = torch.nan
    return key


# ------------------------------------------------------------------------------------------------- estimators
# d [B, k] ascending, self removed; d_k = d[:, -1].


def mom(d: Tensor) -> Tensor:
    """Method of moments as in the published LDReg code: m / (d_k - m), m the mean of the k-1 nearer distances."""
    d_k = d[:, -1]
    return d[:, :-1].mean(1) / (d_k[:, None] - d[:, :-1]).mean(1)


def mom_amsaleg(d: Tensor) -> Tensor:
    """Method of moments over all k distances (Amsaleg et al. 2015; text of the LDReg paper, eq. 4): M / (d_k - M)."""
    d_k = d[:, -1]
    return d.mean(1) / (d_k[:, None] - d).mean(1)


def mle(d: Tensor) -> Tensor:
    """Maximum likelihood as in the published LDReg code: -k / sum_{j<k} ln(d_j / d_k + 1e-4)."""
    return -d.shape[1] / torch.log(d[:, :-1] / d[:, -1:] + MLE_EPSILON).sum(1)


def _log_ratios(d: Tensor) -> Tensor:
    return -torch.log(d[:, :-1] / d[:, -1:]).sum(1)  # S = sum_{j<k} ln(d_k / d_j)


def hill(d: Tensor) -> Tensor:
    """Hill estimator (Amsaleg et al. 2015, MLE): (k-1) / S."""
    return (d.shape[1] - 1) / _log_ratios(d)


def hill_unbiased(d: Tensor) -> Tensor:
    """Hill estimator with Levina and Bickel's (2005) correction: (k-2) / S."""
    return (d.shape[1] - 2) / _log_ratios(d)


def mada(d: Tensor) -> Tensor:
    """Manifold-adaptive (expansion) dimension (Farahmand et al. 2007): ln 2 / ln(d_k / d_h), h = floor(k/2)."""
    k = d.shape[1]
    return -math.log(2.0) / torch.log(d[:, k // 2 - 1] / d[:, -1])


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mom": mom,
    "mom_amsaleg": mom_amsaleg,
    "mle": mle,
    "hill": hill,
    "hill_unbiased": hill_unbiased,
    "mada": mada,
}


def _near_one(d: Tensor) -> Tensor:
    """d with every row times a power of two that brings d_k to 1: LID has no unit, and powers of d stay in range."""
    last = d.detach()[:, -1:].nan_to_num(1.0, 1.0)
    exponent = -torch.frexp(last).exponent
    half = exponent.div(2, rounding_mode="floor")  # two factors: one alone may be too large a number
    return d * torch.ldexp(torch.ones_like(last), half) * torch.ldexp(torch.ones_like(last), exponent - half)


def estimate(d: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """LID [B] (differentiable in d) and the mask of degenerate rows [B].

    Degenerate: the distances are finite but ln LID does not exist. LID is NaN where d_k = 0 or the k distances cannot
    be told apart (LID outside [0, 1e6]), and 0 where the nearer distances are 0 but d_k is not.
    """
    finite = d.detach().isfinite().all(1)
    d = _near_one(d)
    raw = _ESTIMATORS[estimator](d.detach())
    in_range = (d.detach()[:, -1] > 0) & (raw >= 0) & (raw < LID_MAX)
    usable = finite & in_range & (raw > 0)
    # The unusable rows must not enter autograd: 0 * inf in their backward would be NaN.
    stand_in = torch.arange(1, d.shape[1] + 1, dtype=d.dtype, device=d.device)
    lid = _ESTIMATORS[estimator](torch.where(usable[:, None], d, stand_in))
    other = torch.where(finite & in_range, torch.zeros_like(raw), torch.full_like(raw, torch.nan))
    return torch.where(usable, lid, other), finite & ~usable


# ------------------------------------------------------------------------------------------------- loss forms


def loss(lid: Tensor, degenerate: Tensor, form: str, target: float | None, reduction: str) -> Tensor:
    """R to add to the SSL loss; degenerate rows contribute nothing and are not counted in the mean.

    l1 = -mean ln LID (LDReg paper eq. 3 for L1), l1_abs = -mean |ln LID| (published code), l2 = -(mean ln^2 LID)^(1/2)
    (paper), min = +mean ln LID (paper's MinLID), target = mean |ln(LID / target)| (paper, appendix A).
    """
    ln = _log(lid, degenerate)
    if form == "target":
        assert target is not None
        ln = ln - math.log(target)
    keep = ~degenerate
    count = keep.sum().clamp(min=1)
    if form == "l2":
        square = (ln.square() * keep).sum() / count
        positive = ~(square.detach() == 0)  # the square root has no derivative at 0: use 0 there
        return -torch.where(positive, square, torch.ones_like(square)).sqrt() * positive
    per_row = {"l1": -ln, "l1_abs": -ln.abs(), "min": ln, "target": ln.abs()}[form]
    per_row = torch.where(keep, per_row, torch.zeros_like(per_row))
    if reduction == "none":
        return per_row
    return per_row.sum() / count if reduction == "mean" else per_row.sum()


# ------------------------------------------------------------------------------------------------- backend contract


def knn(problem: Problem) -> KnnResult:
    """Contract `knn`: distances and indices, no gradient."""
    with torch.no_grad():
        found, unit = _found(problem, problem.x)
    return KnnResult((found.distances / unit).to(result_dtype(problem.x)), found.indices)


def lid(problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`: every estimate comes from one list of the largest k asked for; the gradient is autograd's."""
    k_max = max([problem.k, *(k for _, k in track)])

    def compute() -> LidResult:
        x = problem.x.detach().double().requires_grad_(need_grad)
        d = _found(problem._replace(k=k_max), x)[0].distances
        value, degenerate = estimate(d[:, : problem.k], estimator)
        grad = x.new_empty(0, x.shape[1])
        if need_grad:
            (grad,) = torch.autograd.grad(_log(value, degenerate).sum(), x)
            touched_by_nan = value.isnan() & ~degenerate
            grad = grad.masked_fill(touched_by_nan[:, None], torch.nan)
        tracked = [estimate(d[:, :k].detach(), name)[0] for name, k in track]
        stacked = torch.stack(tracked) if tracked else d.new_empty(0, d.shape[0])
        out = result_dtype(problem.x)
        return LidResult(value.detach().to(out), degenerate, stacked.detach().to(out), grad.to(out))

    return _with_autograd(compute)


def _found(problem: Problem, x: Tensor) -> tuple[KnnResult, float]:
    """(neighbours, unit): distances in that unit, differentiable in x, the features of the problem in any dtype.

    So a distance may be too large for its dtype and LID is not concerned.
    """
    dtype = working_dtype(problem.x, problem.y)
    while True:
        y = problem.y.detach().to(dtype)
        unit = unit_of(problem.x.detach().to(dtype), y)
        found = neighbours(problem._replace(x=x.to(dtype) * unit, y=y * unit))
        if dtype == torch.float64 or not (found.distances.detach() < _SMALLEST).any():
            return found, unit
        dtype = torch.float64


def _with_autograd(compute: Callable[[], Any]) -> Any:
    """Run `compute` where the autograd tape records.

    Inside a registered op the tape is switched off below the dispatcher, thread by thread; a fresh thread has it on.
    """
    with ThreadPoolExecutor(max_workers=1) as fresh:
        return fresh.submit(compute).result()


def _log(lid: Tensor, degenerate: Tensor) -> Tensor:
    """ln LID with 0 in the place of degenerate rows."""
    return torch.where(degenerate, torch.ones_like(lid), lid).log()


def ldreg(
    problem: Problem,
    estimator: str,
    form: str,
    target: float | None,
    reduction: str,
    track: Track,
    need_grad: bool,
    need_rows: bool = True,  # computed anyway
) -> LdregResult:
    """Contract `ldreg`: the loss and d loss / d ln LID, by autograd on the [B] vector of estimates."""
    rows = lid(problem, estimator, track, need_grad)

    def compute() -> LdregResult:
        ln = _log(rows.lid, rows.degenerate).requires_grad_()
        value = loss(ln.exp(), rows.degenerate, form, target, reduction)
        (coeff,) = torch.autograd.grad(value.sum(), ln)
        return LdregResult(value.detach(), coeff[:, None], rows.grad, *rows[:3])

    return _with_autograd(compute)


# ------------------------------------------------------------------------------------------------- published baseline


def published_lid(
    data: Tensor,
    reference: Tensor,
    k: int,
    estimator: str = "mom",
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    """LID [B] the way the published LDReg code computes it: the baseline of every benchmark.

    Full cdist, full sort, the smallest distance dropped as "self", k clamped to `data.shape[0] - 2`; gradients are
    autograd's. Source: the formulas of `lid_mom_est` and `lid_mle` in the LDReg paper's released code.
    """
    k = min(k, data.shape[0] - 2)
    sorted_distances, _ = torch.cdist(data, reference, compute_mode=compute_mode).sort(dim=1)  # [B, N]
    return _ESTIMATORS[estimator](sorted_distances[:, 1 : k + 1])
