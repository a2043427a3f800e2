"""The assembler statement that appends to lists (triton_append.py), run word by word: Triton's interpreter has none.

Of PTX only what the statement uses is known here, so an instruction that is new to it fails. A second thread that comes
in between is not played: what a counter gave is its own, whatever others get.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

append = pytest.importorskip("ldreg_kernels.kernels.triton_append", reason="Triton is not installed")

PACK, CAP = append.PACK.value, 4
ROWS, COLUMNS = 2, 8  # a thread's share of a piece: two rows, as wgmma leaves them


class Memory(dict):
    """Words by address; lists begin at their own million."""

    COUNT, KEYS, POSITIONS = 1_000_000, 2_000_000, 3_000_000

    def list_of(self, row: int) -> list[tuple[int, int]]:
        found = range(min(self.get(self.COUNT + 4 * row, 0), CAP))
        at = [4 * (row * CAP + i) for i in found]
        return [(self[self.KEYS + a], self[self.POSITIONS + a]) for a in at]


def run(statement: str, operands: list, memory: Memory) -> None:
    """Execute it for one thread."""
    registers: dict[str, object] = {f"${i}": value for i, value in enumerate(operands)}

    def value(name: str):
        if name in registers:
            return registers[name]
        if name.startswith("0f"):
            return np.uint32(int(name[2:], 16)).view(np.float32)
        return int(name, 0)

    lines = [line.strip() for line in re.split(r"[;\n{}]", statement) if line.strip()]
    while lines:
        line = lines.pop(0)
        if line.startswith(".reg") or line == "DONE:":
            continue
        guard = re.match(r"@(!?)(\w+) (.*)", line)
        if guard:
            if bool(registers[guard[2]]) == bool(guard[1]):
                continue
            line = guard[3]
        name, _, rest = line.partition(" ")
        to, *given = (part.strip(" []") for part in rest.split(","))
        known = [value(part) for part in given]
        if name == "bra":
            lines = lines[lines.index(f"{to}:") :]
        elif name == "fma.rn.f32":
            a, b, c = map(np.float64, known)
            registers[to] = np.float32(a * b + c)
        elif name == "setp.ne.b32":
            registers[to] = known[0] != known[1]
        elif name == "setp.ne.s32":
            registers[to] = known[0] != known[1]
        elif name == "setp.le.or.f32":
            registers[to] = known[0] <= known[1] or known[2]
        elif name == "setp.le.and.f32":
            registers[to] = known[0] <= known[1] and known[2]
        elif name == "setp.lt.u32":
            registers[to] = known[0] < known[1]
        elif name == "mov.b32":
            moved = known[0]
            registers[to] = int(moved.view(np.int32)) if isinstance(moved, np.float32) else moved
        elif name == "shr.s32":
            registers[to] = known[0] >> known[1]
        elif name == "and.b32":
            registers[to] = known[0] & known[1]
        elif name == "xor.b32":
            registers[to] = known[0] ^ known[1]
        elif name in ("mad.lo.s32", "mad.wide.s32"):
            registers[to] = known[0] * known[1] + known[2]
        elif name == "atom.relaxed.gpu.global.add.u32":
            registers[to] = memory.get(known[0], 0)
            memory[known[0]] = registers[to] + known[1]
        elif name == "st.global.b32":
            memory[value(to)] = known[0]
        else:
            raise AssertionError(f"not known here: {line}")


def sortable(key: np.float32) -> int:
    bits = int(key.view(np.int32))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@pytest.mark.parametrize("limit", [-1e9, 0.0, 2.0, 1e36], ids=["none", "some", "more", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_what_passes_is_appended(limit: float, seed: int) -> None:
    """Key and position of every pair within its limit but the query itself, in order, as far as the list has room."""
    draw = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    dot, norm, residual, reach = numbers(ROWS, COLUMNS), numbers(COLUMNS), abs(numbers(COLUMNS)), abs(numbers(ROWS))
    slack, limits = np.float32(0.01), np.full(ROWS, limit, np.float32)
    position, slot, own = np.arange(100, 100 + COLUMNS), np.array([3, 11]), np.array([102, -1])
    dot[0, 5], norm[7] = np.nan, 1e37  # a pair that is no number, and a reference beyond the end

    def spread(values, axis: int) -> list:
        of_pairs = np.broadcast_to(np.expand_dims(values, 1 - axis), (ROWS, COLUMNS)).reshape(-1)
        return [v if isinstance(v, np.float32) else int(v) for v in of_pairs]

    operands = {
        "dot": list(dot.reshape(-1)),
        "shifted": spread(norm - slack, 1),
        "residual": spread(-residual, 1),
        "limit": spread(limits, 0),
        "reach": spread(reach, 0),
        "norm": spread(norm, 1),
        "slot": spread(slot, 0),
        "position": spread(position, 1),
        "own": spread(own, 0),
        "cap": [CAP] * PACK,
        "count": [Memory.COUNT] * PACK,
        "keys": [Memory.KEYS] * PACK,
        "positions": [Memory.POSITIONS] * PACK,
    }
    assert list(operands) == list(append.OPERANDS)
    memory = Memory()
    run(append.STATEMENT.value, [None] * PACK + [v for name in operands for v in operands[name]], memory)

    appended = 0
    for row in range(ROWS):
        key = norm - 2 * dot[row]
        lower = (norm - slack) - 2 * dot[row] - residual * reach[row]
        passing = np.flatnonzero((lower <= limits[row]) & (position != own[row]))
        assert memory.get(Memory.COUNT + 4 * slot[row], 0) == len(passing)
        found = memory.list_of(int(slot[row]))
        assert [j for _, j in found] == list(position[passing][:CAP])
        assert [k for k, _ in found] == pytest.approx([sortable(k) for k in key[passing][:CAP]], abs=2)  # fma
        appended += len(passing)
    assert (appended == 0) == (limit == -1e9)


def test_operands_are_as_many_as_constraints() -> None:
    constraints = append.CONSTRAINTS.value.split(",")
    assert len(constraints) == (1 + len(append.OPERANDS)) * PACK
    highest = max(map(int, re.findall(r"\$(\d+)", append.STATEMENT.value)))
    assert highest == len(constraints) - 1
