"""The criteria of `ldreg verify`: every limit with its reason, and the functions that hold a run against
them.

Three groups, for the three questions at the top of verify.py: steps (same features), curves (same seed),
finals (finished encoders). A criterion that cannot fail is none: NaN never passes, and a comparison that
could judge too few rows fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .comparison import StepComparison
from .evaluation import Evaluation

Curve = Sequence[Mapping[str, Any]]  # step records of a training


@dataclass(frozen=True)
class Tolerances:
    """Every limit of a verification, with its reason."""

    value: float = 1e-5
    """R: ln LID is good to 4e-6 (1 + 1/LID) by the contract, and R is its mean."""
    gradient: float = 1e-5
    """Relative L2 of the gradient given the neighbours, by the contract."""
    row: float = 1e-3
    """Relative L2 of one row: -1/(d_k - m) magnifies an error of the distances by 1 + LID, 100 at most in
    practice."""
    gap: float = 2e-6
    """Rows whose k-th neighbour is tied within this are counted, not judged: the contract allows 1e-6."""
    unjudged_share: float = 0.05
    """More tied rows than this, at any step, and the comparison says too little: it fails. By chance alone
    one expects about 2 k LID gap, 0.4 % at k = 32 and LID = 30."""
    perturbation: float = 1e-7
    """Relative change of the initial weights in a yardstick training: float32's spacing is 6e-8 to 1.2e-7."""
    yardsticks: int = 3
    """Yardstick trainings; single ones differ from each other by up to ten times."""
    drift_epochs: int = 2
    """Epochs in which drift is judged: later, every difference has grown to the size of the noise between
    batches."""
    drift_factor: float = 10.0
    """About one step of growth, measured on digits."""
    drift_floor: float = 1e-5
    """Nats. Rounding of a float32 loss of a few nats over a few steps, so that a yardstick of 0 does not fail
    1e-7."""
    standard_errors: float = 3.0
    """Of the difference of two accuracies: a sound run fails one of the two checks once in some 200 times."""
    effective_rank: float = 0.30
    """Relative difference at the end. Naive trainings from weights 1e-7 apart were seen to differ by up to
    20 %, which no change of the op can reduce; MinLID, for scale, lowers it by 60 %."""
    lid: float = 0.15
    """Relative difference of the geometric mean at the end: up to 7 % by chaos alone; MinLID lowers it by
    20 %."""


@dataclass(frozen=True)
class Check:
    """One criterion: `passed` is `measured <= limit`."""

    name: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the criterion holds; NaN never passes."""
        return self.measured <= self.limit


def step_checks(steps: Sequence[StepComparison], limits: Tolerances) -> list[Check]:
    """Question 1: value and gradient on the same features, the worst over all steps.

    Args:
        steps: comparisons.
        limits: tolerances.

    Returns:
        Checks on value, gradient, degenerate rows and the share of rows that could not be judged.
    """
    unlike = sum(s.degenerate_naive != s.degenerate_fused for s in steps)
    return [
        Check("value R, worst step", _worst(s.value_difference for s in steps), limits.value),
        Check("gradient, worst step", _worst(s.gradient_difference for s in steps), limits.gradient),
        Check("gradient of one row, worst step", _worst(s.worst_row for s in steps), limits.row),
        Check("steps with another count of degenerate rows", unlike, 0),
        Check(
            "share of tied rows, worst step",
            _worst(s.unjudged / s.rows for s in steps),
            limits.unjudged_share,
        ),
    ]


def drift(one: Curve, other: Curve, name: str = "loss") -> list[float]:
    """|difference| of a logged curve between two trainings, per step, as far as both go.

    Args:
        one: step records.
        other: step records.
        name: the curve.

    Returns:
        One number per step.
    """
    return [abs(a[name] - b[name]) for a, b in zip(one, other, strict=False)]


def allowed_drift(naive: Curve, yardsticks: Sequence[Curve], limits: Tolerances, name: str = "loss") -> list[float]:
    """How far a training may be from the naive one at each step of the yardsticks.

    Args:
        naive: step records.
        yardsticks: step records of trainings from slightly changed weights.
        limits: factor and floor.
        name: the curve.

    Returns:
        factor * (largest drift of any yardstick up to this step) + floor, per step.
    """
    worst = [_worst(drifts) for drifts in zip(*(drift(naive, y, name) for y in yardsticks), strict=True)]
    # Up to this step, because two curves that are far apart may still cross at any one step.
    return [limits.drift_factor * so_far + limits.drift_floor for so_far in accumulate(worst, max)]


def curve_checks(naive: Curve, fused: Curve, yardsticks: Sequence[Curve], limits: Tolerances) -> list[Check]:
    """Question 2: the curves of loss and regulariser, against the drift of the yardsticks.

    Args:
        naive: step records.
        fused: step records.
        yardsticks: step records of trainings from slightly changed weights.
        limits: tolerances.

    Returns:
        The first step, and for each curve the largest drift as a multiple of what was allowed at that step.
    """
    checks = [Check("loss at step 0", drift(naive, fused)[0], limits.value)]
    for name in ("loss", "regulariser"):
        allowed = allowed_drift(naive, yardsticks, limits, name)
        excess = _worst(ours / most for ours, most in zip(drift(naive, fused, name), allowed, strict=False))
        checks.append(Check(f"drift of the {name}, over what is allowed", excess, 1.0))
    return checks


def final_checks(naive: Evaluation, fused: Evaluation, limits: Tolerances) -> list[Check]:
    """Question 3: the finished encoders.

    Args:
        naive: evaluation of the naive training.
        fused: evaluation of the fused training.
        limits: tolerances.

    Returns:
        Checks on probe and k-NN accuracy, effective rank and LID.
    """
    a, b, images = naive, fused, naive.test_images
    checks = []
    for name, p, q in (
        ("probe accuracy", a.probe_accuracy, b.probe_accuracy),
        ("k-NN accuracy", a.knn_accuracy, b.knn_accuracy),
    ):
        mean = (p + q) / 2
        # At an accuracy of 1 the formula gives 0; one image in either direction is never evidence.
        bound = max(limits.standard_errors * math.sqrt(2 * mean * (1 - mean) / images), 1 / images)
        checks.append(Check(f"final {name}", abs(p - q), bound))
    for name, p, q, bound in (
        ("effective rank", a.geometry.effective_rank, b.geometry.effective_rank, limits.effective_rank),
        ("geometric-mean LID", a.geometry.lid_geometric_mean, b.geometry.lid_geometric_mean, limits.lid),
    ):
        checks.append(Check(f"final {name}, relative", abs(p - q) / p if p else math.nan, bound))
    return checks


def _worst(values: Iterable[float]) -> float:
    """The largest value, NaN if any is NaN: max() would drop a NaN that does not come first, and pass a
    broken run.
    """
    listed = list(values)
    return math.nan if any(math.isnan(v) for v in listed) else max(listed, default=math.nan)
