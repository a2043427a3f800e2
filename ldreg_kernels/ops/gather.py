"""Rows of every process of a group, side by side, with the exact gradient.

`gather_rows` concatenates the ranks' rows in the order of ranks. Its backward adds up what every rank's loss says about
a row and gives it to the rank that the row is from:

    G = [x_0; x_1; ...; x_{W-1}],      dL/dx_r = sum_q (dL_q/dG)[rows of r],      L = sum_q L_q

so DDP, which averages parameter gradients over ranks, trains on the mean of the ranks' losses. Cutting the gradient of
other ranks' rows (a plain `all_gather`) would lose the rest.

Rows travel as bytes, so that every backend carries every dtype; gradients are added in their own dtype.

What this file does not do: start process groups, or move rows around a ring.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

# In the header a dtype is its place in this list, the same in every process of one torch version.
_DTYPES = sorted({str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)})

if dist.is_available():  # torch 2.13 gave both a new name, and warns of the old one
    _all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    _reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Gathered(NamedTuple):
    """Result of `gather_rows`."""

    rows: Tensor  # [N, D] of all ranks, in the order of ranks
    offset: int  # where this rank's own rows begin


def several_processes(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is a process group (the default one if none is named) with more than one process.

    Raises:
        TypeError: `group` is no process group.
        ValueError: this process is not a member of `group`.
    """
    if not dist.is_available():
        return False
    if group is not None:
        _check_group(group)
    return dist.is_initialized() and dist.get_world_size(group) > 1


def _check_group(group: Any) -> None:
    """A group that this process is a member of: those that are not get an integer from `new_group`."""
    if isinstance(group, dist.ProcessGroup):
        return
    if not isinstance(group, Tensor) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"group must be a process group that this process is a member of, but rank {dist.get_rank()} is not"
        )
    raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}")


def gather_rows(x: Tensor, group: dist.ProcessGroup | None = None, *, equal_rows: bool = False) -> Gathered:
    """The rows of every rank of `group`, in the order of ranks; a collective call.

    Args:
        x: this rank's rows [B_r, D] of any dtype. Ranks may hold different numbers of rows, also none; D and dtype must
            agree, and whether x requires grad.
        group: the process group; None takes the default one. Without several processes nothing is done.
        equal_rows: every rank holds equally many rows, which then is not asked for, nor is anything compared. Asking
            makes a GPU's host wait for the device.

    Returns:
        Gathered(rows [sum_r B_r, D], offset of this rank's rows; ranks are those within the group). Differentiable in
        x, twice too: backward is a collective call, which sums over ranks, so every rank has to run it equally often.
        Without gradient in x there is no graph, and no backward.

    Raises:
        TypeError: x is not a dense tensor, or `group` no process group.
        ValueError: this process is not a member of `group`; or, on every rank alike, x is not 2-D somewhere, or ranks
            disagree in the number of features, the dtype, or whether x requires grad.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense (strided) tensor, got layout {x.layout}")
    several = several_processes(group)
    if x.dim() != 2 and (equal_rows or not several):
        raise ValueError(f"x must be 2-D (rows, features), got shape {tuple(x.shape)}")
    if not several:
        return Gathered(x, 0)
    if equal_rows:
        return Gathered(_Gather.apply(x, group, None), dist.get_rank(group) * x.shape[0])
    counts = _agree(x, group)
    offset = sum(counts[: dist.get_rank(group)])
    even = all(count == counts[0] for count in counts)
    return Gathered(_Gather.apply(x, group, None if even else counts), offset)


def _agree(x: Tensor, group: dist.ProcessGroup | None) -> tuple[int, ...]:
    """The number of rows of every rank; the same ValueError on every rank if their rows cannot stand side by side."""
    rows, columns = x.shape if x.dim() == 2 else (0, 0)
    differentiable = torch.is_grad_enabled() and x.requires_grad
    mine = [rows, x.dim(), columns, _DTYPES.index(str(x.dtype)), int(differentiable)]
    header = torch.tensor(mine, dtype=torch.int64, device=x.device)
    headers = header.new_empty(dist.get_world_size(group) * len(mine))
    _all_gather(headers, header, group=group)
    all_of_them = headers.view(-1, len(mine)).tolist()
    for rank, (_, dim, *kind) in enumerate(all_of_them):
        if dim != 2:
            raise ValueError(f"x must be 2-D (rows, features) on every rank, got {dim} dimensions on rank {rank}")
        if kind != all_of_them[0][2:]:
            raise ValueError(
                "x must have the same number of features and dtype on every rank, and require grad on all or on none, "
                f"got {_described(*all_of_them[0][2:])} on rank 0 and {_described(*kind)} on rank {rank}"
            )
    return tuple(rows for rows, *_ in all_of_them)


def _described(columns: int, dtype: int, differentiable: int) -> str:
    return f"{columns} features of {_DTYPES[dtype]} {'with' if differentiable else 'without'} grad"


class _Gather(torch.autograd.Function):
    """Rows of all ranks; `counts` are their numbers of rows, None if all are equal. Adjoint of `_OwnShare`."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup | None, counts: tuple[int, ...] | None) -> Tensor:
        world = dist.get_world_size(group)
        largest = x.shape[0] if counts is None else max(counts)
        if largest * x.shape[1] == 0:  # on every rank: nothing to move
            return x.new_empty(world * largest if counts is None else sum(counts), x.shape[1])
        mine = x.contiguous().view(torch.uint8)  # [B, bytes of a row]
        if counts is not None:
            mine = F.pad(mine, (0, 0, 0, largest - x.shape[0]))  # [largest, bytes of a row]
        padded = mine.new_empty(world * largest, mine.shape[1])
        _all_gather(padded, mine, group=group)
        rows = padded.view(x.dtype)  # [W * largest, D]
        if counts is None:
            return rows
        return torch.cat([part[:count] for part, count in zip(rows.split(largest), counts, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.group, ctx.counts = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _OwnShare.apply(gradient, ctx.group, ctx.counts), None, None


class _OwnShare(torch.autograd.Function):
    """The sum over ranks of [N, D], of which this rank keeps its own rows. Adjoint of `_Gather`."""

    @staticmethod
    def forward(gradient: Tensor, group: dist.ProcessGroup | None, counts: tuple[int, ...] | None) -> Tensor:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        if counts is None:
            own = gradient.new_empty(gradient.shape[0] // world, gradient.shape[1])
            if own.numel():
                _reduce_scatter(own, gradient.contiguous(), group=group)
            return own
        total = gradient.clone(memory_format=torch.contiguous_format)
        if total.numel():
            dist.all_reduce(total, group=group)
        offset = sum(counts[:rank])
        return total[offset : offset + counts[rank]].clone()  # a slice would keep all of it alive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.group, ctx.counts = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(gradient, ctx.group, ctx.counts), None, None
