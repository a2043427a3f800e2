"""Cosines of the predictions of one view and the targets of the other: what BYOL's and SimSiam's loss are functions of.

What this file does not do: run networks, or gather rows of other processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_like, check_rows, working_dtype
from .cosine import unit_rows


def cross_view_cosines(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """cos(p1_i, z2_i), then cos(p2_i, z1_i), for rows i of two views; the targets z are constants.

    A zero row has cosine 0 and gradient 0.

    Args:
        p1: predictions of the first views, [N, D], N >= 1, any floating dtype.
        p2: predictions of the second views, [N, D].
        z1: targets of the first views, [N, D].
        z2: targets of the second views, [N, D].

    Returns:
        [2N], float32, or float64 for float64 inputs; under autocast the widest of the inputs' dtypes and float32.

    Raises:
        TypeError: an input is not a floating point tensor, or its dtype is not that of `p1` outside of autocast.
        ValueError: an input does not have the shape of `p1`, or that is not [N, D] with N >= 1.
    """
    check_rows("p1", p1)
    if p1.shape[0] < 1:
        raise ValueError("p1 must have at least 1 row, got 0")
    for name, rows in (("p2", p2), ("z1", z1), ("z2", z2)):
        check_rows(name, rows)
        check_like(name, rows, "p1", p1)
    dtype = working_dtype("p1", p1, p2=p2, z1=z1, z2=z2)
    with torch.autocast(p1.device.type, enabled=False):
        predictions = unit_rows(torch.cat([p1, p2]).to(dtype))  # [2N, D]
        targets = unit_rows(torch.cat([z2, z1]).detach().to(dtype))  # [2N, D] the other view's
        return (predictions * targets).sum(dim=1)
