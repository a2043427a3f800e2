"""Triton stage: every pair's exact squared distance, by differences. For small problems, float64, and rows that failed.

d2_ij = sum_c (u (x_ic - y_jc))^2 with u a power of two (triton_language.unit_of). GROUP squares at most are added one
after another, then BLOCK_D such sums as a tree, and those in float64: squared differences may all be equal, and then
all roundings go the same way. No matrix-product form, so no cancellation at any offset. Stored as `square_bits`: +inf
for a pair that NaN or Inf touches, NEVER for a query and itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import LARGEST, LIFT, TINY, lanes, own_rows, square_bits, unit_of

GROUP = tl.constexpr(16)


@triton.jit
def _squares(p, x_row, y_row, live, there, unit, LIFTED: tl.constexpr, C: tl.constexpr):
    """d2 [BLOCK_B, BLOCK_N] in float64 of rows x_row and y_row, or LIFT^2 times it."""
    BLOCK_D: tl.constexpr = C.direct_d
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    d2 = tl.zeros([live.shape[0], there.shape[0]], tl.float64)
    for group in range(0, p.D, GROUP * BLOCK_D):
        total = tl.zeros([live.shape[0], there.shape[0], BLOCK_D], WORK)
        for c in range(group, tl.minimum(group + GROUP * BLOCK_D, p.D), BLOCK_D):
            columns = c + lanes(BLOCK_D)
            inside = (columns < p.D)[None, :]
            x = tl.load(x_row + columns[None, :], mask=live[:, None] & inside, other=0.0).to(WORK) * unit
            y = tl.load(y_row + columns[None, :], mask=there[:, None] & inside, other=0.0).to(WORK) * unit
            difference = x[:, None, :] - y[None, :, :]
            if LIFTED:
                difference = difference * LIFT
            total = tl.fma(difference, difference, total)
        d2 += tl.sum(total, 2).to(tl.float64)
    return d2


@triton.jit
def ldreg_direct(p, s, first, last, LISTED: tl.constexpr, C: tl.constexpr):
    """slab[i - first, :] for queries first..last, or for the queries s.failed[first..last) if LISTED."""
    BLOCK_B: tl.constexpr = C.direct_b
    BLOCK_N: tl.constexpr = C.direct_n
    WIDE: tl.constexpr = C.wide
    WORK: tl.constexpr = tl.float64 if WIDE else tl.float32
    NEVER: tl.constexpr = 0x7FFFFFFFFFFFFFFF if WIDE else 0x7FFFFFFF
    unit, _ = unit_of(tl.load(s.state + LARGEST), WIDE)
    across = tl.cdiv(p.N, BLOCK_N)
    for tile in range(tl.program_id(0), tl.cdiv(last - first, BLOCK_B) * across, tl.num_programs(0)):
        slot = (tile // across) * BLOCK_B + lanes(BLOCK_B)
        live = slot < last - first
        if LISTED:
            query = tl.load(s.failed + first + slot, mask=live, other=0)
        else:
            query = first + slot
        j = (tile % across) * BLOCK_N + lanes(BLOCK_N)
        x_row = p.x + query.to(tl.int64)[:, None] * p.x_stride
        y_row = p.y + j.to(tl.int64)[:, None] * p.y_stride
        there = j < p.N
        other = j[None, :] != own_rows(p, query, live, C)[:, None]
        d2 = _squares(p, x_row, y_row, live, there, unit, False, C)
        lifted = d2
        if not WIDE:
            tiny = (d2 < TINY) & other & live[:, None] & there[None, :]
            if tl.max(tl.max(tiny.to(tl.int32), 1), 0) > 0:
                lifted = _squares(p, x_row, y_row, live, there, unit, True, C)
        bits = tl.where(other, square_bits(d2.to(WORK), lifted.to(WORK)), NEVER)
        tl.store(s.slab + slot[:, None] * p.N + j[None, :], bits, mask=live[:, None] & there[None, :])
