"""What is timed: shapes, dtypes and modes, and the suites they form.

The named shapes are those of training: B features of one process against the N of all processes. Modes:

    forward   k nearest neighbours: distances and indices
    lid       the LID of every row by `LID_ESTIMATOR`, without gradient: what an estimator of dimension is asked for
    gradient  the LDReg loss and its gradient in x
    tracked   the same, and LIDs for the log (`mle` with k = 32 and k = 512) beside it

This file knows no contender and times nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Mode = Literal["forward", "lid", "gradient", "tracked"]
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KS = (16, 32, 64, 128, 512)
LID_ESTIMATOR = "hill"  # the maximum-likelihood estimate of Levina and Bickel, which every library has
GRID = "grid"  # the suite that counts wins; on request only
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
        """Which public function of the package: "knn", "lid" or "ldreg_loss"."""
        return {"forward": "knn", "lid": "lid"}.get(self.mode, "ldreg_loss")

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
        against N, on a CPU only, because it takes processes of its own there and comes with every time on a GPU;
        `rivals`: on a GPU, the shapes at which other libraries published a time; `grid`: sixty shapes over all that
        training meets, the same with and without `quick`, to count who wins.
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
MANY_REFERENCES = Case(2048, 65536, 256, 64)  # a queue of features, as momentum methods keep
SMALL = Case(1024, 4096, 128, 32)
VIT = Case(2048, 2048, 768, 64)

# Shapes with a published time on an H100 or H200 (NOTES.md says whose, and which): measured here beside whoever is
# installed. In the precision that was published, and the first library's in float32 as well.
RIVALS = (
    *(Case(16384, 100000, 128, k, "forward", "bfloat16") for k in (4, 16, 32)),
    Case(16384, 100000, 128, 16, "forward"),
    Case(8192, 65536, 256, 16, "forward", "bfloat16"),
    Case(5000, 8192, 2048, 32, "forward", "bfloat16"),
    Case(20000, 20000, 1024, 20, "lid"),
)


def _grid(
    own: dict[int, tuple[tuple[int, ...], tuple[int, ...]]], ranks: dict[tuple[int, int], tuple[tuple[int, ...], ...]]
) -> tuple[Case, ...]:
    """Batches that search themselves, {N: (widths, ks)}, and queries of one process, {(B, N): (widths, ks)}."""
    sizes = {(N, N): widths_and_ks for N, widths_and_ks in own.items()} | dict(ranks)
    return tuple(Case(B, N, D, k) for (B, N), (widths, ks) in sizes.items() for D in widths for k in ks)


_WIDTHS = (16, 128, 512, 2048)
_CPU_GRID = (
    *_grid(
        {
            64: (_WIDTHS, (8, 32)),
            256: (_WIDTHS, (16, 64)),
            1024: (_WIDTHS, (16, 64, 256)),
            2048: (_WIDTHS, (16, 64)),
            4096: ((16, 128, 512), (16, 64)),
        },
        {
            (256, 4096): ((128, 512, 2048), (16, 64)),
            (1024, 8192): ((128, 512), (64, 256)),
            (64, 16384): ((128,), (16, 64)),
        },
    ),
    *(Case(N, N, D, 64, dtype="bfloat16") for N, D in ((256, 2048), (1024, 512), (1024, 2048), (2048, 768))),
    Case(1024, 1024, 512, 64, "tracked"),
    Case(1024, 4096, 512, 64, "tracked"),
)
_CUDA_GRID = (
    *_grid(
        {
            256: ((128, 2048), (16, 64)),
            1024: (_WIDTHS, (16, 64)),
            4096: (_WIDTHS, (16, 64, 512)),
            16384: ((128, 512, 2048), (16, 64)),
            32768: ((128, 768), (16, 64)),
        },
        {
            (256, 4096): ((128, 512, 2048), (16, 64)),
            (1024, 16384): ((128, 512, 2048), (16, 64)),
            (512, 65536): ((128, 768), (16, 64)),
        },
    ),
    *(Case(N, N, D, 64, dtype="bfloat16") for N in (1024, 4096, 16384) for D in (512, 2048)),
    *(Case(B, N, 2048, 64, "tracked", "bfloat16") for B, N in ((1024, 4096), (2048, 2048), (4096, 4096), (8192, 8192))),
)

_CPU = {
    "headline": (
        TRAIN,
        replace(TRAIN, mode="forward"),
        BATCH,
        MANY_REFERENCES,
        SMALL,
        replace(VIT, mode="tracked"),
        replace(RANK, mode="tracked"),
        replace(TRAIN, dtype="bfloat16"),
    ),
    "k": tuple(Case(4096, 4096, 512, k) for k in KS),
    "n": _square((1024, 2048, 4096, 8192, 16384), D=512, k=64),
    "memory": _square((2048, 4096, 8192, 16384, 32768), D=512, k=64),
    GRID: _CPU_GRID,
}
_CPU_QUICK = {
    "headline": (TRAIN, SMALL, *(Case(1024, 1024, 512, 64, mode=mode) for mode in ("forward", "tracked"))),
    "k": tuple(Case(1024, 1024, 512, k) for k in (16, 64, 512)),
    "n": _square((512, 1024, 2048), D=512, k=64),
    "memory": _square((2048,), D=512, k=64),
    GRID: _CPU_GRID,
}
_CUDA = {
    "headline": _each_dtype(
        TRAIN, replace(RANK, mode="tracked"), replace(TRAIN, mode="forward"), LARGE, WIDE_BATCH, HUGE_BATCH
    ),
    "k": _each_dtype(*(Case(8192, 8192, 2048, k) for k in KS)),
    "n": _each_dtype(*_square((1024, 2048, 4096, 8192, 16384, 32768, 65536), D=512, k=64)),
    "rivals": RIVALS,
    GRID: _CUDA_GRID,
}
_CUDA_QUICK = {
    "headline": (*_each_dtype(TRAIN, replace(RANK, mode="tracked")), replace(HUGE_BATCH, dtype="bfloat16")),
    "n": _square((1024, 4096, 16384, 65536), D=512, k=64, dtype="bfloat16"),
    "k": tuple(Case(8192, 8192, 2048, k, dtype="bfloat16") for k in (16, 64, 512)),
    "rivals": RIVALS,
    GRID: _CUDA_GRID,
}
