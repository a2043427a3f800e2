"""The Triton backend: unpacks a Problem, allocates the outputs, launches. One launch per call, on any GPU since Ampere.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, the same kernels run in Triton's interpreter
on CPU tensors: slow, and meant for tests. What is computed and how: triton_fused.py, from the top.
"""

from __future__ import annotations

import os
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import autotune, single_launch, tuning
from .contract import KnnResult, LdregResult, LidResult, Pairs, Problem, Track, unit_columns
from .single_launch import Outputs, Request

_launch: ModuleType | None
_pairs: ModuleType | None
try:
    from . import triton_launch as _launch
    from . import triton_pairs_launch as _pairs
except ImportError as error:
    _launch = _pairs = None
    _missing = f"Triton could not be imported ({error}); it comes with CUDA builds of torch"
else:
    _missing = ""

LARGEST_K = 8192  # sorting takes k^2 comparisons a row, and every program keeps 16 bytes for each of a row's k
OLDEST = 80  # compute capability: asynchronous copies and bfloat16 begin with Ampere


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return _launch is not None and _launch.INTERPRETING


def device_types() -> tuple[str, ...]:
    """Where tensors have to be."""
    return ("cpu",) if interpreting() else ("cuda",)


def unavailable_reason() -> str | None:
    """Why kernels cannot run, or None."""
    if _launch is None:
        return _missing
    return None if interpreting() else _no_device()


@cache
def _no_device() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device; TRITON_INTERPRET=1 runs it on the CPU in Triton's interpreter, for tests"
    newest = max(_capability(device) for device in range(torch.cuda.device_count()))
    return None if newest >= OLDEST else f"compute capability {newest / 10} is below {OLDEST / 10}"


@cache
def _capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device if device >= 0 else None)
    return 10 * major + minor


@cache
def _programs(device: int) -> int:
    return torch.cuda.get_device_properties(device if device >= 0 else None).multi_processor_count


_plans: dict[Any, Any] = {}
_MOST_PLANS = 4096  # a plan is a few kilobytes


def forget_plans() -> None:
    """Know nothing of plans and devices: for tests and tools that pretend other ones."""
    _plans.clear()
    for known in (_no_device, _capability, _programs):
        known.cache_clear()


def _run(problem: Problem, request: Request, out: Outputs, goal: float) -> None:
    """Launch with the plan of calls like this one."""
    assert _launch is not None
    x = unit_columns(problem.x)
    y = x if problem.symmetric else unit_columns(problem.y)
    own = problem.self_index
    own_map = own.contiguous() if isinstance(own, Tensor) else x
    with _launch.on_device(x):
        # All that a plan and its kernel depend on.
        key = (
            *(x.shape, x.stride(0), y.shape[0], y.stride(0), x.dtype, x.get_device(), request),
            *(problem.symmetric, own.__class__, problem.precision, problem.drop_smallest),
            *(x.data_ptr() % 16, y.data_ptr() % 16, own_map.data_ptr() % 16),
            *(os.environ.get("LDREG_TRITON_STAGED"), autotune.settings()),
        )
        call = _launch.Call(x, y, own_map, own if isinstance(own, int) else 0, goal, out)
        plan = _plans.get(key)
        if plan is None:
            if len(_plans) >= _MOST_PLANS:
                _plans.clear()
            plan = _plans[key] = _plan(problem, request, call)
        _launch.run(plan, call)


def _plan(problem: Problem, request: Request, call: Any) -> Any:
    """The plan with the blocks that the table says or a search found, searching if LDREG_AUTOTUNE asks for it."""
    assert _launch is not None
    if request.wanted > LARGEST_K:
        raise ValueError(f"k must be at most {LARGEST_K} on backend 'triton' (track included), got {request.wanted}")
    x, y, own = call.x, call.y, problem.self_index
    device = x.get_device()
    capability = _served(x)
    wanted = request.wanted + int(problem.drop_smallest)
    dtype = str(x.dtype).removeprefix("torch.")
    shape = tuning.Shape(x.shape[0], y.shape[0], x.shape[1], wanted, dtype, capability)
    plan_with = partial(
        _launch.plan,
        shape,
        programs=1 if interpreting() else _programs(device),
        k=request.k,
        strides=(x.stride(0), y.stride(0)),
        fused=not interpreting() and not _staged(),
        same=problem.symmetric,
        self_kind=(_launch.NONE if own is None else _launch.OFFSET if isinstance(own, int) else _launch.MAP).value,
        exact=problem.precision == "exact",
        drop=int(problem.drop_smallest),
        track=tuple(number for pair in request.track for number in pair),
        **{name: getattr(request, name) for name in ("knn", "estimator", "gradient", "loss", "form", "reduction")},
    )
    blocks = autotune.found(shape)
    if blocks is None and autotune.asked_for() and not interpreting():
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("LDREG_AUTOTUNE cannot time kernels while a CUDA graph is captured; run once before")
        seconds = _launch.seconds
        blocks = autotune.search(shape, lambda blocks: seconds(plan_with(blocks), call))
    return plan_with(blocks or tuning.choose(shape))


def _served(x: Tensor) -> int:
    """Compute capability of the device of x, 0 in the interpreter."""
    capability = 0 if interpreting() else _capability(x.get_device())
    if not interpreting() and capability < OLDEST:
        raise RuntimeError(f"backend 'triton' needs compute capability {OLDEST / 10} or newer, {x.device} has less")
    return capability


def _machine(x: Tensor) -> tuple[int, int]:
    """(compute capability, multiprocessors) of the device of x."""
    return _served(x), 1 if interpreting() else _programs(x.get_device())


def _staged() -> bool:
    """LDREG_TRITON_STAGED=1: a launch for every stage, to see which one is wrong or slow."""
    value = os.environ.get("LDREG_TRITON_STAGED", "0")
    if value not in ("0", "1"):
        raise ValueError(f"LDREG_TRITON_STAGED must be 0 or 1, got {value!r}")
    return value == "1"


def knn(problem: Problem) -> KnnResult:
    """Contract `knn`."""
    return single_launch.knn(_run, problem)


def lid(problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`."""
    return single_launch.lid(_run, problem, estimator, track, need_grad)


def ldreg(
    problem: Problem,
    estimator: str,
    form: str,
    target: float | None,
    reduction: str,
    track: Track,
    need_grad: bool,
    need_rows: bool = True,  # the kernels say them anyway
) -> LdregResult:
    """Contract `ldreg`."""
    return single_launch.ldreg(_run, problem, estimator, form, target, reduction, track, need_grad)


def pair_sums(pairs: Pairs, need_gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """Contract `pair_sums`; the gradient is a pass of its own."""
    assert _pairs is not None
    state = _pairs.sums(pairs, *_machine(pairs.x))
    return state, pair_gradients(pairs, state, torch.ones_like(state[0]), True, False)[0] if need_gradient else None


def pair_gradients(
    pairs: Pairs, state: Tensor, by_value: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Contract `pair_gradients`."""
    assert _pairs is not None
    return _pairs.gradients(pairs, *_machine(pairs.x), state, by_value, need_x, need_y)
