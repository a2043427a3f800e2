"""What every Triton stage is written with: argument groups, the grid barrier, units, and the k-th smallest of a row.

A stage is a @triton.jit function over all programs of the grid. It is launched by itself (triton_staged.py), or called
by the fused kernels (triton_fused.py), which run one stage after another in one launch with `meet` between them. Stages
pass data through memory only, so both ways are to give the same bits (test_triton_launch.py, test_gpu.py). Arguments
are p, the Problem; s, the Space; a and c, Operands and Lists of the tiles; o, the Output; and C, a Setup (tuning.py):
all that a kernel is compiled for.

Squared distances are compared as integers: the bits of a non-negative float are ordered like the float. This keeps ties
exact, gives NaN and "never" a place behind +inf, and lets one bisection serve float32 and float64. A float32 square
below TINY has lost digits: it is taken again of differences LIFT times as large, and has its place among the negative
integers. No data of more than a block is held in registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# The interpreter's dot product multiplies the raw bits of bfloat16 and accumulates float16 in float16: cast up there.
INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)

# Slots of the state, 64-bit words that are 0 before a launch and 0 again after it
MET = tl.constexpr(0)  # arrivals at grid barriers
LEFT = tl.constexpr(1)  # programs that are through
LARGEST = tl.constexpr(2)  # bits of the largest finite |feature|
FAILED = tl.constexpr(3)  # rows whose candidates did not fit, listed in Space.failed
STATE_WORDS = 8
TERMS = tl.constexpr(8)  # numbers of a row in Space.terms

TINY, LIFT = tl.constexpr(1e-30), tl.constexpr(2.0**100)  # see `square_bits`
ZERO = tl.constexpr(-0x7FFFFFFE)  # bits of a square that is 0 even so; two integers below it stay free for searches

NONE, OFFSET, MAP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # how a query finds itself among the references


class Matrices(NamedTuple):
    """The part of a Problem that kernels are compiled for: what is aligned, what 16 divides, what is 1."""

    x: Any
    x_stride: Any
    y: Any
    y_stride: Any
    N: Any
    D: Any
    own: Any


# Numbers that vary from call to call, the last batch's B above all. A number in a tuple is always specialised, so the
# kernels that are launched take them one by one, and put the tuples together.
NUMBERS = (
    *("B", "offset", "wanted", "k", "goal", "stride", "back"),
    *("panel", "panel_end", "first", "last", "base", "first_step", "chunk", "fallback"),
)


class Problem(NamedTuple):
    """The neighbour problem: pointers, row strides in elements, sizes."""

    x: Any  # [B, D] queries
    x_stride: Any
    B: Any
    y: Any  # [N, D] references
    y_stride: Any
    N: Any
    D: Any
    own: Any  # [B] int64 row of y that query i is, -1 for none; read only for a map
    offset: Any
    wanted: Any  # neighbours to find: the largest k asked for


class Space(NamedTuple):
    """The workspace; which stage writes what is said there."""

    state: Any  # [STATE_WORDS] int64
    slab: Any  # [rows, N] bits of d^2 (direct), or sortable keys (tiles)
    failed: Any  # [B] int32
    bits: Any  # [programs, rows, cap] bits of d^2 of a row's candidates
    tag: Any  # [programs, rows, cap] int32, 2 * index + (is one of the k nearest by key)
    sorted_bits: Any  # the same by ascending (distance, index)
    sorted_tag: Any
    terms: Any  # [programs, rows, TERMS] what the gradient needs to know of a row


@triton.jit
def lanes(COUNT: tl.constexpr):
    """0, 1, ... COUNT - 1, in a form that is computed where it is used.

    Stages of a fused kernel are inside loops over panels. A compiler takes whatever depends on the thread's number
    alone out of them, from all stages at once, and has no registers left for any. An assembler statement hides that.
    """
    if INTERPRET:
        return tl.arange(0, COUNT)
    else:
        zero = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tl.program_id(1)], tl.int32, False, 1)
        return tl.arange(0, COUNT) + tl.multiple_of(zero, 64)


@triton.jit
def meet(state_ptr, met, C: tl.constexpr):
    """Grid barrier: no program goes on before all are here, and what they wrote is visible. Returns met + 1.

    The counter only grows during a launch, so barrier number `met` opens at (met + 1) * programs arrivals. All
    programs have to be resident: the launch is cooperative. Separate launches need none of it.
    """
    if C.fused:
        tl.debug_barrier()
        open_at = (met + 1) * tl.num_programs(0)
        arrived = tl.atomic_add(state_ptr + MET, 1, sem="acq_rel", scope="gpu") + 1
        while arrived < open_at:
            arrived = tl.atomic_add(state_ptr + MET, 0, sem="acquire", scope="gpu")  # a load, and no old L1 after it
        tl.debug_barrier()
    return met + 1


@triton.jit
def leave(state_ptr):
    """The last program to come here puts the state back to 0, for the next launch."""
    tl.debug_barrier()
    programs = tl.num_programs(0)
    if tl.atomic_add(state_ptr + LEFT, 1, sem="acq_rel", scope="gpu") == programs - 1:
        tl.store(state_ptr + MET, 0)
        tl.store(state_ptr + LARGEST, 0)
        tl.store(state_ptr + FAILED, 0)
        tl.store(state_ptr + LEFT, 0)


@triton.jit
def own_rows(p, rows, live, C: tl.constexpr):
    """The row of y that each query is, or -1: left out by index, never by distance."""
    SELF: tl.constexpr = C.self_kind
    if SELF == OFFSET:
        return (rows + p.offset).to(tl.int32)
    elif SELF == MAP:
        return tl.load(p.own + rows, mask=live, other=-1).to(tl.int32)
    else:
        return tl.full(rows.shape, -1, tl.int32)


# ------------------------------------------------------------------------------------------------- numbers as bits


@triton.jit
def to_bits(v):
    """The bits of a float32 or float64, ordered like the number if it is not negative."""
    if v.dtype == tl.float64:
        return v.to(tl.int64, bitcast=True)
    else:
        return v.to(tl.int32, bitcast=True)


@triton.jit
def from_bits(b):
    """Inverse of `to_bits`."""
    if b.dtype == tl.int64:
        return b.to(tl.float64, bitcast=True)
    else:
        return b.to(tl.float32, bitcast=True)


@triton.jit
def square_bits(d2, lifted):
    """A squared distance as an integer of its order; `lifted`: the same of LIFT times the differences, read below TINY.

    NaN becomes +inf. float64 squares need no help: batches in `unit_of` reach down to 1e-304 of their largest feature.
    """
    bits = to_bits(tl.where(d2 < float("inf"), d2, float("inf")))
    if d2.dtype == tl.float32:
        bits = tl.where(d2 < TINY, to_bits(lifted) + ZERO, bits)
    return bits


@triton.jit
def is_finite(bits):
    """Whether the distance of `square_bits` is a number."""
    return from_bits(tl.maximum(bits, 0)) < float("inf")


@triton.jit
def distance_of(bits):
    """The distance in float64 of a finite one's `square_bits`."""
    root = tl.sqrt(from_bits(tl.maximum(bits, 0)).to(tl.float64))
    if bits.dtype == tl.int32:
        lifted = from_bits(tl.minimum(bits, 0) - ZERO).to(tl.float64)
        root = tl.where(bits < 0, tl.sqrt(lifted) * (1 / LIFT), root)
    return root


@triton.jit
def sortable(v):
    """Bits of a float32 ordered like the number, negative ones included."""
    b = v.to(tl.int32, bitcast=True)
    return b ^ ((b >> 31) & 0x7FFFFFFF)


@triton.jit
def from_sortable(b):
    """Inverse of `sortable`."""
    return (b ^ ((b >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def unit_of(largest_bits, WIDE: tl.constexpr):
    """(unit, 1 / unit): powers of two such that features times unit reach 2^48 (2^500 in float64).

    Then no sum of squares overflows, and differences have all their digits down to 1e-52 of the largest feature (1e-304
    in float64, whose squares end there). Both are normal numbers at any scale of the batch.
    """
    if WIDE:
        exponent = (largest_bits >> 52).to(tl.int64)
        field = tl.minimum(tl.maximum(2 * 1023 + 500 - exponent, 1), 2045)
        unit = (field << 52).to(tl.float64, bitcast=True)
        back = ((2046 - field) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (largest_bits >> 23).to(tl.int32)
        field = tl.minimum(tl.maximum(2 * 127 + 48 - exponent, 1), 253)
        unit = (field << 23).to(tl.float32, bitcast=True)
        back = ((254 - field) << 23).to(tl.float32, bitcast=True)
    return unit, back


# ------------------------------------------------------------------------------------------------- selection


@triton.jit
def load_keys(ptr, at, m, first, BLOCK: tl.constexpr, NEVER: tl.constexpr):
    """Entries first .. first + BLOCK of the rows beginning at `at` [ROWS], `m` [ROWS] long; NEVER behind the end."""
    position = first + lanes(BLOCK)
    return tl.load(ptr + at[:, None] + position[None, :], mask=position[None, :] < m[:, None], other=NEVER)


@triton.jit
def kth_smallest(ptr, at, m, k, enough, BLOCK: tl.constexpr, COVER: tl.constexpr, NEVER: tl.constexpr):
    """(t, n) [ROWS]: n entries of the row are <= t, and k <= n <= enough, unless ties at the k-th smallest forbid it.

    Bisection between the row's smallest and largest entry. It stops at the first t that admits few enough, so it takes
    a handful of counts; with massive ties it ends at the k-th smallest itself. n < k says the row has only n entries
    that are not NEVER. COVER: a row fits into one block, which then stays in registers.
    """
    ROWS: tl.constexpr = at.shape[0]
    longest = tl.max(m)
    block = load_keys(ptr, at, m, 0, BLOCK, NEVER)
    lo = tl.min(block, 1)
    hi = tl.max(tl.where(block < NEVER, block, -NEVER), 1)
    n = tl.sum((block < NEVER).to(tl.int32), 1)
    if not COVER:
        for c in range(BLOCK, longest, BLOCK):
            more = load_keys(ptr, at, m, c, BLOCK, NEVER)
            lo = tl.minimum(lo, tl.min(more, 1))
            hi = tl.maximum(hi, tl.max(tl.where(more < NEVER, more, -NEVER), 1))
            n += tl.sum((more < NEVER).to(tl.int32), 1)
    hi = tl.where(n > 0, hi, lo)
    lo = lo - 1
    searching = (n > enough) & (hi - 1 > lo)
    while tl.max(searching.to(tl.int32)) > 0:
        middle = (lo & hi) + ((lo ^ hi) >> 1)  # the mean, without overflow
        count = tl.zeros([ROWS], tl.int32)
        if COVER:
            count = tl.sum((block <= middle[:, None]).to(tl.int32), 1)
        else:
            for c in range(0, longest, BLOCK):
                more = load_keys(ptr, at, m, c, BLOCK, NEVER)
                count += tl.sum((more <= middle[:, None]).to(tl.int32), 1)
        down = searching & (count >= k)
        hi = tl.where(down, middle, hi)
        n = tl.where(down, count, n)
        lo = tl.where(searching & (count < k), middle, lo)
        searching = (n > enough) & (hi - 1 > lo)
    return hi, n


@triton.jit
def count_below(ptr, at, m, t, BLOCK: tl.constexpr, NEVER: tl.constexpr):
    """How many entries of each row are < t."""
    count = tl.zeros([at.shape[0]], tl.int32)
    for c in range(0, tl.max(m), BLOCK):
        count += tl.sum((load_keys(ptr, at, m, c, BLOCK, NEVER) < t[:, None]).to(tl.int32), 1)
    return count


@triton.jit
def sort_candidates(s, at, n, C: tl.constexpr):
    """Candidates 0..n of each row by ascending (bits, tag), into sorted_bits and sorted_tag.

    Every candidate's place is the number of those before it: n^2 comparisons, no exchange, and the outcome does not
    depend on the order in which candidates were found.
    """
    ROWS: tl.constexpr = C.rows
    BLOCK: tl.constexpr = C.sort
    NEVER: tl.constexpr = 0x7FFFFFFFFFFFFFFF if C.wide else 0x7FFFFFFF
    longest = tl.max(n)
    for a in range(0, longest, BLOCK):
        bits, tag = load_keys(s.bits, at, n, a, BLOCK, NEVER), load_keys(s.tag, at, n, a, BLOCK, 0x7FFFFFFF)
        place = tl.zeros([ROWS, BLOCK], tl.int32)
        for b in range(0, longest, BLOCK):
            other_bits = load_keys(s.bits, at, n, b, BLOCK, NEVER)[:, None, :]
            other_tag = load_keys(s.tag, at, n, b, BLOCK, 0x7FFFFFFF)[:, None, :]
            before = (other_bits < bits[:, :, None]) | (
                (other_bits == bits[:, :, None]) & (other_tag < tag[:, :, None])
            )
            place += tl.sum(before.to(tl.int32), 2)
        listed = (a + lanes(BLOCK))[None, :] < n[:, None]
        tl.store(s.sorted_bits + at[:, None] + place, bits, mask=listed)
        tl.store(s.sorted_tag + at[:, None] + place, tag, mask=listed)
    tl.debug_barrier()
