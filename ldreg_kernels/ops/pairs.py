"""Sums over all pairs of unit rows and candidates, differentiable, without the matrix of logits.

    row_logsumexp      ln sum_j exp(scale <x_i, y_j>)                 NT-Xent, InfoNCE, NNCLR, uniformity
    row_softplus_sum   sum_j ln(1 + exp(scale <x_i, y_j> + bias))     the sigmoid loss

Forward keeps two numbers a row; backward makes the logits again, tile by tile (contract.py, `Pairs`). Where candidates
are constant, forward has the rows' gradients too, and backward scales them. Gradients reach rows, candidates, scale and
bias. Differentiating twice, and the transforms of torch.func, take the plain formula, with
its [M, N] matrices.

What this file does not do: normalise rows, or check what users pass (losses/checks.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import dispatch
from ..kernels.contract import Pairs
from .registry import register
from .row_gradient import transformed


class HalfRows(NamedTuple):
    """Unit rows as half precision has them: factor_i * rows_i. A GPU multiplies such rows exactly, and fast."""

    rows: Tensor  # [M, P] float16 or bfloat16, the largest entry of each between 1 and 2, or a row of zeros
    factor: Tensor  # [M] float32


# The ops below take these first: the fields of `Pairs`, no y where the rows are the candidates, and the backend.
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


def _empty(pairs: Pairs) -> bool:
    return min(pairs.x.shape[0], pairs.y.shape[0]) == 0


def _sums(*given: Any) -> tuple[Tensor, Tensor]:
    *fields, backend, need_gradient = given
    pairs, (state, by_x) = _pairs(*fields), _sums_fake(*given)
    if _empty(pairs):
        return state.zero_(), by_x.zero_()  # of logarithms: -inf
    state, found = dispatch.resolve_pairs(backend, pairs).pair_sums(pairs, need_gradient)
    return state, by_x if found is None else found


def _sums_fake(x: Tensor, y: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, need_gradient = rest
    return scale.new_empty(2, x.shape[0]), scale.new_empty(x.shape[0] if need_gradient else 0, x.shape[1])


_sums_op = register(f"pair_sums({_PAIRS}, bool need_gradient) -> (Tensor, Tensor)", _sums, _sums_fake)


def _gradients(*given: Any) -> tuple[Tensor, Tensor]:
    *fields, backend, state, by_value, need_x, need_y = given
    pairs, (no_x, no_y) = _pairs(*fields), _gradients_fake(*given)
    if _empty(pairs):
        return no_x.zero_(), no_y.zero_()
    module = dispatch.resolve_pairs(backend, pairs)
    by_x, by_y = module.pair_gradients(pairs, state, by_value.contiguous(), need_x, need_y)
    return no_x if by_x is None else by_x, no_y if by_y is None else by_y


def _gradients_fake(x: Tensor, y: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, need_x, need_y = rest
    rows, candidates = x.shape[0] if need_x else 0, y.shape[0] if need_y and y is not None else 0
    return scale.new_empty(rows, x.shape[1]), scale.new_empty(candidates, x.shape[1])


_gradients_op = register(
    f"pair_gradients({_PAIRS}, Tensor state, Tensor by_value, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)


class _PairSums(torch.autograd.Function):
    """Values [M]; gradients reach x and y, whatever form of them the kernels take."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        scale: Tensor,
        bias: Tensor | None,
        x_half: Tensor | None,
        x_factor: Tensor | None,
        y_half: Tensor | None,
        y_factor: Tensor | None,
        modes: tuple[int | None, int, str],
    ) -> Tensor:
        own, views, backend = modes
        rows, candidates = (x, y) if x_half is None else (x_half, y_half)
        # Where the candidates are constant, every row has its gradient from the same pass.
        for_x, for_y, for_scale, _ = ctx.needs_input_grad[:4]
        at_once = y is not None and not for_y and (for_x or for_scale)
        state, unit = _sums_op(rows, candidates, scale, bias, own, views, x_factor, y_factor, backend, at_once)
        ctx.save_for_backward(x, y, scale, bias, x_half, x_factor, y_half, y_factor, state, unit if at_once else None)
        ctx.modes = modes
        return state[1].clone() if bias is not None else torch.addcmul(state[1].log(), scale, state[0])

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, x_half, x_factor, y_half, y_factor, state, unit = ctx.saved_tensors
        wanted, (own, views, backend) = ctx.needs_input_grad[:4], ctx.modes
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # backward(create_graph=True)
            return (*_with_graph((x, y, scale, bias), wanted, (own, views), by_value), *[None] * 5)
        for_x, for_y, for_scale, for_bias = wanted
        need_y = for_y and y is not None
        need_x = for_x or (for_scale and not need_y)
        if unit is not None:
            by_x, by_y = unit * by_value.unsqueeze(1), unit
        else:
            rows, candidates = (x, y) if x_half is None else (x_half, y_half)
            fields = (rows, candidates, scale, bias, own, views, x_factor, y_factor)
            by_x, by_y = _gradients_op(*fields, backend, state, by_value, need_x, need_y)
        by_scale = None
        if for_scale:
            # sum_i by_value_i d value_i / d scale = sum_i <x_i, by_x_i>; rows that are the candidates have it twice.
            total = torch.einsum("ij,ij->", x, by_x) if need_x else torch.einsum("ij,ij->", y, by_y)
            by_scale = total / 2 if y is None else total
        by_bias = torch.dot(by_value, state[0]) if for_bias else None
        # In place: they are this call's own, and copies of all rows.
        found = (by_x.mul_(scale) if for_x else None, by_y.mul_(scale) if need_y else None, by_scale, by_bias)
        return (*found, *[None] * 5)


def _with_graph(
    inputs: tuple[Any, ...], wanted: tuple[bool, ...], left_out: tuple[int | None, int], by_value: Tensor
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again, from the plain formula."""
    x, y, scale, bias = inputs
    value = dispatch.pair_formula(x, x if y is None else y, scale, bias, *left_out)
    asked = [t for t, want in zip(inputs, wanted, strict=False) if want and t is not None]
    found = iter(torch.autograd.grad(value, asked, by_value, create_graph=True))
    return [next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=False)]


def _row_sums(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    halves: tuple[HalfRows | None, HalfRows | None],
    modes: tuple[int | None, int, str],
) -> Tensor:
    if transformed():
        own, views, _ = modes
        return dispatch.pair_formula(x, x if y is None else y, scale, bias, own, views)
    of_x, of_y = halves
    alike = of_x is not None and (y is None or (of_y is not None and of_y.rows.dtype == of_x.rows.dtype))
    if not alike or x.dtype != torch.float32:
        of_x = of_y = None
    given = (*(of_x or (None, None)), *(of_y or (None, None)))
    values: Tensor = _PairSums.apply(x, y, scale, bias, *given, modes)
    return values


def row_logsumexp(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: Tensor,
    own: int | None = None,
    views: int = 1,
    x_half: HalfRows | None = None,
    y_half: HalfRows | None = None,
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
        x_half: the same rows in half precision, where kernels may multiply those instead.
        y_half: the same candidates; of one dtype with x_half, or neither has an effect.
        backend: see `dispatch.resolve_pairs`.

    Returns:
        [M] in the dtype of x, differentiable in x, y and scale; -inf for a row without candidates.
    """
    return _row_sums(x, y, scale, None, (x_half, y_half), (0 if y is None else own, views, backend))


def row_softplus_sum(
    x: Tensor,
    y: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    own: int | None = None,
    x_half: HalfRows | None = None,
    y_half: HalfRows | None = None,
    backend: str = "auto",
) -> Tensor:
    """sum_j ln(1 + exp(scale <x_i, y_j> + bias)) of every row, over all candidates j that are not left out.

    Args:
        x: unit rows (or zero rows) [M, P], float32 or float64.
        y: candidates [N, P], of the same kind.
        scale: 0-d, the dtype and device of x.
        bias: 0-d, the same.
        own: candidate own + i is left out for row i; None leaves none out.
        x_half: as in `row_logsumexp`.
        y_half: the same.
        backend: see `dispatch.resolve_pairs`.

    Returns:
        [M] in the dtype of x, differentiable in x, y, scale and bias.
    """
    return _row_sums(x, y, scale, bias, (x_half, y_half), (own, 1, backend))
