"""Rows of length 1, at every scale: what the losses that are functions of cosines begin with.

A sum of squares underflows in float32 for rows of 1e-23 and overflows for rows of 1e20, and a floor under the norm
(`torch.nn.functional.normalize`, 1e-12) makes short rows shorter than 1. So a row is divided by its largest entry
first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.pairs import HalfRows
from ..ops.row_gradient import transformed


def unit_rows(z: Tensor) -> Tensor:
    """z_i / |z_i|; a zero row stays zero, so its cosine with anything is 0, and its gradient is 0.

    Only the result is kept for backward.

    Args:
        z: [N, D], float32 or float64.

    Returns:
        [N, D] of the same dtype; rows that hold NaN or Inf are NaN. The gradient goes with 1 / |z_i|, which the dtype
        has to hold: that of a float32 row shorter than 1e-38 may be Inf or NaN.
    """
    if transformed():  # torch.compile knows no function with a jvp, so that one has none
        rows, _, _ = _parts(z)
        return rows
    unit: Tensor = _UnitRows.apply(z)[0]
    return unit


def _parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, n, l): rows of length 1, and |z_i| = n_i l_i with l_i the largest entry, [N, 1] both.

    l is a constant: neither u nor its derivative depends on what a row was divided by.
    """
    largest = torch.linalg.vector_norm(z.detach(), ord=torch.inf, dim=1, keepdim=True)  # [N, 1]
    largest = torch.where(largest == 0, 1.0, largest)
    rows = z / largest  # [N, D] largest entry 1
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # [N, 1] between 1 and sqrt(D), 0 for a zero row
    # By a product with 0 in place of 1 / 0: no gradient reaches a zero row.
    return rows * _inverse(norm), norm, largest


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm == 0, 0.0, 1 / torch.where(norm == 0, 1.0, norm))


class _UnitRows(torch.autograd.Function):
    """`_parts`, of which only the results are kept.

    du = (dz - u <u, dz>) / (n l) and dn = <u, dz> / l are made of outputs, so they can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, norm, largest = _parts(z)
        ctx.mark_non_differentiable(largest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, norm, largest)
        return rows, norm, largest

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor | None, by_norm: Tensor | None, _: None) -> Tensor | None:
        rows, norm, largest = ctx.saved_tensors
        if by_rows is None:
            return None if by_norm is None else rows * (by_norm / largest)
        along = torch.einsum("ij,ij->i", rows, by_rows).unsqueeze(1)  # [N, 1]
        by_z = torch.addcmul(by_rows, rows, along, value=-1).mul_(_inverse(norm) / largest)  # one copy of all rows
        return by_z if by_norm is None else by_z + rows * (by_norm / largest)


def half_rows(z: Tensor, backend: str) -> HalfRows | None:
    """The unit rows of float16 or bfloat16 z, [N, D], for kernels whose products of half precision are exact.

    Those are a GPU's: elsewhere, and for other dtypes, None. Nothing is rounded, but entries of float16 that are 2^-24
    of their row's largest: each row is multiplied by a power of two, and its factor is float32.
    """
    if z.dtype not in (torch.float16, torch.bfloat16) or not (z.is_cuda or backend == "triton"):
        return None
    with torch.no_grad():
        wide = z.float()
        _, exponent = torch.frexp(wide.abs().amax(dim=1, keepdim=True))
        scaled = torch.ldexp(wide, 1 - exponent)  # [N, D] largest entry in [1, 2)
        norm = torch.linalg.vector_norm(scaled, dim=1)
        return HalfRows(scaled.to(z.dtype), torch.where(norm == 0, 0.0, 1 / norm))
