"""Sums over pairs on tensor cores: tiles of cosines that never leave the chip, and the gradients from the same tiles.

A program owns BLOCK_M rows and goes through all candidates, BLOCK_N at a time, in ascending order; where there are few
rows it goes through a part of the candidates, and the parts are put together in a second launch. So every number is
made by one program, always in the same order: no atomics, the same bits at every run.

    sums        c_ij = f_i f_j <x_i, y_j>; without bias, with the largest c so far as top_i (Milakov and Gimelshein
                2018, algorithm 3), total_i = sum_j 2^((c_ij - top_i) scale log2 e); with a bias, sums of the sigmoid
                and the softplus of scale c_ij + bias
    gradients   the tile again, its weights w_ij, and out_i += sum_j (w_ij f_j) y_j

Arithmetic: sums are float32. Products of half precision rows are exact. Float32 rows come in two float16 halves
(C.halves),

    a = high + low,  high = fp16(a),  low = fp16(a - high)
    <a, b> ~ <high_a, high_b> + <high_a, low_b> + <low_a, high_b>

and an entry has 22 bits, or 2^-25 where low is subnormal: a cosine of unit rows is off by 2.5e-8 rms, about as much as
float32 rounds. Rows have to be unit rows, or so: float16 ends at 65504.

In the second product weights are rounded to the rows' bfloat16 (2^-8 relative, each by itself). For float16 rows it is
a tf32 product: weights have 2^-11, and none underflows; float16 itself has no room for them, a softmax of 65536
candidates has most below 2^-24. For float32 rows weights are in halves too, in a unit that makes the largest 2^13. So a
weight has 22 bits, but what is below 2^-38 of the largest is lost. N such errors add up by chance to sqrt(N) 2^-38 of
the largest in a gradient row, 2^-30 for 65536 candidates: no more than float32 rounds the rows that matter, but a row
whose gradient is much smaller than others' has fewer digits of its own.

The gradient by the candidates is the same kernel with the two sets exchanged (C.exchanged): it owns candidates, and the
weights are those of the rows that it goes through. Rows that are the candidates have both kinds at once.

What this file does not do: use that c_ij = c_ji.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import INTERPRET

LOG2E = tl.constexpr(1.4426950408889634)

# Numbers that vary from call to call: no kernel of their own for 1, or for multiples of 16.
NUMBERS = ("M", "N", "own", "part", "parts")


@triton.jit
def _load(ptr, stride, at, count, every, columns, P, C: tl.constexpr):
    """Rows `at`, beyond the end the last one again; columns from P on are 0.

    With C.halves the upper and the lower halves, which lie `every` rows further on and have columns of 0 up to a
    multiple of 16; without, the same twice.
    """
    width = tl.cdiv(P, 16) * 16 if C.halves else P
    row = tl.minimum(at, count - 1).to(tl.int64)
    where = ptr + row[:, None] * stride + columns[None, :]
    low = where + every.to(tl.int64) * stride
    if C.even:
        tile = tl.load(where)
        return tile, tl.load(low) if C.halves else tile
    else:
        some = (columns < width)[None, :]
        tile = tl.load(where, mask=some, other=0.0)
        return tile, tl.load(low, mask=some, other=0.0) if C.halves else tile


@triton.jit
def _product(a, b, c):
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision="ieee")
    else:
        return tl.dot(a, b, c, input_precision="tf32")


@triton.jit
def _product_of_halves(a, a_low, b, b_low, c, C: tl.constexpr):
    """c + <a, b>, small terms first; without halves, of a and b alone."""
    if C.halves:
        c = _product(a, b_low, c)
        c = _product(a_low, b, c)
    return _product(a, b, c)


@triton.jit
def _exp2(x):
    """2^x for x <= 0 or so: one instruction, and 0 for what would be subnormal."""
    if INTERPRET:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)


@triton.jit
def _reciprocal(x):
    """1 / x within an ulp for 1 <= x < 2^126: one instruction, where a division has a dozen for the rest."""
    if INTERPRET:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)


@triton.jit
def _partner(i, M, own):
    """The candidate that is the other view of row i's image."""
    i += M // 2
    return tl.where(i < M, i, i - M) + own


@triton.jit
def _touch(i, BLOCK_I: tl.constexpr, j, BLOCK_J: tl.constexpr, offset):
    """Whether i .. i + BLOCK_I - 1, moved by offset, and j .. j + BLOCK_J - 1 have a number in common."""
    return (i + offset < j + BLOCK_J) & (j < i + offset + BLOCK_I)


@triton.jit
def _masked(c, first, M, start, N, own, C: tl.constexpr):
    """c with -inf for what is no pair: beyond the last candidate, or left out. Most tiles have none of either."""
    BLOCK_M: tl.constexpr = C.rows
    BLOCK_N: tl.constexpr = C.candidates
    some = start + BLOCK_N > N
    if C.views > 0:
        if C.exchanged:  # the columns are the rows of the formulas
            some = some | _touch(start, BLOCK_N, first, BLOCK_M, own)
        else:
            some = some | _touch(first, BLOCK_M, start, BLOCK_N, own)
    if C.views > 1:
        if C.exchanged:
            some = some | _touch(start, BLOCK_N, first, BLOCK_M, own + N // 2)
            some = some | _touch(start, BLOCK_N, first, BLOCK_M, own + N // 2 - N)
        else:
            some = some | _touch(first, BLOCK_M, start, BLOCK_N, own + M // 2)
            some = some | _touch(first, BLOCK_M, start, BLOCK_N, own + M // 2 - M)
    if some:
        i, j = first + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_N)
        out = (j >= N)[None, :]
        if C.views > 0:
            if C.exchanged:
                out = out | (i[:, None] == (j + own)[None, :])
            else:
                out = out | ((i + own)[:, None] == j[None, :])
        if C.views > 1:
            if C.exchanged:
                out = out | (i[:, None] == _partner(j, N, own)[None, :])
            else:
                out = out | (_partner(i, M, own)[:, None] == j[None, :])
        c = tl.where(out, float("-inf"), c)
    return c


@triton.jit
def _in_steps(x, x_stride, i, M, y, y_stride, j, left, N, P, C: tl.constexpr):
    """<x_i, y_j> of rows that do not fit the chip, some columns at a time."""
    ROWS: tl.constexpr = C.rows
    CANDIDATES: tl.constexpr = C.candidates
    COLUMNS: tl.constexpr = C.columns
    STAGES: tl.constexpr = C.stages
    c = tl.zeros([ROWS, CANDIDATES], tl.float32)
    for k in tl.range(0, P, COLUMNS, num_stages=STAGES):
        columns = k + tl.arange(0, COLUMNS)
        a, a_low = _load(x, x_stride, i, M, M, columns, P, C)
        b, b_low = _load(y, y_stride, j, left, N, columns, P, C)
        c = _product_of_halves(a, a_low, tl.trans(b), tl.trans(b_low), c, C)
    return c


@triton.jit
def _sigmoid(a):
    """(1 / (1 + e^-a), e^-|a|)."""
    small = _exp2(-tl.abs(a) * LOG2E)
    return tl.where(a < 0, small, 1.0) * _reciprocal(1 + small), small


@triton.jit
def _log1p(e):
    """ln(1 + e) for 0 <= e <= 1 within 2e-7 relative, the smallest included: e times a fitted polynomial."""
    p = -0.0032440228387713432 * e + 0.019851455464959145
    p = p * e - 0.056959524750709534
    p = p * e + 0.10603655129671097
    p = p * e - 0.15305593609809875
    p = p * e + 0.1967594027519226
    p = p * e - 0.24954134225845337
    p = p * e + 0.3332996368408203
    p = p * e - 0.4999990165233612
    return e * (p * e + 1.0)


@triton.jit(do_not_specialize=NUMBERS)
def ldreg_pair_sums(
    x, x_stride, x_factor, y, y_stride, y_factor, scale_ptr, bias_ptr, state, M, N, P, own, part, C: tl.constexpr
):
    """state [parts, 2, M]: rows from program_id(0) * BLOCK_M, `part` candidates from program_id(1) * part.

    The contract's, but that in each part of several a row without candidates has the top -inf.
    """
    BLOCK_M: tl.constexpr = C.rows
    BLOCK_N: tl.constexpr = C.candidates
    BLOCK_P: tl.constexpr = C.columns
    STAGES: tl.constexpr = C.stages if C.whole else 1
    first = tl.program_id(0) * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_P)
    scale = tl.load(scale_ptr)
    power = scale * LOG2E  # e^(scale c) = 2^(power c)
    if C.bias:
        bias = tl.load(bias_ptr)
    if C.factors:
        f_i = tl.load(x_factor + i, mask=i < M, other=0.0)
    if C.whole:
        x_tile, x_low = _load(x, x_stride, i, M, M, columns, P, C)
    one = tl.full([BLOCK_M], 0.0 if C.bias else float("-inf"), tl.float32)  # slope, or the largest cosine so far
    two = tl.zeros([BLOCK_M], tl.float32)  # value, or total
    begin, left, count = 0, N, N
    if C.divided:  # a part is a problem of its own, its candidates counted from 0
        begin = tl.program_id(1) * part
        left = N - begin
        count = tl.minimum(part, left)
        y += begin.to(tl.int64) * y_stride
        if C.factors:
            y_factor += begin
    for start in tl.range(0, count, BLOCK_N, num_stages=STAGES):
        j = start + tl.arange(0, BLOCK_N)
        if C.whole:
            y_tile, y_low = _load(y, y_stride, j, left, N, columns, P, C)
            c = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            c = _product_of_halves(x_tile, x_low, tl.trans(y_tile), tl.trans(y_low), c, C)
        else:
            c = _in_steps(x, x_stride, i, M, y, y_stride, j, left, N, P, C)
        if C.factors:
            c = c * f_i[:, None] * tl.load(y_factor + j, mask=j < left, other=0.0)[None, :]
        c = _masked(c, first, M, begin + start, N, own, C)
        if C.bias:
            a = c * scale + bias
            sigmoid, small = _sigmoid(a)
            one += tl.sum(sigmoid, 1)
            two += tl.sum(tl.maximum(a, 0.0) + _log1p(small), 1)
        else:
            top = tl.maximum(one, tl.max(c, 1))
            shift = tl.where(top == float("-inf"), 0.0, top)  # all left out so far
            two = two * _exp2(one * power - shift * power)
            two += tl.sum(_exp2(c * power - (shift * power)[:, None]), 1)
            one = top
    if C.divided:
        state += tl.program_id(1).to(tl.int64) * 2 * M
    elif not C.bias:
        one = tl.where(one == float("-inf"), 0.0, one)
    tl.store(state + i, one, mask=i < M)
    tl.store(state + M.to(tl.int64) + i, two, mask=i < M)


@triton.jit(do_not_specialize=NUMBERS)
def ldreg_pair_join(each, state, scale_ptr, M, parts, BLOCK: tl.constexpr):
    """state [2, M] of sums without bias, from the states [parts, 2, M] of parts of the candidates."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    power = tl.load(scale_ptr) * LOG2E
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(parts):
        other = tl.load(each + i, mask=i < M, other=0.0)
        larger = tl.maximum(top, other)
        shift = tl.where(larger == float("-inf"), 0.0, larger) * power
        more = tl.load(each + M.to(tl.int64) + i, mask=i < M, other=0.0)
        total = total * _exp2(top * power - shift) + more * _exp2(other * power - shift)
        top = larger
        each += 2 * M.to(tl.int64)
    tl.store(state + i, tl.where(top == float("-inf"), 0.0, top), mask=i < M)
    tl.store(state + M.to(tl.int64) + i, total, mask=i < M)


@triton.jit
def _share(share, state, i, end, C: tl.constexpr):
    """(top_i, share_i), without a top 0 instead; 0 beyond the end."""
    of = tl.load(share + i, mask=i < end, other=0.0)
    if C.bias:
        return tl.zeros_like(of), of
    else:
        return tl.load(state + i, mask=i < end, other=0.0), of


@triton.jit(do_not_specialize=NUMBERS)
def ldreg_pair_gradient(
    x,
    x_stride,
    x_factor,
    y,
    y_stride,
    y_factor,
    scale_ptr,
    bias_ptr,
    state,
    share,
    unit,
    out,
    M,
    N,
    P,
    own,
    part,
    C: tl.constexpr,
):
    """out [parts, M, P] float32: sum_j w_ij f_j y_j over the `part` candidates from program_id(2) * part.

    Rows from program_id(0) * BLOCK_M, columns from program_id(1) * BLOCK_P.
    Exchanged, x and y are the candidates and the rows of the contract, M and N their numbers. State and by_value are of
    the contract's rows, always.
    """
    BLOCK_M: tl.constexpr = C.rows
    BLOCK_N: tl.constexpr = C.candidates
    BLOCK_P: tl.constexpr = C.out
    STAGES: tl.constexpr = C.stages if C.whole else 1
    first = tl.program_id(0) * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)  # the first ones are all of them if C.whole
    scale = tl.load(scale_ptr)
    power = scale * LOG2E  # e^(scale c) = 2^(power c)
    if C.bias:
        bias = tl.load(bias_ptr)
    if C.factors:
        f_i = tl.load(x_factor + i, mask=i < M, other=0.0)
    if not C.exchanged:
        top_i, share_i = _share(share, state, i, M, C)
    if C.whole:
        x_tile, x_low = _load(x, x_stride, i, M, M, columns, P, C)
    acc = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    begin, left, count = 0, N, N
    if C.divided:  # as in the sums
        begin = tl.program_id(2) * part
        left = N - begin
        count = tl.minimum(part, left)
        y += begin.to(tl.int64) * y_stride
        out += tl.program_id(2).to(tl.int64) * M * P
        if C.factors:
            y_factor += begin
    for start in tl.range(0, count, BLOCK_N, num_stages=STAGES):
        j = start + tl.arange(0, BLOCK_N)
        y_tile, y_low = _load(y, y_stride, j, left, N, columns, P, C)
        if C.whole:
            c = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            c = _product_of_halves(x_tile, x_low, tl.trans(y_tile), tl.trans(y_low), c, C)
        else:
            c = _in_steps(x, x_stride, i, M, y, y_stride, j, left, N, P, C)
        if C.factors:
            f_j = tl.load(y_factor + j, mask=j < left, other=0.0)
            c = c * f_i[:, None] * f_j[None, :]
        c = _masked(c, first, M, begin + start, N, own, C)
        if C.exchanged or C.same:
            top_j, share_j = _share(share + begin, state + begin, j, left, C)
        if C.bias:
            w, _ = _sigmoid(c * scale + bias)
            if C.same:
                w *= share_i[:, None] + share_j[None, :]
            elif C.exchanged:
                w *= share_j[None, :]
            else:
                w *= share_i[:, None]
        elif C.exchanged:
            w = _exp2(c * power - (top_j * power)[None, :]) * share_j[None, :]
        else:
            w = _exp2(c * power - (top_i * power)[:, None]) * share_i[:, None]
            if C.same:
                w += _exp2(c * power - (top_j * power)[None, :]) * share_j[None, :]
        if C.factors:
            w *= f_j[None, :]
        if C.halves:
            high = w.to(tl.float16)
            acc = _product_of_halves(high, (w - high.to(tl.float32)).to(tl.float16), y_tile, y_low, acc, C)
        elif y_tile.dtype == tl.float16:
            acc = _product(w, y_tile.to(tl.float32), acc)
        else:
            acc = _product(w.to(y_tile.dtype), y_tile, acc)
    if C.halves:
        acc *= tl.load(unit)
    where = out + i.to(tl.int64)[:, None] * P + columns[None, :]
    tl.store(where, acc, mask=(i < M)[:, None] & (columns < P)[None, :])
