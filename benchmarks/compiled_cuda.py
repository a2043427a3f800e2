"""What the CUDA C++ kernels were compiled to: every kernel of the built module, disassembled. Nothing is compiled.

    python -m benchmarks.compiled_cuda [--write [CSV]] [--module FILE]

Needs no GPU. The tools come with Triton (cuobjdump, nvdisasm), or are on the PATH. Requirements:

    nothing lives on the stack, so nothing is spilled; a block's registers fit a multiprocessor; tiles are multiplied by
    tensor cores, from operands that asynchronous copies bring to shared memory: in the stage for Hopper by wgmma and
    tensor copies, with several wgmma under way at once; that stage has a body for Hopper alone

Shared memory is not seen here, because a launch asks for it: static_asserts in tile_stage.h and tile_stage_hopper.h
hold it to what a GPU has. Exit code 1 if a requirement fails. Nothing is timed, and nothing is run.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "cuda_kernels.csv"
REGISTERS = 65536  # of a multiprocessor
THREADS = {"TileStage": 256, "HopperTileStage": 640, "NoTiles": 256}  # of a block; kThreads of these stages
DTYPES = {"f": "float32", "d": "float64", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}  # as names are mangled
HOPPER = "sm_90a"
EMPTY = 64  # instructions: a kernel without a body is padding around one EXIT

NAME = re.compile(rf"ldreg_kernelI({'|'.join(DTYPES)})NS0_\d+({'|'.join(THREADS)})[IE]")
SECTION = re.compile(r"^//-+ \.text\.(\S+) -+$", re.M)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]\s+)?([A-Z]\w*)(.*)$", re.M)


class ToolError(RuntimeError):
    """A tool or the module is not there, and why."""


@dataclass(frozen=True)
class Row:
    """One compiled kernel: a line of the file. Instructions are counted as they stand in the code."""

    kernel: str  # by its stage for tiles; NoTiles computes every pair
    dtype: str
    architecture: str
    threads: int  # of a block
    registers: int  # of a thread
    stack_bytes: int  # of a thread
    local_loads: int  # LDL
    local_stores: int  # STL
    hmma: int  # tensor cores, by registers
    hgmma: int  # tensor cores, by shared memory: wgmma
    hgmma_waited: int  # those that close a group; all of them, where ptxas cannot keep wgmma asynchronous
    ldsm: int  # ldmatrix
    ldgsts: int  # cp.async
    utmaldg: int  # tensor copies
    instructions: int
    cuda: str  # the compiler's version

    def faults(self) -> Iterator[str]:
        """The requirements that are not met."""
        if self.stack_bytes or self.local_loads or self.local_stores:
            yield f"{self.stack_bytes} bytes of stack, {self.local_loads} loads and {self.local_stores} stores"
        if self.registers > (most := min(255, REGISTERS // self.threads // 8 * 8)):
            yield f"{self.registers} registers, {most} are there for each of {self.threads} threads"
        if self.kernel == "HopperTileStage" and self.architecture == HOPPER:
            if not self.hgmma or not self.utmaldg:
                yield "no wgmma, or no tensor copies"
            if self.hgmma and self.hgmma_waited >= self.hgmma:
                yield "every wgmma waits for the one before"
        elif self.kernel == "HopperTileStage":
            yield f"is there, {self.instructions} instructions: only {HOPPER} runs it"
        if self.kernel == "TileStage" and not (self.hmma and self.ldsm and self.ldgsts):
            yield "no mma.sync, no ldmatrix or no cp.async"


COLUMNS = tuple(field.name for field in fields(Row))


# ------------------------------------------------------------------------------------------------- reading


def tool(name: str) -> str:
    """One of CUDA's binary utilities."""
    found = importlib.util.find_spec("triton")
    folders = [str(Path(found.origin).parent / "backends" / "nvidia" / "bin")] if found and found.origin else []
    for path in [*folders, None]:
        if command := shutil.which(name, path=path):
            return command
    raise ToolError(f"{name} is neither with Triton, which is {'there' if found else 'not installed'}, nor on the PATH")


def run(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """What a tool says."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def built_module() -> Path:
    """The module that a call would load."""
    found = importlib.util.find_spec("ldreg_kernels._cuda")
    if found is None or found.origin is None:
        raise ToolError("ldreg_kernels._cuda was not built: nvcc was not found, or LDREG_BUILD_CUDA was 0")
    return Path(found.origin)


def rows_of(module: Path, jobs: int = 2) -> list[Row]:
    """Every kernel of a module, for every architecture; kernels without a body are left out."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        run("cuobjdump", "-xelf", "all", module.resolve(), folder=Path(folder))
        cubins = sorted(Path(folder).glob("*.cubin"))
        rows = [row for found in pool.map(rows_of_cubin, cubins) for row in found]
    return sorted(rows, key=lambda row: (row.kernel, row.dtype, int(re.sub(r"\D", "", row.architecture))))


def rows_of_cubin(cubin: Path) -> list[Row]:
    """The kernels of one source for one architecture."""
    usage = run("cuobjdump", "-res-usage", cubin)
    if not NAME.search(usage):
        return []
    version = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", cubin.read_bytes())
    sections = SECTION.split(run("nvdisasm", "-c", cubin))  # what is before, then name and text by turns
    rows = []
    for symbol, text in zip(sections[1::2], sections[2::2], strict=True):
        if not (named := NAME.search(symbol)):
            continue
        found = INSTRUCTION.findall(text)
        count = Counter(name for name, _ in found)
        if len(found) <= EMPTY:
            continue
        dtype, kernel = named.groups()
        row = Row(
            kernel=kernel,
            dtype=DTYPES[dtype],
            architecture=cubin.suffixes[-2].removeprefix("."),
            threads=THREADS[kernel],
            registers=figure("REG", symbol, usage),
            stack_bytes=figure("STACK", symbol, usage),
            local_loads=count["LDL"],
            local_stores=count["STL"],
            hmma=count["HMMA"],
            hgmma=count["HGMMA"],
            hgmma_waited=sum(name == "HGMMA" and "gsb" in operands for name, operands in found),
            ldsm=count["LDSM"],
            ldgsts=count["LDGSTS"],
            utmaldg=count["UTMALDG"],
            instructions=len(found),
            cuda=version[1].decode() if version else "unknown",
        )
        rows.append(row)
    return rows


def figure(name: str, symbol: str, usage: str) -> int:
    """A number out of "Function ...:", and below it "REG:255 STACK:0 ..."."""
    (value,) = re.findall(rf"Function {re.escape(symbol)}:\s.*\b{name}:(\d+)", usage)
    return int(value)


def absent(rows: list[Row]) -> Iterator[str]:
    """Kernels that an architecture among `rows` should have."""
    there = {(row.kernel, row.dtype, row.architecture) for row in rows}
    for architecture in sorted({row.architecture for row in rows}):
        wanted = [("NoTiles", "float64")]
        stages = ["NoTiles", "TileStage", *(["HopperTileStage"] if architecture == HOPPER else [])]
        wanted += [(stage, dtype) for stage in stages for dtype in ("float32", "float16", "bfloat16")]
        yield from (f"{' '.join(name)} {architecture}" for name in wanted if (*name, architecture) not in there)


# ------------------------------------------------------------------------------------------------- command line


def write(path: Path, rows: list[Row]) -> None:
    """The whole file anew: it describes this version, and has no history."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)


def main() -> int:
    """Read, print, and write if asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled_cuda", description=__doc__.partition("\n")[0])
    parser.add_argument("--module", type=Path, help="another one than a call would load")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, metavar="CSV", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    try:
        rows = rows_of(options.module or built_module())
    except ToolError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [f"{name} is not there" for name in absent(rows)]
    for row in rows:
        print(" | ".join(map(str, astuple(row))))
        wrong += [f"{row.kernel} {row.dtype} {row.architecture}: {fault}" for fault in row.faults()]
    if options.write:
        write(options.write, rows)
    for fault in wrong:
        print(f"wrong: {fault}")
    print(f"{len(rows)} kernels, {len(wrong)} requirements not met")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
