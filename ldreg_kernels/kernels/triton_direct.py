"""Triton stage: every pair's exact squared distance, by differences. For small problems, float64, and rows that failed.

d2_ij = sum_c (u (x_ic - y_jc))^2 with u a power of two (triton_language.unit_of); one accumulator for every BLOCK_D
columns, added up at the end, so that rounding grows with D / BLOCK_D and not with D. No matrix-product form, so no
cancellation at any offset. Stored as bits: +inf for a pair that NaN or Inf touches, NEVER for a query and itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import LARGEST, lanes, own_rows, to_bits, unit_of


@triton.jit
def ldreg_direct(p, s, first, last, LISTED: tl.constexpr, C: tl.constexpr):
    """slab[i - first, :] for queries first..last, or for the queries s.failed[first..last) if LISTED."""
    BLOCK_B: tl.constexpr = C.direct_b
    BLOCK_N: tl.constexpr = C.direct_n
    BLOCK_D: tl.constexpr = C.direct_d
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
        total = tl.zeros([BLOCK_B, BLOCK_N, BLOCK_D], WORK)
        for c in range(0, p.D, BLOCK_D):
            columns = c + lanes(BLOCK_D)
            inside = (columns < p.D)[None, :]
            x = tl.load(x_row + columns[None, :], mask=live[:, None] & inside, other=0.0).to(WORK) * unit
            y = tl.load(y_row + columns[None, :], mask=(j < p.N)[:, None] & inside, other=0.0).to(WORK) * unit
            difference = x[:, None, :] - y[None, :, :]
            total = tl.fma(difference, difference, total)
        d2 = tl.sum(total, 2)
        bits = to_bits(tl.where(d2 < float("inf"), d2, float("inf")))
        bits = tl.where(j[None, :] == own_rows(p, query, live, C)[:, None], NEVER, bits)
        tl.store(s.slab + slot[:, None] * p.N + j[None, :], bits, mask=live[:, None] & (j < p.N)[None, :])
