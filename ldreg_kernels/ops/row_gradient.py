"""The backward pass shared by `lid` and `ldreg_loss`: scale the rows of the gradient that the launch left behind.

dL/dx_i = s_i * g_i with g_i = d ln LID_i / d x_i. The launch has no second derivative, so differentiating the result
again is refused; `once_differentiable` alone would not do, because it stays silent when the incoming gradient is a
constant and returns a second derivative of zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    return torch.mul(grad, scale, out=torch.empty_like(grad, dtype=dtype))  # rounded in the same pass


def _native_fake(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.new_empty(grad.shape, dtype=dtype)


# Bytes from which the C++ backend's way is worth an op of its own: smaller memory comes in small pages there, too.
_LARGE = 4 << 20

_native_op = register("scale_rows(Tensor scale, Tensor grad, ScalarType dtype) -> Tensor", _native, _native_fake)


def scale_rows(scale: Tensor, grad: Tensor, x: Tensor, backend: str) -> Tensor:
    """scale [B, 1] times the rows of grad [B, D], in the dtype of x [B, D]; differentiating it again raises.

    By torch's own product, which a compiler may fuse with what follows; only the C++ backend has a way of its own, for
    large gradients.
    """
    if not torch.is_grad_enabled():
        return _scaled(scale, grad, x.dtype, backend)
    with torch.no_grad():  # backward(create_graph=True)
        scaled = _scaled(scale, grad, x.dtype, backend)
    result: Tensor = _NotTwice.apply(scaled, x)
    return result


def _scaled(scale: Tensor, grad: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    # A size that a compiler is asked about becomes a guard: it gets the op at every size.
    large = torch.compiler.is_compiling() or grad.nbytes >= _LARGE
    if large and grad.is_cpu and backend in ("auto", "cpu"):
        scaled: Tensor = _native_op(scale, grad, dtype)
        return scaled
    return _product(scale, grad, dtype)


class _NotTwice(torch.autograd.Function):
    """The identity on `result`, tied to x so that the engine comes here on its way to x."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "ldreg_kernels: lid and ldreg_loss cannot be differentiated twice; the fused launch emits first "
            "derivatives only. For second derivatives differentiate ldreg_kernels.kernels.reference in float64."
        )
