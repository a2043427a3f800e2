"""Which shared-memory words the lanes of a warp touch, from the instructions that compute the addresses.

A register is followed back to what is known: the thread's number, constants, and what is the same in all lanes
(arguments, what was loaded from one address by all). A value is then exact, or known up to something that all lanes
share, which is enough for bank conflicts: 32 banks of 4 bytes, and a request takes as many wavefronts as the bank most
asked for has different words. Where lanes differ by something loaded, there is no answer, and the model has to state a
pattern. Nothing is run.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice

from benchmarks.counted_loops import Graph
from benchmarks.counted_sass import Instruction

LANES = 32
WORD = (1 << 32) - 1
FAR = 4000  # entries of blocks: an address that comes from farther away is not known
OPERAND = re.compile(r"desc\[[^]]*\]|c\[[^]]*\]\[[^]]*\]|\[[^]]*\]|[^,\s][^,]*")
REGISTER = re.compile(r"U?R(?:\d+|Z)")
NO_RESULT = re.compile(
    r"ST|RED|BRA|BAR|MEMBAR|EXIT|BSSY|BSYNC|CCTL|WARPSYNC|SYNCS|NOP|UTMA|UBLKCP|FENCE|DEPBAR|NANOSLEEP|CALL|RET"
)

WIDE = (  # registers of a result
    (r"^HGMMA", 64),
    (r"\.128|^HMMA|^LDSM", 4),
    (r"\.WIDE|^CS2R(?!\.32)|^D[A-Z]|\.64(?!H)|^(F2F|I2F)(\.\w+)*?\.F64\.", 2),
)


@dataclass(frozen=True)
class Value:
    """A number for every lane; `exact`, or up to a number that all lanes share."""

    lanes: tuple[int, ...]
    exact: bool = False

    @property
    def uniform(self) -> bool:
        return len(set(self.lanes)) == 1


UNIFORM = Value((0,) * LANES)
UNSEEN = Value(())  # no way to it has been looked at yet
Known = Value | None  # None: lanes differ, nobody knows how


def constant(number: int) -> Value:
    return Value((number & WORD,) * LANES, exact=True)


def relative(lanes: tuple[int, ...]) -> Value:
    """Up to what lanes share."""
    return Value(tuple((lane - lanes[0]) & WORD for lane in lanes))


def join(one: Known, two: Known) -> Known:
    """What holds of either."""
    if one in (UNSEEN, two) or two == UNSEEN:
        return two if one == UNSEEN else one
    if one is None or two is None or relative(one.lanes) != relative(two.lanes):
        return None
    return relative(one.lanes)


def operands(instruction: Instruction) -> list[str]:
    return [part.strip() for part in OPERAND.findall(instruction.operands)]


def width(instruction: Instruction) -> int:
    """Bytes of a lane, of an access to memory."""
    for suffix, count in ((".128", 16), (".64", 8), (".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2)):
        if suffix in instruction.opcode.replace("LTC128B", ""):
            return count
    return 4


def results(instruction: Instruction) -> list[str]:
    """The registers an instruction writes."""
    if NO_RESULT.match(instruction.opcode) or "SETP" in instruction.name or instruction.name == "PLOP3":
        return []
    named = [part for part in operands(instruction) if not re.fullmatch(r"!?U?P(?:\d|T)", part)]
    if not named or not (found := re.fullmatch(r"(U?R)(\d+)(?:\.\w+)*", named[0])):
        return []
    opcode = instruction.opcode
    count = next((count for pattern, count in WIDE if re.search(pattern, opcode)), 1)
    return [f"{found[1]}{int(found[2]) + i}" for i in range(count)]


class FarError(RuntimeError):
    """What is asked for comes from too far away."""


class LaneWalk:
    """Values of registers in a kernel, for the warp whose first thread is `thread`."""

    def __init__(self, graph: Graph, thread: int) -> None:
        self.graph = graph
        self.thread = thread
        self.at_entry: dict[tuple[str, int], Known] = {}
        self.settled = 0  # as many of them
        self.results: defaultdict[int, dict[int, Known]] = defaultdict(dict)  # of a block, while its entries stay
        self.order = {block: place for place, block in enumerate(graph.order)}
        self.place = {i.address: (b, n) for b, block in enumerate(graph.blocks) for n, i in enumerate(block.code)}
        self.written: list[defaultdict[str, list[int]]] = [
            defaultdict(list) for _ in graph.blocks
        ]  # where, in each block
        for written, block in zip(self.written, graph.blocks, strict=True):
            for n, instruction in enumerate(block.code):
                for register in results(instruction):
                    written[register].append(n)

    def address(self, instruction: Instruction) -> Known:
        """Of an access to shared memory."""
        block, at = self.place[instruction.address]
        value = self._address(instruction, block, at)
        try:
            while self._settle():
                value = self._address(instruction, block, at)
        except FarError:
            return None
        return None if value == UNSEEN else value

    def _settle(self) -> bool:
        """Entries that have come up, until what is known of them no longer changes; whether there were any."""
        fresh: defaultdict[int, list[str]] = defaultdict(list)  # registers, by block
        taken = self.settled
        todo: list[int] = []  # a heap of places in the order of blocks
        listed: set[int] = set()  # what it holds

        def look_at(block: int) -> None:
            if (place := self.order[block]) not in listed:
                listed.add(place)
                heappush(todo, place)

        while todo or len(self.at_entry) > taken:
            if len(self.at_entry) - self.settled > FAR:
                for entry in list(islice(self.at_entry, self.settled, None)):
                    del self.at_entry[entry]  # another address may do without most of them
                self.results.clear()
                raise FarError
            for register, block in islice(self.at_entry, taken, None):
                fresh[block].append(register)
                look_at(block)
            taken = len(self.at_entry)
            place = heappop(todo)
            listed.remove(place)
            block = self.graph.order[place]
            changed = False
            for register in fresh[block]:
                value = self._entry(register, block)
                if value != self.at_entry[register, block]:
                    self.at_entry[register, block] = value
                    changed = True
            if changed:
                self.results[block].clear()
                for after in self.graph.blocks[block].after:
                    if after in fresh:
                        look_at(after)
        fresh_ones, self.settled = taken > self.settled, taken
        return fresh_ones

    def active(self, instruction: Instruction, head: int) -> list[bool]:
        """Lanes that get to an instruction from block `head`, as far as conditions on the lane's number tell."""
        lanes = self._active(instruction, head)
        try:
            while self._settle():
                lanes = self._active(instruction, head)
        except FarError:
            return [True] * LANES
        return lanes

    def _active(self, instruction: Instruction, head: int) -> list[bool]:
        block, at = self.place[instruction.address]
        lanes = self._fulfilled(instruction.predicate, block, at) or [True] * LANES
        while block != head and block:
            below, block = block, self.graph.dominator[block]
            last = self.graph.blocks[block].code[-1]
            after = self.graph.blocks[block].after
            if (
                last.name != "BRA"
                or not last.predicate
                or len(after) != 2
                or self.graph.blocks[below].before != [block]
            ):
                continue
            taken = self._fulfilled(last.predicate, block, len(self.graph.blocks[block].code) - 1)
            if taken:
                jumped = below == after[0]
                lanes = [lane and one == jumped for lane, one in zip(lanes, taken, strict=True)]
        return lanes

    def _fulfilled(self, predicate: str, block: int, at: int) -> list[bool] | None:
        """In which lanes a predicate holds, if what it compares is exact."""
        name = predicate.lstrip("!")
        while name:
            code = self.graph.blocks[block].code
            for n in range(at - 1, -1, -1):
                if name in operands(code[n])[:2] and re.match(r"[A-Z]*SETP|P?LOP3", code[n].name):
                    return self._test(code[n], predicate, block, n)
            if len(self.graph.blocks[block].before) != 1:
                break
            (block,) = self.graph.blocks[block].before
            at = len(self.graph.blocks[block].code)
        return None

    def _test(self, instruction: Instruction, predicate: str, block: int, at: int) -> list[bool] | None:
        """In which lanes a predicate holds after the instruction that sets it."""
        parts = operands(instruction)
        integer = instruction.name == "ISETP"
        test = TESTS.get(instruction.opcode.split(".")[1] if integer else instruction.name)
        conditions = [part for part in parts[1:] if re.fullmatch(r"!?U?P\d", part)]
        if test is None or conditions or parts[0] != predicate.lstrip("!") or instruction.predicate:
            return None
        values = [self._operand(part, block, at) for part in parts if not re.fullmatch(r"!?U?P(?:\d|T)", part)]
        if not integer:
            values = [_logic("", values[1:]), constant(0)]
        one, two = values[:2]
        if one is None or two is None or not (one.exact and two.exact):
            return None
        holds = [test(_signed(a), _signed(b)) for a, b in zip(one.lanes, two.lanes, strict=True)]
        return [not held for held in holds] if predicate.startswith("!") else holds

    def _address(self, instruction: Instruction, block: int, at: int) -> Known:
        (inside,) = re.findall(r"(?<!desc)(?<!c)\[([^]]*)\]", instruction.operands)[:1]
        total: Known = constant(0)
        for term in inside.split("+"):
            total = _add(total, self._operand(term.strip(), block, at))
        return total

    def _entry(self, register: str, block: int) -> Known:
        """At the start of a block: what holds on every way in."""
        if block == 0:
            return UNIFORM
        value: Known = UNSEEN
        for before in self.graph.blocks[block].before:
            if before in self.graph.dominator:
                value = join(value, self._value(register, before, len(self.graph.blocks[before].code)))
        return join(self.at_entry.get((register, block), UNSEEN), value)

    def _value(self, register: str, block: int, at: int) -> Known:
        """Before instruction `at` of a block."""
        if register in ("RZ", "URZ"):
            return constant(0)
        code = self.graph.blocks[block].code
        for n in reversed(self.written[block].get(register, ())):
            if n >= at:
                continue
            if n not in self.results[block]:
                self.results[block][n] = self._result(code[n], block, n)
            value = self.results[block][n]
            return join(value, self._value(register, block, n)) if code[n].predicate else value
        return self.at_entry.setdefault((register, block), UNSEEN)

    def _operand(self, text: str, block: int, at: int) -> Known:
        text = text.replace("|", "")
        if register := re.fullmatch(r"([-~]?)(U?R(?:\d+|Z))(\.X\d+|\.64)?", text):
            value = self._value(register[2], block, at)
            if register[3] and register[3].startswith(".X"):
                value = _times(value, constant(int(register[3][2:])))
            return (
                _times(value, constant(-1))
                if register[1] == "-"
                else _apply(lambda a: ~a, value)
                if register[1]
                else value
            )
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            return constant(int(text, 0))
        if text.startswith("c["):
            return UNIFORM
        return UNIFORM if re.fullmatch(r"!?U?P(?:\d|T)|SRZ", text) else None

    def _result(self, instruction: Instruction, block: int, at: int) -> Known:
        """What an instruction writes, in terms of what it reads."""
        name, opcode = instruction.name, instruction.opcode
        if name in ("S2R", "CS2R", "S2UR"):
            if "SR_TID.X" in instruction.operands:
                return Value(tuple(range(self.thread, self.thread + LANES)), exact=True)
            return Value(tuple(range(LANES)), exact=True) if "SR_LANEID" in instruction.operands else UNIFORM
        if name in ("LDS", "LDG", "LD", "LDC", "ULDC"):
            inside = self._memory(instruction, block, at)
            return inside if inside is None or inside == UNSEEN else UNIFORM if inside.uniform else None
        if name in ("VOTE", "VOTEU", "REDUX", "R2UR"):
            return UNIFORM
        if name.startswith(("ATOM", "HGMMA", "HMMA", "LDSM")):
            return None
        parts = [part for part in operands(instruction) if not re.fullmatch(r"!?U?P(?:\d|T)", part)][1:]
        values = [self._operand(part, block, at) for part in parts]
        if any(value == UNSEEN for value in values):
            return UNSEEN
        if name == "SHFL":
            return UNIFORM if (opcode.startswith("SHFL.IDX") and _uniform(values[1])) or _uniform(values[0]) else None
        rule = RULES.get(name.removeprefix("U")) if ".X" not in opcode and ".WIDE" not in opcode else None
        value = rule(opcode, values) if rule else None
        if value is not None:
            return value
        return UNIFORM if all(_uniform(value) for value in values) else None

    def _memory(self, instruction: Instruction, block: int, at: int) -> Known:
        if re.search(r"c\[", instruction.operands) and not re.search(r"c\[\w+\]\[U?R", instruction.operands):
            return UNIFORM
        total: Known = constant(0)
        for register in REGISTER.findall(instruction.operands.partition(",")[2]):
            total = _add(total, self._value(register, block, at))
        return total


# ------------------------------------------------------------------------------------------------- arithmetic


def _uniform(value: Known) -> bool:
    return value is not None and value != UNSEEN and value.uniform


def _apply(function: Callable[..., int], *values: Known) -> Known:
    """Lane by lane, of exact values; of what all lanes share, something they share."""
    if any(value == UNSEEN for value in values):
        return UNSEEN
    if all(value is not None and value.exact for value in values):
        return Value(
            tuple(function(*lane) & WORD for lane in zip(*(v.lanes for v in values if v), strict=True)), exact=True
        )
    return UNIFORM if all(_uniform(value) for value in values) else None


def _add(one: Known, two: Known) -> Known:
    if one == UNSEEN or two == UNSEEN:
        return UNSEEN
    if one is None or two is None:
        return None
    lanes = tuple((a + b) & WORD for a, b in zip(one.lanes, two.lanes, strict=True))
    return Value(lanes, exact=True) if one.exact and two.exact else relative(lanes)


def _times(one: Known, two: Known) -> Known:
    """By a number that is known, or all of it shared."""
    if one is not None and two is not None and UNSEEN not in (one, two):
        for value, factor in ((one, two), (two, one)):
            if factor.exact and factor.uniform:
                lanes = tuple(a * factor.lanes[0] & WORD for a in value.lanes)
                return Value(lanes, exact=True) if value.exact else relative(lanes)
    return _apply(lambda a, b: a * b, one, two)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _imad(opcode: str, v: list[Known]) -> Known:
    return _add(_times(v[0], v[1]), v[2])


def _sum(opcode: str, v: list[Known]) -> Known:
    total: Known = constant(0)
    for value in v:
        total = _add(total, value)
    return total


def _thread(value: Known) -> bool:
    """Whether this is the thread's number.

    Shifted or masked by what only the plan knows, it is the number of a team or of a thread in its team: teams are
    whole warps, so lanes have the former in common, and count up in the latter.
    """
    return value is not None and value.exact and value.lanes == tuple(range(value.lanes[0], value.lanes[0] + LANES))


def _lea(opcode: str, v: list[Known]) -> Known:
    if ".HI" not in opcode:
        return _add(_times(v[0], _apply(lambda s: 1 << s, v[2])), v[1])
    if ".SX32" in opcode:
        return _add(_apply(lambda a, s: _signed(a) >> (32 - s), v[0], v[2]), v[1])
    return _add(_apply(lambda a, high, s: (high << 32 | a) >> (32 - s), v[0], v[2], v[3]), v[1])


def _shift(opcode: str, v: list[Known]) -> Known:
    if ".L" in opcode and ".HI" not in opcode:
        return _times(v[0], _apply(lambda s: 1 << s, v[1]))
    if ".R" in opcode and ".HI" in opcode and v[0] == constant(0):
        signed = ".S32" in opcode
        if _thread(v[2]) and v[1] is not None and not v[1].exact:
            return UNIFORM
        return _apply(lambda s, a: (_signed(a) if signed else a) >> s, v[1], v[2])
    return None


def _logic(opcode: str, v: list[Known]) -> Known:
    table = v[3].lanes[0] if len(v) > 3 and v[3] is not None else 0

    def bits(a: int, b: int, c: int) -> int:
        terms = ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8) if table >> i & 1)
        total = 0
        for term in terms:
            total |= term
        return total

    threads = [value for value in v[:3] if _thread(value)]
    threads = [value for value in v[:3] if _thread(value)]
    if len(threads) == 1 and any(value is not None and value.uniform and not value.exact for value in v[:3]):
        return relative(threads[0].lanes) if threads[0] else None
    return _apply(bits, *v[:3])


def _select(opcode: str, v: list[Known]) -> Known:
    return join(v[0], v[1])


RULES: dict[str, Callable[[str, list[Known]], Known]] = {
    "IMAD": _imad,
    "MOV": lambda opcode, v: v[0],
    "IADD3": _sum,
    "VIADD": _sum,
    "IADD": _sum,
    "LEA": _lea,
    "SHF": _shift,
    "LOP3": _logic,
    "SEL": _select,
}


TESTS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
    "LOP3": operator.ne,
}


# ------------------------------------------------------------------------------------------------- banks


def wavefronts(addresses: Value, size: int, active: list[bool]) -> int:
    """Of one request of `size` bytes a lane (CUDA C++ Programming Guide, shared memory of 5.x and on).

    A wavefront serves each of 32 banks with one word. Lanes that ask for 8 or 16 bytes go a half or a quarter of a
    warp at a time, but if all of a warp's words fit one wavefront.
    """
    asked = zip(addresses.lanes, active, strict=True)
    words = [{(address + i) >> 2 for i in range(0, size, 4) if on} for address, on in asked]
    worst = _worst(words)
    if worst <= 1:
        return worst
    group = LANES if size <= 4 else LANES * 4 // size
    return sum(_worst(words[first : first + group]) for first in range(0, LANES, group))


def _worst(words: list[set[int]]) -> int:
    """Different words of the bank that most are asked of."""
    return max(Counter(word % 32 for word in set().union(*words)).values(), default=0)
