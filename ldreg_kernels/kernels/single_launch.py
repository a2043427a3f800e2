"""What the GPU backends have in common: outputs allocated as the contract wants them, filled by one launch.

A backend hands in `run(problem, wanted, out, modes)`: `wanted` is the largest k asked for, `out` the tensors to fill by
their names in contract.py, `modes` what is asked for in numbers: `k`, and either `knn`, or `estimator`, `track` (pairs
of estimator and k), `gradient` and, for the loss, `loss`, `form`, `reduction` and `goal` (ln of the target LID).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .contract import ESTIMATORS, FORMS, REDUCTIONS, KnnResult, LdregResult, LidResult, Problem, Track

Run = Callable[[Problem, int, dict[str, Tensor], dict[str, object]], None]


def _new(problem: Problem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An output; float32, or float64 for float64 features, unless told otherwise."""
    real = torch.float64 if problem.x.dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=dtype or real, device=problem.x.device)


def knn(run: Run, problem: Problem) -> KnnResult:
    """Contract `knn`."""
    rows, k = problem.x.shape[0], problem.k
    found = KnnResult(_new(problem, rows, k), _new(problem, rows, k, dtype=torch.int64))
    run(problem, k, found._asdict(), {"knn": True, "k": k})
    return found


def lid(run: Run, problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`."""
    return _estimates(run, problem, estimator, track, need_grad, {}, {})


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
    rows = problem.x.shape[0]
    value = _new(problem, rows) if reduction == "none" else _new(problem)
    coeff = _new(problem, rows)
    modes: dict[str, object] = {
        "loss": True,
        "form": FORMS.index(form),
        "reduction": REDUCTIONS.index(reduction),
        "goal": 0.0 if target is None else math.log(target),
    }
    found = _estimates(run, problem, estimator, track, need_grad, modes, {"value": value, "coeff": coeff})
    return LdregResult(value, coeff, *found)


def _estimates(
    run: Run,
    problem: Problem,
    estimator: str,
    track: Track,
    need_grad: bool,
    modes: dict[str, object],
    out: dict[str, Tensor],
) -> LidResult:
    rows, columns = problem.x.shape
    found = LidResult(
        lid=_new(problem, rows),
        degenerate=_new(problem, rows, dtype=torch.bool),
        tracked=_new(problem, len(track), rows),
        grad=_new(problem, rows if need_grad else 0, columns),
    )
    modes = {
        "k": problem.k,
        "estimator": ESTIMATORS.index(estimator),
        "track": [(ESTIMATORS.index(name), k) for name, k in track],
        "gradient": need_grad,
        **modes,
    }
    run(problem, max([problem.k, *(k for _, k in track)]), found._asdict() | out, modes)
    return found


def scale_rows(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Contract `scale_rows`: one pass, rounding to `dtype` on the way out."""
    out = torch.empty_like(grad, dtype=dtype)
    with torch.no_grad():  # backward(create_graph=True) runs with gradients on
        return torch.mul(grad, scale[:, None], out=out)
