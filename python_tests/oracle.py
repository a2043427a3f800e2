"""The truth, in float64 from `kernels/reference.py`, and the judgements that follow from it.

Indices are judged by what they point at, never by equality; gradients are judged given the indices, because
exchanging the k-th neighbour with one at the same distance legitimately changes a row's gradient.
"""

from __future__ import annotations

import tolerances
import torch
from torch import Tensor

from ldreg_kernels.kernels import reference
from ldreg_kernels.kernels.contract import KnnResult, Problem


def problem(x: Tensor, y: Tensor | None, k: int, self_index) -> Problem:
    """The problem in float64 with y=None resolved as the public functions do."""
    x64 = x.detach().cpu().double()
    if y is None:
        return Problem(x64, x64, k, 0)
    return Problem(x64, y.detach().cpu().double(), k, self_index)


def knn(x: Tensor, y: Tensor | None = None, *, k: int, self_index=None) -> KnnResult:
    return reference.knn(problem(x, y, k, self_index))


def lid(
    x: Tensor, y: Tensor | None = None, *, k: int, estimator: str = "mom", self_index=None
) -> tuple[Tensor, Tensor]:
    """True LID [B] and the mask of degenerate rows [B]."""
    return reference.estimate(knn(x, y, k=k, self_index=self_index).distances, estimator)


def distances_given(x: Tensor, y: Tensor | None, indices: Tensor) -> Tensor:
    """float64 distances [B, k] from the rows of x to the rows of y that `indices` names, differentiable in x;
    NaN where either row has NaN or Inf.
    """
    rows = (x if y is None else y).detach().double()[indices]  # [B, k, D]
    difference = x.double()[:, None] - rows
    finite = difference.detach().isfinite().all(2, keepdim=True)
    difference = torch.where(finite, difference, torch.nan)
    # One power of two for each pair, so that squares of 1e-320 or 1e320 never arise; vector_norm has zero
    # subgradient at 0.
    size = difference.detach().abs().amax(2, keepdim=True).clamp(1e-300, 1e300).nan_to_num(1.0)
    unit = torch.exp2(size.log2().round())
    return torch.linalg.vector_norm(difference / unit, dim=2) * unit[:, :, 0]


def lid_given(x: Tensor, y: Tensor | None, indices: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """LID [B] in float64 over the given neighbours, differentiable in x, and the mask of degenerate rows.

    Sorted again, because two distances a rounding apart may have changed places; stably, because which of
    several equal distances is the k-th decides whose weight it gets.
    """
    d = distances_given(x, y, indices)
    return reference.estimate(d.sort(dim=1, stable=True).values, estimator)


def check_knn(found, x: Tensor, y: Tensor | None = None, *, k: int, self_index=None, name: str = "") -> None:
    """The whole contract of `knn` on finite or non-finite data."""
    D, dtype = x.shape[1], x.dtype
    truth = knn(x, y, k=k, self_index=self_index).distances
    B, N = x.shape[0], (x if y is None else y).shape[0]
    assert found.distances.shape == found.indices.shape == (B, k)
    assert found.distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.indices.dtype == torch.int64
    assert ((found.indices >= 0) & (found.indices < N)).all(), "index out of range"
    in_order = found.indices.sort(dim=1).values
    assert (in_order[:, 1:] != in_order[:, :-1]).all(), "a neighbour occurs twice"
    own = own_index(B, 0 if y is None else self_index)
    assert (found.indices != own[:, None]).all(), "a row is its own neighbour"

    tolerance = tolerances.distance(name, dtype, D)
    tiny = torch.finfo(found.distances.dtype).tiny  # below it float32 itself has fewer digits
    at_indices = distances_given(x, y, found.indices)
    assert_relative(found.distances, at_indices, tolerance, tiny, "distance of the returned row")
    assert_relative(found.distances, truth, tolerance, tiny, "k-NN distance")
    finite = ~found.distances.isnan()
    assert (finite.int().diff(dim=1) <= 0).all(), "a NaN distance before a finite one"
    step = found.distances.diff(dim=1)
    assert (step[finite[:, 1:]] >= 0).all(), "distances do not ascend"
    both_nan = ~finite[:, 1:] & ~finite[:, :-1]
    tied = ((at_indices.diff(dim=1) == 0) & (step == 0)) | both_nan
    assert not (tied & (found.indices.diff(dim=1) < 0)).any(), "equal distances, higher index first"


def own_index(B: int, self_index) -> Tensor:
    """Where each of B rows sits in y, -1 for nowhere."""
    if self_index is None:
        return torch.full((B,), -1)
    return torch.arange(B) + self_index if isinstance(self_index, int) else self_index.cpu()


def assert_relative(actual: Tensor, truth: Tensor, tolerance: float, smallest: float, what: str) -> None:
    """|actual - truth| <= tolerance |truth| (+ the smallest normal number); NaN exactly where the truth has
    it.
    """
    assert torch.equal(actual.isnan(), truth.isnan()), f"{what}: NaN in the wrong places"
    error = (actual.double() - truth).abs() - smallest
    bad = error > tolerance * truth.abs()
    worst = (error / truth.abs()).nan_to_num(0.0).max().item() if truth.numel() else 0.0
    assert not bad.any(), f"{what}: relative error {worst:.2e} > {tolerance:.2e} at {bad.nonzero()[0].tolist()}"


def check_lid(found: Tensor, truth: Tensor, name: str, dtype: torch.dtype) -> None:
    """LID [B] against its true value; NaN where the truth has it, except where float32 cannot tell."""
    assert found.shape == truth.shape
    resolved = resolved_rows(found, truth, dtype)
    high = found.isnan() | (found > tolerances.LID_UNRESOLVED / 10)
    assert high[~resolved].all(), "an LID too large for float32 came out small"
    found, truth = found.double()[resolved], truth[resolved]
    assert torch.equal(found.isnan(), truth.isnan()), (
        f"NaN LID in rows {found.isnan().nonzero().flatten().tolist()[:8]}, "
        f"expected in {truth.isnan().nonzero().flatten().tolist()[:8]}"
    )
    excess = (found - truth).abs() / tolerances.lid(name, dtype, truth)
    worst = excess.nan_to_num(0.0)
    assert not (worst > 1).any(), (
        f"LID {found[worst.argmax()].item():.9g}, truth {truth[worst.argmax()].item():.9g}: "
        f"{worst.max().item():.2f} times the tolerance"
    )


def resolved_rows(found: Tensor, truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask of the rows whose LID is small enough for float32 distances to place it."""
    if dtype == torch.float64:
        return torch.ones(len(truth), dtype=torch.bool)
    limit = tolerances.LID_UNRESOLVED
    return ~((truth > limit) | (truth.isnan() & (found > limit)))


def check_gradient(found: Tensor, truth: Tensor, tolerance: float, dtype: torch.dtype) -> None:
    """Gradient [B, D] within `tolerance` in relative L2 over the matrix; NaN rows exactly where the truth has
    them.

    Entries that the dtype cannot hold (float16 ends at 65504) must be at its end or infinite.
    """
    assert found.shape == truth.shape
    assert found.dtype == dtype
    nan_rows = truth.isnan().any(1)
    assert torch.equal(found.isnan().any(1), nan_rows), (
        f"NaN gradient in rows {found.isnan().any(1).nonzero().flatten().tolist()[:8]}, "
        f"expected in {nan_rows.nonzero().flatten().tolist()[:8]}"
    )
    found, truth = found.double()[~nan_rows], truth[~nan_rows]
    end = (1 - tolerance) * torch.finfo(dtype).max
    overflows = truth.abs() > end
    assert (found[overflows] * truth[overflows].sign() >= (1 - tolerance) * end).all(), (
        "an overflowing gradient is small"
    )
    found, truth = found[~overflows], truth[~overflows]
    slack = tolerances.GRADIENT_SMALLEST.get(dtype, 0.0) * truth.numel() ** 0.5
    error, size = (found - truth).norm().item(), truth.norm().item()
    assert error <= tolerance * size + slack, f"gradient off by {error / max(size, 1e-300):.2e} > {tolerance:.2e}"


def lid_gradient_given(
    x: Tensor, y: Tensor | None, indices: Tensor, estimator: str, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """float64 autograd of sum_i weight_i LID_i over the given neighbours: (gradient [B, D], LID [B]).

    Zero for degenerate rows, NaN for rows that a NaN or Inf touches: the contract.
    """
    leaf = x.detach().cpu().double().requires_grad_()
    value, degenerate = lid_given(leaf, x if y is None else y, indices, estimator)
    kept = torch.where(degenerate | value.isnan(), torch.zeros_like(value), value)
    (gradient,) = torch.autograd.grad((kept * weight.double()).sum(), leaf)
    touched = value.detach().isnan() & ~degenerate
    return gradient.masked_fill(touched[:, None], torch.nan), value.detach()


def loss_given(
    x: Tensor,
    y: Tensor | None,
    indices: Tensor,
    estimator: str,
    form: str,
    target: float | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss over the given neighbours in float64 and its gradient: of R, or of sum_i (i + 1) R_i for
    "none".
    """
    leaf = x.detach().cpu().double().requires_grad_()
    value, degenerate = lid_given(leaf, x if y is None else y, indices, estimator)
    result = reference.loss(value, degenerate, form, target, reduction)
    weight = torch.arange(1, result.numel() + 1) if reduction == "none" else torch.tensor(1.0)
    (gradient,) = torch.autograd.grad((result * weight).sum(), leaf)
    return result.detach(), gradient
