"""The CUDA C++ backend: unpacks a Problem, allocates the outputs and the workspace, launches. One launch per call.

The extension takes raw addresses and a stream, so one build serves every torch version; what it computes and how is in
csrc/cuda, from ldreg_kernel.h. Nothing is allocated or waited for inside a launch, so calls can be captured in graphs.
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

from . import single_launch, tuning
from .contract import KnnResult, LdregResult, LidResult, Problem, Track, unit_columns

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

LARGEST_K = 1024
LARGEST_COLUMNS = 8192
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum DType in ldreg_cuda.h
_LOOPS = ("auto", "mma", "wgmma")


def use(module: ModuleType | None) -> None:
    """Take another module in the extension's place; None puts the reason for its absence there."""
    global _cuda, _missing
    _cuda, _missing = module, "no module is in use"
    unavailable_reason.cache_clear()


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


_states: dict[tuple[int, int], Tensor] = {}


def _state(words: int, device: torch.device, stream: int) -> Tensor:
    """Zeros that a launch leaves zero: kept for each stream, so that no launch has to clear them first."""
    if device.type == "cpu":
        return torch.zeros(words, dtype=torch.int32)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():  # a graph may run beside whatever else its stream does
            return torch.zeros(words, dtype=torch.int32, device=device)
    key = (device.index, stream)
    if key not in _states or _states[key].numel() < words:
        _states[key] = torch.zeros(max(words, 4096), dtype=torch.int32, device=device)
    return _states[key]


def _run(problem: Problem, wanted: int, out: dict[str, Tensor], modes: dict[str, object]) -> None:
    if wanted > LARGEST_K:
        raise ValueError(f"k must be at most {LARGEST_K} on backend 'cuda' (track included), got {wanted}")
    if problem.x.shape[1] > LARGEST_COLUMNS:
        raise ValueError(f"x must have at most {LARGEST_COLUMNS} columns on backend 'cuda', got {problem.x.shape[1]}")
    x = unit_columns(problem.x.detach())
    y = x if problem.symmetric else unit_columns(problem.y.detach())
    own = problem.self_index
    own_map = own.contiguous() if isinstance(own, Tensor) else None
    device = x.device
    rows, columns = x.shape
    dtype = str(x.dtype).removeprefix("torch.")
    shape = tuning.Shape(rows, y.shape[0], columns, wanted, dtype, _capability(device))

    call = _cuda.Call()
    fields = {
        "device": device.index or 0,
        "dtype": _DTYPES[x.dtype],
        "x": x.data_ptr(),
        "B": rows,
        "D": columns,
        "x_stride": x.stride(0),
        "y": y.data_ptr(),
        "N": y.shape[0],
        "y_stride": y.stride(0),
        "same": problem.symmetric,
        "own_map": 0 if own_map is None else own_map.data_ptr(),
        "own_offset": own if isinstance(own, int) else -1,
        "exact": problem.precision == "exact",
        "drop_smallest": problem.drop_smallest,
        "wanted": wanted,
        "tiles": tuning.choose_path(shape) == "tiles",
        "loop": _loop(),
        **modes,
        **{name: tensor.data_ptr() for name, tensor in out.items()},
    }
    for name, value in fields.items():
        setattr(call, name, value)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    bytes_needed, words, _ = _cuda.needs(call)
    workspace, state = torch.empty(bytes_needed, dtype=torch.uint8, device=device), _state(words, device, stream)
    _cuda.launch(call, workspace.data_ptr(), state.data_ptr(), stream)


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


scale_rows = single_launch.scale_rows
