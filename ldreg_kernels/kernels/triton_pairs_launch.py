"""Sums over pairs on a GPU by Triton: blocks from a table, outputs, one launch for each of them.

`pair_sums` is one launch, `pair_gradients` one for each gradient that is asked for; where rows are too few for the
multiprocessors, candidates are divided, and one more launch joins the parts. Float32 rows are halved before, by two
launches of torch, and shares of rows are a few on [M]. Nothing waits for the device: scale and bias are read by the
kernels. What they compute: triton_pairs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .contract import Pairs, unit_columns
from .triton_launch import on_device
from .triton_pairs import ldreg_pair_gradient, ldreg_pair_join, ldreg_pair_sums

FEWEST = 8  # blocks of candidates in a part: about what joining parts costs
WHOLE = 0  # instead of a step: rows stay on the chip with all their columns


@dataclass(frozen=True)
class Blocks:
    """What a program works on."""

    rows: int
    candidates: int
    step: int  # columns multiplied at a time, or WHOLE
    out: int  # columns of a program's gradient; WHOLE: all
    stages: int
    warps: int


@dataclass(frozen=True)
class Setup:
    """Everything that a kernel is compiled for."""

    rows: int
    candidates: int
    columns: int
    out: int
    stages: int
    whole: bool  # `columns` is at least P
    even: bool  # `columns` and `out` divide the columns that are there
    halves: bool  # float32 rows: float16 upper halves, and behind them the lower ones
    factors: bool
    bias: bool
    views: int  # 0: nothing is left out
    same: bool  # the candidates are the rows
    divided: bool  # a program goes through a part of the candidates
    exchanged: bool = False  # the gradient by the candidates


# (kernel, dtype, architecture; "" is any other one) -> (columns at most, blocks), the first that fits is taken. What
# they compile to, and why these: benchmarks/notes/triton_pairs.md.
_STEPS = 1 << 31
_HALF_SUMS = (
    (128, Blocks(128, 64, WHOLE, 0, 3, 4)),
    (256, Blocks(64, 64, WHOLE, 0, 2, 4)),
    (_STEPS, Blocks(128, 128, 64, 0, 3, 8)),
)
_WIDE_GRADIENTS = (
    (256, Blocks(64, 64, WHOLE, WHOLE, 2, 8)),
    (_STEPS, Blocks(64, 64, 64, 256, 2, 8)),
)
TABLE: dict[tuple[str, torch.dtype, str], tuple[tuple[int, Blocks], ...]] = {
    ("sums", torch.float32, ""): (
        (128, Blocks(128, 64, WHOLE, 0, 2, 8)),
        (_STEPS, Blocks(128, 128, 32, 0, 3, 8)),
    ),
    ("sums", torch.float32, "hopper"): (
        (128, Blocks(128, 128, WHOLE, 0, 2, 8)),
        (256, Blocks(128, 32, WHOLE, 0, 2, 8)),
        (_STEPS, Blocks(128, 128, 64, 0, 3, 8)),
    ),
    ("sums", torch.float32, "blackwell"): (
        (128, Blocks(128, 64, WHOLE, 0, 2, 8)),
        (256, Blocks(128, 32, WHOLE, 0, 2, 8)),
        (_STEPS, Blocks(128, 128, 64, 0, 2, 8)),
    ),
    ("sums", torch.bfloat16, ""): _HALF_SUMS,
    ("sums", torch.float16, ""): _HALF_SUMS,
    ("gradient", torch.float32, ""): (
        (128, Blocks(64, 32, WHOLE, WHOLE, 2, 4)),
        (_STEPS, Blocks(64, 64, 32, 128, 2, 8)),
    ),
    ("gradient", torch.float32, "hopper"): (
        (128, Blocks(64, 64, WHOLE, WHOLE, 2, 4)),
        (_STEPS, Blocks(128, 64, 64, 128, 2, 8)),
    ),
    ("gradient", torch.float32, "blackwell"): (
        (128, Blocks(128, 32, WHOLE, WHOLE, 2, 8)),
        (_STEPS, Blocks(128, 32, 32, 128, 2, 8)),
    ),
    ("gradient", torch.bfloat16, ""): ((128, Blocks(64, 64, WHOLE, WHOLE, 2, 4)), *_WIDE_GRADIENTS),
    ("gradient", torch.bfloat16, "blackwell"): ((128, Blocks(128, 64, WHOLE, WHOLE, 2, 8)), *_WIDE_GRADIENTS),
    ("gradient", torch.float16, ""): ((128, Blocks(128, 32, WHOLE, WHOLE, 2, 8)), *_WIDE_GRADIENTS),
}
_ARCHITECTURES = {9: "hopper", 10: "blackwell"}  # by the major compute capability


def blocks_for(kernel: str, dtype: torch.dtype, P: int, capability: int) -> Blocks:
    """The table's blocks for rows of P columns."""
    rows = TABLE.get((kernel, dtype, _ARCHITECTURES.get(capability // 10, "")), TABLE[kernel, dtype, ""])
    return next(blocks for most, blocks in rows if most >= P)


def part_of(N: int, programs: int, blocks: Blocks, multiprocessors: int) -> int:
    """Candidates that each program goes through, so that `programs` of them times the parts fill the GPU once."""
    free = multiprocessors * max(1, 8 // blocks.warps) // programs
    parts = max(1, min(free, N // (FEWEST * blocks.candidates)))
    return triton.cdiv(triton.cdiv(N, parts), blocks.candidates) * blocks.candidates


def sums(pairs: Pairs, capability: int, multiprocessors: int) -> Tensor:
    """Contract `pair_sums`."""
    x, y = _rows(pairs)
    M, N, P = x.shape[-2], y.shape[-2], pairs.x.shape[1]
    blocks = blocks_for("sums", pairs.x.dtype, P, capability)
    programs = triton.cdiv(M, blocks.rows)
    part = part_of(N, programs, blocks, multiprocessors)
    parts = triton.cdiv(N, part)
    each = torch.empty(parts, 2, M, dtype=torch.float32, device=x.device)
    with on_device(x):
        ldreg_pair_sums[programs, parts](
            *_operands(x, y, pairs.x_factor, pairs.y_factor, pairs),
            *(each, M, N, P, pairs.own or 0, part, _setup(pairs, blocks, x.shape[-1], parts > 1)),
            num_warps=blocks.warps,
        )
    if parts == 1:
        return each[0]
    if pairs.bias is not None:
        return each.sum(0)
    state = torch.empty_like(each[0])
    with on_device(x):
        ldreg_pair_join[(triton.cdiv(M, 128),)](each, state, pairs.scale.detach(), M, parts, 128, num_warps=4)
    return state


def gradients(
    pairs: Pairs,
    capability: int,
    multiprocessors: int,
    state: Tensor,
    by_value: Tensor,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Contract `pair_gradients`."""
    x, y = _rows(pairs)
    P = pairs.x.shape[1]
    blocks = blocks_for("gradient", pairs.x.dtype, P, capability)
    state = state.contiguous()
    share, unit = _shares(pairs, state, by_value)

    def launch(x: Tensor, y: Tensor, x_factor: Tensor | None, y_factor: Tensor | None, exchanged: bool) -> Tensor:
        M, N = x.shape[-2], y.shape[-2]
        down, across = triton.cdiv(M, blocks.rows), triton.cdiv(P, blocks.out or _every(P))
        part = part_of(N, down * across, blocks, multiprocessors)
        parts = triton.cdiv(N, part)
        setup = _setup(pairs, blocks, x.shape[-1], parts > 1, exchanged)
        each = torch.empty(parts, M, P, dtype=torch.float32, device=x.device)
        with on_device(x):
            ldreg_pair_gradient[down, across, parts](
                *_operands(x, y, x_factor, y_factor, pairs),
                *(state, share, unit, each, M, N, P, pairs.own or 0, part, setup),
                num_warps=blocks.warps,
            )
        return each[0] if parts == 1 else each.sum(0)

    by_x = launch(x, y, pairs.x_factor, pairs.y_factor, False) if need_x else None
    by_y = launch(y, x, pairs.y_factor, pairs.x_factor, True) if need_y and not pairs.symmetric else None
    return by_x, by_y


def _rows(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """[rows, P] as they are, or [2, rows, P rounded up to 16] float16 for float32 rows."""
    x = _tile_operand(pairs.x.detach())
    return x, x if pairs.symmetric else _tile_operand(pairs.y.detach())


def _tile_operand(t: Tensor) -> Tensor:
    """Rows as `_load` of triton_pairs.py takes them."""
    if t.dtype != torch.float32:
        return unit_columns(t)
    rows, P = t.shape
    width = triton.cdiv(P, 16) * 16
    allocate = torch.empty if width == P else torch.zeros
    halves = allocate(2, rows, width, dtype=torch.float16, device=t.device)
    high, low = halves[..., :P]
    high.copy_(t)
    torch.sub(t, high, out=low)  # in float32, and exact before it is rounded
    return halves


def _shares(pairs: Pairs, state: Tensor, by_value: Tensor) -> tuple[Tensor, Tensor]:
    """(share, unit): the gradient's factor of row i, by_value_i / total_i or with bias by_value_i, is share_i unit.

    The unit is 1 but for float32 rows. There it makes the largest weight 2^13, or twice that where a pair has two:
    float16 ends at 2^16.
    """
    # Without candidates the total is 0, and every weight too. The largest term of any other total is 1.
    share = by_value if pairs.bias is not None else by_value / state[1].clamp_min(0.5)
    if pairs.x.dtype != torch.float32:
        return share, pairs.scale.detach()  # which is not read
    most = torch.linalg.vector_norm(share.nan_to_num(0, 0, 0), torch.inf)  # a row of NaN is its own affair
    unit = most.clamp_min(2.0**-100) * 2.0**-13
    share = share / unit
    if pairs.bias is not None:  # no sigmoid of a cosine is larger
        largest = (pairs.scale + pairs.bias).detach().sigmoid().clamp_min(2.0**-110)
        share, unit = share / largest, unit * largest
    return share, unit


def _operands(x: Tensor, y: Tensor, x_factor: Tensor | None, y_factor: Tensor | None, pairs: Pairs) -> tuple[Any, ...]:
    """What both kernels take first; scale stands for what is not there, and is not read."""
    scale = pairs.scale.detach()
    bias = scale if pairs.bias is None else pairs.bias.detach()
    x_factor, y_factor = (scale if f is None else f.contiguous() for f in (x_factor, y_factor))
    return x, x.stride(-2), x_factor, y, y.stride(-2), y_factor, scale, bias


def _every(P: int) -> int:
    """Columns of a block that holds whole rows: tensor cores multiply 16 at a time."""
    return max(16, triton.next_power_of_2(P))


def _setup(pairs: Pairs, blocks: Blocks, width: int, divided: bool, exchanged: bool = False) -> Setup:
    columns = blocks.step or _every(width)
    out = blocks.out or _every(width)
    return Setup(
        rows=blocks.rows,
        candidates=blocks.candidates,
        columns=columns,
        out=out,
        stages=blocks.stages,
        whole=blocks.step == WHOLE,
        even=width % columns == 0 and width % out == 0,
        halves=pairs.x.dtype == torch.float32,
        factors=pairs.x_factor is not None,
        bias=pairs.bias is not None,
        views=0 if pairs.own is None else pairs.views,
        same=pairs.symmetric,
        divided=divided,
        exchanged=exchanged,
    )
