"""What the GPU backends have in common: outputs allocated as the contract wants them, filled by one launch.

A backend hands in `run(problem, request, out, goal)`. A `Request` is what is asked for, in the numbers that kernels
know: the same at every step of a training, so that a backend can look its plan up by it. `goal` (ln of the target LID)
is not part of it, because it may change at every step. All of this is on the way of every call: it is counted in
microseconds (benchmarks/host.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import ESTIMATORS, FORMS, REDUCTIONS, KnnResult, LdregResult, LidResult, Problem, Track


class Request(NamedTuple):
    """What a call asks for."""

    k: int  # of the estimator; for knn the neighbours returned
    wanted: int  # neighbours to find: the largest k asked for
    knn: bool = False  # distances and indices; else LID
    estimator: int = 0  # in ESTIMATORS; likewise the next ones
    track: tuple[tuple[int, int], ...] = ()  # (estimator, k)
    gradient: bool = False
    loss: bool = False
    form: int = 0
    reduction: int = 0


class Outputs(NamedTuple):
    """Tensors to fill, by their names in contract.py; None for what is not asked for."""

    distances: Tensor | None = None
    indices: Tensor | None = None
    lid: Tensor | None = None
    degenerate: Tensor | None = None
    tracked: Tensor | None = None
    grad: Tensor | None = None
    value: Tensor | None = None
    coeff: Tensor | None = None


Run = Callable[[Problem, Request, Outputs, float], None]


@lru_cache(maxsize=1024)
def _request(k: int, estimator: str, track: Track, gradient: bool, form: str = "", reduction: str = "") -> Request:
    """`form` is empty for `lid`."""
    return Request(
        k=k,
        wanted=max([k, *(size for _, size in track)]),
        estimator=ESTIMATORS.index(estimator),
        track=tuple((ESTIMATORS.index(name), size) for name, size in track),
        gradient=gradient,
        loss=bool(form),
        form=FORMS.index(form) if form else 0,
        reduction=REDUCTIONS.index(reduction) if form else 0,
    )


def _real(problem: Problem) -> torch.dtype:
    """Of outputs: float32, or float64 for float64 features."""
    return torch.float64 if problem.x.dtype == torch.float64 else torch.float32


def knn(run: Run, problem: Problem) -> KnnResult:
    """Contract `knn`."""
    x, k = problem.x, problem.k
    rows = x.shape[0]
    distances = torch.empty((rows, k), dtype=_real(problem), device=x.device)
    indices = torch.empty((rows, k), dtype=torch.int64, device=x.device)
    run(problem, Request(k, k, knn=True), Outputs(distances, indices), 0.0)
    return KnnResult(distances, indices)


def lid(run: Run, problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`."""
    found = _new_rows(problem, len(track), need_grad)
    run(problem, _request(problem.k, estimator, track, need_grad), Outputs(None, None, *found), 0.0)
    return found


def ldreg(
    run: Run,
    problem: Problem,
    estimator: str,
    form: str,
    target: float | None,
    reduction: str,
    track: Track,
    need_grad: bool,
) -> LdregResult:
    """Contract `ldreg`."""
    found = _new_rows(problem, len(track), need_grad)
    coeff = found.lid.new_empty((problem.x.shape[0], 1))
    value = torch.empty_like(found.lid) if reduction == "none" else coeff.new_empty(())
    request = _request(problem.k, estimator, track, need_grad, form, reduction)
    run(problem, request, Outputs(None, None, *found, value, coeff), 0.0 if target is None else math.log(target))
    return LdregResult(value, coeff, found.grad, *found[:3])


def _new_rows(problem: Problem, tracked: int, need_grad: bool) -> LidResult:
    """What a launch says of every row, to be filled."""
    x = problem.x
    rows, columns = x.shape
    lid = torch.empty(rows, dtype=_real(problem), device=x.device)
    # Of a tensor that has dtype and device already, which are the dear part of asking for one.
    return LidResult(
        lid,
        torch.empty_like(lid, dtype=torch.bool),
        lid.new_empty((tracked, rows)),
        lid.new_empty((rows if need_grad else 0, columns)),
    )
