"""Rows of length 1, at every scale: what the losses that are functions of cosines begin with.

A sum of squares underflows in float32 for rows of 1e-23 and overflows for rows of 1e20, and a floor under the norm
(`torch.nn.functional.normalize`, 1e-12) makes short rows shorter than 1. So a row is divided by its largest entry
first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.pairs import HalfRows


def unit_rows(z: Tensor) -> Tensor:
    """z_i / |z_i|; a zero row stays zero, so its cosine with anything is 0, and its gradient is 0.

    Args:
        z: [N, D], float32 or float64.

    Returns:
        [N, D] of the same dtype; rows that hold NaN or Inf are NaN.
    """
    # A constant: the direction of a row does not depend on what the row was divided by.
    largest = z.detach().abs().amax(dim=1, keepdim=True)  # [N, 1]
    scaled = z / torch.where(largest == 0, 1.0, largest)  # [N, D] largest entry 1
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)  # [N, 1] between 1 and sqrt(D)
    # Zero in place of 1 / 0, and by a product, so that no gradient reaches a zero row.
    return scaled * torch.where(largest == 0, 0.0, 1.0 / torch.where(largest == 0, 1.0, norm))


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
