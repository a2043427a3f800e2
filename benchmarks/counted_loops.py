"""The loops of a kernel, and what a trip through one costs. Nothing is run.

Loops are the natural ones: a branch back to a block that dominates it, with everything that reaches that branch
without passing the block. What a trip costs is counted along a path from the loop's head back to it, inner loops left
out (they are counted by themselves): `longest` takes whatever work a trip may do, `shortest` goes round all that can
be skipped. Code that only diverged warps run (BRA.DIV, far out of line) is not reached;
a function called is code beside the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.counted_sass import Instruction, Kernel

ENDS = {"BRA", "BRX", "EXIT", "RET", "JMP", "CALL"}


@dataclass
class Block:
    """Instructions that are run one after another, and the blocks that may follow."""

    code: list[Instruction]
    after: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A loop, by the blocks of `graph`; `inner` are the blocks of loops inside."""

    graph: Graph
    head: int
    blocks: set[int]
    tails: list[int]
    inner: list[Loop] = field(default_factory=list)
    outer: Loop | None = None

    @cached_property
    def own(self) -> list[int]:
        """Blocks of this loop and of none inside, as they stand in the code."""
        return sorted(self.blocks.difference(*(loop.blocks for loop in self.inner)))

    @property
    def code(self) -> Iterator[Instruction]:
        """Instructions of this loop and of none inside."""
        return (instruction for block in self.own for instruction in self.graph.blocks[block].code)

    def whole(self) -> Iterator[Instruction]:
        return (instruction for block in sorted(self.blocks) for instruction in self.graph.blocks[block].code)

    @cached_property
    def functions(self) -> Counter[str]:
        """How many of its own instructions each function has, whatever it inlines included."""
        found: Counter[str] = Counter()
        for instruction in self.code:
            found.update({frame.function for frame in instruction.frames})
        return found

    def runs_in(self, function: str) -> bool:
        """Whether more than half of the loop is of this function, or inlined into it."""
        return 2 * self.functions[function] > sum(1 for _ in self.code)

    @property
    def waits(self) -> bool:
        """Whether it does nothing but look at a counter or a barrier."""
        return self.runs_in("wait_for") or self.runs_in("mbarrier_wait")

    @cached_property
    def source(self) -> str:
        """The innermost function that holds nearly all of the loop, and the line most of it comes from there."""
        code = list(self.code)
        chains = [[frame.function for frame in instruction.frames] for instruction in code]
        depth = {
            name: min(len(chain) - chain.index(name) for chain in chains if name in chain) for name in self.functions
        }
        name = max(
            (n for n in self.functions if self.functions[n] >= 0.9 * len(code)), key=lambda n: depth[n], default="?"
        )
        lines = Counter(f"{f.file}:{f.line}" for i in code for f in i.frames if f.function == name)
        return f"{name} {lines.most_common(1)[0][0]}" if lines else name

    def path(
        self,
        weight: Callable[[Instruction], float],
        longest: bool = True,
        avoid: Callable[[Instruction], bool] | None = None,
    ) -> list[Instruction]:
        """What one trip runs: the path of most weight or of least, and if possible without what `avoid` names."""
        region = self._without(avoid)
        sign = 1 if longest else -1
        inside = {block: loop.head for loop in self.inner for block in loop.blocks}
        best: dict[int, tuple[float, list[int]]] = {}

        def cost(block: int) -> float:
            return sum(weight(i) for i in self.graph.blocks[block].code) * sign

        for block in self.graph.order:  # topological but for edges back
            if block not in region or (block in inside and inside[block] != block):
                continue
            own = 0.0 if block in inside else cost(block)
            ways = [best[b] for b in self._before(block, inside) if b in best and b in region]
            if block == self.head:
                best[block] = own, [block]
            elif ways:
                value, way = max(ways, key=lambda pair: pair[0])
                best[block] = value + own, [*way, block]
        ends = [best[inside.get(tail, tail)] for tail in self.tails if inside.get(tail, tail) in best]
        _, way = max(ends, key=lambda pair: pair[0])
        return [i for block in way if block not in inside for i in self.graph.blocks[block].code]

    def _before(self, block: int, inside: dict[int, int]) -> Iterable[int]:
        """Blocks that lead to this one; a loop inside counts as its head."""
        if block == self.head:
            return
        for before in self.graph.blocks[block].before:
            if before in self.blocks and inside.get(before, before) != block:
                yield inside.get(before, before)

    def _without(self, avoid: Callable[[Instruction], bool] | None) -> set[int]:
        """Blocks left when those with what `avoid` names go, and those from which the loop then does not go on."""
        if avoid is None:
            return self.blocks
        left = {b for b in self.blocks if not any(avoid(i) for i in self.graph.blocks[b].code)}
        reached, todo = set(), [tail for tail in self.tails if tail in left]
        while todo:
            block = todo.pop()
            if block in reached:
                continue
            reached.add(block)
            if block != self.head:
                todo += [b for b in self.graph.blocks[block].before if b in left]
        forward, todo = set(), [self.head]
        while todo:
            block = todo.pop()
            if block in forward or block not in reached:
                continue
            forward.add(block)
            todo += self.graph.blocks[block].after
        return forward if any(tail in forward for tail in self.tails) else self.blocks


class Graph:
    """Blocks of a kernel by number, in `order` so that a block comes behind what leads to it, and the loops."""

    def __init__(self, kernel: Kernel) -> None:
        self.blocks = list(_blocks(kernel.code))
        for number, block in enumerate(self.blocks):
            for after in block.after:
                self.blocks[after].before.append(number)
        self.order = self._order()
        self.dominator = self._dominators()
        self.loops = self._loops()

    def _order(self) -> list[int]:
        """Reverse postorder from the entry."""
        seen, found = {0}, []
        stack = [(0, iter(self.blocks[0].after))]
        while stack:
            block, rest = stack[-1]
            for after in rest:
                if after not in seen:
                    seen.add(after)
                    stack.append((after, iter(self.blocks[after].after)))
                    break
            else:
                found.append(block)
                stack.pop()
        return found[::-1]

    def _dominators(self) -> dict[int, int]:
        """Immediate dominators (Cooper, Harvey and Kennedy, A Simple, Fast Dominance Algorithm, 2001)."""
        place = {block: i for i, block in enumerate(self.order)}
        found = {0: 0}

        def meet(one: int, two: int) -> int:
            while one != two:
                while place[one] > place[two]:
                    one = found[one]
                while place[two] > place[one]:
                    two = found[two]
            return one

        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                known = [b for b in self.blocks[block].before if b in found]
                new = known[0]
                for other in known[1:]:
                    new = meet(new, other)
                changed |= found.get(block) != new
                found[block] = new
        return found

    def dominates(self, one: int, two: int) -> bool:
        while two not in (one, 0):
            two = self.dominator[two]
        return one == two

    def _loops(self) -> list[Loop]:
        """Every loop, outer ones first."""
        heads: dict[int, Loop] = {}
        for block in self.order:
            for head in self.blocks[block].after:
                if self.dominates(head, block):
                    loop = heads.setdefault(head, Loop(self, head, {head}, []))
                    loop.tails.append(block)
                    todo = [block]
                    while todo:
                        at = todo.pop()
                        if at not in loop.blocks:
                            loop.blocks.add(at)
                            todo += [b for b in self.blocks[at].before if b in self.dominator]
        loops = sorted(heads.values(), key=lambda loop: -len(loop.blocks))
        for i, loop in enumerate(loops):
            around = [other for other in loops[:i] if loop.head in other.blocks]
            if around:
                loop.outer = around[-1]
                around[-1].inner.append(loop)
        return loops


def _blocks(code: list[Instruction]) -> Iterator[Block]:
    starts = {0}
    for at, instruction in enumerate(code):
        if instruction.name in ENDS:
            starts.add(at + 1)
            starts.update(instruction.targets)
    bounds = sorted(start for start in starts if start < len(code))
    number = {start: i for i, start in enumerate(bounds)}
    for start, end in zip(bounds, [*bounds[1:], len(code)], strict=True):
        block = Block(code[start:end])
        last = block.code[-1]
        if last.name in ("BRA", "BRX", "JMP", "CALL") and not last.opcode.startswith("BRA.DIV"):
            block.after += [number[target] for target in last.targets]
        if end < len(code) and not (last.name in ENDS - {"CALL"} and always(last)):
            block.after.append(number[end])
        yield block


def always(instruction: Instruction) -> bool:
    """Whether a branch is taken in any case: it has no predicate, in front or among its operands."""
    first = instruction.operands.partition(",")[0].strip()
    conditional = instruction.predicate or first.lstrip("!").startswith(("P", "UP"))
    return not conditional and not instruction.opcode.startswith("BRA.DIV")
