"""Is the answer right? Nothing is timed before it passed here.

Judged are 64 rows of a contender's first call, against float64. This package's backends are held to the contract of
precision="exact". Other contenders are only asked to compute the same thing: a library may trade accuracy for speed,
and the tables show what its answer is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import reference

from .cases import LID_ESTIMATOR, Case
from .contenders import Answer

ROWS = 64


class WrongAnswerError(Exception):
    """A contender's answer is not the answer; the message says by how much."""


@dataclass(frozen=True)
class Allowed:
    """The largest errors that pass."""

    recall: float  # least share of the k nearest found, ties within 1e-6 counted as found
    distance: float  # relative
    lid: float  # mean relative
    gradient: float  # relative, in L2


# The contract (python_tests/tolerances.py has every part of it with its reason), LID in `contract_share` below.
EXACT = Allowed(recall=1.0, distance=1e-6, lid=1e-4, gradient=0.0)  # the gradient's bound is in `gradient_error`
# An answer one could train with. The gradient's weights are 1 / (d_k - m), where small errors in distances are large.
USABLE = Allowed(recall=0.8, distance=2e-2, lid=0.1, gradient=0.3)
# Half a unit in the last place of a gradient that is returned in the features' precision.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TIE = 1e-6


def check(case: Case, x: Tensor, y: Tensor | None, answer: Answer, *, exact: bool) -> dict[str, float]:
    """The errors of an answer to `case` on (x, y).

    Args:
        case: shape and mode.
        x: queries [B, D].
        y: references [N, D], or None for x itself.
        answer: of the call that is about to be timed.
        exact: hold it to the contract of this package rather than to usefulness.

    Returns:
        `recall` for a search; `lid error` for LIDs; that and `gradient error` for a loss.

    Raises:
        WrongAnswerError: an error above what is allowed, or a part of the answer missing.
    """
    allowed = EXACT if exact else USABLE
    rows = torch.linspace(0, case.B - 1, min(ROWS, case.B), device=x.device).long()
    everything = (x if y is None else y).double()
    own = everything[rows]
    if case.mode == "forward":
        return _check_search(case, own, everything, rows, answer, allowed)
    if case.mode == "lid":
        return _check_lid(case, own, everything, rows, answer, allowed, exact=exact)
    return _check_loss(case, own, everything, rows, answer, allowed, exact=exact)


def _check_search(
    case: Case, own: Tensor, everything: Tensor, rows: Tensor, answer: Answer, allowed: Allowed
) -> dict[str, float]:
    if answer.distances is None or answer.indices is None:
        raise WrongAnswerError("no neighbours were returned")
    if answer.indices.shape != (case.B, case.k) or answer.distances.shape != (case.B, case.k):
        raise WrongAnswerError(f"lists of shape {tuple(answer.indices.shape)}, expected {(case.B, case.k)}")
    indices = answer.indices[rows]
    if (indices == rows[:, None]).any():
        raise WrongAnswerError("a row is its own neighbour")
    if any(len(set(row)) < case.k for row in indices.tolist()):
        raise WrongAnswerError("a neighbour is listed twice")
    truth = ldk.knn(own, everything, k=case.k, self_index=rows, backend="reference").distances
    true_distances = torch.stack([(everything[idx] - row).norm(dim=1) for row, idx in zip(own, indices, strict=True)])
    recall = float((true_distances <= truth[:, -1:] * (1 + TIE)).double().mean())
    distance = float(((answer.distances[rows].double() - true_distances) / true_distances).abs().max())
    _require(recall >= allowed.recall, f"recall {recall:.3f}, at least {allowed.recall} needed")
    _require(distance <= allowed.distance, f"distances off by {distance:.1e}, {allowed.distance:.0e} allowed")
    return {"recall": recall}


def _check_lid(
    case: Case, own: Tensor, everything: Tensor, rows: Tensor, answer: Answer, allowed: Allowed, *, exact: bool
) -> dict[str, float]:
    if answer.lid is None or answer.lid.shape != (case.B,):
        raise WrongAnswerError("no LID for every row was returned")
    truth = ldk.lid(own, everything, k=case.k, estimator=LID_ESTIMATOR, self_index=rows, backend="reference")
    ours = answer.lid[rows].double()
    error = float(((ours - truth) / truth).abs().mean())
    _require(error <= allowed.lid, f"LID off by {error:.1e}, {allowed.lid:.0e} allowed")
    if exact:
        share = contract_share(ours, truth)
        _require(share <= 1, f"LID has {share:.1f} times the error that the contract allows")
    return {"lid error": error}


def _check_loss(
    case: Case, own: Tensor, everything: Tensor, rows: Tensor, answer: Answer, allowed: Allowed, *, exact: bool
) -> dict[str, float]:
    if answer.lid is None or answer.loss is None or answer.gradient is None or len(answer.tracked) != len(case.track):
        raise WrongAnswerError("loss, gradient, LID or a tracked LID was not returned")
    _, stats = ldk.ldreg_loss(
        own, everything, k=case.k, self_index=rows, track=case.track, backend="reference", return_stats=True
    )
    lids = [(answer.lid[rows].double(), stats.lid)]
    lids += [(ours[rows].double(), truth) for ours, truth in zip(answer.tracked, stats.tracked.values(), strict=True)]
    lid_error = max(float(((ours - truth) / truth).abs().mean()) for ours, truth in lids)
    slope_error, contract = gradient_error(answer.gradient[rows], everything, rows, case.k, case.B)
    loss_error = float((answer.loss.double() + answer.lid.double().log().mean()).abs())

    _require(lid_error <= allowed.lid, f"LID off by {lid_error:.1e}, {allowed.lid:.0e} allowed")
    limit = max(contract, allowed.gradient) + ROUNDING[case.dtype]
    _require(slope_error <= limit, f"gradient off by {slope_error:.1e}, {limit:.0e} allowed")
    _require(loss_error <= 2e-5, f"loss off from the mean of its own LIDs by {loss_error:.1e}, 2e-05 allowed")
    if exact:
        share = max(contract_share(ours, truth) for ours, truth in lids)
        _require(share <= 1, f"LID has {share:.1f} times the error that the contract allows")
    return {"lid error": lid_error, "gradient error": slope_error}


def gradient_error(gradient: Tensor, everything: Tensor, rows: Tensor, k: int, batch: int) -> tuple[float, float]:
    """Error of rows of the gradient of -mean ln LID (method of moments) against float64, and what the contract allows.

    Where neighbours tie for the k-th place either choice is right and the gradients differ; such rows are left out.

    Args:
        gradient: [R, D], of the rows to judge.
        everything: references [N, D] in float64, the queries first.
        rows: [R], which of them.
        k: neighbours.
        batch: rows that the mean runs over.

    Returns:
        The relative error in L2, and the contract's bound: 1e-5, conditioned by 1 + LID above 100.
    """
    own = everything[rows]
    found = ldk.knn(own, everything, k=min(k + 1, len(everything) - 1), self_index=rows, backend="reference")
    d = found.distances
    untied = (d[:, k - 2 :].diff(dim=1) > TIE * d[:, k - 1 : k]).all(1)  # [R]
    # On the neighbours alone: the backward of a whole cdist would take N x R x D.
    x = own[untied].requires_grad_()
    lid = reference.mom((x[:, None] - everything[found.indices[untied, :k]]).norm(dim=2))
    (truth,) = torch.autograd.grad(-lid.log().sum() / batch, x)
    error = float((gradient[untied].double() - truth).norm() / truth.norm())  # NaN, which fails, where all rows tie
    return error, max(1e-5, 1e-7 * (1 + float(lid.detach().max())) if len(x) else 0.0)


def contract_share(ours: Tensor, truth: Tensor) -> float:
    """Largest LID error over what is allowed: 4e-6 (1 + LID), from LID 20 on what 2e-7 in a distance makes of it."""
    return float(((ours - truth).abs() / ((1 + truth) * (2e-7 * truth).clamp(min=4e-6))).max())


def _require(passed: bool, message: str) -> None:
    # `not passed` is also what a NaN gives
    if not passed:
        raise WrongAnswerError(message)
