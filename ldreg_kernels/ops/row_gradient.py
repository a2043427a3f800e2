"""The backward pass shared by `lid` and `ldreg_loss`: scale the rows of the gradient that the launch left behind.

dL/dx_i = s_i * g_i with g_i = d ln LID_i / d x_i. The launch has no second derivative, so differentiating the result
again is refused; `once_differentiable` alone would not do, because it stays silent when the incoming gradient is a
constant and returns a second derivative of zero.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels import dispatch
from .registry import register


def _native(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    if dispatch.unavailable_reason("cpu") is not None:  # "auto" then took the reference
        return _product(scale, grad, dtype)
    scaled: Tensor = dispatch.resolve("cpu", grad.device).scale_rows(scale, grad, dtype)
    return scaled


def _product(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == grad.dtype:
        return grad * scale
    if transformed():  # which know no `out`
        return (grad * scale).to(dtype)
    return torch.mul(grad, scale, out=torch.empty_like(grad, dtype=dtype))  # rounded in the same pass


def _native_fake(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.new_empty(grad.shape, dtype=dtype)


# Bytes from which the C++ backend's way is worth an op of its own: smaller memory comes in small pages there, too.
_LARGE = 4 << 20

_native_op = register("scale_rows(Tensor scale, Tensor grad, ScalarType dtype) -> Tensor", _native, _native_fake)


def scale_rows(scale: Tensor, grad: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """scale [B, 1] times the rows of grad [B, D], in `dtype`; differentiating it again raises.

    For that, `scale` has to be made of an output of the function that is being differentiated: x itself need not be
    kept. By torch's own product, which a compiler may fuse with what follows; only the C++ backend has a way of its
    own, for large gradients.
    """
    if not torch.is_grad_enabled():
        return _scaled(scale, grad, dtype, backend)
    with torch.no_grad():  # backward(create_graph=True), and under functional transforms
        scaled = _scaled(scale, grad, dtype, backend)
    result: Tensor = _NotTwice.apply(scaled, scale)
    return result


def _scaled(scale: Tensor, grad: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    # A size that a compiler is asked about becomes a guard: it gets the op at every size.
    large = torch.compiler.is_compiling() or grad.nbytes >= _LARGE
    if large and grad.is_cpu and backend in ("auto", "cpu"):
        scaled: Tensor = _native_op(scale, grad, dtype)
        return scaled
    return _product(scale, grad, dtype)


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work.

    torch.compile takes a function apart that has a setup_context, and gets it wrong: around a transform it has to leave
    the call as it is.
    """
    active = torch._C._are_functorch_transforms_active()
    if active and torch.compiler.is_compiling():
        torch._dynamo.graph_break("torch.func transforms of ldreg_kernels run as they are")
    return active or forward_ad._current_level >= 0


def along_rows(scale: Tensor, grad: Tensor, tangent: Tensor | None) -> Tensor:
    """The derivative of every row's output along `tangent` [B, D]: scale [B, 1] times the dot products with `grad`."""
    if tangent is None:  # only the references have one, and they are constant
        return torch.zeros_like(scale).squeeze(1)
    rows: Tensor = _NotTwice.apply(scale.squeeze(1) * (grad * tangent.to(grad.dtype)).sum(1), scale)  # [B]
    return rows


def refuse_twice() -> NoReturn:
    """Raise what differentiating twice raises."""
    raise RuntimeError(
        "ldreg_kernels: lid and ldreg_loss cannot be differentiated twice; the fused launch emits first "
        "derivatives only. For second derivatives differentiate ldreg_kernels.kernels.reference in float64."
    )


class _NotTwice(torch.autograd.Function):
    """The identity on `result`, tied to `scale` so that whoever differentiates again comes here: on the way to x, or to
    what the incoming gradient was made of.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(result: Tensor, scale: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_twice()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        refuse_twice()
