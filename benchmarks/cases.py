"""What is timed: shapes, dtypes and modes, and the suites they form.

The named shapes are those of training: B features of one process against the N of all processes. Modes:

    forward   k nearest neighbours: distances and indices
    gradient  the LDReg loss and its gradient in x
    tracked   the same, and LIDs for the log (`mle` with k = 32 and k = 512) beside it

This file knows no contender and times nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Mode = Literal["forward", "gradient", "tracked"]
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KS = (16, 32, 64, 128, 512)
TRACK = (("mle", 32), ("mle", 512))  # what the published training logs at every step


@dataclass(frozen=True)
class Case:
    """One measurement's inputs: B queries, N references that begin with the queries, D features, k neighbours."""

    B: int
    N: int
    D: int
    k: int
    mode: Mode = "gradient"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.B <= self.N:
            raise ValueError(f"B must be in [1, N = {self.N}], got {self.B}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 2 <= self.k_max < self.N:
            raise ValueError(f"k must be in [2, N - 1 = {self.N - 1}], tracking included, got {self.k_max}")

    @property
    def op(self) -> str:
        """Which public function of the package: "knn" or "ldreg_loss"."""
        return "knn" if self.mode == "forward" else "ldreg_loss"

    @property
    def track(self) -> tuple[tuple[str, int], ...]:
        """The LIDs to log, in `ldreg_loss`'s notation."""
        return TRACK if self.mode == "tracked" else ()

    @property
    def k_max(self) -> int:
        """The longest list of neighbours that anything in this case needs."""
        return max([self.k, *(k for _, k in self.track)])

    def __str__(self) -> str:
        """For example "(4096, 4096, 2048, 64) float32 gradient"."""
        return f"({self.B}, {self.N}, {self.D}, {self.k}) {self.dtype} {self.mode}"

    def inputs(self, seed: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Gaussian queries x [B, D] and references y [N, D] whose first B rows they are; y is None where B = N."""
        generator = torch.Generator(device).manual_seed(seed)
        rows = torch.randn(self.N, self.D, generator=generator, device=device).to(DTYPES[self.dtype])
        return (rows, None) if self.B == self.N else (rows[: self.B].clone(), rows)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a message between processes."""
        return {"B": self.B, "N": self.N, "D": self.D, "k": self.k, "mode": self.mode, "dtype": self.dtype}


def suites(device: str, *, quick: bool = False) -> dict[str, tuple[Case, ...]]:
    """The suites of a device, in the order in which they are worth running.

    Args:
        device: "cpu" or "cuda".
        quick: the selection that two CPU cores finish in three minutes, or a GPU in four.

    Returns:
        `headline`: the named shapes; `k` and `n`: time against k and against N at one width; `memory`: peak memory
        against N, on a CPU only, because it takes processes of its own there and comes with every time on a GPU.
    """
    found = {("cpu", False): _CPU, ("cpu", True): _CPU_QUICK, ("cuda", False): _CUDA, ("cuda", True): _CUDA_QUICK}
    if (device, quick) not in found:
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    return found[device, quick]


def _square(sizes: tuple[int, ...], D: int, k: int, dtype: str = "float32") -> tuple[Case, ...]:
    return tuple(Case(N, N, D, k, dtype=dtype) for N in sizes)


def _each_dtype(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, dtype=dtype) for case in cases for dtype in ("float32", "bfloat16"))


RANK = Case(1024, 4096, 2048, 64)  # one of 4 processes, global batch 2048, two views
TRAIN = Case(4096, 4096, 2048, 64)
LARGE = Case(8192, 8192, 2048, 128)
WIDE_BATCH = Case(32768, 32768, 768, 64)
HUGE_BATCH = Case(131072, 131072, 512, 64)  # B x N in float32 would be 69 GB
BATCH = Case(8192, 8192, 512, 64)
SMALL = Case(1024, 4096, 128, 32)
VIT = Case(2048, 2048, 768, 64)

_CPU = {
    "headline": (
        TRAIN,
        replace(TRAIN, mode="forward"),
        BATCH,
        SMALL,
        replace(VIT, mode="tracked"),
        replace(RANK, mode="tracked"),
        replace(TRAIN, dtype="bfloat16"),
    ),
    "k": tuple(Case(4096, 4096, 512, k) for k in KS),
    "n": _square((1024, 2048, 4096, 8192, 16384), D=512, k=64),
    "memory": _square((2048, 4096, 8192, 16384, 32768), D=512, k=64),
}
_CPU_QUICK = {
    "headline": (TRAIN, SMALL, *(Case(1024, 1024, 512, 64, mode=mode) for mode in ("forward", "tracked"))),
    "k": tuple(Case(1024, 1024, 512, k) for k in (16, 64, 512)),
    "n": _square((512, 1024, 2048), D=512, k=64),
    "memory": _square((2048,), D=512, k=64),
}
_CUDA = {
    "headline": _each_dtype(
        TRAIN, replace(RANK, mode="tracked"), replace(TRAIN, mode="forward"), LARGE, WIDE_BATCH, HUGE_BATCH
    ),
    "k": _each_dtype(*(Case(8192, 8192, 2048, k) for k in KS)),
    "n": _each_dtype(*_square((1024, 2048, 4096, 8192, 16384, 32768, 65536), D=512, k=64)),
}
_CUDA_QUICK = {
    "headline": (*_each_dtype(TRAIN, replace(RANK, mode="tracked")), replace(HUGE_BATCH, dtype="bfloat16")),
    "n": _square((1024, 4096, 16384, 65536), D=512, k=64, dtype="bfloat16"),
    "k": tuple(Case(8192, 8192, 2048, k, dtype="bfloat16") for k in (16, 64, 512)),
}
