"""`lid`: local intrinsic dimensionality of every row, differentiable in x.

The launch emits LID_i and the unit gradient d ln LID_i / d x_i together. Because the references are constant, LID_i
depends on x_i alone, so backward is a row scaling:  dL/dx_i = dL/dLID_i * LID_i * d ln LID_i / d x_i.
Formulas of the estimators: kernels/reference.py. The loss on top of them is ops/ldreg.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import dispatch
from . import own_rows, validate
from .call import Call, parse, text_of
from .knn import make_problem, result_dtype
from .registry import register
from .row_gradient import along_rows, refuse_twice, scale_rows, transformed


def _lid(
    x: Tensor, y: Tensor | None, self_map: Tensor | None, self_offset: int | None, k: int, call: str
) -> tuple[Tensor, Tensor, Tensor]:
    if x.shape[0] == 0:
        return _lid_fake(x, y, self_map, self_offset, k, call)
    asked = parse(call)
    problem = make_problem(x, y, k, self_map, self_offset, asked.precision, asked.drop_smallest)
    module = dispatch.resolve(asked.backend, x.device, k=k, columns=x.shape[1])
    result = module.lid(problem, asked.estimator, asked.track, asked.gradient)
    return result.lid, result.grad, result.tracked


def _lid_fake(
    x: Tensor, y: Tensor | None, self_map: Tensor | None, self_offset: int | None, k: int, call: str
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype, asked = x.shape[0], result_dtype(x), parse(call)
    grad = x.new_empty(rows if asked.gradient else 0, x.shape[1], dtype=dtype)
    return x.new_empty(rows, dtype=dtype), grad, x.new_empty(len(asked.track), rows, dtype=dtype)


_lid_op = register(
    "lid(Tensor x, Tensor? y, Tensor? self_map, int? self_offset, int k, str call) -> (Tensor, Tensor, Tensor)",
    _lid,
    _lid_fake,
)


def _backward(ctx: Any, lid: Tensor, grad: Tensor, grad_lid: Tensor) -> Tensor:
    # The unit gradient of a row with LID 0 or NaN is 0 (degenerate) or NaN (touched by one): let it through as it
    # is, whatever comes in (1/0 from a logarithm would make NaN of 0).
    scale = torch.where(lid > 0, lid * grad_lid, 1.0)
    return scale_rows(scale.unsqueeze(1), grad, ctx.dtype, ctx.backend)


class _Lid(torch.autograd.Function):
    """Forward launches; backward scales the rows of the gradient that forward left behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rest: tuple[Any, ...]) -> Any:  # torch asks about every argument it is given
        with_tracked, backend, *arguments = rest
        lid, grad, tracked = _lid_op(x, *arguments)
        ctx.save_for_backward(lid, grad)
        ctx.backend, ctx.dtype = backend, x.dtype
        if not with_tracked:
            return lid
        ctx.mark_non_differentiable(tracked)
        return lid, tracked

    @staticmethod
    def backward(ctx: Any, grad_lid: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        lid, grad = ctx.saved_tensors
        return _backward(ctx, lid, grad, grad_lid), None


class _TransformedLid(torch.autograd.Function):
    """`_Lid` for torch.func and forward-mode differentiation, which want to see every tensor that is kept.

    The output `scale` is there to be noticed: who differentiates a derivative comes to it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, backend: str, *rest: Any) -> tuple[Tensor, ...]:
        lid, grad, _ = _lid_op(x, *rest)
        return lid, torch.where(lid > 0, lid, 1.0).unsqueeze(1), grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend, ctx.dtype, ctx.rest = inputs[1], inputs[0].dtype, len(inputs) - 1
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, grad_lid: Tensor | None, grad_scale: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_scale is not None:
            refuse_twice()
        lid, _, grad = ctx.saved_tensors
        found = None if grad_lid is None else _backward(ctx, lid, grad, grad_lid)
        return found, *[None] * ctx.rest

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        _, scale, grad = ctx.saved_tensors
        return along_rows(scale, grad, tangent), torch.zeros_like(scale), None


def lid_function(
    x: Tensor,
    y: Tensor | None,
    own: Tensor | None,
    offset: int | None,
    k: int,
    call: Call,
    watch: own_rows.Watch | None = None,
) -> Tensor:
    """The differentiable op on arguments that are already checked; `lid` and `compat` are its public faces.

    `watch` is told how many rows have a copy among the references.
    """
    result: Tensor
    if transformed():
        text = text_of(call._replace(gradient=True))
        result, *_ = _TransformedLid.apply(x, call.backend, y, own, offset, k, text)
        return result
    call = call._replace(gradient=torch.is_grad_enabled() and x.requires_grad)
    if watch is None:
        result = _Lid.apply(x, (False, call.backend, y, own, offset, k, text_of(call)))
        return result
    text = text_of(call._replace(track=own_rows.counting(k)))
    result, tracked = _Lid.apply(x, (True, call.backend, y, own, offset, k, text))
    watch.add(own_rows.copies(tracked[-1]), x.shape[0])
    return result


def lid(
    x: Tensor,
    y: Tensor | None = None,
    *,
    k: int = 64,
    estimator: str = "mom",
    self_index: int | Tensor | str | None = None,
    backend: str = "auto",
    precision: str = "exact",
) -> Tensor:
    """Local intrinsic dimensionality of every row of x among the rows of y.

    With the default estimator, LID_i = m_i / (d_ik - m_i), where d_ik is the distance to the k-th neighbour and m_i the
    mean of the k - 1 nearer ones (Huang et al., "LDReg", ICLR 2024, Algorithm 1). Gradients reach x only; y is
    constant, also where y is None and the references are x itself.

    Args:
        x: queries [B, D]; float32, float64, bfloat16 or float16, any strides.
        y: references [N, D], dtype and device of x (under autocast the wider of the two dtypes is taken); None takes x
            itself, each row's own index left out.
        k: neighbours per row, 2 <= k <= N (N - 1 where self is left out); 3 at least for hill_unbiased.
        estimator: mom, mom_amsaleg, mle, hill, hill_unbiased or mada.
        self_index: offset, int64 map [B] with -1 for "not in y", "auto" or None; see `knn`. Missing where y holds the
            rows of x, it is warned of once; see `ldreg_loss`.
        backend: auto, reference, cpu, triton or cuda.
        precision: "exact" or "fast"; see `knn`.

    Returns:
        LID [B], dimensionless, float32 (float64 for float64 inputs). NaN where the k distances are 0 or all equal
        (LID above 1e6 is not distinguishable from that), and for rows or neighbours with NaN or Inf; 0 where d_k > 0
        but the mean of the nearer distances (or the Hill ratio) is 0. All but the NaN or Inf rows have gradient 0.

    Raises:
        ValueError, TypeError: a bad argument, by name.
        RuntimeError: an unavailable backend; differentiating twice; torch.jit.trace.
    """
    x, y = validate.features(x, y)
    validate.modes(estimator, "l1", "mean", backend, precision)
    offset, own = validate.self_index(self_index, x, y)
    k = validate.neighbours("k", k, validate.smallest_k(estimator), x, y, offset is not None or own is not None)
    if y is not None and y.requires_grad:
        y = y.detach()
    watch = None if y is None or offset is not None or own is not None else own_rows.watch(x, y)
    call = Call(estimator, backend=backend, precision=precision)
    return lid_function(x, y, own, offset, k, call, watch)
