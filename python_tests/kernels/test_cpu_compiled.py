"""The CPU kernels' inner loops as compiled: sums in registers, vectors as wide as the instruction set. Nothing is run.

GCC once passed every vector of the avx2 kernels through the stack, which made them five times slower and nothing else:
only the compiled code tells. Read are the objects of the build, of the cross-compiler for ARM, and of clang.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import disassembly
import native
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # ARM and clang: a minute of compiling after a change to csrc/cpu

# What multiplies into a sum and what adds to it (the same where they are fused), and the sum's registers.
FUSED = r"vfn?madd\d+p[sd]|vdpbf16ps"
ARM_FUSED = r"(fmla|bfdot)\s+v"
SETS = {
    "portable": (r"mulp[sd]\b", r"addp[sd]\b", r"%xmm\d+"),
    "avx2": (FUSED, FUSED, r"%ymm\d+"),
    "avx512": (FUSED, FUSED, r"%zmm\d+"),
    "avx512bf16": (FUSED, FUSED, r"%zmm\d+"),
    "arm portable": (r"fmul\s+v", r"fadd\s+v", r"v\d+\.(4s|2d)"),
    "arm neon": (ARM_FUSED, ARM_FUSED, r"v\d+\.(4s|2d)"),
    "arm neonbf16": (ARM_FUSED, ARM_FUSED, r"v\d+\.(4s|2d)"),
}
INTEGERS = (r"v?pmaddwd", r"v?paddd")
SUMS = {  # of a step of (multiply_tile, add_differences): rows times vectors
    "portable": (8, 8),
    "avx2": (12, 8),
    "avx512": (24, 24),
    "avx512bf16": (24, 24),
    "arm portable": (12, 16),
    "arm neon": (16, 16),
    "arm neonbf16": (16, 16),
}
LOOPS = ("multiply_tile", "add_squares", "add_weighted", "add_differences")  # each marked LDREG_HOT
OFFERS = ("offer_to_lanes", "offer_to_rows")
BUILT = native.ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "_cpu"


def object_of(name: str) -> tuple[Path, str]:
    """The object and the objdump that reads it."""
    processor, _, isa = name.rpartition(" ")
    if processor == "arm":
        objdump = "aarch64-linux-gnu-objdump"
        if reason := native.missing(native.CROSS, objdump):
            pytest.skip(reason)
        return native.isa_object(isa, [native.CROSS], x86=False), objdump
    if reason := native.missing("objdump"):
        pytest.skip(reason)
    if processor == "clang":
        clang = next((path for path in ("clang++", "clang++-14") if shutil.which(path)), None)
        if clang is None or not native.toolchain().IS_X86:
            pytest.skip("no clang++ for x86")
        return native.isa_object(isa, [clang], x86=True), "objdump"
    path = BUILT / f"isa_{isa}.cpp.o"
    if not path.exists() or not native.toolchain().IS_X86:
        pytest.skip(f"no x86 build in the checkout: {path} does not exist")
    return path, "objdump"


def multiplications(function: str, kind: str) -> int:
    """How many vectors a step of the function's loop multiplies into its sums."""
    tile, differences = SUMS[kind]
    return {"multiply_tile": tile, "add_differences": differences, "add_squares": 4, "add_weighted": 6}[
        stem_of(function)
    ]


def stem_of(function: str) -> str:
    return next(stem for stem in LOOPS + OFFERS if re.search(rf"\b{stem}\b", function))


def faults_of(path: Path, objdump: str, kind: str) -> Iterator[str]:
    found: dict[str, int] = {}
    for loop in disassembly.loops(path, rf"({'|'.join(LOOPS)})<", objdump):
        where, stem = re.sub(r"\(.*", "", loop.function), stem_of(loop.function)
        found.setdefault(where, 0)
        multiplies, adds, registers = SETS[kind]
        if "IntegerOperand" in where:
            multiplies, adds = INTEGERS
        wanted = multiplications(where, kind)
        if loop.count(multiplies) < wanted:
            continue  # around the steps: the sums of a block of them become double, or the last features are fewer
        found[where] += 1
        if stem == "multiply_tile" and loop.count(multiplies) % wanted:
            yield f"{where}: {loop.count(multiplies)} multiply-adds in the loop, {wanted} to a step"
        traffic = loop.stack_traffic()
        if (stem, kind) == ("add_weighted", "portable") and "::f16>" in where:
            # SSE2 converts halves by arithmetic, whose constants leave no registers for all six factors: they are read.
            traffic = [line for line in traffic if not re.match(r"mulps\s.*\(%rsp\),", line)]
        if traffic:
            yield f"{where}: on the stack: {traffic}"
        # The gradient goes on from one group of neighbours to the next in memory.
        if len(loop.stores()) > (stem == "add_weighted") * (loop.count(multiplies) // wanted):
            yield f"{where}: stores: {loop.stores()}"
        for line in loop.matching(adds):
            operands = re.findall(r"%[xyz]mm\d+|v\d+\.\w+", line)
            if not re.fullmatch(registers, operands[0 if kind.startswith("arm ") else -1]):  # the sum itself
                yield f"{where}: not the whole vector: {line}"
    for stem in LOOPS:
        if not any(f"{stem}<" in name for name in found):
            yield f"{stem} is no function of its own"
    yield from (f"{name}: no loop adds to all its sums" for name, count in found.items() if count == 0)


def spills_of(path: Path, objdump: str) -> Iterator[str]:
    """Vectors that the filter of candidates stores in its frame.

    General registers may wait there, as those that only a hit needs do, and a scalar across the call that makes room.
    """
    found = set()
    for loop in disassembly.loops(path, rf"({'|'.join(OFFERS)})\(", objdump, innermost=False):
        found.add(stem_of(loop.function))
        spills = [
            line for line in loop.stores() if line in loop.stack_traffic() and not re.match(r"v?movs[sd]\b", line)
        ]
        if spills:
            yield f"{stem_of(loop.function)}: {spills}"
    yield from (f"{stem} is no function of its own" for stem in OFFERS if stem not in found)


@pytest.mark.parametrize("name", [*SETS, "clang avx2"])
def test_sums_stay_in_registers(name: str) -> None:
    path, objdump = object_of(name)
    assert list(faults_of(path, objdump, name.removeprefix("clang "))) == []
    assert list(spills_of(path, objdump)) == []
