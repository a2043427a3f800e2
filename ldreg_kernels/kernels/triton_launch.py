"""From a Problem to launches: sizes of the workspace, arguments, and the fused or the staged run.

Fused is the normal way: one cooperative launch, no host synchronisation, capturable in a CUDA graph. Staged runs the
same stages in the same order, each a launch of its own (LDREG_TRITON_STAGED=1, and always in the interpreter); it reads
the number of failed rows back, which fused does not. Kernels run on the current stream of the features' device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from . import contract, tuning
from .triton_direct import ldreg_direct
from .triton_fused import ldreg_fused_direct, ldreg_fused_tiles
from .triton_interpreter import interpreting
from .triton_knn import ldreg_neighbours
from .triton_language import FAILED, MAP, NONE, OFFSET, STATE_WORDS, TERMS, Problem, Space
from .triton_lid import Output, ldreg_estimates, ldreg_loss
from .triton_operands import Operands, ldreg_centre, ldreg_pack, ldreg_scan
from .triton_tiles import Lists, ldreg_open, ldreg_threshold, ldreg_tiles

INTERPRETING = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Request:
    """What the call asks for, in the numbers kernels know."""

    k: int  # of the estimator; for knn the neighbours returned
    wanted: int  # neighbours to find: the largest k, one more if the smallest is dropped
    modes: dict[str, Any]  # fields of Setup


@dataclass(frozen=True)
class Plan:
    """Arguments of the stages, and the sizes their loops need."""

    setup: tuning.Setup
    programs: int
    p: Problem
    s: Space
    a: Operands | None
    c: Lists | None
    o: Output
    k: int
    panel: int  # queries at a time
    first_step: int = 0  # references of the first step
    chunk: int = 0  # references packed at a time
    fallback: int = 0  # queries whose distances to every reference fit the slab


def plan(
    problem: contract.Problem, request: Request, out: Output, blocks: tuning.Blocks, programs: int, fused: bool
) -> Plan:
    """Workspace from torch's allocator and everything the stages are called with."""
    x = contract.unit_columns(problem.x.detach())
    y = x if problem.symmetric else contract.unit_columns(problem.y.detach())
    own = problem.self_index
    shape = shape_of(problem, request.wanted)
    B, N, D = shape.B, shape.N, shape.D
    size = tuning.sizes(shape, blocks)
    C = tuning.setup_for(
        shape,
        blocks,
        fused=fused,
        same=problem.symmetric,
        self_kind=(NONE if own is None else OFFSET if isinstance(own, int) else MAP).value,
        exact=problem.precision == "exact",
        drop=int(problem.drop_smallest),
        **request.modes,
    )
    word, real = (torch.int64, torch.float64) if C.wide else (torch.int32, torch.float32)
    tiles = blocks.path == "tiles"

    def new(*lengths: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(lengths, dtype=dtype, device=x.device)

    scratch = (programs, blocks.rows, C.cap)
    return Plan(
        setup=C,
        programs=programs,
        p=Problem(
            x=x,
            x_stride=x.stride(0),
            B=B,
            y=y,
            y_stride=y.stride(0),
            N=N,
            D=D,
            own=own.contiguous() if isinstance(own, Tensor) else x,
            offset=own if isinstance(own, int) else 0,
            wanted=request.wanted,
        ),
        s=Space(
            state=_state(x.device, fused),
            slab=new(size.slab, dtype=word),
            failed=new(B, dtype=torch.int32),
            bits=new(*scratch, dtype=word),
            tag=new(*scratch, dtype=torch.int32),
            sorted_bits=new(*scratch, dtype=word),
            sorted_tag=new(*scratch, dtype=torch.int32),
            terms=new(programs, blocks.rows, TERMS.value, dtype=real),
        ),
        a=_operands(new, C, shape, size) if tiles else None,
        c=_lists(new, C, shape, size) if tiles else None,
        o=out,
        k=request.k,
        panel=size.panel,
        first_step=size.first_step,
        chunk=size.chunk,
        fallback=max(1, size.slab // N),
    )


def shape_of(problem: contract.Problem, wanted: int) -> tuning.Shape:
    """What the choice of blocks depends on."""
    x = problem.x
    major, minor = (0, 0) if INTERPRETING else torch.cuda.get_device_capability(x.device)
    dtype = str(x.dtype).removeprefix("torch.")
    return tuning.Shape(x.shape[0], problem.y.shape[0], x.shape[1], wanted, dtype, 10 * major + minor)


def _operands(new: Callable[..., Tensor], C: tuning.Setup, shape: tuning.Shape, size: tuning.Sizes) -> Operands:
    blocks = -(-shape.D // C.centre_d)
    y = new(size.chunk, size.columns, dtype=torch.float16)
    y_norm, y_residual = new(shape.N), new(shape.N)
    return Operands(
        centre=new(shape.D),
        extent=new(blocks),
        shifted=new(blocks),
        x=y if C.shared else new(size.panel, size.columns, dtype=torch.float16),
        x_norm=y_norm if C.shared else new(shape.B),
        x_residual=y_residual if C.shared else new(shape.B),
        y=y,
        y_norm=y_norm,
        y_residual=y_residual,
        columns=size.columns,
    )


def _lists(new: Callable[..., Tensor], C: tuning.Setup, shape: tuning.Shape, size: tuning.Sizes) -> Lists:
    stride = tuning.spreading_stride(shape.N) if C.append else 1
    return Lists(
        key=new(size.panel, C.cap, dtype=torch.int32),
        position=new(size.panel, C.cap, dtype=torch.int32),
        count=new(size.panel, dtype=torch.int32),
        reach=new(size.panel),
        limit=new(size.panel),
        # Tensor cores truncate each of the D / 8 to D / 16 partial sums of a product: by 1.25 D 2^-23 of |x| |y| at
        # most, all together. The rest is for the norms and the arithmetic on keys.
        gamma=(1.5 * shape.D + 64) * 2.0**-23,
        own=new(size.panel, dtype=torch.int32),
        stride=stride,
        back=pow(stride, -1, shape.N),
    )


# ------------------------------------------------------------------------------------------------- running

_states: dict[tuple[int, int], Tensor] = {}


def _state(device: torch.device, fused: bool) -> Tensor:
    """Zeros that a launch leaves zero: kept for each stream, so that no launch has to clear them first."""
    if not fused or torch.cuda.is_current_stream_capturing():  # a graph may run beside whatever else its stream does
        return torch.zeros(STATE_WORDS, dtype=torch.int64, device=device)
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    if key not in _states:
        _states[key] = torch.zeros(STATE_WORDS, dtype=torch.int64, device=device)
    return _states[key]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Around planning and running: the features' device is the current one, whichever was before."""
    return torch.cuda.device(device) if device.type == "cuda" else interpreting()


def run(plan: Plan) -> None:
    """Launch, on the current stream."""
    if plan.setup.fused:
        _fused(plan)
    else:
        _staged(plan)


def seconds(plan: Plan) -> float:
    """Median time of a run; infinity where the device has no room for its blocks."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    try:
        run(plan)
        for _ in range(5):
            start.record()
            run(plan)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
    except (OutOfResources, PTXASError, CompilationError, torch.OutOfMemoryError):
        return float("inf")
    return statistics.median(times)


def _fused(q: Plan) -> None:
    options = {
        "num_warps": q.setup.num_warps,
        "num_stages": 1,  # loops say for themselves if they are to be pipelined
        "enable_fp_fusion": False,
        "launch_cooperative_grid": q.programs > 1,
    }
    if q.a is None:
        ldreg_fused_direct[(q.programs,)](q.p, q.s, q.o, q.k, q.panel, q.setup, **options)
    else:
        ldreg_fused_tiles[(q.programs,)](
            q.p, q.s, q.a, q.c, q.o, q.k, q.panel, q.first_step, q.chunk, q.fallback, q.setup, **options
        )


def _staged(q: Plan) -> None:
    """triton_fused.py once more, with a launch for every stage."""
    C = q.setup

    def launch(stage: Any, *arguments: Any) -> None:
        stage[(q.programs,)](*arguments, C, num_warps=C.num_warps, num_stages=1, enable_fp_fusion=False)

    def rows(first: int, last: int, listed: bool, slab: bool) -> None:
        if C.knn:
            launch(ldreg_neighbours, q.p, q.s, q.a, q.c, q.o, first, last, listed, slab)
        else:
            launch(ldreg_estimates, q.p, q.s, q.a, q.c, q.o, q.k, first, last, listed, slab)

    if q.a is None:
        launch(ldreg_scan, q.p, q.s)
        for first in range(0, q.p.B, q.panel):
            last = min(first + q.panel, q.p.B)
            launch(ldreg_direct, q.p, q.s, first, last, False)
            rows(first, last, False, True)
    else:
        _staged_tiles(q, launch, rows)
    if C.loss:
        launch(ldreg_loss, q.p, q.o)


def _staged_tiles(q: Plan, launch: Callable[..., None], rows: Callable[[int, int, bool, bool], None]) -> None:
    p, s, a, c, C = q.p, q.s, q.a, q.c, q.setup
    launch(ldreg_centre, p, a)
    if C.once:
        launch(ldreg_pack, p, s, a, c, 0, p.N, 0, False)
    for top in range(0, p.B, q.panel):
        bottom = min(top + q.panel, p.B)
        if not C.shared:
            launch(ldreg_pack, p, s, a, c, top, bottom, top, True)
        if C.append:
            launch(ldreg_open, p, c, top, bottom)
        first, last = 0, min(q.first_step, p.N)
        while first < p.N:
            base = 0 if C.once else first
            if not C.once:
                launch(ldreg_pack, p, s, a, c, first, last, base, False)
            launch(ldreg_tiles, p, s, a, c, top, bottom, first, last, base)
            launch(ldreg_threshold, p, s, a, c, top, bottom, last)
            first, last = last, min(last + min(last, q.chunk), p.N)
        rows(top, bottom, False, False)
    failed = int(s.state[FAILED.value].item())
    for first in range(0, failed, q.fallback):
        last = min(first + q.fallback, failed)
        launch(ldreg_direct, p, s, first, last, True)
        rows(first, last, True, True)
