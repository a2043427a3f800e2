"""Sums over all pairs of unit rows and candidates, differentiable, without the matrix of logits.

    row_logsumexp      ln sum_j exp(scale <x_i, y_j>)                 NT-Xent, InfoNCE, NNCLR, uniformity
    row_softplus_sum   sum_j ln(1 + exp(scale <x_i, y_j> + bias))     the sigmoid loss

Forward keeps two numbers a row; backward makes the logits again, tile by tile (contract.py, `Pairs`). Gradients reach
rows, candidates, scale and bias. Differentiating twice, and the transforms of torch.func, take the plain formula, with
its [M, N] matrices.

What this file does not do: normalise rows, or check what users pass (losses/checks.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels import dispatch
from ..kernels.contract import Pairs
from .registry import register

_PAIRS = (
    "Tensor x, Tensor? y, Tensor scale, Tensor? bias, int? own, int views, Tensor? x_factor, Tensor? y_factor, "
    "str backend"
)


def _pairs(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    own: int | None,
    views: int,
    x_factor: Tensor | None,
    y_factor: Tensor | None,
) -> Pairs:
    return Pairs(x, x if y is None else y, scale, bias, own, views, x_factor, x_factor if y is None else y_factor)


def _sums(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    own: int | None,
    views: int,
    x_factor: Tensor | None,
    y_factor: Tensor | None,
    backend: str,
) -> Tensor:
    pairs = _pairs(x, y, scale, bias, own, views, x_factor, y_factor)
    if min(pairs.x.shape[0], pairs.y.shape[0]) == 0:
        return scale.new_zeros(2, x.shape[0])  # an empty sum; its logarithm is -inf
    state: Tensor = dispatch.resolve_pairs(backend, pairs).pair_sums(pairs)
    return state


def _sums_fake(x: Tensor, y: Tensor | None, scale: Tensor, *rest: Any) -> Tensor:
    return scale.new_empty(2, x.shape[0])


_sums_op = register(
    f"pair_sums({_PAIRS}) -> Tensor",
    _sums,
    _sums_fake,
)


def _gradients(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    own: int | None,
    views: int,
    x_factor: Tensor | None,
    y_factor: Tensor | None,
    backend: str,
    state: Tensor,
    by_value: Tensor,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor]:
    pairs = _pairs(x, y, scale, bias, own, views, x_factor, y_factor)
    empty = _gradients_fake(x, y, scale, bias, own, views, x_factor, y_factor, backend, state, by_value, need_x, need_y)
    if min(pairs.x.shape[0], pairs.y.shape[0]) == 0:
        return empty[0].zero_(), empty[1].zero_()
    module = dispatch.resolve_pairs(backend, pairs)
    by_x, by_y = module.pair_gradients(pairs, state, by_value.contiguous(), need_x, need_y)
    return empty[0] if by_x is None else by_x, empty[1] if by_y is None else by_y


def _gradients_fake(x: Tensor, y: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_x, need_y = rest[-2:]
    rows, candidates = x.shape[0] if need_x else 0, y.shape[0] if need_y and y is not None else 0
    return scale.new_empty(rows, x.shape[1]), scale.new_empty(candidates, x.shape[1])


_gradients_op = register(
    f"pair_gradients({_PAIRS}, Tensor state, Tensor by_value, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)


class _PairSums(torch.autograd.Function):
    """Values [M]; backward makes the tiles again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        scale: Tensor,
        bias: Tensor | None,
        own: int | None,
        views: int,
        backend: str,
    ) -> Tensor:
        state = _sums_op(x, y, scale, bias, own, views, None, None, backend)
        ctx.save_for_backward(x, y, scale, bias, state)
        ctx.own, ctx.views, ctx.backend = own, views, backend
        return state[1].clone() if bias is not None else torch.addcmul(state[1].log(), scale, state[0])

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, state = ctx.saved_tensors
        for_x, for_y, for_scale, for_bias = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # backward(create_graph=True)
            return (
                *_with_graph((x, y, scale, bias), ctx.needs_input_grad, (ctx.own, ctx.views), by_value),
                None,
                None,
                None,
            )
        need_y = for_y and y is not None
        need_x = for_x or (for_scale and not need_y)
        by_x, by_y = _gradients_op(
            x, y, scale, bias, ctx.own, ctx.views, None, None, ctx.backend, state, by_value, need_x, need_y
        )
        by_scale = None
        if for_scale:
            # sum_i by_value_i d value_i / d scale = sum_i <x_i, by_x_i>; rows that are the candidates have it twice.
            total = torch.einsum("ij,ij->", x, by_x) if need_x else torch.einsum("ij,ij->", y, by_y)
            by_scale = total / 2 if y is None else total
        by_bias = torch.dot(by_value, state[0]) if for_bias else None
        return by_x * scale if for_x else None, by_y * scale if need_y else None, by_scale, by_bias, None, None, None


def _with_graph(
    inputs: tuple[Any, ...], wanted: tuple[bool, ...], left_out: tuple[int | None, int], by_value: Tensor
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again, from the plain formula."""
    x, y, scale, bias = inputs
    value = dispatch.pair_formula(x, x if y is None else y, scale, bias, *left_out)
    asked = [t for t, want in zip(inputs, wanted, strict=False) if want and t is not None]
    found = iter(torch.autograd.grad(value, asked, by_value, create_graph=True))
    return [next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=False)]


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _row_sums(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, own: int | None, views: int, backend: str
) -> Tensor:
    if _transformed():
        return dispatch.pair_formula(x, x if y is None else y, scale, bias, own, views)
    values: Tensor = _PairSums.apply(x, y, scale, bias, own, views, backend)
    return values


def row_logsumexp(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: Tensor,
    own: int | None = None,
    views: int = 1,
    backend: str = "auto",
) -> Tensor:
    """ln sum_j exp(scale <x_i, y_j>) of every row, over all candidates j that are not left out.

    Args:
        x: unit rows (or zero rows) [M, P], float32 or float64.
        y: candidates [N, P], of the same kind; None takes x, each row itself left out.
        scale: 0-d, the dtype and device of x, > 0: one over the temperature.
        own: candidate own + i is row i and left out; None leaves none out. Only with y.
        views: 2: the rows are two views of M / 2 images, one stacked on the other, and the other view of a row's image
            is left out as well.
        backend: see `dispatch.resolve_pairs`.

    Returns:
        [M] in the dtype of x, differentiable in x, y and scale; -inf for a row without candidates.
    """
    return _row_sums(x, y, scale, None, 0 if y is None else own, views, backend)


def row_softplus_sum(
    x: Tensor, y: Tensor, *, scale: Tensor, bias: Tensor, own: int | None = None, backend: str = "auto"
) -> Tensor:
    """sum_j ln(1 + exp(scale <x_i, y_j> + bias)) of every row, over all candidates j that are not left out.

    Args:
        x: unit rows (or zero rows) [M, P], float32 or float64.
        y: candidates [N, P], of the same kind.
        scale: 0-d, the dtype and device of x.
        bias: 0-d, the same.
        own: candidate own + i is left out for row i; None leaves none out.
        backend: see `dispatch.resolve_pairs`.

    Returns:
        [M] in the dtype of x, differentiable in x, y, scale and bias.
    """
    return _row_sums(x, y, scale, bias, own, 1, backend)
