"""Rows of every process of a group, side by side, with the exact gradient.

`gather_rows` concatenates the ranks' rows in the order of ranks. Its backward adds up what every rank's loss says about
a row and gives it to the rank that the row is from:

    G = [x_0; x_1; ...; x_{W-1}],      dL/dx_r = sum_q (dL_q/dG)[rows of r],      L = sum_q L_q

so DDP, which averages parameter gradients over ranks, trains on the mean of the ranks' losses. Cutting the gradient of
other ranks' rows (a plain `all_gather`) would lose the rest.

What this file does not do: start process groups, or move rows around a ring.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """Result of `gather_rows`."""

    rows: Tensor  # [N, D] of all ranks, in the order of ranks
    offset: int  # where this rank's own rows begin


def several_processes(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is a process group (the default one if none is named) with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gather_rows(x: Tensor, group: dist.ProcessGroup | None = None, *, equal_rows: bool = False) -> Gathered:
    """The rows of every rank of `group`, in the order of ranks; a collective call.

    Args:
        x: this rank's rows [B_r, D]. Ranks may hold different numbers of rows, also none; D and dtype must agree.
        group: the process group; None takes the default one. Without several processes nothing is done.
        equal_rows: every rank holds equally many rows, which then is not asked for. Asking makes a GPU's host wait for
            the device.

    Returns:
        Gathered(rows [sum_r B_r, D], offset of this rank's rows). Differentiable in x: backward is a collective call
        too, which sums over ranks.

    Raises:
        ValueError: ranks disagree in the number of features or the dtype, on every rank.
    """
    if not several_processes(group):
        return Gathered(x, 0)
    raise NotImplementedError
