"""What a loss with gradient costs the host: everything but the kernel, in microseconds.

    python -m benchmarks.host [--out FOLDER] [--rounds 9]

For small problems this is the time that counts, and no profile of a GPU shows it. The measure is an empty
autograd.Function over a registered op, forward and backward: what torch takes for any op of its kind. On a GPU calls
are queued and nothing is waited for. Without one the launches are stubs: the CUDA extension compiled for the host
(python_tests/simulator.py) that returns instead of running its threads, and Triton's own launcher over a driver that
does nothing (stub_driver.py). Questions to torch.cuda (device, stream, capturing?) are stubs, too, and the allocator is
the CPU's; all else is as on a GPU. The CPU backend has no launch to leave out, so its row is the whole call.

Contenders take turns; a turn's figure is its fastest of many short runs, because whatever else the machine does can
only add. Rows go to FOLDER/measurements.csv (suite `host`), by default runs/bench.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import cuda_backend

from . import stub_driver
from .cases import Case
from .records import FILE_NAME, ROOT, RecordFile, Row, Run

CASE = Case(64, 64, 128, 8)
EMPTY = "empty function"
CALLS, RUNS = 5, 200  # of a turn: so many runs of so many calls
Step = Callable[[], object]


class Empty(torch.autograd.Function):
    """A registered op each way that allocates a loss, and a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        value, gradient = torch.ops.ldreg_host.forward(x)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return torch.ops.ldreg_host.backward(grad_value, gradient)


@contextlib.contextmanager
def empty_ops() -> Iterator[None]:
    """The ops of `Empty` are registered inside the block."""
    library = torch.library.Library("ldreg_host", "DEF")
    ops: dict[str, Callable[..., Any]] = {
        "forward(Tensor x) -> (Tensor, Tensor)": lambda x: (x.new_empty(()), torch.empty_like(x)),
        "backward(Tensor grad_value, Tensor gradient) -> Tensor": lambda _, gradient: torch.empty_like(gradient),
    }
    for schema, implementation in ops.items():
        name = library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, implementation, "CompositeExplicitAutograd")
    yield
    library._destroy()


@contextlib.contextmanager
def simulated_cuda() -> Iterator[None]:
    """The backend "cuda" serves CPU tensors, and its launches return at once."""
    sys.path.insert(0, str(ROOT / "python_tests"))
    import simulator

    reason = simulator.unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    before, launches = cuda_backend._cuda, os.environ.get("LDREG_SIMT_LAUNCH")
    cuda_backend.use(simulator.load())
    os.environ["LDREG_SIMT_LAUNCH"] = "0"
    try:
        yield
    finally:
        cuda_backend.use(before)
        os.environ.pop("LDREG_SIMT_LAUNCH") if launches is None else os.environ.update(LDREG_SIMT_LAUNCH=launches)


STUBS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "cuda": simulated_cuda,
    "triton": stub_driver.pretended_gpu,
}


def step_of(backend: str, device: str) -> Step:
    """A forward and a backward."""
    x, y = CASE.inputs(0, torch.device(device))
    x.requires_grad_()
    if backend == EMPTY:
        return lambda: torch.autograd.grad(Empty.apply(x), x)
    return lambda: torch.autograd.grad(ldk.ldreg_loss(x, y, k=CASE.k, backend=backend), x)


def turn(step: Step) -> float:
    """Microseconds of a call."""
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            step()
        best = min(best, (time.perf_counter() - start) / CALLS)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the queue would fill up, and then the host waits for it
    return 1e6 * best


def measure(rounds: int) -> list[Row]:
    """A row for every contender, or the reason for which it has no figure."""
    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # stubs leave outputs as they are, and products of such numbers are slow
    steps, rows = {}, []
    with contextlib.ExitStack() as stack:
        stack.enter_context(empty_ops())
        for backend in (EMPTY, "cuda", "triton", "cpu"):
            stub = None if gpu else STUBS.get(backend)
            try:
                if stub is not None:
                    stack.enter_context(stub())
                step = step_of(backend, "cuda" if gpu and backend != "cpu" else "cpu")
                step()
            except Exception as error:  # of compilers, too: the others still get their turn
                rows.append(_row(backend, statistic="state", note=f"missing: {type(error).__name__}: {error}"))
                continue
            steps[backend] = step
        times: dict[str, list[float]] = {backend: [] for backend in steps}
        for _ in range(rounds):
            for backend, step in steps.items():
                times[backend].append(turn(step))
    note = "" if gpu else "launch: a stub"
    for backend, found in times.items():
        low, _, _, high = statistics.quantiles(found, n=5)
        value = {"value": statistics.median(found), "low": low, "high": high, "repetitions": rounds * RUNS * CALLS}
        rows.append(_row(backend, "time", "us", note=note if backend in STUBS else "", **value))
    return rows


def _row(backend: str, statistic: str, unit: str = "", note: str = "", **values: Any) -> Row:
    name = backend if backend == EMPTY else f"ldreg {backend}"
    return Row("host", "ldreg_loss", name, **CASE.to_dict(), statistic=statistic, unit=unit, note=note, **values)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of measurements.csv")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contender, at least 2 (default: 9)")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    run = Run.start("cuda" if torch.cuda.is_available() else "cpu", 1)
    rows = measure(options.rounds)
    floor = next((row.value for row in rows if row.backend == EMPTY), None)
    for row in rows:
        beyond = f", {row.value - floor:+.0f} beyond an empty function" if row.value and floor else ""
        print(f"{row.backend}: {row.note if row.value is None else f'{row.value:.0f} us{beyond}'}")
    RecordFile(options.out / FILE_NAME).append(run, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
