"""The C++ CPU backend: takes tensors apart into addresses and sizes, allocates the outputs, calls `_cpu`.

Uses as many threads as torch was told to (`torch.set_num_threads`), and torch's own workers where it finds them;
releases the GIL, stops on Ctrl-C. What it computes and how is in csrc/cpu/search.h and csrc/lid_math.h.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .contract import ESTIMATORS, FORMS, REDUCTIONS, KnnResult, LdregResult, LidResult, Problem, Track, unit_columns

_cpu: ModuleType | None
try:
    from .. import _cpu  # type: ignore[attr-defined, no-redef]
except ImportError as error:
    _cpu, _reason = None, f"the C++ extension could not be loaded ({error}); reinstall with `pip install .`"
else:
    _reason = ""

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum DType in csrc/cpu/problem.h


def _torch_workers() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch computes with; 0 where that cannot be told.

    Several runtimes may be loaded (scikit-learn and faiss bring their own). Torch's is the one in its own folder, or
    else the only one there is.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():  # not Linux
        return 0
    paths = {Path(line.split(maxsplit=5)[-1].strip()) for line in maps.read_text().splitlines() if "/lib" in line}
    runtimes = sorted(path for path in paths if path.name.startswith(("libgomp", "libomp", "libiomp")))
    package = Path(torch.__file__).resolve().parent  # the kernel lists files without their links
    folders = (package / "lib", package.with_name("torch.libs"))
    candidates = [path for path in runtimes if path.parent in folders] or runtimes
    if len(candidates) != 1:
        return 0
    try:
        entry = ctypes.CDLL(str(candidates[0])).GOMP_parallel  # loaded already: this only looks it up
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


if _cpu is not None:
    _cpu.borrow_workers(_torch_workers())


def unavailable_reason() -> str | None:
    """Why the extension cannot be used, or None."""
    return None if _cpu is not None else _reason


def isa() -> str:
    """The instruction set the kernels were chosen for: avx512bf16, avx512, avx2, neonbf16, neon or portable."""
    name: str = _extension().isa()
    return name


def _extension() -> Any:
    if _cpu is None:
        raise RuntimeError(_reason)
    return _cpu


class _Unpacked:
    """The C++ view of a `Problem`; holds the tensors whose addresses it gave away."""

    def __init__(self, problem: Problem, k: int) -> None:
        self.x = unit_columns(problem.x.detach())
        self.y = self.x if problem.symmetric else unit_columns(problem.y.detach())
        own = problem.self_index
        self.map = own.contiguous() if isinstance(own, Tensor) else None
        self.native = _extension().Problem(
            x=self.x.data_ptr(),
            rows=self.x.shape[0],
            x_stride=self.x.stride(0),
            y=self.y.data_ptr(),
            references=self.y.shape[0],
            y_stride=self.y.stride(0),
            columns=self.x.shape[1],
            dtype=_DTYPES[self.x.dtype],
            same=problem.symmetric,
            self_map=0 if self.map is None else self.map.data_ptr(),
            self_offset=own if isinstance(own, int) else -1,
            k=k,
            exact=problem.precision == "exact",
            drop_smallest=problem.drop_smallest,
            threads=torch.get_num_threads(),
        )

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An output; float32, or float64 for float64 features, unless told otherwise."""
        real = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        return torch.empty(shape, dtype=dtype or real)


def _pooled(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """[rows, columns] in memory that the extension keeps between calls: row gradients die in backward, every step."""
    size = rows * columns * dtype.itemsize
    return torch.frombuffer(_extension().PooledBuffer(size), dtype=dtype).view(rows, columns)


def knn(problem: Problem) -> KnnResult:
    """Contract `knn`."""
    call = _Unpacked(problem, problem.k)
    rows = problem.x.shape[0]
    distances, indices = call.new(rows, problem.k), call.new(rows, problem.k, dtype=torch.int64)
    _extension().knn(call.native, distances.data_ptr(), indices.data_ptr())
    return KnnResult(distances, indices)


def lid(problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`."""
    call = _Unpacked(problem, max([problem.k, *(k for _, k in track)]))
    rows, columns = problem.x.shape
    result = LidResult(
        lid=call.new(rows),
        degenerate=call.new(rows, dtype=torch.bool),
        tracked=call.new(len(track), rows),
        grad=_pooled(rows, columns, call.new(0).dtype) if need_grad else call.new(0, columns),
    )
    _extension().lid(
        call.native,
        ESTIMATORS.index(estimator),
        problem.k,
        [(ESTIMATORS.index(name), k) for name, k in track],
        *(t.data_ptr() for t in result[:3]),
        result.grad.data_ptr() if need_grad else 0,
    )
    return result


def ldreg(
    problem: Problem, estimator: str, form: str, target: float | None, reduction: str, track: Track, need_grad: bool
) -> LdregResult:
    """Contract `ldreg`."""
    rows = lid(problem, estimator, track, need_grad)
    value = torch.empty_like(rows.lid) if reduction == "none" else rows.lid.new_empty(())
    coeff = torch.empty_like(rows.lid)
    _extension().loss(
        rows.lid.data_ptr(),
        rows.degenerate.data_ptr(),
        rows.lid.shape[0],
        rows.lid.dtype == torch.float64,
        FORMS.index(form),
        1.0 if target is None else target,
        REDUCTIONS.index(reduction),
        value.data_ptr(),
        coeff.data_ptr(),
    )
    return LdregResult(value, coeff, *rows)


def scale_rows(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """scale [B] times the rows of grad [B, D], in `dtype`.

    The output is asked for in large pages: taking it by 4 KB costs more than filling it.
    """
    out = torch.empty_like(grad)
    _extension().prefer_large_pages(out.data_ptr(), out.nbytes)
    with torch.no_grad():  # backward(create_graph=True) runs with gradients on
        return torch.mul(grad, scale[:, None], out=out).to(dtype)
