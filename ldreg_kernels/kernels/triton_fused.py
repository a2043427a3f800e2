"""One launch: the stages of the other triton_*.py files, one after another, all programs meeting in between.

    direct   scan | every pair | rows ... | loss                        small problems, k near N, float64
    tiles    centre | pack | tiles | threshold | tiles | ... | rows | every pair of the rows that failed | loss

A panel is as many queries as the workspace holds. triton_staged.py runs the same stages in the same order as launches
of their own, for debugging and for the interpreter, which cannot make programs meet; the two have to stay in step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_direct import ldreg_direct
from .triton_knn import ldreg_neighbours
from .triton_language import FAILED, NUMBERS, Problem, leave, meet
from .triton_lid import ldreg_estimates, ldreg_loss
from .triton_operands import ldreg_centre, ldreg_pack, ldreg_scan
from .triton_tiles import Lists, ldreg_open, ldreg_threshold, ldreg_tiles


@triton.jit
def _rows(p, s, a, c, o, k, first, last, LISTED: tl.constexpr, SLAB: tl.constexpr, C: tl.constexpr):
    if C.knn:
        ldreg_neighbours(p, s, a, c, o, first, last, LISTED, SLAB, C)
    else:
        ldreg_estimates(p, s, a, c, o, k, first, last, LISTED, SLAB, C)


@triton.jit(do_not_specialize=NUMBERS)
def ldreg_fused_direct(m, s, o, B, offset, wanted, k, goal: tl.float64, panel, C: tl.constexpr):
    """Exact distances of every pair, `panel` queries at a time."""
    p = Problem(m.x, m.x_stride, B, m.y, m.y_stride, m.N, m.D, m.own, offset, wanted)
    ldreg_scan(p, s, C)
    met = meet(s.state, 0, C)
    for first in range(0, p.B, panel):
        last = tl.minimum(first + panel, p.B)
        ldreg_direct(p, s, first, last, False, C)
        met = meet(s.state, met, C)
        _rows(p, s, None, None, o, k, first, last, False, True, C)
        met = meet(s.state, met, C)
    if C.loss:
        ldreg_loss(p, o, goal, C)
    leave(s.state)


@triton.jit(do_not_specialize=NUMBERS)
def ldreg_fused_tiles(
    m, s, a, c, o, B, offset, wanted, k, goal: tl.float64, stride, back, panel, first_step, chunk, fallback,
    C: tl.constexpr
):  # fmt: skip
    """Candidates from tensor-core tiles, `panel` queries at a time; then exact distances of these alone.

    If C.append, references come in steps that double from `first_step` up to `chunk`; else all in one. `fallback`
    queries fit the slab with all pairs.
    """
    p = Problem(m.x, m.x_stride, B, m.y, m.y_stride, m.N, m.D, m.own, offset, wanted)
    c = Lists(c.key, c.position, c.count, c.reach, c.limit, c.gamma, c.own, stride, back)
    ldreg_centre(p, a, C)
    met = meet(s.state, 0, C)
    if C.once:
        ldreg_pack(p, s, a, c, 0, p.N, 0, False, C)
    for top in range(0, p.B, panel):
        bottom = tl.minimum(top + panel, p.B)
        if not C.shared:
            ldreg_pack(p, s, a, c, top, bottom, top, True, C)
        if C.append:
            ldreg_open(p, c, top, bottom, C)
        first = 0 * p.N
        last = tl.minimum(first_step, p.N)
        while first < p.N:
            base = first * (0 if C.once else 1)
            if not C.once:
                ldreg_pack(p, s, a, c, first, last, base, False, C)
            met = meet(s.state, met, C)
            ldreg_tiles(p, s, a, c, top, bottom, first, last, base, C)
            met = meet(s.state, met, C)
            ldreg_threshold(p, s, a, c, top, bottom, last, C)
            first = last
            last = tl.minimum(last + tl.minimum(last, chunk), p.N)
        met = meet(s.state, met, C)
        _rows(p, s, a, c, o, k, top, bottom, False, False, C)
        if C.append:
            met = meet(s.state, met, C)  # nobody reads the lists any more: the next panel may open them
    met = meet(s.state, met, C)
    failed = tl.load(s.state + FAILED, cache_modifier=".cg").to(tl.int32)
    for first_failed in range(0, failed, fallback):
        last_failed = tl.minimum(first_failed + fallback, failed)
        ldreg_direct(p, s, first_failed, last_failed, True, C)
        met = meet(s.state, met, C)
        _rows(p, s, a, c, o, k, first_failed, last_failed, True, True, C)
        met = meet(s.state, met, C)
    if C.loss:
        ldreg_loss(p, o, goal, C)
    leave(s.state)
