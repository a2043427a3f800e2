"""Triton stages before the distance tile: one scale, one centre, and features packed into float16 operands.

Distances do not change when the batch is centred, and only change unit when it is scaled by a power of two. So rows are
packed as fp16(scale * (x - centre)): float16 has three bits more than bfloat16 at the same tensor-core rate, and the
scale puts features where its range is no limit. What rounding did to a row is measured, not estimated: `residual` is
|v - fp16(v)|, and by the triangle inequality the distance of two packed rows is within residual_x + residual_y of the
true one. triton_tiles.py builds its bounds on that, so any centre and any scale are correct; good ones are fast.

A column is centred only if its mean exceeds its spread, so that low-bit features near the origin (bfloat16, integers)
stay exact. Nothing is multiplied here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_language import LARGEST, lanes, to_bits, unit_of

SAMPLE_ROWS = tl.constexpr(64)
PACKED_MAX = tl.constexpr(60000.0)  # beyond it features are clamped, and the residual says by how much
NOT_FINITE = tl.constexpr(1e37)  # norm of a row with NaN or Inf
LOST = tl.constexpr(1e18)  # residual of a row that float16 cannot follow at all


class Operands(NamedTuple):
    """Packed rows and what is known of them, in the tile's unit."""

    centre: Any  # [D] float32
    extent: Any  # [column blocks] float32: largest |x - centre| in the sample
    shifted: Any  # [column blocks] float32: largest |centre|
    x: Any  # [panel, columns] float16, columns a multiple of the tile's BLOCK_D
    x_norm: Any  # [B] float32 squared norm of the packed row, NOT_FINITE if the row has NaN or Inf
    x_residual: Any  # [B] float32
    y: Any  # [chunk, columns] float16
    y_norm: Any  # [N], by position
    y_residual: Any  # [N], by position


@triton.jit
def packed_columns(p, C: tl.constexpr):
    """Columns of the packed matrices: D, up to a multiple of the tile's. tuning.sizes has it, too."""
    return tl.cdiv(p.D, C.tile_d) * C.tile_d


@triton.jit
def ldreg_scan(p, s, C: tl.constexpr):
    """state[LARGEST]: bits of the largest finite |feature| of x and y."""
    largest = _largest(p.x, p.x_stride, p.B, p.D, C)
    if not C.same:
        largest = tl.maximum(largest, _largest(p.y, p.y_stride, p.N, p.D, C))
    tl.atomic_max(s.state + LARGEST, to_bits(largest).to(tl.int64))


@triton.jit
def _largest(ptr, stride, count, D, C: tl.constexpr):
    ROWS: tl.constexpr = C.pack_rows
    BLOCK_D: tl.constexpr = C.pack_d
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    most = tl.zeros([ROWS, BLOCK_D], WORK)
    for block in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        rows = block * ROWS + lanes(ROWS)
        for c in range(0, D, BLOCK_D):
            columns = c + lanes(BLOCK_D)
            inside = (rows < count)[:, None] & (columns < D)[None, :]
            v = tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(WORK)
            most = tl.maximum(most, tl.where(tl.abs(v) < float("inf"), tl.abs(v), 0.0))
    return tl.max(tl.max(most, 1), 0)


@triton.jit
def ldreg_centre(p, a, C: tl.constexpr):
    """centre, extent, shifted, from SAMPLE_ROWS references; each column's smallest and largest are left out.

    So one exploding row in the sample moves neither centre nor scale.
    """
    BLOCK_D: tl.constexpr = C.centre_d
    row = (lanes(SAMPLE_ROWS).to(tl.int64) * p.N) // SAMPLE_ROWS
    for block in range(tl.program_id(0), tl.cdiv(p.D, BLOCK_D), tl.num_programs(0)):
        columns = block * BLOCK_D + lanes(BLOCK_D)
        inside = (columns < p.D)[None, :] & (row >= 0)[:, None]
        v = tl.load(p.y + row[:, None] * p.y_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        v = tl.where(tl.abs(v) < float("inf"), v, 0.0)
        low, high = tl.min(v, 0), tl.max(v, 0)
        kept = (v > low[None, :]) & (v < high[None, :])
        n = tl.maximum(tl.sum(kept.to(tl.float32), 0), 1.0)
        mean = tl.sum(tl.where(kept, v / n[None, :], 0.0), 0)
        spread = tl.sum(tl.where(kept, tl.abs(v - mean[None, :]) / n[None, :], 0.0), 0)
        # All equal: every value is the smallest, and the centre. Eight bits of centre keep low-bit features low-bit.
        mean = tl.where(low == high, low, mean).to(tl.bfloat16).to(tl.float32)
        centre = tl.where((tl.abs(mean) > spread) & (tl.abs(mean) < float("inf")), mean, 0.0)
        tl.store(a.centre + columns, centre, mask=columns < p.D)
        offset = tl.abs(v - centre[None, :])
        extent = tl.max(tl.max(tl.where(kept & inside, offset, 0.0), 1), 0)
        # Two values only (n = 1, or features of {0, 1}): nothing is between them.
        everything = tl.max(tl.max(tl.where(inside, offset, 0.0), 1), 0)
        tl.store(a.extent + block, tl.where(extent > 0, extent, everything))
        tl.store(a.shifted + block, tl.max(tl.abs(centre), 0))


@triton.jit
def batch_unit(p, a, C: tl.constexpr):
    """(scale, unit, 1 / unit, whether anything is centred): `scale` for packing, `unit` for exact distances."""
    BLOCK_D: tl.constexpr = C.centre_d
    extent = tl.full([128], 0.0, tl.float32)
    shifted = tl.full([128], 0.0, tl.float32)
    blocks = tl.cdiv(p.D, BLOCK_D)
    for b in range(0, blocks, 128):
        i = b + lanes(128)
        extent = tl.maximum(extent, tl.load(a.extent + i, mask=i < blocks, other=0.0))
        shifted = tl.maximum(shifted, tl.load(a.shifted + i, mask=i < blocks, other=0.0))
    # The bits of the exponent: features then reach 2^6, which leaves float16 ten binary digits above and 20 below.
    bits = tl.max(extent, 0).to(tl.int32, bitcast=True)
    field = tl.minimum(tl.maximum(2 * 127 + 6 - (bits >> 23), 1), 253)
    scale = (field << 23).to(tl.float32, bitcast=True)
    unit, back = unit_of(bits, False)
    return scale, unit, back, tl.max(shifted, 0) > 0


@triton.jit
def reference_at(p, c, position, C: tl.constexpr):
    """The row of y met at `position`: for lists in steps of c.stride, which spreads any order references are in."""
    if C.append:
        return ((position.to(tl.int64) * c.stride) % p.N).to(tl.int32)
    else:
        return position


@triton.jit
def ldreg_pack(p, s, a, c, first, last, base, QUERIES: tl.constexpr, C: tl.constexpr):
    """Rows first..last of x (QUERIES), or the references met there, into the packed matrix from row first - base on.

    With their norms and residuals, in that order. Also state[LARGEST], for the rows that will need every pair.
    """
    ROWS: tl.constexpr = C.pack_rows
    BLOCK_D: tl.constexpr = C.pack_d
    if QUERIES:
        source, stride, packed, norm_ptr, residual_ptr = p.x, p.x_stride, a.x, a.x_norm, a.x_residual
    else:
        source, stride, packed, norm_ptr, residual_ptr = p.y, p.y_stride, a.y, a.y_norm, a.y_residual
    scale, _, _, centred = batch_unit(p, a, C)
    width = packed_columns(p, C)
    largest = 0.0
    for block in range(tl.program_id(0), tl.cdiv(last - first, ROWS), tl.num_programs(0)):
        rows = first + block * ROWS + lanes(ROWS)
        live = rows < last
        row = rows if QUERIES else reference_at(p, c, rows, C)
        from_row = source + row.to(tl.int64)[:, None] * stride
        to_row = packed + (rows - base).to(tl.int64)[:, None] * width
        rounded = tl.zeros([ROWS, BLOCK_D], tl.float32)
        residual = tl.zeros([ROWS, BLOCK_D], tl.float32)
        square = tl.zeros([ROWS, BLOCK_D], tl.float32)
        most = tl.zeros([ROWS, BLOCK_D], tl.float32)
        broken = tl.zeros([ROWS, BLOCK_D], tl.int32)
        for f in range(0, width, BLOCK_D):
            columns = f + lanes(BLOCK_D)
            inside = live[:, None] & (columns < p.D)[None, :]
            v = tl.load(from_row + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            finite = tl.abs(v) < float("inf")
            most = tl.maximum(most, tl.where(finite, tl.abs(v), 0.0))
            broken = broken | (1 - finite.to(tl.int32))
            centre = tl.load(a.centre + columns, mask=columns < p.D, other=0.0)
            v = tl.where(finite & inside, (v - centre[None, :]) * scale, 0.0)
            o = tl.minimum(tl.maximum(v, -PACKED_MAX), PACKED_MAX).to(tl.float16)
            tl.store(to_row + columns[None, :], o, mask=live[:, None] & (columns < width)[None, :])
            o = o.to(tl.float32)
            rounded += o * o
            residual += (v - o) * (v - o)
            square += v * v
        lost = tl.sum(residual, 1)
        # x - centre itself is rounded, to 2^-24; squares below 1e-38 vanish from these sums, hence the constant.
        bound = tl.sqrt(lost) * 1.001 + tl.sqrt(tl.sum(square, 1)) * 1.2e-7 + 1e-17
        bound = tl.where((lost == 0) & (centred == 0), 0.0, tl.where(bound < LOST, bound, LOST))
        norm = tl.where(tl.max(broken, 1) > 0, NOT_FINITE, tl.sum(rounded, 1))
        tl.store(norm_ptr + rows, norm, mask=live)
        tl.store(residual_ptr + rows, bound, mask=live)
        largest = tl.maximum(largest, tl.max(tl.max(most, 1), 0))
    tl.atomic_max(s.state + LARGEST, to_bits(largest).to(tl.int64))
