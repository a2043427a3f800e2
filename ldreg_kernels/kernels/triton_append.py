"""Appending the pairs that pass to their queries' lists, without leaving the registers that the tensor cores fill.

A pair passes if |y^|^2 - slack - 2 x^.y^ - r_y reach <= limit (triton_tiles.py has the bounds). One in a few hundred
does. Written with tl.atomic_add and tl.store, keys, masks and pointers of all pairs are taken to another layout first,
through shared memory: Triton wants neighbouring threads at neighbouring addresses, and does not know that hardly any
address is used. An assembler statement keeps its operands where they are. It takes PACK pairs of a thread: three
instructions a pair say whether any passes, and only a warp that has one goes on to its atomics, all of them under way
before the first answer is waited for.

A query that has to be left out, rows and references beyond the end: the caller gives them a position, a limit or a norm
that never passes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import INTERPRET, sortable

PACK = tl.constexpr(16)  # pairs of a thread that are looked at together

# Operands by name: [pairs of the tile], as Triton broadcasts them. f: a number, r: an integer, l: an address.
OPERANDS = {
    "dot": "f", "shifted": "f", "residual": "f", "limit": "f", "reach": "f", "norm": "f",
    "slot": "r", "position": "r", "own": "r", "cap": "r", "count": "l", "keys": "l", "positions": "l",
}  # fmt: skip


def _statement(pack: int) -> str:
    """PTX for `pack` pairs of a thread."""
    names = list(OPERANDS)

    def at(name: str, pair: int) -> str:
        return f"${(1 + names.index(name)) * pack + pair}"

    lines = ["{", f".reg .pred any, passes, other; .reg .b32 sign, to, place<{pack}>; .reg .f32 lower<{pack}>;"]
    lines += [".reg .b64 address;", "setp.ne.b32 any, 0, 0;"]
    for i in range(pack):
        lines += [
            f"fma.rn.f32 lower{i}, {at('dot', i)}, 0fC0000000, {at('shifted', i)};",  # -2
            f"fma.rn.f32 lower{i}, {at('residual', i)}, {at('reach', i)}, lower{i};",
            f"setp.le.or.f32 any, lower{i}, {at('limit', i)}, any;",
        ]
    lines += ["@!any bra DONE;"]
    for i in range(pack):
        lines += [
            f"mov.b32 place{i}, {at('cap', i)};",
            f"setp.ne.s32 other, {at('position', i)}, {at('own', i)};",
            f"setp.le.and.f32 passes, lower{i}, {at('limit', i)}, other;",
            f"mad.wide.s32 address, {at('slot', i)}, 4, {at('count', i)};",
            f"@passes atom.relaxed.gpu.global.add.u32 place{i}, [address], 1;",
        ]
    for i in range(pack):
        lines += [
            f"fma.rn.f32 lower{i}, {at('dot', i)}, 0fC0000000, {at('norm', i)};",  # the key, and its sortable bits
            f"setp.lt.u32 passes, place{i}, {at('cap', i)};",
            f"mov.b32 to, lower{i};",
            "shr.s32 sign, to, 31;",
            "and.b32 sign, sign, 0x7FFFFFFF;",
            "xor.b32 sign, to, sign;",
            f"mad.lo.s32 to, {at('slot', i)}, {at('cap', i)}, place{i};",
            f"mad.wide.s32 address, to, 4, {at('keys', i)};",
            "@passes st.global.b32 [address], sign;",
            f"mad.wide.s32 address, to, 4, {at('positions', i)};",
            f"@passes st.global.b32 [address], {at('position', i)};",
        ]
    return "\n".join([*lines, "DONE:", *[f"mov.b32 ${i}, 0;" for i in range(pack)], "}"])


def _constraints(pack: int) -> str:
    """Of its operands."""
    return ",".join(["=r"] * pack + [kind for kind in OPERANDS.values() for _ in range(pack)])


STATEMENT, CONSTRAINTS = tl.constexpr(_statement(PACK.value)), tl.constexpr(_constraints(PACK.value))


@triton.jit
def append(c, dot, norm, slack, residual, limit, reach, slot, position, own, C: tl.constexpr):
    """The pairs of dot [rows, columns] that pass, to the ends of the lists of `slot` [rows]; those beyond cap are lost.

    norm, slack, residual, position are of the columns; limit, reach, own of the rows. In a tile of fewer pairs, several
    threads may hold the same one: Triton's own atomics know that, an assembler statement does not.
    """
    PAIRS: tl.constexpr = dot.shape[0] * dot.shape[1]
    shifted = norm - slack
    if INTERPRET or not C.in_place or PACK * 32 * C.num_warps != PAIRS:
        key = norm[None, :] - 2 * dot
        passes = shifted[None, :] - 2 * dot - residual[None, :] * reach[:, None] <= limit[:, None]
        passes = passes & (position[None, :] != own[:, None])
        place = tl.atomic_add(c.count + slot[:, None] + tl.zeros(dot.shape, tl.int32), 1, mask=passes)
        passes = passes & (place < C.cap)
        at = slot[:, None] * C.cap + place
        tl.store(c.key + at, sortable(key), mask=passes)
        tl.store(c.position + at, position[None, :] + tl.zeros(dot.shape, tl.int32), mask=passes)
    else:
        numbers = (dot, shifted[None, :], -residual[None, :], limit[:, None], reach[:, None], norm[None, :])
        integers = (slot[:, None], position[None, :], own[:, None], C.cap)
        lists = (c.count.to(tl.int64), c.key.to(tl.int64), c.position.to(tl.int64))
        tl.inline_asm_elementwise(STATEMENT, CONSTRAINTS, numbers + integers + lists, tl.int32, False, PACK)
