"""The C++ CPU backend: takes tensors apart into addresses and sizes, allocates the outputs, calls `_cpu`.

Uses as many threads as torch was told to (`torch.set_num_threads`), and torch's own workers where it finds them;
releases the GIL, stops on Ctrl-C. What it computes and how is in csrc/cpu/search.h and csrc/lid_math.h.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import extension, native_pairs
from .contract import (
    ESTIMATORS,
    FORMS,
    REDUCTIONS,
    KnnResult,
    LdregResult,
    LidResult,
    Pairs,
    Problem,
    Track,
    unit_columns,
)

_cpu: ModuleType | None = None
_reason = ""
try:
    from .. import _cpu as _found  # type: ignore[attr-defined]
except ImportError as error:
    _reason = extension.why_missing("_cpu", error)
else:
    if extension.foreign(_found):
        _reason = extension.why_missing("_cpu", _found)
    else:
        _cpu = _found

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum DType in csrc/cpu/problem.h
_SMALLEST_POOLED = 1 << 20  # bytes; below it the extension's pool hands on to malloc (kLarge in csrc/cpu/blocks.cpp)


def _torch_workers() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch computes with; 0 where that cannot be told.

    Several runtimes may be loaded (scikit-learn and faiss bring their own). Torch's is the one in its own folder, or
    else the only one there is.
    """
    try:
        runtimes = _openmp_runtimes(Path("/proc/self/maps").read_bytes())
    except OSError:  # not Linux, or a sandbox that hides it
        return 0
    package = Path(torch.__file__).resolve().parent  # the kernel lists files without their links
    folders = (package / "lib", package.with_name("torch.libs"))
    candidates = [path for path in runtimes if path.parent in folders] or runtimes
    if len(candidates) != 1:
        return 0
    try:
        entry = ctypes.CDLL(str(candidates[0])).GOMP_parallel  # loaded already: this only looks it up
    except (OSError, AttributeError, ValueError):  # ValueError: a name that no file has
        return 0
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


def _openmp_runtimes(maps: bytes) -> list[Path]:
    """Of the files in /proc/PID/maps, those with the name of an OpenMP runtime. Bytes: any file may be mapped here."""
    names = {line.split(maxsplit=5)[-1].strip() for line in maps.splitlines() if b"/lib" in line}
    paths = {Path(os.fsdecode(name)) for name in names}
    return sorted(path for path in paths if path.name.startswith(("libgomp", "libomp", "libiomp")))


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


# In a small call every question to a tensor counts: it takes a tenth of a microsecond to a whole one.


def _unpacked(problem: Problem, k: int) -> Any:
    """The C++ view of a `Problem`; it holds the tensors whose addresses it has."""
    x, own = unit_columns(problem.x), problem.self_index
    same = problem.symmetric
    y = x if same else unit_columns(problem.y)
    own_map = own.contiguous() if isinstance(own, Tensor) else None
    rows, columns = x.shape
    return _extension().Problem(  # by position: with names it takes three times as long
        (x, y, own_map),
        x.data_ptr(),
        rows,
        x.stride(0),
        y.data_ptr(),
        rows if same else y.shape[0],
        y.stride(0),
        columns,
        _DTYPES[x.dtype],
        same,
        0 if own_map is None else own_map.data_ptr(),
        own if isinstance(own, int) else -1,
        k,
        problem.precision == "exact",
        problem.drop_smallest,
        torch.get_num_threads(),
    )


def _real(problem: Problem) -> torch.dtype:
    """The dtype of real outputs."""
    return torch.float64 if problem.x.dtype == torch.float64 else torch.float32


def _row_gradients(problem: Problem, need: bool, dtype: torch.dtype) -> Tensor:
    """[B, D] or [0, D]; large ones in memory that the extension keeps: they die in backward, every step."""
    rows, columns = problem.x.shape
    size = rows * columns * dtype.itemsize
    if not need or size < _SMALLEST_POOLED:
        return torch.empty(rows if need else 0, columns, dtype=dtype)
    return torch.frombuffer(_extension().PooledBuffer(size), dtype=dtype).view(rows, columns)


def _rows(rows: int, tracked: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """lid, degenerate and tracked, to be filled."""
    lid = torch.empty(rows, dtype=dtype)
    return lid, torch.empty(rows, dtype=torch.bool), torch.empty(tracked, rows, dtype=dtype)


def _asked(problem: Problem, estimator: str, track: Track) -> tuple[Any, int, int, list[tuple[int, int]]]:
    """What the extension's `lid` and `ldreg` begin with."""
    k, numbered = problem.k, []
    if track:
        k = max(k, *[tracked for _, tracked in track])
        numbered = [(ESTIMATORS.index(name), tracked) for name, tracked in track]
    return _unpacked(problem, k), ESTIMATORS.index(estimator), problem.k, numbered


def knn(problem: Problem) -> KnnResult:
    """Contract `knn`."""
    rows, k = problem.x.shape[0], problem.k
    distances, indices = torch.empty(rows, k, dtype=_real(problem)), torch.empty(rows, k, dtype=torch.int64)
    _extension().knn(_unpacked(problem, k), distances.data_ptr(), indices.data_ptr())
    return KnnResult(distances, indices)


def lid(problem: Problem, estimator: str, track: Track, need_grad: bool) -> LidResult:
    """Contract `lid`."""
    real = _real(problem)
    rows = _rows(problem.x.shape[0], len(track), real)
    grad = _row_gradients(problem, need_grad, real)
    addresses = [t.data_ptr() for t in rows]
    _extension().lid(*_asked(problem, estimator, track), *addresses, grad.data_ptr() if need_grad else 0)
    return LidResult(*rows, grad)


def ldreg(
    problem: Problem,
    estimator: str,
    form: str,
    target: float | None,
    reduction: str,
    track: Track,
    need_grad: bool,
    need_rows: bool = True,
) -> LdregResult:
    """Contract `ldreg`."""
    B, real = problem.x.shape[0], _real(problem)
    rows = _rows(B, len(track), real) if need_rows else ()
    grad = _row_gradients(problem, need_grad, real)
    coeff = torch.empty(B, 1, dtype=real)
    value = torch.empty(B if reduction == "none" else (), dtype=real)
    addresses = [t.data_ptr() for t in rows] if need_rows else (0, 0, 0)
    _extension().ldreg(
        *_asked(problem, estimator, track if need_rows else ()),
        *addresses,
        grad.data_ptr() if need_grad else 0,
        FORMS.index(form),
        1.0 if target is None else target,
        REDUCTIONS.index(reduction),
        value.data_ptr(),
        coeff.data_ptr(),
    )
    return LdregResult(value, coeff, grad, *rows)


def pair_sums(pairs: Pairs, need_gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """Contract `pair_sums`."""
    return native_pairs.sums(_extension(), pairs, need_gradient)


def pair_gradients(
    pairs: Pairs, state: Tensor, by_value: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Contract `pair_gradients`."""
    return native_pairs.gradients(_extension(), pairs, state, by_value, need_x, need_y)


def scale_rows(scale: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """scale [B, 1] times the rows of grad [B, D], in `dtype`.

    The output is asked for in large pages: taking it by 4 KB costs more than filling it.
    """
    out = torch.empty_like(grad)
    _extension().prefer_large_pages(out.data_ptr(), out.nbytes)
    with torch.no_grad():  # backward(create_graph=True) runs with gradients on
        return torch.mul(grad, scale, out=out).to(dtype)
