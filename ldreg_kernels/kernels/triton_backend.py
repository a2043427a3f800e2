"""The Triton backend: unpacks a Problem, allocates the outputs, launches. One launch per call, on any GPU since Ampere.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, the same kernels run in Triton's interpreter
on CPU tensors: slow, and meant for tests. What is computed and how: triton_fused.py, from the top.
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType
from typing import Any

import torch

from . import autotune, single_launch, tuning
from .contract import KnnResult, LdregResult, LidResult, Problem, Track
from .single_launch import Outputs, Request

_launch: ModuleType | None
try:
    from . import triton_launch as _launch
except ImportError as error:
    _launch, _missing = None, f"Triton could not be imported ({error}); it comes with CUDA builds of torch"
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
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _programs(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _run(problem: Problem, request: Request, outputs: Outputs, goal: float) -> None:
    assert _launch is not None
    modes: dict[str, Any] = {"knn": True} if request.knn else {**request._asdict(), "goal": goal}
    k, wanted = request.k, request.wanted
    out = {name: t for name, t in outputs._asdict().items() if t is not None}
    if not request.knn:
        for name in ("k", "wanted"):
            del modes[name]
        modes["track"] = tuple(number for pair in request.track for number in pair)  # the kernels are compiled for it
        out["degenerate"] = out["degenerate"].view(torch.uint8)
    x = problem.x
    if wanted > LARGEST_K:
        raise ValueError(f"k must be at most {LARGEST_K} on backend 'triton' (track included), got {wanted}")
    if not interpreting() and _capability(x.device.index) < OLDEST:
        raise RuntimeError(f"backend 'triton' needs compute capability {OLDEST / 10} or newer, {x.device} has less")
    wanted += int(problem.drop_smallest)
    nothing = x  # a pointer that is not used
    output = _launch.Output(**{name: out.get(name, nothing) for name in _launch.Output._fields})
    fused = not interpreting() and not _staged()
    programs = 1 if interpreting() else _programs(x.device.index)
    asked = _launch.Request(k, wanted, modes)

    def plan(blocks: tuning.Blocks) -> object:
        return _launch.plan(problem, asked, output, blocks, programs, fused)

    with _launch.on_device(x.device):
        shape = _launch.shape_of(problem, wanted)
        blocks = autotune.found(shape) or tuning.choose(shape)
        if not interpreting() and autotune.asked_for() and autotune.found(shape) is None:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("LDREG_AUTOTUNE cannot time kernels while a CUDA graph is captured; run once before")
            blocks = autotune.search(shape, lambda blocks: _launch.seconds(plan(blocks)))
        _launch.run(plan(blocks))


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
    problem: Problem, estimator: str, form: str, target: float | None, reduction: str, track: Track, need_grad: bool
) -> LdregResult:
    """Contract `ldreg`."""
    return single_launch.ldreg(_run, problem, estimator, form, target, reduction, track, need_grad)
