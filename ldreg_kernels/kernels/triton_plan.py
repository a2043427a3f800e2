"""What calls alike have in common: what their kernel is compiled for, its sizes, where what lies in the workspace.

Planning costs more than a launch, so triton_backend.py keeps plans. They hold no memory: the workspace is one tensor,
taken anew from torch's allocator at every call and carved into `Piece`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tuning
from .triton_language import TERMS, Matrices, Space
from .triton_lid import Output
from .triton_operands import Operands
from .triton_tiles import Lists

ALIGNMENT = 256  # bytes; kernels are compiled for 16


class Piece(NamedTuple):
    """A part of the workspace."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, workspace: Tensor) -> Tensor:
        """The tensor that lies there."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        return workspace[self.offset : self.offset + nbytes].view(self.dtype).view(self.shape)


@dataclass(eq=False)
class Plan:
    """Everything about a call but its tensors, its `offset` and its `goal`."""

    setup: tuning.Setup
    programs: int
    B: int
    N: int
    D: int
    x_stride: int
    y_stride: int
    k: int  # of the estimator; for knn the neighbours returned
    wanted: int  # neighbours to find: the largest k, one more if the smallest is dropped
    size: tuning.Sizes
    fallback: int  # queries whose distances to every reference fit the slab
    stride: int  # of the order in which references are met
    back: int
    nbytes: int  # of the workspace
    space: Space  # of Pieces, but for the state
    operands: Operands | None
    lists: Lists | None
    kernel: Any = None  # compiled, once there was a launch
    offsets: tuple[tuple[int, ...], ...] = field(init=False)  # of the Pieces

    def __post_init__(self) -> None:
        groups = (self.space, self.operands or (), self.lists or ())
        self.offsets = tuple(tuple(p.offset for p in group if isinstance(p, Piece)) for group in groups)


class Arguments(NamedTuple):
    """What the kernels take, as tensors."""

    m: Matrices
    s: Space
    a: Operands | None
    c: Lists | None
    o: Output


def plan(
    shape: tuning.Shape,
    blocks: tuning.Blocks,
    programs: int,
    *,
    k: int,
    strides: tuple[int, int] = (0, 0),
    **modes: Any,
) -> Plan:
    """Cut the problem up; `strides` are those of the rows of x and y, `modes` fields of Setup that the call decides."""
    B, N, D = shape.B, shape.N, shape.D
    size, C = tuning.sizes(shape, blocks), tuning.setup_for(shape, blocks, **modes)
    word, real = (torch.int64, torch.float64) if C.wide else (torch.int32, torch.float32)
    end = 0

    def piece(*lengths: int, dtype: torch.dtype = torch.float32) -> Piece:
        nonlocal end
        start, end = end, end + math.prod(lengths) * dtype.itemsize
        end = -(-end // ALIGNMENT) * ALIGNMENT
        return Piece(start, lengths, dtype)

    scratch = (programs, blocks.rows, C.cap)
    space = Space(
        state=None,
        failed=piece(B, dtype=torch.int32),
        bits=piece(*scratch, dtype=word),
        tag=piece(*scratch, dtype=torch.int32),
        sorted_bits=piece(*scratch, dtype=word),
        sorted_tag=piece(*scratch, dtype=torch.int32),
        terms=piece(programs, blocks.rows, TERMS.value, dtype=real),
        slab=piece(size.slab, dtype=word),
    )
    tiles = blocks.path == "tiles"
    operands = _operands(piece, C, shape, size) if tiles else None
    lists = _lists(piece, C, shape, size) if tiles else None
    # Rows that failed come last, and need nothing of operands and lists: their distances may lie there, too.
    room = (end - space.slab.offset) // word.itemsize
    stride = tuning.spreading_stride(N) if tiles and C.append else 1
    return Plan(
        setup=C,
        programs=programs,
        B=B,
        N=N,
        D=D,
        x_stride=strides[0],
        y_stride=strides[1],
        k=k,
        wanted=shape.wanted,
        size=size,
        fallback=room // N,
        stride=stride,
        back=pow(stride, -1, N),
        nbytes=end,
        space=space._replace(slab=space.slab._replace(shape=(room,))),
        operands=operands,
        lists=lists,
    )


def _operands(piece: Callable[..., Piece], C: tuning.Setup, shape: tuning.Shape, size: tuning.Sizes) -> Operands:
    blocks = -(-shape.D // C.centre_d)
    y = piece(size.chunk, size.columns, dtype=torch.float16)
    y_norm, y_residual = piece(shape.N), piece(shape.N)
    return Operands(
        centre=piece(shape.D),
        extent=piece(blocks),
        shifted=piece(blocks),
        x=y if C.shared else piece(size.panel, size.columns, dtype=torch.float16),
        x_norm=y_norm if C.shared else piece(shape.B),
        x_residual=y_residual if C.shared else piece(shape.B),
        y=y,
        y_norm=y_norm,
        y_residual=y_residual,
    )


def _lists(piece: Callable[..., Piece], C: tuning.Setup, shape: tuning.Shape, size: tuning.Sizes) -> Lists:
    return Lists(
        key=piece(size.panel, C.cap, dtype=torch.int32),
        position=piece(size.panel, C.cap, dtype=torch.int32),
        count=piece(size.panel, dtype=torch.int32),
        reach=piece(size.panel),
        limit=piece(size.panel),
        own=piece(size.panel, dtype=torch.int32),
        # Tensor cores truncate each of the D / 8 to D / 16 partial sums of a product: by 1.25 D 2^-23 of |x| |y| at
        # most, all together. The rest is for the norms and the arithmetic on keys.
        gamma=(1.5 * shape.D + 64) * 2.0**-23,
        stride=None,
        back=None,
    )


def views(group: Any, workspace: Tensor) -> Any:
    """The group with tensors in place of its Pieces."""
    if group is None:
        return None
    return type(group)(*[p.of(workspace) if isinstance(p, Piece) else p for p in group])
