"""Triton stages that find candidates: the tensor-core distance tile, and the threshold of every row.

With packed rows x^, y^ the tile gives key = |y^|^2 - 2 x^.y^, and q = |x^|^2 + key is off by at most
E = gamma (|x^|^2 + |y^|^2) from |x^ - y^|^2, which is within r_x + r_y of the true distance (r: packing's residual). So
    lower bound  d >= sqrt(q - E) - r_x - r_y        upper bound  d <= sqrt(q + E) + r_x + r_y.
T, the upper bound of the k-th smallest key so far, bounds the k-th distance; a reference whose lower bound exceeds T is
no neighbour. Every neighbour is therefore among the candidates: the certificate holds by construction, and what can
fail is only the room for candidates; such rows are listed in s.failed and get every pair (triton_direct.py).

A row has one threshold, shared by all programs, and there are two ways to it. Either all keys of a panel go to a slab
that stays in L2, and `ldreg_threshold` sets T and lists what passes. Or (C.append) references come in steps: the tile
appends what passes T to the row's list, and `ldreg_threshold` lowers T and thins the list out between steps. Within a
step T is fixed, so the set of candidates is the same on every run; only their order is not, and triton_knn.py sorts.
References are met in an order that spreads (triton_operands.reference_at): sorted by class, those of a query's own
class would come all in one step, too many for its list.
precision="fast": no error bounds, and 16 candidates more than k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_append import append
from .triton_language import (
    FAILED,
    INTERPRET,
    from_sortable,
    kth_smallest,
    lanes,
    load_keys,
    own_rows,
    sortable,
)
from .triton_operands import LOST, NOT_FINITE, packed_columns

NEVER = tl.constexpr(0x7FFFFFFF)
ADMIT_ALL = tl.constexpr(1e36)  # limit of a row without a threshold: admits every reference that is finite
ADMIT_NONE = tl.constexpr(-3e38)  # limit of a row that failed
TINY = tl.constexpr(1e-30)  # products below 2^-126 vanish
FAST_EXTRA = tl.constexpr(16)


class Lists(NamedTuple):
    """Candidates of the queries of one panel, and what a reference has to pass. Written by the two stages here."""

    key: Any  # [panel, cap] int32, sortable
    position: Any  # [panel, cap] int32, see `reference_at`
    count: Any  # [panel] int32; more than cap: the row has failed
    reach: Any  # [panel] 2 (T + r_x)
    limit: Any  # [panel] (T + r_x)^2 - |x^|^2 (1 - gamma)
    gamma: Any  # relative rounding bound of a key; unused by precision="fast"
    own: Any  # [panel] int32 position of the query itself, or -1
    stride: Any  # of the order of references, added by the kernels: see NUMBERS
    back: Any  # stride * back = 1 modulo N


@triton.jit
def slack_of(norm, residual, gamma):
    """A reference's own share of the error of its key: gamma |y^|^2 + r_y^2."""
    return gamma * norm + residual * residual


@triton.jit
def ldreg_open(p, c, panel, panel_end, C: tl.constexpr):
    """Empty lists that admit everything but the query itself, for the queries panel..panel_end."""
    BLOCK: tl.constexpr = C.loss_block
    for block in range(tl.program_id(0), tl.cdiv(panel_end - panel, BLOCK), tl.num_programs(0)):
        slot = block * BLOCK + lanes(BLOCK)
        live = slot < panel_end - panel
        own = own_rows(p, panel + slot, live, C)
        position = ((own.to(tl.int64) * c.back) % p.N).to(tl.int32)
        tl.store(c.own + slot, tl.where((own >= 0) & (own < p.N), position, -1), mask=live)
        tl.store(c.count + slot, tl.zeros([BLOCK], tl.int32), mask=live)
        tl.store(c.limit + slot, tl.full([BLOCK], ADMIT_ALL, tl.float32), mask=live)
        tl.store(c.reach + slot, tl.zeros([BLOCK], tl.float32), mask=live)


@triton.jit
def ldreg_tiles(p, s, a, c, panel, panel_end, first, last, base, C: tl.constexpr):
    """Queries panel..panel_end against the references at positions first..last, packed from a.y[first - base] on.

    slab[i - panel, j] = key; or, if C.append, the positions that pass the threshold go to the end of the row's list.
    """
    BLOCK_B: tl.constexpr = C.tile_b
    BLOCK_N: tl.constexpr = C.tile_n
    BLOCK_D: tl.constexpr = C.tile_d
    STAGES: tl.constexpr = C.stages
    GROUP: tl.constexpr = 8  # row blocks that go through the same references together, while these are in L2
    width = packed_columns(p, C)
    down, across = tl.cdiv(panel_end - panel, BLOCK_B), tl.cdiv(last - first, BLOCK_N)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        group = tile // (GROUP * across) * GROUP
        high = tl.minimum(down - group, GROUP)
        within = tile % (GROUP * across)
        slot = (group + within % high) * BLOCK_B + lanes(BLOCK_B)
        j = first + (within // high) * BLOCK_N + lanes(BLOCK_N)
        live, offered = slot < panel_end - panel, j < last
        # Rows beyond the end repeat the last one and are masked afterwards; columns are padded with zeros.
        row = tl.minimum(slot, panel_end - panel - 1)
        if C.shared:
            x_row = a.y + (panel + row).to(tl.int64)[:, None] * width
        else:
            x_row = a.x + row.to(tl.int64)[:, None] * width
        y_row = a.y + (tl.minimum(j, last - 1) - base).to(tl.int64)[:, None] * width
        columns = lanes(BLOCK_D)
        dot = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        for d in tl.range(0, width, BLOCK_D, num_stages=STAGES):
            x, y = tl.load(x_row + d + columns[None, :]), tl.load(y_row + d + columns[None, :])
            if INTERPRET:
                x, y = x.to(tl.float32), y.to(tl.float32)
            dot = tl.dot(x, tl.trans(y), dot, input_precision="ieee", out_dtype=tl.float32)

        if C.append:
            own = tl.load(c.own + slot, mask=live, other=-1)
            # In pieces, each of as many pairs of a thread as `append` looks at together; every pair needs its place in
            # a register.
            start = first + (within // high) * BLOCK_N
            left, right = _halves(dot)
            for half in tl.static_range(2):
                near, far = _halves(left if half == 0 else right)
                for quarter in tl.static_range(2):
                    part = near if quarter == 0 else far
                    at = start + (2 * half + quarter) * (BLOCK_N // 4)
                    if BLOCK_N > 128 or not C.in_place:
                        one, other = _halves(part)
                        _append(a, c, one, slot, at, last, live, own, C)
                        _append(a, c, other, slot, at + BLOCK_N // 8, last, live, own, C)
                    else:
                        _append(a, c, part, slot, at, last, live, own, C)
        else:
            own = own_rows(p, panel + slot, live, C)
            norm = tl.load(a.y_norm + j, mask=offered, other=NOT_FINITE)
            key = norm[None, :] - 2 * dot
            finite = (j[None, :] != own[:, None]) & (key < ADMIT_ALL)
            at = slot[:, None] * p.N + j[None, :]  # 32 bits do: the slab is bounded
            tl.store(s.slab + at, tl.where(finite, sortable(key), NEVER), mask=live[:, None] & offered[None, :])


@triton.jit
def _halves(block):
    """The left and the right half of the columns, which stay in the registers they are in."""
    ROWS: tl.constexpr = block.shape[0]
    HALF: tl.constexpr = block.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(block, (ROWS, 2, HALF)), (0, 2, 1)))


@triton.jit
def _append(a, c, dot, slot, start, last, live, own, C: tl.constexpr):
    """Append those of the positions start .. start + dot.shape[1] that pass to the lists of the queries `slot`."""
    j = start + lanes(dot.shape[1])
    offered = j < last
    norm = tl.load(a.y_norm + j, mask=offered, other=NOT_FINITE)  # beyond the end: more than any limit
    limit = tl.load(c.limit + slot, mask=live, other=ADMIT_NONE)
    residual, reach = tl.zeros(j.shape, tl.float32), tl.zeros(slot.shape, tl.float32)
    slack = residual
    if C.exact:
        residual = tl.load(a.y_residual + j, mask=offered, other=0.0)
        reach = tl.load(c.reach + slot, mask=live, other=0.0)
        slack = slack_of(norm, residual, c.gamma)
    append(c, dot, norm, slack, residual, limit, reach, slot, j, own, C)


@triton.jit
def ldreg_threshold(p, s, a, c, panel, panel_end, last, C: tl.constexpr):
    """Set every row's threshold from its slab, or from its list if C.append; keep in the list what passes.

    When last == N the lists are complete: rows that lack room, or finite references, or are themselves not finite, then
    go to s.failed.
    """
    CAP: tl.constexpr = C.cap
    ROWS: tl.constexpr = C.rows if C.append else C.select_rows
    BLOCK: tl.constexpr = C.list_block if C.append else C.select
    COVER: tl.constexpr = C.list_block >= C.cap if C.append else C.cover
    for block in range(tl.program_id(0), tl.cdiv(panel_end - panel, ROWS), tl.num_programs(0)):
        slot = block * ROWS + lanes(ROWS)
        live = slot < panel_end - panel
        norm = tl.load(a.x_norm + panel + slot, mask=live, other=0.0)
        residual = tl.load(a.x_residual + panel + slot, mask=live, other=0.0)
        list_at = slot * CAP
        good = live & (norm < NOT_FINITE) & (residual < LOST)
        if C.append:
            source, at = c.key, list_at
            m = tl.load(c.count + slot, mask=live, other=0)
            good = good & (m <= CAP)
        else:
            source, at = s.slab, slot * p.N
            m = tl.where(live, p.N, 0)
        m = tl.where(good, m, 0)

        wanted = p.wanted if C.exact else tl.minimum(p.wanted + FAST_EXTRA, CAP)
        t, n = kth_smallest(source, at, m, wanted, wanted + wanted // 16, BLOCK, COVER, NEVER)
        full = n >= wanted
        below = from_sortable(t)
        if C.exact:
            # The largest error among the references counted, for the upper bound of the k-th distance.
            slack, width = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
            for f in range(0, tl.max(m), BLOCK):
                keys, j = _listed(c, source, at, m, f, BLOCK, C)
                counted = (keys <= t[:, None]) & (keys < NEVER)
                y_residual = tl.load(a.y_residual + j, mask=counted, other=0.0)
                y_norm = tl.load(a.y_norm + j, mask=counted, other=0.0)
                slack = tl.maximum(slack, tl.max(slack_of(y_norm, y_residual, c.gamma), 1))
                width = tl.maximum(width, tl.max(y_residual, 1))
            q = norm * (1 + c.gamma) + below + slack + TINY
            reach = tl.sqrt(tl.maximum(q, 0.0)) * (1 + 1e-6) + residual + width + residual
            limit = reach * reach * (1 + 1e-6) - norm * (1 - c.gamma) + TINY
            limit = tl.where(full, tl.minimum(limit, ADMIT_ALL), ADMIT_ALL)
            reach = tl.where(full, 2 * reach, 0.0)
        else:
            limit, reach = tl.where(full, below, ADMIT_ALL), tl.zeros([ROWS], tl.float32)

        kept = tl.zeros([ROWS], tl.int32)
        for f in range(0, tl.max(m), BLOCK):
            keys, j = _listed(c, source, at, m, f, BLOCK, C)
            key = from_sortable(keys)
            if C.exact:
                known = keys < NEVER
                y_residual = tl.load(a.y_residual + j, mask=known, other=0.0)
                y_norm = tl.load(a.y_norm + j, mask=known, other=0.0)
                lower = key - slack_of(y_norm, y_residual, c.gamma) - y_residual * reach[:, None]
                passes = known & (lower <= limit[:, None])
            else:
                passes = (keys < NEVER) & (key <= limit[:, None])
            place = kept[:, None] + tl.cumsum(passes.to(tl.int32), 1) - 1
            kept += tl.sum(passes.to(tl.int32), 1)
            passes = passes & (place < CAP)
            tl.debug_barrier()  # everyone has read this block: it may be overwritten
            tl.store(c.key + list_at[:, None] + place, keys, mask=passes)
            tl.store(c.position + list_at[:, None] + place, j, mask=passes)
        failed = live & ((good == 0) | (kept > CAP))
        if last == p.N:
            failed = failed | (live & (kept < p.wanted))
            place = tl.atomic_add(s.state + FAILED + tl.zeros([ROWS], tl.int32), 1, mask=failed)
            tl.store(s.failed + place, panel + slot, mask=failed)
        tl.store(c.count + slot, tl.where(failed, CAP + 1, kept), mask=live)
        tl.store(c.limit + slot, tl.where(failed, ADMIT_NONE, limit), mask=live)
        tl.store(c.reach + slot, reach, mask=live)


@triton.jit
def _listed(c, source, at, m, first, BLOCK: tl.constexpr, C: tl.constexpr):
    """Keys and positions of the entries first .. first + BLOCK."""
    keys = load_keys(source, at, m, first, BLOCK, NEVER)
    position = first + lanes(BLOCK)
    if C.append:
        return keys, load_keys(c.position, at, m, first, BLOCK, 0)
    else:
        return keys, position[None, :] + tl.zeros([at.shape[0], 1], tl.int32)
