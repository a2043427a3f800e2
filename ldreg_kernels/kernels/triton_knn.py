"""Triton stages from candidates to neighbours: exact distances, the k smallest by (distance, index), `knn`'s output.

A program works on ROWS queries at a time. Their candidates are in its own part of the scratch (Space.bits, Space.tag):
either the smallest of a row of exact distances (`from_slab`), or the row's list from the tiles, whose distances are
taken here from the references' own rows (`from_list`). While a reference is in registers for its distance it can be
added to the query's gradient, too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import (
    FAILED,
    LARGEST,
    LIFT,
    TINY,
    count_below,
    distance_of,
    is_finite,
    kth_smallest,
    lanes,
    load_keys,
    sort_candidates,
    square_bits,
    unit_of,
)
from .triton_operands import batch_unit, reference_at


@triton.jit
def task(s, block, first, last, LISTED: tl.constexpr, C: tl.constexpr):
    """(slot, query, live, scratch) [rows] of a block of queries among first..last, or s.failed[first..last)."""
    ROWS: tl.constexpr = C.rows
    slot = block * ROWS + lanes(ROWS)
    live = slot < last - first
    if LISTED:
        query = tl.load(s.failed + first + slot, mask=live, other=0)
    else:
        query = first + slot
    scratch = (tl.program_id(0) * ROWS + lanes(ROWS)) * C.cap
    return slot, query, live, scratch


@triton.jit
def from_slab(p, s, slot, live, scratch, C: tl.constexpr):
    """How many candidates s.slab[slot, :] gave, all exact: at least `wanted`, ties by the lower index."""
    CAP: tl.constexpr = C.cap
    BLOCK: tl.constexpr = C.slab_block
    COVER: tl.constexpr = C.cover_all
    NEVER: tl.constexpr = 0x7FFFFFFFFFFFFFFF if C.wide else 0x7FFFFFFF
    at = slot * p.N
    m = tl.where(live, p.N, 0)
    t, n = kth_smallest(s.slab, at, m, p.wanted, CAP, BLOCK, COVER, NEVER)
    # More than there is room for: all but the lowest-indexed of those tied at the k-th distance are superfluous.
    ties_wanted = tl.where(n > CAP, p.wanted - count_below(s.slab, at, m, t, BLOCK, NEVER), CAP)
    kept = tl.zeros([at.shape[0]], tl.int32)
    ties = tl.zeros([at.shape[0]], tl.int32)
    for first in range(0, p.N, BLOCK):
        bits = load_keys(s.slab, at, m, first, BLOCK, NEVER)
        tied = ((bits == t[:, None]) & (bits < NEVER)).to(tl.int32)
        keep = (bits < t[:, None]) | ((tied > 0) & (ties[:, None] + tl.cumsum(tied, 1) <= ties_wanted[:, None]))
        place = kept[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        j = first + lanes(BLOCK)
        tl.store(s.bits + scratch[:, None] + place, bits, mask=keep)
        tl.store(s.tag + scratch[:, None] + place, 2 * j[None, :] + tl.zeros(place.shape, tl.int32), mask=keep)
        kept += tl.sum(keep.to(tl.int32), 1)
        ties += tl.sum(tied, 1)
    tl.debug_barrier()
    return kept


@triton.jit
def from_list(p, s, c, slot, query, live, scratch, unit, k, POWER: tl.constexpr, C: tl.constexpr):
    """Candidates of the lists c, with exact distances: (n, sum).

    POWER > 0: the candidates whose key is among the k smallest are guessed to be the neighbours, and
    sum = sum of (x - y_j) / d_j^POWER over them, but for the tiny and the infinite d_j. Rows are gathered once; the
    few wrong guesses are mended later. Sums over more than BLOCK_D columns are in float64 (triton_direct.py has the
    reason).
    """
    NEVER: tl.constexpr = 0x7FFFFFFF
    ROWS: tl.constexpr = C.rows
    CAP: tl.constexpr = C.cap
    BLOCK: tl.constexpr = C.list_block
    COVER: tl.constexpr = C.list_block >= C.cap
    TOGETHER: tl.constexpr = C.together
    BLOCK_D: tl.constexpr = C.row_d
    at = slot * CAP
    n = tl.load(c.count + slot, mask=live, other=0)
    n = tl.where(n <= CAP, n, 0)
    guess = tl.full([ROWS], -NEVER, tl.int32)
    if POWER > 0:
        guess, _ = kth_smallest(c.key, at, n, k, k, BLOCK, COVER, NEVER)
    for first in range(0, tl.max(n), BLOCK):
        key, position = load_keys(c.key, at, n, first, BLOCK, NEVER), load_keys(c.position, at, n, first, BLOCK, 0)
        j = reference_at(p, c, position, C)
        listed = (first + lanes(BLOCK))[None, :] < n[:, None]
        place = scratch[:, None] + (first + lanes(BLOCK))[None, :]
        tag = 2 * j + (key <= guess[:, None]).to(tl.int32)
        if C.append:
            tl.store(s.tag + place, tag, mask=listed)
            tl.store(s.bits + place, tl.zeros([ROWS, BLOCK], tl.int32), mask=listed)
        else:
            tl.store(s.sorted_tag + place, tag, mask=listed)
    tl.debug_barrier()
    if C.append:
        # By index: lists were appended to in any order, and sums round. From a slab they are in order.
        sort_candidates(s, scratch, n, C)

    x_row = p.x + query.to(tl.int64)[:, None] * p.x_stride
    columns = lanes(BLOCK_D)
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    own = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if C.one_chunk:
        own = tl.load(x_row + columns[None, :], mask=live[:, None] & (columns < p.D)[None, :], other=0.0)
        own = own.to(tl.float32) * unit
    ahead = lanes(TOGETHER)
    for first in tl.range(0, tl.max(n), TOGETHER, num_stages=C.ahead):
        position = first + ahead
        listed = position[None, :] < n[:, None]
        place = scratch[:, None] + position[None, :]
        tag = tl.load(s.sorted_tag + place, mask=listed, other=0)
        y_row = p.y + (tag >> 1).to(tl.int64)[:, :, None] * p.y_stride
        if C.one_chunk:
            # What is not there is 0 on both sides, or has weight 0: nothing needs to be masked in registers.
            inside = listed[:, :, None] & (columns < p.D)[None, None, :]
            y = tl.load(y_row + columns[None, None, :], mask=inside, other=0.0).to(tl.float32)
            difference = tl.fma(y, -unit, own[:, None, :])
            d2 = tl.sum(difference * difference, 2)
            lifted = d2
            finite = d2 < float("inf")
            if tl.max(tl.max((listed & ((d2 < TINY) | (finite == 0))).to(tl.int32), 1), 0) > 0:
                lifted = tl.sum(difference * LIFT * (difference * LIFT), 2)
                difference = tl.where(finite[:, :, None], difference, 0.0)  # a row that explodes has weight 0, too
            if POWER > 0:
                tag = tl.where(d2 < TINY, tag & -2, tag)
                # One Newton step: rsqrt is off by 2^-22, and a division in every thread costs twenty instructions.
                weight = tl.rsqrt(tl.where(((tag & 1) > 0) & finite, d2, 1.0))
                weight = weight * tl.fma(-0.5 * d2 * weight, weight, 1.5)
                if POWER == 2:
                    weight = weight * weight
                weight = tl.where(((tag & 1) > 0) & finite, weight, 0.0)
                total += tl.sum(difference * weight[:, :, None], 1)
        else:
            d2 = _squares(p, x_row, y_row, live, listed, unit, 1.0, C)
            lifted = d2
            if tl.max(tl.max((listed & (d2 < TINY)).to(tl.int32), 1), 0) > 0:
                lifted = _squares(p, x_row, y_row, live, listed, unit, LIFT, C)
        tl.store(s.bits + place, square_bits(d2, lifted), mask=listed)
        tl.store(s.tag + place, tag, mask=listed)
    tl.debug_barrier()
    return n, total


@triton.jit
def _squares(p, x_row, y_row, live, listed, unit, larger, C: tl.constexpr):
    """(larger d)^2 of rows x_row [ROWS, 1] and y_row [ROWS, TOGETHER, 1], where listed; by chunks of columns."""
    BLOCK_D: tl.constexpr = C.row_d
    columns = lanes(BLOCK_D)
    d2 = tl.zeros(listed.shape, tl.float64)
    for f in range(0, p.D, BLOCK_D):
        inside = (f + columns < p.D)[None, :]
        x = tl.load(x_row + f + columns[None, :], mask=live[:, None] & inside, other=0.0)
        inside = listed[:, :, None] & inside[:, None, :]
        y = tl.load(y_row + f + columns[None, None, :], mask=inside, other=0.0)
        difference = tl.fma(y.to(tl.float32), -unit, x.to(tl.float32)[:, None, :] * unit) * larger
        d2 += tl.sum(difference * difference, 2).to(tl.float64)
    return d2.to(tl.float32)


@triton.jit
def give_up(p, s, query, live, scratch, n):
    """n; 0 for rows with a neighbour beyond float32's range in the batch's unit: every pair is next, in a larger one.

    To be asked once the candidates are sorted, +inf last.
    """
    last = tl.load(s.sorted_bits + scratch + p.wanted - 1, mask=live & (n > 0), other=0)
    lost = live & (is_finite(last) == 0)
    place = tl.atomic_add(s.state + FAILED + tl.zeros(query.shape, tl.int32), 1, mask=lost)
    tl.store(s.failed + place, query, mask=lost)
    return tl.where(lost, 0, n)


@triton.jit
def ldreg_neighbours(p, s, a, c, o, first, last, LISTED: tl.constexpr, SLAB: tl.constexpr, C: tl.constexpr):
    """`knn`: distances and indices of queries first..last, from the slab (SLAB) or from the lists."""
    DROP: tl.constexpr = C.drop
    SORT: tl.constexpr = C.sort
    ROWS: tl.constexpr = C.rows
    if SLAB:
        _, back = unit_of(tl.load(s.state + LARGEST), C.wide)
    else:
        _, unit, back, _ = batch_unit(p, a, C)
    for block in range(tl.program_id(0), tl.cdiv(last - first, ROWS), tl.num_programs(0)):
        slot, query, live, scratch = task(s, block, first, last, LISTED, C)
        if SLAB:
            n = from_slab(p, s, slot, live, scratch, C)
        else:
            n, _ = from_list(p, s, c, slot, query, live, scratch, unit, 0, 0, C)
        sort_candidates(s, scratch, n, C)
        if not SLAB:
            n = give_up(p, s, query, live, scratch, n)
        k = p.wanted - DROP
        for f in range(0, k, SORT):
            position = f + lanes(SORT)
            inside = live[:, None] & (position < k)[None, :] & ((position + DROP)[None, :] < n[:, None])
            place = scratch[:, None] + DROP + position[None, :]
            bits = tl.load(s.sorted_bits + place, mask=inside, other=0)
            known = is_finite(bits)
            d = distance_of(tl.where(known, bits, 0)) * back.to(tl.float64)
            d = tl.where(known, d, float("nan")).to(back.dtype)
            at = query.to(tl.int64)[:, None] * k + position[None, :]
            tl.store(o.distances + at, d, mask=inside)
            tl.store(
                o.indices + at,
                (tl.load(s.sorted_tag + place, mask=inside, other=0) >> 1).to(tl.int64),
                mask=inside,
            )
        tl.debug_barrier()  # the scratch is free for the next block of queries
