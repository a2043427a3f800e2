"""From loops to milliseconds: what a stage's parts ask of a multiprocessor, times how often a launch runs them.

    cycles of a job = sum over its phases of  max over resources of (what is asked) / (rate),  or a warp's own time
    milliseconds    = sum over segments of the schedule of  ceil(jobs / 132) * cycles / clock,  or what HBM takes

Resources: issue slots, pipes, wavefronts of shared memory, tensor cores, bytes from L2. A warp's own time is the sum
of its latencies where nothing else is in the way. The stages themselves are counted_stages.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

from benchmarks import counted_machine as machine
from benchmarks.counted_lanes import LaneWalk, Value, wavefronts, width
from benchmarks.counted_loops import Graph, Loop
from benchmarks.counted_sass import Instruction, Kernel

PATTERN = 16  # bytes between neighbouring lanes where a stage states nothing


class NotFoundError(RuntimeError):
    """A loop that a stage names is not in the module."""


# ------------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Shape:
    """A loss with gradient, by mom."""

    B: int
    N: int
    D: int
    k: int
    dtype: str = "float32"
    track: tuple[int, ...] = ()

    @property
    def wanted(self) -> int:
        return max(self.k, *self.track, 0)

    @property
    def item(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def same(self) -> bool:
        return self.B == self.N

    @property
    def floor(self) -> float:
        """Milliseconds: the full product in float16, and the rows of the neighbours once from HBM (../NOTES.md)."""
        gathered = self.B * self.wanted * self.D * self.item
        return 1e3 * (2 * self.B * self.N * self.D / 790e12 + gathered / machine.HBM)


@dataclass(frozen=True)
class Segment:
    """Jobs of one kind, as the plan's schedule has them."""

    job: str
    jobs: int  # or tiles
    panel: int = 0
    step: int = 0
    met: int = 0  # meetings before the step, and after it
    meets: int = 0


@dataclass(frozen=True)
class Work:
    """A segment of a shape's launch, and the plan's numbers."""

    shape: Shape
    plan: dict[str, int]
    segment: Segment

    def held(self, meets: int) -> int:
        """References that a query has been held against; symmetric, it is met as well as meeting."""
        blocks = 2 * meets - 1 if self.plan["symmetric"] else meets
        return min(self.shape.N, self.plan["block"] * max(blocks, 0))

    @property
    def kept(self) -> float:
        """Candidates that a compaction leaves: up to a sixteenth more than wanted, and two by the error bounds."""
        return min(self.shape.N, self.shape.wanted * 17 / 16 + 2)

    @property
    def listed(self) -> float:
        """Candidates of a row before the compaction: all of the first step, later what the threshold let through."""
        before, after = self.held(self.segment.met), self.held(self.segment.meets)
        return after if before == 0 else self.kept * after / before

    @property
    def rate(self) -> float:
        """Of this step's pairs, how many pass."""
        before = self.held(self.segment.met)
        return 1.0 if before == 0 else min(1.0, self.kept / before)


# ------------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Times:
    """How often a job runs something: by all its warps together, and by the one that does so most."""

    all: float
    longest: float


def spread(items: float, workers: int, each: float = 1.0, warps: int = 1) -> Times:
    """`items` among `workers`, each of so many warps; an item is `each` times for each of them."""
    return Times(items * each * warps, math.ceil(items / workers) * each)


@dataclass(frozen=True)
class Part:
    """A loop of a stage, found by what it is, and how often a job runs it."""

    what: str
    function: str  # most of the loop is this function, or inlined into it
    holds: str  # an instruction of the loop's own, as a pattern
    times: Callable[[Work], Times]
    lacks: str = ""  # an instruction it must not have
    per: str = ""  # what `times` counts: instructions that match, else trips
    under: str = ""  # a function that all of this is inlined into
    avoid: str = ""  # blocks with this are not run: unaligned rows, underflow
    done: Callable[[Work], float] = field(default=lambda work: 1.0)  # of the work that can be skipped, how much is done
    most: Callable[[Work], bool] = field(default=lambda work: True)  # of several such loops, the one with most of `per`
    outer: bool = False  # the loop has others inside, which are parts of their own
    near: str = ""  # loads that find what they ask for in L1
    phase: str = ""  # phases follow one another
    pattern: int = PATTERN  # bytes between lanes, where what they read says where
    fixed: bool = True  # must be there

    def pattern_fronts(self, instruction: Instruction) -> int:
        """Wavefronts by the stated pattern."""
        lanes = tuple(self.pattern * lane for lane in range(32))
        return wavefronts(Value(lanes), width(instruction), [True] * 32)

    @property
    def wanted(self) -> str:
        inside = f" within {self.under}" if self.under else ""
        return f"{self.what}: a loop of {self.function}{inside} with {self.holds}"


@dataclass(frozen=True)
class Stage:
    """A column of the table."""

    name: str
    jobs: tuple[str, ...]  # of schedule.h
    parts: tuple[Part, ...]
    loaded: Callable[[Work], float] = field(default=lambda work: 0.0)  # bytes a job reads from L2, in its first phase
    copied: bool = False  # by copies into shared memory, where they are wavefronts
    multiplied: Callable[[Work], float] = field(default=lambda work: 0.0)  # multiply-adds of tensor cores, first phase
    memory: Callable[[Work], float] = field(default=lambda work: 0.0)  # bytes from and to HBM, of the whole segment
    beside: tuple[str, ...] = ()  # phases that other warps run at the same time
    same_jobs: bool = False  # goes on in the jobs of the stage before, where they are counted


@dataclass
class Cost:
    """Of a job, and what limits it."""

    cycles: float
    limit: str


# ------------------------------------------------------------------------------------------------- counting


@dataclass
class Counted:
    """A part's loop, counted: of one `per`, most and least."""

    part: Part
    loop: Loop
    path: list[Instruction]
    shortest: list[Instruction]
    asked: Counter[str]
    least: Counter[str]
    alone: float
    alone_least: float
    per: int

    def mixed(self, done: float) -> Counter[str]:
        """Of each resource, for one of `per`, if so much is done of what can be skipped."""
        found: Counter[str] = Counter()
        for name in self.asked | self.least:
            amount = self.least[name] + done * (self.asked[name] - self.least[name])
            found[name] = amount / self.per  # type: ignore[assignment]
        return found

    def time(self, done: float) -> float:
        return (self.alone_least + done * (self.alone - self.alone_least)) / self.per


class Reading:
    """A kernel's loops, and the parts found among them."""

    def __init__(self, kernel: Kernel, thread: int = 160) -> None:
        self.kernel = kernel
        self.graph = Graph(kernel)
        self.lanes = LaneWalk(self.graph, thread)
        self.claimed: dict[int, str] = {}  # loops by their heads
        self._fronts: dict[int, float | None] = {}
        self.count = cache(self._count)

    def candidates(self, part: Part) -> list[Loop]:
        pattern = re.compile(part.holds)
        found = []
        for loop in self.graph.loops:
            inside = loop.runs_in(part.function) and (not part.under or loop.runs_in(part.under))
            if (
                inside
                and any(not other.waits for other in loop.inner) == part.outer
                and any(pattern.match(instruction.text) for instruction in loop.code)
                and not (part.lacks and any(re.match(part.lacks, instruction.text) for instruction in loop.code))
            ):
                found.append(loop)
        return found

    def _count(self, part: Part, most: bool) -> Counted | None:
        found = self.candidates(part)
        if not found:
            if part.fixed:
                raise NotFoundError(part.wanted)
            return None
        for loop in found:
            self.claimed.setdefault(loop.head, part.what)
        counted = [self._counted(part, loop) for loop in found]
        return (max if most else min)(counted, key=lambda one: (one.per, len(one.path)))

    def _counted(self, part: Part, loop: Loop) -> Counted:
        avoid = re.compile(part.avoid) if part.avoid else None
        avoided = (lambda i: bool(avoid.search(i.text))) if avoid else None
        path = loop.path(lambda i: 1.0, longest=True, avoid=avoided)
        shortest = loop.path(lambda i: 1.0, longest=False, avoid=avoided)

        def fronts(instruction: Instruction) -> float:
            known = self.fronts(instruction, loop)
            return float(part.pattern_fronts(instruction)) if known is None else known

        per = sum(bool(re.match(part.per, i.text)) for i in path) if part.per else 1
        return Counted(
            part,
            loop,
            path,
            shortest,
            machine.demand(path, fronts),
            machine.demand(shortest, fronts),
            machine.alone(path, part.near),
            machine.alone(shortest, part.near),
            max(per, 1),
        )

    def fronts(self, instruction: Instruction, loop: Loop) -> float | None:
        """Wavefronts of an access to shared memory; None where the lanes' addresses are not known."""
        if instruction.address not in self._fronts:
            address = self.lanes.address(instruction)
            active = self.lanes.active(instruction, loop.head)
            self._fronts[instruction.address] = (
                None if address is None else float(wavefronts(address, width(instruction), active))
            )
        return self._fronts[instruction.address]


def job_cost(reading: Reading, stage: Stage, work: Work) -> Cost:
    """Cycles of one job of a stage, with as many others under way as the segment has."""
    phases: dict[str, tuple[Counter[str], float]] = {}
    for part in stage.parts:
        counted = reading.count(part, part.most(work))
        if counted is None:
            continue
        times, done = part.times(work), part.done(work)
        asked, alone = phases.setdefault(part.phase, (Counter(), 0.0))
        for name, amount in counted.mixed(done).items():
            asked[name] += amount * times.all  # type: ignore[assignment]
        phases[part.phase] = asked, alone + counted.time(done) * times.longest
    busy = min(work.segment.jobs, machine.MULTIPROCESSORS)
    costs = {}
    for number, (phase, (asked, alone)) in enumerate(phases.items()):
        needs = {name: amount / machine.RATES[name] for name, amount in asked.items()}
        if number == 0:
            loaded = stage.loaded(work)
            needs["L2"] = loaded / min(machine.L2_DRAWN, machine.L2 / max(busy, 1))
            needs["shared"] = needs.get("shared", 0) + (loaded / machine.SHARED if stage.copied else 0)
            needs["tensor"] = stage.multiplied(work) / machine.TENSOR
        needs["latency"] = alone
        limit = max(needs, key=lambda name: needs[name])
        costs[phase] = Cost(needs[limit], limit)
    serial = [cost for phase, cost in costs.items() if phase not in stage.beside]
    total = Cost(sum(cost.cycles for cost in serial), max(serial, key=lambda cost: cost.cycles).limit)
    others = [costs[phase] for phase in stage.beside if phase in costs]
    return max([total, *others], key=lambda cost: cost.cycles)


@dataclass
class StageTime:
    """A stage of a shape: milliseconds, and what limits most of them."""

    stage: str
    milliseconds: float
    limit: str
    jobs: int


def stage_times(reading: Reading, stages: Iterable[Stage], works: list[Work]) -> Iterator[StageTime]:
    """Every stage of a launch, in order."""
    for stage in stages:
        total, jobs = 0.0, 0
        limits: Counter[str] = Counter()
        there = [work for work in works if work.segment.jobs]
        for own, group in groupby(there, key=lambda work: work.segment.job in stage.jobs):
            if not own:
                continue
            together = list(group)  # nothing in between: they run side by side
            number = sum(work.segment.jobs for work in together)
            cost = max((job_cost(reading, stage, work) for work in together), key=lambda cost: cost.cycles)
            handover = 0 if stage.same_jobs else machine.HANDOVER
            seconds = (math.ceil(number / machine.MULTIPROCESSORS) * cost.cycles + handover) / machine.CLOCK
            memory = sum(map(stage.memory, together)) / machine.HBM
            limits["HBM" if memory > seconds else cost.limit] += max(seconds, memory)  # type: ignore[assignment]
            total += max(seconds, memory)
            jobs += number
        if jobs:
            yield StageTime(stage.name, 1e3 * total, limits.most_common(1)[0][0], 0 if stage.same_jobs else jobs)
