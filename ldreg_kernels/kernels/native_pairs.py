"""The C++ CPU backend's sums over pairs: takes tensors apart, allocates the outputs, calls `_cpu`.

What it computes and how is in csrc/cpu/pairs_cpu.h. Rows are float32: half precision is widened here, float64 is the
reference's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .contract import Pairs, unit_columns


def _float_rows(rows: Tensor, factor: Tensor | None) -> Tensor:
    rows = unit_columns(rows.float())
    return rows if factor is None else rows * factor[:, None]


def _unpacked(cpu: Any, pairs: Pairs) -> Any:
    x = _float_rows(pairs.x, pairs.x_factor)
    y = x if pairs.symmetric else _float_rows(pairs.y, pairs.y_factor)
    return cpu.Pairs(
        (x, y),
        *(x.data_ptr(), x.shape[0], x.stride(0)),
        *(y.data_ptr(), y.shape[0], y.stride(0)),
        x.shape[1],
        pairs.symmetric,
        float(pairs.scale),
        pairs.bias is not None,
        0.0 if pairs.bias is None else float(pairs.bias),
        -1 if pairs.own is None else pairs.own,
        pairs.views,
        torch.get_num_threads(),
    )


def sums(cpu: Any, pairs: Pairs, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Contract `pair_sums`."""
    state = torch.empty(2, pairs.x.shape[0])
    gradient = torch.empty(pairs.x.shape) if need_gradient else None
    cpu.pair_sums(_unpacked(cpu, pairs), state.data_ptr(), 0 if gradient is None else gradient.data_ptr())
    return state, gradient


def gradients(
    cpu: Any, pairs: Pairs, state: Tensor, by_value: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Contract `pair_gradients`."""
    columns = pairs.x.shape[1]
    by_x = torch.empty(pairs.x.shape[0], columns) if need_x else None
    by_y = torch.empty(pairs.y.shape[0], columns) if need_y and not pairs.symmetric else None
    addresses = [0 if t is None else t.data_ptr() for t in (by_x, by_y)]
    state = state.contiguous()
    cpu.pair_gradients(_unpacked(cpu, pairs), state.data_ptr(), by_value.data_ptr(), *addresses)
    return by_x, by_y
