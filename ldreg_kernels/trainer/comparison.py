"""The regulariser and its gradient, computed both ways on the same output of a method.

The fused op works on the features as they are; the naive reference works on the same numbers in float64,
where its own rounding is out of the picture. Both get the method's extra references. Two measures come out, each
relative:

    value      |R - R64| / max(1, |R64|)
    gradient   ||G - G64||_F / ||G64||_F   over the judged rows

R is a mean of logarithms, so its error is absolute by nature; dividing by |R64| below 1 would judge LID = 1,
where R = 0, by an impossible standard. A row is judged if its k-th neighbour stands apart from the (k-1)-th
and the (k+1)-th by more than `gap`, relative to the k-th: the k-th distance has a weight of its own in the
gradient, so where two different neighbours tie for that place to within rounding, either choice is right, the LID is
the same, and yet the gradients legitimately differ. Rows that are not judged are counted, because a
comparison that judges nothing proves nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .methods.base import Output
from .regularisers import Regulariser
from .step_log import Observer, Step


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


def compare(step: int, output: Output, naive: Regulariser, fused: Regulariser, *, k: int, gap: float) -> StepComparison:
    """Compute the regulariser and its gradient both ways on the same output.

    Args:
        step: index of the step, kept for the record.
        output: of a method; features [Q, D] and extra references [M, D] or None. No gradient reaches it.
        naive: the reference; is handed the numbers in float64.
        fused: what is under test; is handed the numbers as they are.
        k: neighbours.
        gap: relative distance between the k-th neighbour and those beside it below which a row is not judged.

    Returns:
        The differences.
    """
    extra = output.extra_references
    wide = output._replace(
        features=output.features.double(), extra_references=None if extra is None else extra.double()
    )
    truth, expected, degenerate_naive = _value_and_gradient(naive, wide)  # G64 [Q, D]
    value, gradient, degenerate_fused = _value_and_gradient(fused, output)  # G [Q, D]
    judged = relative_gap(output.features, extra, k) > gap  # [Q]
    difference = (gradient.double() - expected)[judged].norm(dim=1)  # [Q']
    size = expected[judged].norm(dim=1)  # [Q']
    return StepComparison(
        step=step,
        value=truth,
        value_difference=abs(value - truth) / max(1.0, abs(truth)),
        gradient_difference=_ratio(difference.norm(), size.norm()),
        worst_row=float(torch.where(difference == 0, difference, difference / size).max()) if judged.any() else 0.0,
        rows=len(output.features),
        unjudged=int((~judged).sum()),
        degenerate_naive=degenerate_naive,
        degenerate_fused=degenerate_fused,
    )


def relative_gap(features: Tensor, extra_references: Tensor | None, k: int) -> Tensor:
    """min |d_j - d_k| / d_k of every row over its neighbours j beside the k-th, in float64, from plain differences.

    A neighbour equal to the k-th does not count, whichever of the two comes first: they pull in the same direction. In
    BYOL's first steps every row is there twice, because the momentum encoder begins as a copy.

    Args:
        features: [Q, D].
        extra_references: [M, D] searched beside the features, or None.
        k: neighbours, self not counted, 2 <= k <= Q + M - 1.

    Returns:
        [Q] float64; NaN where d_k = 0, and 0 where there are so many equal neighbours that the next other one was not
        looked for.
    """
    x = features.double()
    y = x if extra_references is None else torch.cat([x, extra_references.double()])
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # [Q, Q + M]
    distances.fill_diagonal_(-1.0)  # the row itself, always first
    near, rows = distances.topk(min(k + 3, len(y)), largest=False, sorted=True)  # [Q, <= k + 3]
    first = max(k - 2, 1)
    kth = y[rows[:, k]]  # [Q, D]
    equal = torch.stack([(y[column] == kth).all(1) for column in rows[:, first:].unbind(1)], 1)  # [Q, <= 5]
    gaps = (near[:, first:] - near[:, k : k + 1]).abs().masked_fill(equal, torch.inf)
    hidden = (equal[:, 0] & (first > 1)) | (equal[:, -1] & (len(y) > k + 3))
    return gaps.amin(1).masked_fill(hidden, 0.0) / near[:, k]


class RegulariserClock(Observer):
    """Times several ways to compute a regulariser, in turn, on the outputs of the same steps.

    In turn, so that a machine that is slow for a while is slow for all of them.

    Args:
        computations: by name, each from an output to a scalar.
    """

    def __init__(self, computations: Mapping[str, Callable[[Output], Tensor]]) -> None:
        self._computations = computations
        self._samples: dict[str, list[float]] = {name: [] for name in computations}

    def step(self, step: Step) -> None:
        """Time each once."""
        for name, compute in self._computations.items():
            self._samples[name].append(milliseconds(compute, step.output))

    def medians(self) -> dict[str, float]:
        """Median milliseconds by name; a median, because the first calls are cold."""
        return {name: statistics.median(samples) for name, samples in self._samples.items()}


def milliseconds(compute: Callable[[Output], Tensor], output: Output) -> float:
    """Wall time of one forward and backward of a regulariser alone.

    Inside a training step the backward of the regulariser is interleaved with that of the network by
    autograd, so it cannot be timed there. The features are detached first, which leaves exactly the
    regulariser's own work.

    Args:
        compute: what to time, from an output to a scalar.
        output: of a method.

    Returns:
        Milliseconds.
    """
    leaf = output.features.detach().clone().requires_grad_()
    _synchronise(leaf.device)
    start = time.perf_counter()
    compute(output._replace(features=leaf)).backward()
    _synchronise(leaf.device)
    return 1e3 * (time.perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _value_and_gradient(regulariser: Regulariser, output: Output) -> tuple[float, Tensor, int]:
    leaf = output.features.detach().clone().requires_grad_()
    value, stats = regulariser(output._replace(features=leaf))
    value.backward()
    assert leaf.grad is not None  # for the type checker: backward has just filled it
    return value.item(), leaf.grad, 0 if stats is None or stats.degenerate is None else int(stats.degenerate)


def _ratio(difference: Tensor, size: Tensor) -> float:
    """difference / size, where 0 / 0 = 0: rows without a gradient (degenerate ones) agree when both are 0."""
    return 0.0 if difference == 0 else float(difference / size)
