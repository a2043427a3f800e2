"""`ldreg_loss`: the LDReg regulariser, its gradient and every LID worth logging, from one launch.

R = reduction_i phi(ln LID_i). The launch emits R, u_i = dR / d ln LID_i and the unit row gradients d ln LID_i / d x_i;
backward is dL/dx_i = dL/dR * u_i * d ln LID_i / d x_i. No global scalar is needed before the gradient rows are written,
so the loss forms that couple rows (l2, the mean over valid rows) cost no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kernels import dispatch
from ..kernels.contract import LdregResult
from . import validate
from .call import Call, parse, remembered, text_of
from .knn import make_problem, result_dtype
from .registry import register
from .row_gradient import scale_rows


@dataclass(frozen=True)
class LDRegStats:
    """What one launch knows beyond the loss; all detached."""

    lid: Tensor  # [B] the estimates the loss is made of
    tracked: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # {("mle", 32): [B], ...}
    degenerate: Tensor | None = None  # [] int64: rows left out of the loss (no host synchronisation)


def _launch(
    need_rows: bool,
    x: Tensor,
    y: Tensor | None,
    self_map: Tensor | None,
    self_offset: int | None,
    k: int,
    target: float | None,
    call: str,
) -> LdregResult:
    asked = parse(call)
    if x.shape[0] == 0:
        shape = (0,) if asked.reduction == "none" else ()
        return LdregResult(x.new_zeros(shape, dtype=result_dtype(x)), *_empty_rows(x, asked))
    problem = make_problem(x, y, k, self_map, self_offset, asked.precision)
    largest = max(k, *[size for _, size in asked.track]) if asked.track else k
    module = dispatch.resolve(asked.backend, x.device, k=largest, columns=x.shape[1])
    modes = asked.estimator, asked.form, target, asked.reduction, asked.track, asked.gradient
    result: LdregResult = module.ldreg(problem, *modes, need_rows)
    return result


def _ldreg_fake(
    x: Tensor,
    y: Tensor | None,
    self_map: Tensor | None,
    self_offset: int | None,
    k: int,
    target: float | None,
    call: str,
) -> LdregResult:
    asked = parse(call)
    value = x.new_empty((x.shape[0],) if asked.reduction == "none" else (), dtype=result_dtype(x))
    return LdregResult(value, *_empty_rows(x, asked))


def _empty_rows(x: Tensor, asked: Call) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = x.shape[0], result_dtype(x)
    return (
        x.new_empty(rows, 1, dtype=dtype),
        x.new_empty(rows if asked.gradient else 0, x.shape[1], dtype=dtype),
        x.new_empty(rows, dtype=dtype),
        x.new_empty(rows, dtype=torch.bool),
        x.new_empty(len(asked.track), rows, dtype=dtype),
    )


def _ldreg(*arguments: Any) -> LdregResult:
    return _launch(True, *arguments)


def _value(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first three results of `_ldreg`: in a small call each of the others costs a few microseconds."""
    return _launch(False, *arguments)[:3]


def _value_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _ldreg_fake(*arguments)[:3]


_ARGUMENTS = "Tensor x, Tensor? y, Tensor? self_map, int? self_offset, int k, float? target, str call"
_ldreg_op = register(
    f"ldreg({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ldreg,
    _ldreg_fake,
)
_value_op = register(f"ldreg_value({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _value, _value_fake)


class _LDReg(torch.autograd.Function):
    """Forward launches; backward scales the rows of the gradient that forward left behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rest: tuple[Any, ...]) -> Any:  # torch asks about every argument it is given
        with_stats, backend, *arguments = rest
        value, coeff, grad, *stats = (_ldreg_op if with_stats else _value_op)(x, *arguments)
        if with_stats:
            ctx.mark_non_differentiable(*stats)
        ctx.save_for_backward(coeff, grad)
        ctx.backend = backend
        ctx.x = x  # not save_for_backward: its values are not needed, so it may be changed in place
        if not torch.compiler.is_compiling():  # not every version of torch can trace it
            ctx.set_materialize_grads(False)  # or the engine makes zeros for the stats
        return (value, *stats) if with_stats else value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if grad_value is None:
            return None, None
        coeff, grad = ctx.saved_tensors
        by_row = grad_value.unsqueeze(1) if grad_value.dim() else grad_value  # reduction "none"
        return (scale_rows(coeff * by_row, grad, ctx.x, ctx.backend), None)


@remembered
def _text(estimator: str, form: str, reduction: str, backend: str, precision: str, gradient: bool) -> str:
    """The call without tracked LIDs, its names checked."""
    validate.modes(estimator, form, reduction, backend, precision)
    return text_of(Call(estimator, form, reduction, (), gradient, backend=backend, precision=precision))


def ldreg_loss(
    x: Tensor,
    y: Tensor | None = None,
    *,
    k: int = 64,
    form: str = "l1",
    estimator: str = "mom",
    target: float | None = None,
    self_index: int | Tensor | None = None,
    track: Sequence[tuple[str, int]] = (),
    reduction: str = "mean",
    backend: str = "auto",
    precision: str = "exact",
    return_stats: bool = False,
) -> Any:
    """The LDReg regulariser R, to be added: `total = ssl_loss + beta * ldreg_loss(features)`.

    R = -(1/B) sum_i ln LID_i for the default form (Huang et al., "LDReg", ICLR 2024, eq. 3, the L1 form): lowering R
    raises the geometric mean of the local intrinsic dimensionalities. Gradients reach x only.

    Args:
        x: features [B, D]; float32, float64, bfloat16 or float16, any strides.
        y: references [N, D], dtype and device of x, constant; None takes x itself, each row's own index left out.
        k: neighbours per row, 2 <= k <= N (N - 1 where self is left out).
        form: l1 = -mean ln LID; l1_abs = -mean |ln LID| (published code); l2 = -(mean ln^2 LID)^(1/2) (paper);
            min = +mean ln LID (MinLID, collapses on purpose); target = mean |ln(LID / target)|.
        estimator: mom, mom_amsaleg, mle, hill, hill_unbiased or mada.
        target: the LID that form="target" pulls towards; only there.
        self_index: where row i of x sits in y: offset, int64 map [B] with -1 for "not in y", or None; see `knn`.
        track: (estimator, k) pairs logged from the same pass, e.g. [("mle", 32), ("mle", 512)].
        reduction: mean (over the rows that are not degenerate), sum, or none ([B], degenerate rows 0).
        backend: auto, reference, cpu, triton or cuda.
        precision: "exact" or "fast"; see `knn`.
        return_stats: also return LDRegStats.

    Returns:
        R, float32 (float64 for float64 inputs), a scalar or [B] with reduction="none"; with return_stats
        (R, LDRegStats). Rows whose ln LID does not exist (k identical copies, equal distances) are left out and counted
        in `degenerate`; if every row is, R is 0 with zero gradient. NaN or Inf in a row makes R NaN.

    Raises:
        ValueError, TypeError: a bad argument, by name.
        RuntimeError: an unavailable backend; differentiating twice.
    """
    validate.features(x, y)
    gradient = torch.is_grad_enabled() and x.requires_grad
    text = _text(estimator, form, reduction, backend, precision, gradient)
    target = validate.target(form, target)
    offset, own = validate.self_index(self_index, x, y)
    leaves_self_out = offset is not None or own is not None
    k = validate.neighbours("k", k, validate.smallest_k(estimator), x, y, leaves_self_out)
    pairs = validate.track(track, x, y, leaves_self_out)
    if pairs and return_stats:  # else nobody would see them
        text = text_of(Call(estimator, form, reduction, pairs, gradient, backend=backend, precision=precision))
    references = y.detach() if y is not None and y.requires_grad else y
    found = _LDReg.apply(x, (return_stats, backend, references, own, offset, k, target, text))
    if not return_stats:
        return found
    value, lid, degenerate, tracked = found
    return value, LDRegStats(lid, dict(zip(pairs, tracked.unbind(0), strict=True)), degenerate.sum())
