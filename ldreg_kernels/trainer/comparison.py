"""The regulariser and its gradient, computed both ways on the same features.

The fused op works on the features as they are; the naive reference works on the same numbers in float64,
where its own rounding is out of the picture. Two measures come out, each relative:

    value      |R - R64| / max(1, |R64|)
    gradient   ||G - G64||_F / ||G64||_F   over the judged rows

R is a mean of logarithms, so its error is absolute by nature; dividing by |R64| below 1 would judge LID = 1,
where R = 0, by an impossible standard. A row is judged if its k-th neighbour stands apart from the (k-1)-th
and the (k+1)-th by more than `gap`, relative to the k-th: the k-th distance has a weight of its own in the
gradient, so where two neighbours tie for that place to within rounding, either choice is right, the LID is
the same, and yet the gradients legitimately differ. Rows that are not judged are counted, because a
comparison that judges nothing proves nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .regulariser import Regulariser


@dataclass(frozen=True)
class StepComparison:
    """Fused against naive on the features of one step.

    Attributes:
        step: index of the step.
        value: R64, the naive value.
        value_difference: |R - R64| / max(1, |R64|).
        gradient_difference: relative L2 difference over the judged rows.
        worst_row: the largest relative L2 difference of a single judged row.
        rows: rows in the batch.
        unjudged: rows left out because their k-th neighbour is tied.
        degenerate_naive: rows the reference left out of the loss.
        degenerate_fused: rows the fused op left out of the loss.
    """

    step: int
    value: float
    value_difference: float
    gradient_difference: float
    worst_row: float
    rows: int
    unjudged: int
    degenerate_naive: int
    degenerate_fused: int

    def numbers(self) -> dict[str, Any]:
        """The fields, for a log."""
        return asdict(self)


def compare(
    step: int, features: Tensor, naive: Regulariser, fused: Regulariser, *, k: int, gap: float
) -> StepComparison:
    """Compute the regulariser and its gradient both ways on the same features.

    Args:
        step: index of the step, kept for the record.
        features: [B, D]; not changed, no gradient reaches it.
        naive: the reference; is handed the features in float64.
        fused: what is under test; is handed the features as they are.
        k: neighbours.
        gap: relative distance between the k-th neighbour and those beside it below which a row is not judged.

    Returns:
        The differences.
    """
    truth, expected, degenerate_naive = _value_and_gradient(naive, features.double())  # G64 [B, D]
    value, gradient, degenerate_fused = _value_and_gradient(fused, features)  # G [B, D]
    judged = relative_gap(features, k) > gap  # [B]
    difference = (gradient.double() - expected)[judged].norm(dim=1)  # [B']
    size = expected[judged].norm(dim=1)  # [B']
    return StepComparison(
        step=step,
        value=truth,
        value_difference=abs(value - truth) / max(1.0, abs(truth)),
        gradient_difference=_ratio(difference.norm(), size.norm()),
        worst_row=float(torch.where(difference == 0, difference, difference / size).max()) if judged.any() else 0.0,
        rows=len(features),
        unjudged=int((~judged).sum()),
        degenerate_naive=degenerate_naive,
        degenerate_fused=degenerate_fused,
    )


def relative_gap(features: Tensor, k: int) -> Tensor:
    """min(d_(k+1) - d_k, d_k - d_(k-1)) / d_k of every row, in float64, from plain differences.

    Args:
        features: [B, D].
        k: neighbours, self not counted, 2 <= k <= B - 1.

    Returns:
        [B] float64; NaN where d_k = 0.
    """
    x = features.double()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # [B, B]
    distances.fill_diagonal_(-1.0)  # the row itself, always first
    nearest = distances.topk(min(k + 2, len(x)), largest=False, sorted=True).values  # [B, <= k + 2]
    around = nearest[:, k - 1 :].diff(dim=1)  # [B, 2], or [B, 1] where there is no (k+1)-th neighbour
    return around.amin(1) / nearest[:, k]


def _value_and_gradient(regulariser: Regulariser, features: Tensor) -> tuple[float, Tensor, int]:
    leaf = features.detach().clone().requires_grad_()
    value, stats = regulariser(leaf)
    value.backward()
    assert leaf.grad is not None  # for the type checker: backward has just filled it
    return value.item(), leaf.grad, int(stats.degenerate) if stats.degenerate is not None else 0


def _ratio(difference: Tensor, size: Tensor) -> float:
    """difference / size, where 0 / 0 = 0: rows without a gradient (degenerate ones) agree when both are 0."""
    return 0.0 if difference == 0 else float(difference / size)
