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

# What adds to a sum (an addition, where products are separate), its registers, and the sums of a distance tile.
FUSED = r"vfn?madd\d+p[sd]|vdpbf16ps"
SETS = {
    "portable": (r"addp[sd]\b", r"%xmm\d+", 8),
    "avx2": (FUSED, r"%ymm\d+", 12),
    "avx512": (FUSED, r"%zmm\d+", 24),
    "avx512bf16": (FUSED, r"%zmm\d+", 24),
    "arm portable": (r"fadd\s+v", r"v\d+\.(4s|2d)", 12),
    "arm neon": (r"(fmla|bfdot)\s+v", r"v\d+\.(4s|2d)", 16),
    "arm neonbf16": (r"(fmla|bfdot)\s+v", r"v\d+\.(4s|2d)", 16),
}
HOT = r"(multiply_tile|add_squares|gather_columns)<"
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


def sums_of(function: str, tile: int) -> int:
    """How many vectors of sums the function's name says its loop adds to."""
    if "multiply_tile<" in function:
        return tile
    count = int(re.search(r"(?:add_squares|gather_columns)<(\d+)", function).group(1))
    return 4 * count if "add_squares<" in function else count


def faults_of(path: Path, objdump: str, kind: str) -> Iterator[str]:
    adds, registers, tile = SETS[kind]
    found: dict[str, int] = {}
    for loop in disassembly.loops(path, HOT, objdump):
        where = re.sub(r"\(.*", "", loop.function)
        found.setdefault(where, 0)
        if loop.count(adds) < sums_of(loop.function, tile):
            continue
        found[where] += 1
        if "multiply_tile<" in where and loop.count(adds) % tile:
            yield f"{where}: {loop.count(adds)} multiply-adds in the loop, {tile} to a step"
        if traffic := loop.stack_traffic():
            yield f"{where}: on the stack: {traffic}"
        if stores := loop.stores():
            yield f"{where}: stores: {stores}"
        for line in loop.matching(adds):
            operands = re.findall(r"%[xyz]mm\d+|v\d+\.\w+", line)
            if not re.fullmatch(registers, operands[0 if kind.startswith("arm ") else -1]):  # the sum itself
                yield f"{where}: not the whole vector: {line}"
    for stem in ("multiply_tile", "add_squares", "gather_columns"):
        if not any(f"{stem}<" in name for name in found):
            yield f"{stem} is no function of its own"
    yield from (f"{name}: no loop adds to all its sums" for name, count in found.items() if count == 0)


@pytest.mark.parametrize("name", [*SETS, "clang avx2"])
def test_sums_stay_in_registers(name: str) -> None:
    path, objdump = object_of(name)
    assert list(faults_of(path, objdump, name.removeprefix("clang "))) == []
