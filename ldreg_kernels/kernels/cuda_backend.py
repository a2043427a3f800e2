"""The CUDA C++ backend: plans a call once, allocates the outputs and the workspace, launches. One launch per call.

The extension takes raw addresses and a stream, so one build serves every torch version; what it computes and how is in
csrc/cuda, from ldreg_kernel.h. Nothing is waited for inside a launch, so calls can be captured in graphs. What a call
is (shapes, dtypes, what is asked for) decides its plan, which is kept; a launch adds where its tensors are.
A module compiled for the host by the tests (python_tests/simulator.py) takes the extension's place through `use`.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import extension, single_launch, tuning
from .contract import KnnResult, LdregResult, LidResult, Problem, Track, unit_columns
from .single_launch import Outputs, Request

_cuda: Any
try:
    _cuda = importlib.import_module("ldreg_kernels._cuda")
except ImportError as error:
    _cuda = None
    _missing = (
        "the CUDA extension was not built: nvcc was not found, or LDREG_BUILD_CUDA was 0"
        if isinstance(error, ModuleNotFoundError)
        else f"the CUDA extension could not be loaded ({error})"
    )
else:
    if extension.foreign(_cuda):
        _missing = f"the CUDA extension is not in {extension.PACKAGE}; {_cuda.__file__} is another copy's"
        _cuda = None

LARGEST_K = 1024
LARGEST_COLUMNS = 8192
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum DType in ldreg_cuda.h
_LOOPS = ("auto", "mma", "wgmma")


def use(module: ModuleType | None) -> None:
    """Take another module in the extension's place; None puts the reason for its absence there."""
    global _cuda, _missing
    _cuda, _missing = module, "no module is in use"
    unavailable_reason.cache_clear()
    forget_plans()


def simulated() -> bool:
    """Whether kernels run on the CPU, in the machine that the tests have for it."""
    return _cuda is not None and bool(_cuda.simulated)


def device_types() -> tuple[str, ...]:
    """Where tensors have to be."""
    return ("cpu",) if simulated() else ("cuda",)


@cache
def unavailable_reason() -> str | None:
    """Why kernels cannot run, or None."""
    if _cuda is None:
        return _missing
    if simulated():
        return None
    if not torch.cuda.is_available():
        detail = _cuda.unavailable_reason()
        return detail or "this torch is built without CUDA"
    reason: str | None = _cuda.unavailable_reason()
    return reason


def _loop() -> str:
    """LDREG_CUDA_LOOP: the tensor-core instruction of the tiles, to compare them; auto takes the device's best."""
    value = os.environ.get("LDREG_CUDA_LOOP", "auto")
    if value not in _LOOPS:
        raise ValueError(f"LDREG_CUDA_LOOP must be one of {', '.join(_LOOPS)}, got {value!r}")
    return "mma" if value == "auto" and simulated() else value


def _capability(device: torch.device) -> int:
    if simulated():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


# What a plan depends on -> the plan. Shapes come and go (a last batch, an evaluation): emptied when it is large.
_plans: dict[tuple[Any, ...], Any] = {}
_MOST_PLANS = 1024


def forget_plans() -> None:
    """The next call of every kind is planned anew."""
    _plans.clear()


def _plan(problem: Problem, x: Tensor, y: Tensor, request: Request, loop: str) -> Any:
    """The extension's `Planned` for calls like this one: sizes, strides, dtype, device and what is asked for."""
    rows, columns = x.shape
    references, wanted = y.shape[0], request.wanted
    if wanted > LARGEST_K:
        raise ValueError(f"k must be at most {LARGEST_K} on backend 'cuda' (track included), got {wanted}")
    if columns > LARGEST_COLUMNS:
        raise ValueError(f"x must have at most {LARGEST_COLUMNS} columns on backend 'cuda', got {columns}")
    dtype = str(x.dtype).removeprefix("torch.")
    shape = tuning.Shape(rows, references, columns, wanted, dtype, _capability(x.device))
    call = _cuda.Call()
    fields = {
        **request._asdict(),
        "device": x.device.index or 0,
        "dtype": _DTYPES[x.dtype],
        "B": rows,
        "N": references,
        "D": columns,
        "x_stride": x.stride(0),
        "y_stride": y.stride(0),
        "same": problem.symmetric,
        "exact": problem.precision == "exact",
        "drop_smallest": problem.drop_smallest,
        "tiles": tuning.choose_path(shape) == "tiles",
        "loop": loop,
    }
    for name, value in fields.items():
        setattr(call, name, value)
    return _cuda.Planned(call)


def _run(problem: Problem, request: Request, out: Outputs, goal: float) -> None:
    x = unit_columns(problem.x)
    symmetric = problem.symmetric
    y = x if symmetric else unit_columns(problem.y)
    own = problem.self_index
    own_map = own.contiguous() if isinstance(own, Tensor) else None
    device, loop = x.device, _loop()
    modes = symmetric, problem.precision, problem.drop_smallest, request, loop
    key = (x.shape, y.shape, x.stride(), y.stride(), x.dtype, device, modes)
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= _MOST_PLANS:
            forget_plans()
        plan = _plans[key] = _plan(problem, x, y, request, loop)
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=device)
    plan.launch(
        x.data_ptr(),
        y.data_ptr(),
        0 if own_map is None else own_map.data_ptr(),
        own if isinstance(own, int) else -1,
        goal,
        *[0 if t is None else t.data_ptr() for t in out],
        workspace.data_ptr(),
        torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0,
    )


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
