"""`ldreg_loss`: the LDReg regulariser, its gradient and every LID worth logging, from one launch.

R = reduction_i phi(ln LID_i). The launch emits R, u_i = dR / d ln LID_i and the unit row gradients d ln LID_i / d x_i;
backward is dL/dx_i = dL/dR * u_i * d ln LID_i / d x_i. No global scalar is needed before the gradient rows are written,
so the loss forms that couple rows (l2, the mean over valid rows) cost no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from ..kernels import dispatch
from ..kernels.contract import LdregResult, Track
from . import own_rows, validate
from .call import Call, parse, remembered, text_of
from .knn import make_problem, result_dtype
from .registry import register
from .row_gradient import along_rows, refuse_twice, scale_rows, transformed
from .summary import LIDRows


@dataclass(frozen=True)
class LDRegStats(LIDRows):
    """What one launch knows beyond the loss; all detached, on the device of the features, nothing waited for.

    `stats.geometric_mean` (and the other summaries of `LIDRows`) leave degenerate rows out; so does
    `stats["mle", 512].geometric_mean` for what `track` asked for.
    """

    # lid: [B] the estimates the loss is made of
    tracked: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # {("mle", 32): [B], ...}, k as asked for
    degenerate: Tensor | None = None  # [] int64: rows left out of the loss
    k: int = 0  # neighbours the estimates are made of: fewer than asked for where `clamp` took what was there
    tracked_k: dict[tuple[str, int], int] = field(default_factory=dict)  # likewise, by what was asked for
    # [B] 0 where the nearest reference is at distance 0 and the k-th is not; None without references.
    by_nearest: Tensor | None = field(default=None, repr=False)

    @property
    def copies(self) -> Tensor | None:
        """[] int64: rows with a reference at distance 0 (and one that is not), where references were passed."""
        return None if self.by_nearest is None else own_rows.copies(self.by_nearest)

    def __getitem__(self, tracked: tuple[str, int]) -> LIDRows:
        return LIDRows(self.tracked[tracked])


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


def _backward(ctx: Any, coeff: Tensor, grad: Tensor, grad_value: Tensor) -> Tensor:
    by_row = grad_value.unsqueeze(1) if grad_value.dim() else grad_value  # reduction "none"
    return scale_rows(coeff * by_row, grad, ctx.dtype, ctx.backend)


class _LDReg(torch.autograd.Function):
    """Forward launches; backward scales the rows of the gradient that forward left behind.

    `coeff` is an output, which nobody sees: whoever differentiates a derivative comes to it, and is refused. Nothing
    but what backward needs is kept, so x may be changed in place, and its memory goes when its owner lets it go.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rest: tuple[Any, ...]) -> Any:  # torch asks about every argument it is given
        with_stats, backend, *arguments = rest
        value, coeff, grad, *stats = (_ldreg_op if with_stats else _value_op)(x, *arguments)
        if with_stats:
            ctx.mark_non_differentiable(*stats)
        ctx.save_for_backward(coeff, grad)
        ctx.backend, ctx.dtype = backend, x.dtype
        if not torch.compiler.is_compiling():  # not every version of torch can trace it
            ctx.set_materialize_grads(False)  # or the engine makes zeros for the stats
        return value, coeff, *stats

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if grad_value is None:
            return None, None
        coeff, grad = ctx.saved_tensors
        return _backward(ctx, coeff, grad, grad_value), None


class _TransformedLDReg(torch.autograd.Function):
    """`_LDReg` for torch.func and forward-mode differentiation, which want to see every tensor that is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, backend: str, *rest: Any) -> tuple[Tensor, ...]:
        value, coeff, grad, *stats = _ldreg_op(x, *rest)
        return value, coeff, *stats, grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend, ctx.dtype, ctx.rest = inputs[1], inputs[0].dtype, len(inputs) - 1
        value, coeff, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.set_materialize_grads(False)
        ctx.by_row = value.dim() > 0
        ctx.save_for_backward(coeff, rest[-1])
        ctx.save_for_forward(coeff, rest[-1])

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_coeff: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_coeff is not None:
            refuse_twice()
        coeff, grad = ctx.saved_tensors
        found = None if grad_value is None else _backward(ctx, coeff, grad, grad_value)
        return found, *[None] * ctx.rest

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        coeff, grad = ctx.saved_tensors
        rows = along_rows(coeff, grad, tangent)
        return rows if ctx.by_row else rows.sum(), torch.zeros_like(coeff), None, None, None, None


if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class _Options(TypedDict, total=False):
        """Keyword arguments of `ldreg_loss` that do not decide what it returns."""

        k: int
        form: str
        estimator: str
        target: float | None
        self_index: int | Tensor | str | None
        track: Sequence[tuple[str, int]]
        reduction: str
        backend: str
        precision: str
        clamp: bool


@remembered
def _text(estimator: str, form: str, reduction: str, backend: str, precision: str, gradient: bool) -> str:
    """The call without tracked LIDs, its names checked."""
    validate.modes(estimator, form, reduction, backend, precision)
    return text_of(Call(estimator, form, reduction, (), gradient, backend=backend, precision=precision))


@overload
def ldreg_loss(
    x: Tensor, y: Tensor | None = None, *, return_stats: Literal[False] = False, **options: Unpack[_Options]
) -> Tensor: ...


@overload
def ldreg_loss(
    x: Tensor, y: Tensor | None = None, *, return_stats: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, LDRegStats]: ...


@overload
def ldreg_loss(
    x: Tensor, y: Tensor | None = None, *, return_stats: bool, **options: Unpack[_Options]
) -> Tensor | tuple[Tensor, LDRegStats]: ...


def ldreg_loss(
    x: Tensor,
    y: Tensor | None = None,
    *,
    k: int = 64,
    form: str = "l1",
    estimator: str = "mom",
    target: float | None = None,
    self_index: int | Tensor | str | None = None,
    track: Sequence[tuple[str, int]] = (),
    reduction: str = "mean",
    backend: str = "auto",
    precision: str = "exact",
    clamp: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LDRegStats]:
    """The LDReg regulariser R, to be added: `total = ssl_loss + beta * ldreg_loss(features)`.

    R = -(1/B) sum_i ln LID_i for the default form (Huang et al., "LDReg", ICLR 2024, eq. 3, the L1 form): lowering R
    raises the geometric mean of the local intrinsic dimensionalities. Gradients reach x only.

    Args:
        x: features [B, D]; float32, float64, bfloat16 or float16, any strides.
        y: references [N, D], dtype and device of x (under autocast the wider of the two dtypes is taken), constant;
            None takes x itself, each row's own index left out.
        k: neighbours per row, 2 <= k <= N (N - 1 where self is left out).
        form: l1 = -mean ln LID; l1_abs = -mean |ln LID| (published code); l2 = -(mean ln^2 LID)^(1/2) (paper);
            min = +mean ln LID (MinLID, collapses on purpose); target = mean |ln(LID / target)|.
        estimator: mom, mom_amsaleg, mle, hill, hill_unbiased or mada.
        target: the LID that form="target" pulls towards; only there.
        self_index: where row i of x sits in y: offset, int64 map [B] with -1 for "not in y", "auto" or None; see `knn`.
            A y that holds the rows of x without it makes every row its own nearest neighbour: most rows finding a copy
            at distance 0 is warned of once.
        track: (estimator, k) pairs logged from the same pass, e.g. [("mle", 32), ("mle", 512)].
        reduction: mean (over the rows that are not degenerate), sum, or none ([B], degenerate rows 0).
        backend: auto, reference, cpu, triton or cuda.
        precision: "exact" or "fast"; see `knn`.
        clamp: take the neighbours that are there where they are fewer than k (a last, short batch); said once, and in
            the stats. LID depends on k: values of short batches are not those of others. With fewer than the estimator
            needs (2, or 3), every row is degenerate: R is 0 with zero gradient. False makes it an error.
        return_stats: also return LDRegStats.

    Returns:
        R, float32 (float64 for float64 inputs), a scalar or [B] with reduction="none"; with return_stats
        (R, LDRegStats). Rows whose ln LID does not exist (k identical copies, equal distances) are left out and counted
        in `degenerate`; if every row is, R is 0 with zero gradient. NaN or Inf in a row makes R NaN.

    Raises:
        ValueError, TypeError: a bad argument, by name.
        RuntimeError: an unavailable backend; differentiating twice; torch.jit.trace.
    """
    x, y = validate.features(x, y)
    transforms = transformed()
    gradient = transforms or (torch.is_grad_enabled() and x.requires_grad)
    text = _text(estimator, form, reduction, backend, precision, gradient)
    target = validate.target(form, target)
    offset, own = validate.self_index(self_index, x, y)
    leaves_self_out = offset is not None or own is not None
    smallest = validate.smallest_k(estimator)
    k = validate.neighbours("k", k, smallest, x, y, leaves_self_out, clamp)
    sizes = _tracked_sizes(track, x, y, leaves_self_out, clamp) if track != () else {}
    if k < smallest:
        value, stats = _too_few(x, k, reduction, sizes)
        return (value, stats) if return_stats else value
    watch = None if y is None or leaves_self_out else own_rows.watch(x, y)
    with_stats = return_stats or watch is not None
    if with_stats and (sizes or y is not None):  # else nobody would see them
        pairs = _launched(sizes) + (() if y is None else own_rows.counting(k))
        text = text_of(Call(estimator, form, reduction, pairs, gradient, backend=backend, precision=precision))
    references = y.detach() if y is not None and y.requires_grad else y
    if transforms:
        found = _TransformedLDReg.apply(x, backend, references, own, offset, k, target, text)
    else:
        found = _LDReg.apply(x, (with_stats, backend, references, own, offset, k, target, text))
    value = found[0]
    if not with_stats:
        return value
    lid, degenerate, tracked = found[2:5]
    by_nearest = None if y is None else tracked[-1]
    if watch is not None:
        watch.add(own_rows.copies(tracked[-1]), x.shape[0])
    if not return_stats:
        return value
    rows = iter(tracked.unbind(0))  # in the order of _launched
    by_name = {
        (name, size): next(rows) if there >= validate.smallest_k(name) else torch.full_like(lid, torch.nan)
        for (name, size), there in sizes.items()
    }
    return value, LDRegStats(lid, by_name, degenerate.sum(), k, sizes, by_nearest)


def _tracked_sizes(
    track: Sequence[tuple[str, int]], x: Tensor, y: Tensor | None, leaves_self_out: bool, clamp: bool
) -> dict[tuple[str, int], int]:
    """{(estimator, k): the k there is}, checked."""
    return {
        (name, k): validate.neighbours(f"track[{i}] k", k, validate.smallest_k(name), x, y, leaves_self_out, clamp)
        for i, (name, k) in enumerate(validate.track(track))
    }


def _launched(sizes: dict[tuple[str, int], int]) -> Track:
    """What of the tracked LIDs exists."""
    return tuple((name, size) for (name, _), size in sizes.items() if size >= validate.smallest_k(name))


def _too_few(x: Tensor, k: int, reduction: str, sizes: dict[tuple[str, int], int]) -> tuple[Tensor, LDRegStats]:
    """What comes out where no row has the neighbours that its estimator needs: nothing, with a graph."""
    per_row = (x * 0).sum(1).to(result_dtype(x))  # NaN and Inf stay visible
    lid = torch.full_like(per_row, torch.nan, requires_grad=False)
    degenerate = torch.full((), x.shape[0], dtype=torch.int64, device=x.device)
    stats = LDRegStats(lid, dict.fromkeys(sizes, lid), degenerate, k, sizes)
    return per_row if reduction == "none" else per_row.sum(), stats
