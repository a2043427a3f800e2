"""Rows of length 1, at every scale: what the losses that are functions of cosines begin with.

A sum of squares underflows in float32 for rows of 1e-23 and overflows for rows of 1e20, and a floor under the norm
(`torch.nn.functional.normalize`, 1e-12) makes short rows shorter than 1. So a row is divided by its largest entry
first.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
