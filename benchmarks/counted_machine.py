"""What an H200's multiprocessors can do in a cycle, and what the instructions on a path ask of them.

Rates, a multiprocessor and cycle, unless they say otherwise. Sources:
[T] CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions", column 9.0: 128 float32, 64 float64, 64
    results of 32-bit integer arithmetic, logic, comparison and multiplication, 16 of special functions and of
    conversions from and to 64 bits, 32 of shuffles.
[D] docs.nvidia.com, Hopper tuning guide and H100 white paper: 132 multiprocessors, four schedulers of one instruction a
    cycle, 1.755 GHz, 2048 float16 multiply-adds of the tensor cores, 128 bytes of shared memory.
[R] NOTES.md, "GPU": 5.5 TB/s of L2 and 4.3 TB/s of HBM for the chip; one multiprocessor draws 64 bytes from L2 at most.
[M] arXiv 2402.13499, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture": latencies of shared memory (29),
    L2 (about 260, unloaded) and memory (about 480).
Latencies of arithmetic (4, 8 for float64, 20 and more for special functions), of barriers and of atomics (L2 and back)
are assumed. None of it was measured by us.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from benchmarks.counted_lanes import REGISTER, operands, results, width
from benchmarks.counted_sass import Instruction

MULTIPROCESSORS = 132
CLOCK = 1.755e9  # [D]
TENSOR = 2048  # float16 multiply-adds [D]
L2 = 5.5e12 / CLOCK  # bytes a cycle, of the chip [R]
L2_DRAWN = 64  # bytes, at most, by one multiprocessor [R]
HBM = 4.3e12  # bytes a second, of the chip [R]
SHARED = 128  # bytes of a wavefront [D]
MAJOR, SHARED_BYTES = 9, 227 << 10  # what a plan asks of a device
HANDOVER = (
    3 * 260 + 175
)  # cycles from the last job of a kind to the first that waits for it: atomic, look, 100 ns asleep, load

# Warp instructions a cycle and multiprocessor.
RATES = {"issue": 4, "alu": 2, "imad": 2, "fp64": 2, "special": 0.5, "shuffle": 1, "shared": 1}  # [T], [D]
PIPES = (
    ("fp64", re.compile(r"D(ADD|MUL|FMA|SETP)\b")),
    ("special", re.compile(r"MUFU|F2F|F2I|I2F|POPC|FLO|REDUX")),
    ("shuffle", re.compile(r"SHFL")),
    ("imad", re.compile(r"IMAD")),
    (
        "alu",
        re.compile(
            r"IADD|VIADD|ISETP|FSETP|LOP3|PLOP3|SHF|LEA|SEL|FSEL|PRMT|[IFV]I?MNMX|MOV|IABS|SGXT|BMSK|CS2R|VOTE|F2FP"
        ),
    ),
)
MEMORY = re.compile(r"(LDS|STS|LD|ST|LDG|STG|ATOM|ATOMS|ATOMG|RED|LDSM|LDGSTS)\b")
SHARED_ACCESS = re.compile(r"(LDS|STS|ATOMS|LDSM)\b")

# Cycles from issue to result.
LATENCIES = (
    (re.compile(r"LDG|LD\b|ATOM\b|ATOMG"), 260),  # from L2 [M]
    (re.compile(r"LDS|ATOMS|LDSM"), 29),  # [M]
    (re.compile(r"SHFL|VOTE|REDUX"), 24),
    (re.compile(r"MUFU|F2F|F2I|I2F|POPC"), 20),
    (re.compile(r"S2R|S2UR|R2UR|LDC|ULDC"), 20),
    (re.compile(r"D(ADD|MUL|FMA|SETP)"), 8),
    (re.compile(r"."), 4),
)
WAITS = re.compile(r"BAR|WARPSYNC|DEPBAR|MEMBAR")  # a warp waits here for others: for as long as a barrier takes
BARRIER = 30
L1 = 41  # a load that hits [M]


def latency(instruction: Instruction) -> int:
    return next(cycles for pattern, cycles in LATENCIES if pattern.match(instruction.opcode))


def demand(path: Iterable[Instruction], shared: Callable[[Instruction], float]) -> Counter[str]:
    """Of each resource, in warp instructions or wavefronts. `shared`: the wavefronts of an access to shared memory."""
    asked: Counter[str] = Counter()
    for instruction in path:
        asked["issue"] += 1
        for pipe, pattern in PIPES:
            if pattern.match(instruction.opcode):
                asked[pipe] += 1
                break
        if SHARED_ACCESS.match(instruction.opcode):
            asked["shared"] += shared(instruction)  # type: ignore[assignment]
        elif MEMORY.match(instruction.opcode):  # 32 neighbours; through the same memory
            asked["shared"] += max(1, width(instruction) * 32 // SHARED)
    return asked


def alone(path: list[Instruction], near: str = "") -> float:
    """Cycles of a trip for a warp that has the multiprocessor to itself and issues in order, each when it can.

    Of two trips on end the second counts, so that loads for later overlap as they would. `near`: loads that hit L1.
    """
    hits = re.compile(near) if near else None
    ready: defaultdict[str, float] = defaultdict(float)
    clock, ends = 0.0, []
    for _ in range(2):
        for instruction in path:
            written = results(instruction)
            read = REGISTER.findall(",".join(operands(instruction)))
            if width(instruction) > 4:
                read += [
                    f"R{int(r[1:]) + i}" for r in read if r[1:].isdigit() for i in range(1, width(instruction) // 4)
                ]
            predicates = re.findall(r"U?P\d", instruction.operands + instruction.predicate)
            clock = max([clock + 1, *(ready[name] for name in (*read, *predicates))])
            if WAITS.match(instruction.opcode):
                clock = max([clock + BARRIER, *ready.values()])
            for name in written or predicates[:1]:
                ready[name] = clock + (L1 if hits and hits.match(instruction.text) else latency(instruction))
        ends.append(clock)
    return ends[1] - ends[0]
