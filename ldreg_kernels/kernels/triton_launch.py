"""From a plan and tensors to a launch: memory, arguments, and the fused or the staged run.

Fused is the normal way: one cooperative launch, no host synchronisation, capturable in a CUDA graph. The first one with
a plan goes through Triton, which compiles; from then on the compiled kernel is called with addresses, a tenth of the
work. Staged runs the same stages in the same order (triton_staged.py). Kernels run on the current stream of the
features' device.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_staged
from .triton_fused import ldreg_fused_direct, ldreg_fused_tiles
from .triton_interpreter import interpreting
from .triton_language import MAP, NONE, OFFSET, STATE_WORDS, Matrices
from .triton_lid import Output
from .triton_plan import Arguments, Plan, plan, views

__all__ = ["MAP", "NONE", "OFFSET", "plan"]  # of Triton, for triton_backend.py, which has to do without

INTERPRETING = bool(triton.knobs.runtime.interpret)


class Call(NamedTuple):
    """What differs between calls with one plan."""

    x: Tensor  # [B, D], unit column stride
    y: Tensor  # [N, D], the same
    own: Tensor  # [B] int64; any tensor, if there is no map
    offset: int
    goal: float  # ln of the target LID
    out: Output


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Around planning and running: the features' device is the current one, whichever was before."""
    if INTERPRETING:
        return interpreting()
    return nullcontext() if x.get_device() == torch.cuda.current_device() else torch.cuda.device(x.device)


def run(plan: Plan, call: Call) -> None:
    """Launch, on the current stream."""
    workspace, state = memory(plan, call.x)
    if not plan.setup.fused:
        triton_staged.run(plan, arguments(plan, call, workspace, state), call.offset, call.goal)
    elif plan.kernel is None or triton.knobs.runtime.launch_enter_hook.calls:
        plan.kernel = _fused(plan, call, arguments(plan, call, workspace, state))
    else:
        _again(plan, call, workspace, state)


def seconds(plan: Plan, call: Call) -> float:
    """Median time of a run; infinity where the blocks do not compile, or the device has no room for them."""
    try:
        run(plan, call)
    except Exception:  # compilers raise whatever they like
        torch.cuda.synchronize()  # raises if it is the device that fails
        return float("inf")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(5):
        start.record()
        run(plan, call)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


# ------------------------------------------------------------------------------------------------- memory

_states: dict[tuple[int, int], Tensor] = {}


def memory(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    """The workspace, and a state of zeros."""
    workspace = torch.empty(plan.nbytes, dtype=torch.uint8, device=x.device)
    if not plan.setup.fused or torch.cuda.is_current_stream_capturing():
        # A graph may run beside whatever else its stream does, so it has a state of its own.
        return workspace, torch.zeros(STATE_WORDS, dtype=torch.int64, device=x.device)
    device = x.get_device()
    return workspace, _state(x.device, triton.runtime.driver.active.get_current_stream(device))


def _state(device: torch.device, stream: int) -> Tensor:
    """Zeros that a launch leaves zero: kept for each stream, so that no launch has to clear them first."""
    key = (device.index or 0, stream)
    if key not in _states:
        # What is kept must not lie in the private pool of a CUDA graph: torch.compile(mode="reduce-overhead") warms up
        # with its pool in place, and refuses what then stays alive. Pools are a thread's own (torch.cuda.use_mem_pool).
        with ThreadPoolExecutor(1) as elsewhere:
            _states[key] = elsewhere.submit(_zeros, device).result()
    return _states[key]


def _zeros(device: torch.device) -> Tensor:
    zeros = torch.zeros(STATE_WORDS, dtype=torch.int64, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # this thread's stream, and not the launch's
    return zeros


def arguments(plan: Plan, call: Call, workspace: Tensor, state: Tensor) -> Arguments:
    """Tensors, as Triton takes them."""
    x, y, degenerate = call.x.detach(), call.y.detach(), call.out.degenerate
    return Arguments(
        Matrices(x, plan.x_stride, y, plan.y_stride, plan.N, plan.D, call.own),
        views(plan.space, workspace)._replace(state=state),
        views(plan.operands, workspace),
        views(plan.lists, workspace),
        call.out if degenerate is None else call.out._replace(degenerate=degenerate.view(torch.uint8)),
    )


# ------------------------------------------------------------------------------------------------- fused


def _numbers(q: Plan, call: Call) -> tuple[Any, ...]:
    """What the kernels take after the groups."""
    numbers = (q.B, call.offset, q.wanted, q.k, call.goal)
    if q.operands is None:
        return (*numbers, q.size.panel, q.setup)
    size = q.size
    return (*numbers, q.stride, q.back, size.panel, size.first_step, size.chunk, q.fallback, q.setup)


def _fused(q: Plan, call: Call, given: Arguments) -> Any:
    """Launch through Triton, and return the compiled kernel."""
    options = {
        "num_warps": q.setup.num_warps,
        "num_stages": 1,  # loops say for themselves if they are to be pipelined
        "enable_fp_fusion": False,
        "launch_cooperative_grid": q.programs > 1,
    }
    if q.operands is None:
        return ldreg_fused_direct[(q.programs,)](given.m, given.s, given.o, *_numbers(q, call), **options)
    return ldreg_fused_tiles[(q.programs,)](*given, *_numbers(q, call), **options)


def _again(q: Plan, call: Call, workspace: Tensor, state: Tensor) -> None:
    """Launch the kernel that the plan's first launch compiled.

    Triton would compile another one for pointers that 16 does not divide. Those of x, y and own are part of the key of
    plans (triton_backend.py); torch's allocator aligns the others, and if not, Triton is asked again.
    """
    base = workspace.data_ptr()
    out = [None if t is None else t.data_ptr() for t in call.out]
    unaligned = base
    for address in out:
        if address is not None:
            unaligned |= address
    if unaligned % 16:
        _fused(q, call, arguments(q, call, workspace, state))
        return
    space, operands, lists = q.offsets
    m = (call.x.data_ptr(), q.x_stride, call.y.data_ptr(), q.y_stride, q.N, q.D, call.own.data_ptr())
    s = (state.data_ptr(), *[base + offset for offset in space])
    groups: tuple[Any, ...] = (m, s, out)
    if q.operands is not None and q.lists is not None:
        key, position, count, reach, limit, own = [base + offset for offset in lists]
        a = [base + offset for offset in operands]
        groups = (m, s, a, (key, position, count, reach, limit, q.lists.gamma, own, None, None), out)
    stream = triton.runtime.driver.active.get_current_stream(call.x.get_device())
    kernel = q.kernel
    kernel.run(
        *(q.programs, 1, 1, stream, kernel.function, kernel.packed_metadata, None, None, None),
        *groups,
        *_numbers(q, call),
    )
