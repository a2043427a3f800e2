"""What the Triton kernels compile to: every shipped configuration, compiled ahead of time. Needs Triton, but no GPU.

    python -m benchmarks.compiled [--write [CSV]] [--capability 90] [--jobs 2]

For GPUs of compute capability 8.0, 9.0 and 10.0, the public backend is called on tensors without memory; the launch it
ends in is recorded and handed to Triton's compiler as Triton itself would at the first call: types, divisibility by 16,
sizes of 1 as constants. So the table of tuning.py, its sizes and the options of triton_launch.py are what is judged,
and not a copy of them. Requirements:

    it compiles; nothing is spilled; shared memory fits the GPU; tiles are multiplied by tensor cores, by wgmma on 9.0,
    and that asynchronously

CASES are reported, in results/triton_kernels.csv with --write. ODD are only checked, and may spill: problems with sizes
and strides of 1, or divisible by nothing. Exit code 1 if a requirement fails. Nothing is timed, and nothing is run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

RESULTS = Path(__file__).resolve().parent / "results" / "triton_kernels.csv"
KIB = 1024
SHARED_LIMIT = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}  # of a block, in bytes
CAPABILITIES = tuple(SHARED_LIMIT)
ODD_CAPABILITY = 90
SERIALIZED = "serialized"  # ptxas's word, when it cannot keep wgmma asynchronous
PROGRAMS = 132  # multiprocessors: more than one, so that the launch is cooperative; the number compiles to nothing
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b(?:[.\w:]*?\.(m\d+n\d+k\d+))?")
TENSOR_CORES = {80: ("mma.sync",), 90: ("wgmma.mma_async",), 100: ("tcgen05.mma", "mma.sync")}  # one of these

Own = Literal["batch", "offset", "map", "none"]


@dataclass(frozen=True)
class Case:
    """One call: B queries, N references, D features, k neighbours."""

    B: int
    N: int
    D: int
    k: int
    dtype: str = "float32"
    own: Own = "batch"  # where a query sits among the references; "batch": the references are the queries
    mode: Literal["loss", "knn"] = "loss"  # loss: value and gradient of `mom`, `mle` with 32 neighbours tracked


CASES = (
    Case(4096, 4096, 2048, 64),
    Case(32768, 32768, 768, 64, "bfloat16"),  # references in steps, packed as they come
    Case(1024, 4096, 2048, 512, own="offset"),
    Case(4096, 4096, 8192, 64),  # a row exceeds the registers
    Case(16384, 16384, 128, 20, "float16"),
    Case(4096, 65536, 512, 64, own="none", mode="knn"),
    Case(512, 512, 512, 64),  # every pair
    Case(512, 512, 512, 64, "float64"),
)
ODD = (
    Case(1, 1 << 20, 256, 1, own="none", mode="knn"),  # B, k
    Case(16384, 16384, 1, 20),  # D and both strides
    Case(4097, 4099, 2047, 63, own="map"),  # nothing is 1, and nothing divisible by 16
    Case(1, 1, 1, 1, own="none", mode="knn"),  # everything, by every pair
    Case(1, 65, 33, 33, "float64", own="offset"),
)


@dataclass(frozen=True)
class Row:
    """One compiled kernel: a line of the file."""

    kernel: str
    path: str
    mode: str
    dtype: str
    B: int
    N: int
    D: int
    k: int
    capability: int
    blocks: str
    registers: int  # of a thread
    spilled_bytes: int  # of a thread's stack
    spill_instructions: int  # loads from and stores to it
    shared_bytes: int  # of a block
    shared_limit: int
    matrix: str  # instructions of tensor cores, with the shape where PTX gives it; "none"; ", serialized"
    triton: str

    def faults(self, may_spill: bool) -> Iterator[str]:
        """The requirements that are not met."""
        if not may_spill and (self.spilled_bytes or self.spill_instructions):
            yield f"spills {self.spilled_bytes} bytes, {self.spill_instructions} instructions"
        if self.shared_bytes > self.shared_limit:
            yield f"needs {self.shared_bytes} bytes of shared memory, {self.shared_limit} are there"
        wanted = TENSOR_CORES[self.capability]
        if self.path == "tiles" and not any(name in self.matrix for name in wanted):
            yield f"no {' or '.join(wanted)}"
        if SERIALIZED in self.matrix:
            yield "every wgmma waits for the one before"


COLUMNS = tuple(field.name for field in fields(Row))


# ------------------------------------------------------------------------------------------------- what is launched


@dataclass
class Recorder:
    """Stands for a kernel, and keeps what it is launched with."""

    kernel: Any
    arguments: tuple[Any, ...] | None = None
    options: dict[str, Any] | None = None

    def __getitem__(self, grid: object) -> Recorder:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


def launch_of(case: Case, capability: int) -> Recorder:
    """The fused launch that the backend comes to for this call, on a GPU of this capability."""
    from ldreg_kernels.kernels import triton_backend, triton_launch

    names = ("ldreg_fused_tiles", "ldreg_fused_direct")
    recorders: dict[str, Any] = {name: Recorder(getattr(triton_launch, name)) for name in names}
    gpu: dict[str, Any] = {
        "current_device": lambda: -1,
        "get_device_capability": lambda *_: divmod(capability, 10),
        "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=PROGRAMS),
        "is_current_stream_capturing": lambda: True,  # no state is kept for the next launch
    }
    triton_backend.forget_plans()
    with (
        mock.patch.multiple("torch.cuda", **gpu),
        mock.patch.multiple(triton_launch, **recorders),
        mock.patch.dict(os.environ, LDREG_TRITON_STAGED="0"),
    ):
        if case.mode == "knn":
            triton_backend.knn(problem_of(case))
        else:
            triton_backend.ldreg(problem_of(case), "mom", "l1", None, "mean", (("mle", 32),), True)
    triton_backend.forget_plans()
    (launched,) = (r for r in recorders.values() if r.arguments is not None)
    return launched


def problem_of(case: Case) -> Any:
    """The call's tensors, on the device "meta": shapes, strides and dtypes alone."""
    import torch

    from ldreg_kernels.kernels.contract import Problem

    def features(rows: int) -> torch.Tensor:
        return torch.empty(rows, case.D, dtype=getattr(torch, case.dtype), device="meta")

    x = features(case.B)
    y = x if case.own == "batch" else features(case.N)
    row_of_y = torch.empty(case.B, dtype=torch.int64, device="meta")
    own: dict[str, Any] = {"batch": 0, "offset": 16, "map": row_of_y, "none": None}
    return Problem(x, y, case.k, own[case.own])


# ------------------------------------------------------------------------------------------------- compiling


def specialised(launch: Recorder, capability: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(backend, arguments by name, what Triton's JIT makes constants or assumes of each, options)."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    assert launch.arguments is not None
    assert launch.options is not None
    backend = make_backend(GPUTarget("cuda", capability, 32))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    return backend, *bind(*launch.arguments, **launch.options)


def kernel_of(case: Case, capability: int) -> str:
    """What tells this call's kernel from others: calls with the same are served by one."""
    launch = launch_of(case, capability)
    _, _, specialization, options = specialised(launch, capability)
    return f"{launch.kernel.fn.__name__} {specialization} {options}"


def compiled(launch: Recorder, capability: int) -> tuple[Any, str]:
    """What Triton's JIT compiles at this launch, and what ptxas said."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    backend, bound, specialization, given = specialised(launch, capability)
    options, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, given)
    source = ASTSource(kernel, signature, constants, attributes)
    triton.knobs.compilation.always_compile = True  # nothing is said about what comes from a cache
    triton.knobs.nvidia.dump_ptxas_log = True
    target = GPUTarget("cuda", capability, 32)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        return triton.compile(source, target=target, options=options.__dict__), said.getvalue()


def row_of(case: Case, capability: int) -> Row:
    """Compile one case and read off the figures."""
    import triton

    launch = launch_of(case, capability)
    assert launch.arguments is not None
    setup = launch.arguments[-1]
    binary, said = compiled(launch, capability)
    usage = cuobjdump(binary.asm["cubin"], "-res-usage")
    matrix = sorted({" ".join(filter(None, found.groups())) for found in MATRIX.finditer(binary.asm["ptx"])})
    return Row(
        kernel=launch.kernel.fn.__name__,
        path=setup.path,
        mode=case.mode,
        dtype=case.dtype,
        B=case.B,
        N=case.N,
        D=case.D,
        k=case.k,
        capability=capability,
        blocks=blocks_of(setup),
        registers=figure("REG", usage),
        spilled_bytes=figure("STACK", usage),
        spill_instructions=len(re.findall(r"\b(?:STL|LDL)\b", cuobjdump(binary.asm["cubin"], "-sass"))),
        shared_bytes=binary.metadata.shared,
        shared_limit=SHARED_LIMIT[capability],
        matrix=", ".join(matrix + [SERIALIZED] * (SERIALIZED in said)) or "none",
        triton=triton.__version__,
    )


def blocks_of(setup: Any) -> str:
    """The tile or the block of pairs, the warps, and the rows held in registers."""
    if setup.path == "tiles":
        first = f"{setup.tile_b}x{setup.tile_n}x{setup.tile_d} in {setup.stages} stages"
    else:
        first = f"{setup.direct_b}x{setup.direct_n}x{setup.direct_d}"
    return f"{first}, {setup.num_warps} warps, rows {setup.rows}x{setup.row_d}"


def figure(name: str, usage: str) -> int:
    """A number out of "REG:255 STACK:0 ..."; there is one kernel in the file."""
    (value,) = re.findall(rf"\b{name}:(\d+)", usage)
    return int(value)


def cuobjdump(cubin: bytes, what: str) -> str:
    """What the tool says that comes with Triton."""
    return _tool("cuobjdump", cubin, what)


def sass(case: Case, capability: int) -> str:
    """The machine code of this call's kernel, each instruction behind the lines of Python that it comes from."""
    return _tool("nvdisasm", compiled(launch_of(case, capability), capability)[0].asm["cubin"], "-g", "-c")


def _tool(name: str, cubin: bytes, *options: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), *options, file.name], capture_output=True, text=True, check=True).stdout


def attempt(case: Case, capability: int) -> tuple[Row | None, list[str]]:
    """The row and what is wrong with it; without a row, why it does not compile."""
    try:
        row = row_of(case, capability)
    except Exception as error:  # whatever the compiler has to say
        return None, [f"does not compile: {type(error).__name__}: {error}"]
    return row, list(row.faults(may_spill=case in ODD))


# ------------------------------------------------------------------------------------------------- command line


@contextlib.contextmanager
def cache_folder() -> Iterator[None]:
    """Triton's cache in a folder that vanishes, unless the environment names one."""
    with contextlib.ExitStack() as stack:
        if "TRITON_CACHE_DIR" not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            stack.enter_context(mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder))
        yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, help="only this one")
    parser.add_argument("--jobs", type=int, default=2, help="kernels compiled at once (default: 2)")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, metavar="CSV", help=f"default: {RESULTS.name}")
    return parser.parse_args()


def main() -> int:
    """Compile, print, and write if asked for."""
    options = arguments()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        print("TRITON_INTERPRET is set: there is nothing to compile in the interpreter", file=sys.stderr)
        return 2
    chosen = [options.capability] if options.capability else CAPABILITIES
    work = [(case, capability) for capability in chosen for case in CASES]
    work += [(case, ODD_CAPABILITY) for case in ODD if ODD_CAPABILITY in chosen]
    faults, rows = 0, []
    with cache_folder(), ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        outcomes = pool.map(attempt, *zip(*work, strict=True))
        for (case, capability), (row, wrong) in zip(work, outcomes, strict=True):
            print(" | ".join(map(str, astuple(row) if row else (case, capability))), flush=True)
            for fault in wrong:
                print(f"    wrong: {fault}", flush=True)
            faults += len(wrong)
            rows += [row] if row and case in CASES else []
    if options.write:
        write(options.write, rows)
    print(f"{len(work)} kernels, {faults} requirements not met")
    return 1 if faults else 0


def write(path: Path, rows: list[Row]) -> None:
    """The whole file anew: it describes this version, and has no history."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
