"""Triton stages of `lid` and `ldreg`: the estimators, the gradient of ln LID in the same pass, the loss.

Formulas: csrc/lid_math.h has the table, kernels/reference.py the derivations. Here r_j = d_j / d_k, which no estimator
can tell from d_j, and all of it is in float64: at LID 1000 a float32 difference d_k - d_j has three digits left.

    d ln LID / d x = sum_j c_j (x - y_j),   c_j = w_j / (d_j d_k),   w_j = d ln LID / d r_j.

For mom and mom_amsaleg c_j is one number over d_j for all j < k, for hill over d_j^2: their sum comes from the pass
that took the distances (triton_knn.from_list), and what is left to gather is the k-th neighbour and the wrong guesses.
Weights are handed on as (w_j / the largest w) / d_j: beside a tiny d_j, float32 then holds all of them, and what each
adds is at most 1. Relative to the largest c_j, those of the farther neighbours would vanish.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .contract import ESTIMATORS, FORMS, LID_MAX, MLE_EPSILON, REDUCTIONS
from .triton_knn import from_list, from_slab, give_up, task
from .triton_language import LARGEST, TERMS, distance_of, from_bits, is_finite, lanes, sort_candidates, to_bits, unit_of
from .triton_operands import batch_unit

MOM, AMSALEG, MLE, HILL, UNBIASED, MADA = (tl.constexpr(ESTIMATORS.index(name)) for name in ESTIMATORS)
L1, L1_ABS, L2, MIN, TARGET = (tl.constexpr(FORMS.index(name)) for name in FORMS)
MEAN, SUM, PER_ROW = (tl.constexpr(REDUCTIONS.index(name)) for name in REDUCTIONS)
EPSILON, LARGEST_LID, LN_2 = tl.constexpr(MLE_EPSILON), tl.constexpr(LID_MAX), tl.constexpr(0.6931471805599453)


class Output(NamedTuple):
    """Where results go; `knn` writes the first two, `lid` and `ldreg` the others."""

    distances: Any  # [B, k]
    indices: Any  # [B, k] int64
    lid: Any  # [B]
    degenerate: Any  # [B] uint8
    tracked: Any  # [T, B]
    grad: Any  # [B, D]
    value: Any  # [] or [B]
    coeff: Any  # [B]


# ------------------------------------------------------------------------------------------------- estimators


@triton.constexpr_function  # what a jit function returns is no constant to Triton 3.6
def near_power(estimator: int) -> int:
    """p if c_j of the nearer neighbours is one number over d_j^p; 0 if it is not."""
    return {"mom": 1, "mom_amsaleg": 1, "hill": 2, "hill_unbiased": 2}.get(ESTIMATORS[estimator], 0)


@triton.jit
def _distance(s, at, inside):
    """Sorted distances in the unit of the scratch, float64; +inf where NaN or Inf touches the pair."""
    bits = tl.load(s.sorted_bits + at, mask=inside, other=0)
    return tl.where(is_finite(bits), distance_of(bits), float("inf"))


@triton.jit
def lid_terms(s, at, live, k, ESTIMATOR: tl.constexpr, C: tl.constexpr):
    """(lid, degenerate, d_k, near, far) of the sorted distances at `at` [rows], in float64.

    near and far are the factors of `lid_weight`, 0 where ln LID does not exist.
    """
    ROWS: tl.constexpr = C.rows
    BLOCK: tl.constexpr = C.sort
    d_k = _distance(s, at + k - 1, live)
    exists = live & (d_k > 0) & (d_k < float("inf"))
    scale = tl.where(exists, d_k, 1.0)
    r_h = _distance(s, at + tl.maximum(k // 2, 1) - 1, live) / scale
    one = tl.zeros([ROWS], tl.float64)  # two sums over the neighbours; which, depends on the estimator
    two = tl.zeros([ROWS], tl.float64)
    if ESTIMATOR != MADA:
        for first in range(0, k, BLOCK):
            j = first + lanes(BLOCK)
            counted = exists[:, None] & ((j < k) if ESTIMATOR == AMSALEG else (j < k - 1))[None, :]
            r = _distance(s, at[:, None] + j[None, :], counted) / scale[:, None]
            if ESTIMATOR == MOM or ESTIMATOR == AMSALEG:
                one += tl.sum(tl.where(counted, r, 0.0), 1)
                two += tl.sum(tl.where(counted, 1.0 - r, 0.0), 1)
            elif ESTIMATOR == MLE:
                one -= tl.sum(tl.log(tl.where(counted, r + EPSILON, 1.0)), 1)
                two += tl.sum(tl.where(counted, r / (r + EPSILON), 0.0), 1)
            else:
                one -= tl.sum(tl.log(tl.where(counted & (r > 0), r, 1.0)), 1)
                two += tl.sum((counted & (r == 0)).to(tl.float64), 1)

    n = k.to(tl.float64)
    if ESTIMATOR == MOM:
        m, a = one / (n - 1), two / (n - 1)
        top, bottom = m, a
        near, far = 1 / ((n - 1) * m * a), -1 / a
    elif ESTIMATOR == AMSALEG:
        m, a = one / n, two / n
        top, bottom = m, a
        near, far = 1 / (n * m * a), (1 / n - m) / (m * a)
    elif ESTIMATOR == MLE:
        top, bottom = n + tl.zeros([ROWS], tl.float64), one
        near, far = 1 / one, -two / one
    elif ESTIMATOR == MADA:
        one = -tl.log(tl.where(r_h > 0, r_h, 1.0))
        top, bottom = (r_h > 0).to(tl.float64) * LN_2, tl.where(r_h > 0, one, 1.0)
        near, far = 1 / (r_h * one), -1 / one
    else:
        top = n - (1 if ESTIMATOR == HILL else 2) + tl.zeros([ROWS], tl.float64)
        top = tl.where(two > 0, 0.0, top)  # a neighbour at distance 0: S is infinite
        bottom = tl.where(two > 0, 1.0, one)
        near, far = 1 / one, -(n - 1) / one
    lid = top / tl.where(bottom == 0, float("nan"), bottom)
    # Too large, or the ratio of a vanishing mean: the k distances cannot be told apart, or nothing is known of them.
    usable = exists & (lid >= 0) & (lid < LARGEST_LID)
    lid = tl.where(usable, lid, float("nan"))
    usable = usable & (lid > 0)
    degenerate = live & (d_k < float("inf")) & (usable == 0)
    return lid, degenerate, scale, tl.where(usable, near, 0.0), tl.where(usable, far, 0.0)


@triton.jit
def lid_weight(r, j, k, near, far, ESTIMATOR: tl.constexpr):
    """w_j of the j-th neighbour: 0 at distance 0, where its direction is undefined, and beyond k."""
    if ESTIMATOR == MLE:
        w = near[:, None] / (r + EPSILON)
    elif ESTIMATOR == HILL or ESTIMATOR == UNBIASED:
        w = near[:, None] / tl.where(r > 0, r, 1.0)
    elif ESTIMATOR == MADA:
        w = tl.where(j == k // 2 - 1, near[:, None], 0.0)
    else:
        w = near[:, None] + 0 * r
    w = tl.where(j == k - 1, far[:, None], w)
    return tl.where((j < k) & (r > 0), w, 0.0)


# ------------------------------------------------------------------------------------------------- gradient


@triton.jit
def corrections(s, at, row, n, k, unit, terms, live, POWER: tl.constexpr, C: tl.constexpr):
    """What has to be added to the sum of `from_list`: weights and tags to the scratch, factors to s.terms[row].

    A candidate's weight less what the sum already has of it. Without a sum (POWER 0) these are the neighbours
    themselves.
    """
    ROWS: tl.constexpr = C.rows
    BLOCK: tl.constexpr = C.sort
    ESTIMATOR: tl.constexpr = C.estimator
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    MOST: tl.constexpr = 1e300 if C.wide else 1e38
    lid, degenerate, d_k, near, far = terms
    longest = tl.max(n)
    largest = tl.zeros([ROWS], tl.float64)
    for first in range(0, tl.minimum(k, longest), BLOCK):
        j = first + lanes(BLOCK)
        r = _distance(s, at[:, None] + j[None, :], j[None, :] < n[:, None]) / d_k[:, None]
        largest = tl.maximum(largest, tl.max(tl.abs(lid_weight(r, j[None, :], k, near, far, ESTIMATOR)), 1))
    largest = tl.where(largest > 0, largest, 1.0)
    kept = tl.zeros([ROWS], tl.int32)
    for first in range(0, longest, BLOCK):
        j = first + lanes(BLOCK)
        listed = j[None, :] < n[:, None]
        d = _distance(s, at[:, None] + j[None, :], listed)
        r = d / d_k[:, None]
        tag = tl.load(s.sorted_tag + at[:, None] + j[None, :], mask=listed, other=0)
        weight = lid_weight(r, j[None, :], k, near, far, ESTIMATOR)
        if POWER > 0:
            summed = near[:, None] / (tl.where(r > 0, r, 1.0) if POWER == 2 else 1.0)
            weight = weight - tl.where(((tag & 1) > 0) & (r > 0), summed, 0.0)
        weight = weight / largest[:, None] / tl.where(r > 0, d, 1.0)
        # Where differences are subnormal, 1 / d_j may be no number.
        weight = tl.minimum(tl.maximum(weight, -MOST), MOST).to(WORK)
        keep = listed & (weight != 0)
        place = kept[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        kept += tl.sum(keep.to(tl.int32), 1)
        tl.store(s.bits + at[:, None] + place, to_bits(weight), mask=keep)
        tl.store(s.tag + at[:, None] + place, tag, mask=keep)
    # The differences are in `unit`; two factors, because their product may leave float32's range.
    factor = largest / d_k * unit.to(tl.float64)
    root = tl.sqrt(factor)
    of_sum = near / largest
    if POWER == 2:
        of_sum = of_sum * d_k
    outcome = tl.where(live & (lid != lid) & (degenerate == 0), float("nan"), 0.0)
    usable = live & (lid > 0)
    tl.store(s.terms + row + 0, root.to(WORK), mask=live)
    tl.store(s.terms + row + 1, (factor / root).to(WORK), mask=live)
    tl.store(s.terms + row + 2, of_sum.to(WORK), mask=live)
    tl.store(s.terms + row + 3, tl.where(usable, 1.0, outcome).to(WORK), mask=live)
    tl.store(s.terms + row + 4, kept.to(WORK), mask=live)
    tl.debug_barrier()


@triton.jit
def gradient(p, s, o, query, live, at, row, unit, total, POWER: tl.constexpr, C: tl.constexpr):
    """o.grad[query, :] = d ln LID / d x; 0 for degenerate rows, NaN for rows that NaN or Inf touches.

    What is known of a row comes from s.terms, not in registers: a compiler that sees where it came from spreads the
    float64 arithmetic of `corrections` over the threads like the features here, every thread doing all of it.
    """
    ROWS: tl.constexpr = C.rows
    TOGETHER: tl.constexpr = C.together
    BLOCK_D: tl.constexpr = C.row_d
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    first_factor = tl.load(s.terms + row + 0, mask=live, other=0.0)
    second_factor = tl.load(s.terms + row + 1, mask=live, other=0.0)
    of_sum = tl.load(s.terms + row + 2, mask=live, other=0.0)
    outcome = tl.load(s.terms + row + 3, mask=live, other=0.0)  # 1: the gradient; else NaN or 0
    kept = tl.load(s.terms + row + 4, mask=live, other=0.0).to(tl.int32)
    for f in range(0, p.D, BLOCK_D):
        columns = f + lanes(BLOCK_D)
        inside = live[:, None] & (columns < p.D)[None, :]
        x = tl.load(p.x + query.to(tl.int64)[:, None] * p.x_stride + columns[None, :], mask=inside, other=0.0)
        x = x.to(WORK) * unit
        g = tl.zeros([ROWS, BLOCK_D], WORK)
        if POWER > 0:
            g = total * of_sum[:, None]
        for first in range(0, tl.max(kept), TOGETHER):
            position = first + lanes(TOGETHER)
            listed = position[None, :] < kept[:, None]
            place = at[:, None] + position[None, :]
            weight = from_bits(tl.load(s.bits + place, mask=listed, other=0))
            j = (tl.load(s.tag + place, mask=listed, other=0) >> 1).to(tl.int64)
            within = listed[:, :, None] & (columns < p.D)[None, None, :]
            y = tl.load(p.y + j[:, :, None] * p.y_stride + columns[None, None, :], mask=within, other=0.0)
            difference = tl.fma(y.to(WORK), -unit, x[:, None, :])  # what is not there has weight 0
            g += tl.sum(difference * weight[:, :, None], 1)
        g = tl.where((outcome == 1)[:, None], g * first_factor[:, None] * second_factor[:, None], outcome[:, None])
        tl.store(o.grad + query.to(tl.int64)[:, None] * p.D + columns[None, :], g, mask=inside)


# ------------------------------------------------------------------------------------------------- stages


@triton.jit
def ldreg_estimates(p, s, a, c, o, k, first, last, LISTED: tl.constexpr, SLAB: tl.constexpr, C: tl.constexpr):
    """LID, tracked LIDs and gradient of queries first..last, from the slab (SLAB) or from the lists."""
    ROWS: tl.constexpr = C.rows
    BLOCK_D: tl.constexpr = C.row_d
    TRACK: tl.constexpr = C.track
    ESTIMATOR: tl.constexpr = C.estimator
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    # Dropping the smallest changes who is a neighbour by rank: the guess would be off by one everywhere.
    POWER: tl.constexpr = 0 if SLAB or C.drop or not C.gradient or not C.one_chunk else near_power(ESTIMATOR)
    if SLAB:
        unit, _ = unit_of(tl.load(s.state + LARGEST), C.wide)
    else:
        _, unit, _, _ = batch_unit(p, a, C)
    for block in range(tl.program_id(0), tl.cdiv(last - first, ROWS), tl.num_programs(0)):
        slot, query, live, scratch = task(s, block, first, last, LISTED, C)
        if SLAB:
            n = from_slab(p, s, slot, live, scratch, C)
            total = tl.zeros([ROWS, BLOCK_D], WORK)
        else:
            n, total = from_list(p, s, c, slot, query, live, scratch, unit, k, POWER, C)
        sort_candidates(s, scratch, n, C)
        if not SLAB:
            n = give_up(p, s, query, live, scratch, n)
            live = live & (n > 0)
        at = scratch + C.drop
        for t in tl.static_range(len(TRACK) // 2):
            k_t = tl.zeros([], tl.int32) + TRACK[2 * t + 1]
            lid, _, _, _, _ = lid_terms(s, at, live, k_t, TRACK[2 * t], C)
            tl.store(o.tracked + (query.to(tl.int64) + t * p.B), lid.to(WORK), mask=live)
        terms = lid_terms(s, at, live, k, ESTIMATOR, C)
        tl.store(o.lid + query, terms[0].to(WORK), mask=live)
        tl.store(o.degenerate + query, terms[1].to(tl.uint8), mask=live)
        if C.gradient:
            row = (tl.program_id(0) * ROWS + lanes(ROWS)) * TERMS
            corrections(s, at, row, n - C.drop, k, unit, terms, live, POWER, C)
            gradient(p, s, o, query, live, at, row, unit, total, POWER, C)
        tl.debug_barrier()  # the scratch is free for the next block of queries


@triton.jit
def _loss_row(lid, degenerate, goal, C: tl.constexpr):
    """(value, its derivative by ln LID) of every row; 0 for degenerate ones."""
    FORM: tl.constexpr = C.form
    v = tl.log(tl.where(degenerate, 1.0, lid))
    if FORM == TARGET:
        v = v - goal
    sign = tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, v))  # NaN stays NaN
    if FORM == L1_ABS:
        value, slope = -tl.abs(v), -sign
    elif FORM == L2:
        value, slope = v * v, 2 * v
    elif FORM == MIN:
        value, slope = v, v * 0 + 1
    elif FORM == TARGET:
        value, slope = tl.abs(v), sign
    else:
        value, slope = -v, v * 0 - 1
    return tl.where(degenerate, 0.0, value), tl.where(degenerate, 0.0, slope)


@triton.jit
def ldreg_loss(p, o, goal, C: tl.constexpr):
    """The loss and d loss / d ln LID of every row; goal: ln of the target LID.

    Every program adds all rows up, in one order, and writes the coefficients of its own share: B numbers are read
    faster than the grid meets.
    """
    FORM: tl.constexpr = C.form
    REDUCTION: tl.constexpr = C.reduction
    BLOCK: tl.constexpr = C.loss_block
    i = lanes(BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, p.B, BLOCK):
        inside = first + i < p.B
        lid = tl.load(o.lid + first + i, mask=inside, other=1.0).to(tl.float64)
        degenerate = tl.load(o.degenerate + first + i, mask=inside, other=1) > 0
        value, _ = _loss_row(lid, degenerate, goal, C)
        total += value
        count += (degenerate == 0).to(tl.int32)
    loss, n = tl.sum(total, 0), tl.maximum(tl.sum(count, 0), 1).to(tl.float64)
    share = 1.0 / n if REDUCTION == MEAN else 1.0 + 0 * n
    if FORM == L2:
        root = tl.sqrt(loss / n)
        loss = -root
        share = tl.where(root == 0, 0.0, -0.5 / (tl.where(root == 0, 1.0, root) * n))
    else:
        loss = loss * share
    WORK: tl.constexpr = tl.float64 if C.wide else tl.float32
    if REDUCTION != PER_ROW:
        if tl.program_id(0) == 0:
            tl.store(o.value, loss.to(WORK))
    for block in range(tl.program_id(0), tl.cdiv(p.B, BLOCK), tl.num_programs(0)):
        row = block * BLOCK + i
        inside = row < p.B
        lid = tl.load(o.lid + row, mask=inside, other=1.0).to(tl.float64)
        degenerate = tl.load(o.degenerate + row, mask=inside, other=1) > 0
        value, slope = _loss_row(lid, degenerate, goal, C)
        if REDUCTION == PER_ROW:
            tl.store(o.value + row, value.to(WORK), mask=inside)
        tl.store(o.coeff + row, tl.where(degenerate, 0.0, slope * share).to(WORK), mask=inside)
