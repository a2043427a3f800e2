"""What the Triton kernels are compiled for, and the table that chooses it by (B, N, D, k, dtype, capability).

`Blocks` is what may be tuned, `Setup` adds what the call asks for; both are plain data, so this file needs no Triton.
The shipped table is calculated (benchmarks/NOTES.md), not measured. LDREG_AUTOTUNE=1 measures instead and keeps what it
found in LDREG_TUNING_FILE; nothing is tuned unless it is set.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Blocks:
    """Block shapes: a choice of these changes speed only."""

    path: str  # "tiles" or "direct", see triton_fused.py
    num_warps: int = 8
    # tensor-core tile
    tile_b: int = 128
    tile_n: int = 128
    tile_d: int = 64
    stages: int = 3
    # every pair by differences
    direct_b: int = 16
    direct_n: int = 32
    direct_d: int = 32
    # reading features
    pack_rows: int = 8
    pack_d: int = 512
    centre_d: int = 64
    # queries at a time, and what of them is in registers
    rows: int = 4
    row_d: int = 2048  # features of a reference
    together: int = 2  # references
    sort: int = 64  # candidates
    # selection from a slab or a list
    select_rows: int = 4
    select: int = 2048
    slab_block: int = 2048
    list_block: int = 256
    loss_block: int = 1024
    # the workspace, in elements
    cap: int = 256  # candidates of a query
    slab: int = 8 << 20  # keys or squared distances
    first_step: int = 1 << 30  # references that go through the slab
    packed: int = 8 << 20  # packed features of the references


@dataclass(frozen=True)
class Setup(Blocks):
    """Everything that a kernel is compiled for."""

    fused: bool = True
    same: bool = False  # the references are the queries
    shared: bool = False  # ... and one packed copy serves as both
    once: bool = True  # all references are packed at once
    self_kind: int = 0
    wide: bool = False  # float64
    exact: bool = True
    one_chunk: bool = True  # row_d >= D
    cover: bool = True  # select >= references in the slab, in the tiles' first step
    cover_all: bool = True  # slab_block >= N
    drop: int = 0
    knn: bool = False
    estimator: int = 0
    track: tuple[int, ...] = ()  # estimator, k, estimator, k, ...
    gradient: bool = False
    loss: bool = False
    form: int = 0
    reduction: int = 0
    goal: float = 0.0  # ln of the target LID


@dataclass(frozen=True)
class Shape:
    """What the choice depends on."""

    B: int
    N: int
    D: int
    wanted: int  # the largest k asked for
    dtype: str  # "float32", "bfloat16", "float16", "float64"
    capability: int  # 80, 90, 100; 0 in the interpreter


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(0, n - 1).bit_length()


def interpreted(shape: Shape, path: str) -> Blocks:
    """Few and large blocks: in the interpreter an operation costs tens of microseconds, whatever its size."""
    D = power_of_two(shape.D)
    row_d = min(D, 8192)
    rows = min(power_of_two(shape.B), max(1, (1 << 17) // row_d), 128)
    columns = power_of_two(shape.N)
    direct_d = min(D, 64)
    direct_b = min(power_of_two(shape.B), 32)
    cap = power_of_two(4 * shape.wanted)
    return Blocks(
        path,
        tile_b=min(power_of_two(shape.B), 256),
        tile_n=min(columns, 512),
        tile_d=min(max(D, 16), 512),
        direct_b=direct_b,
        direct_n=min(columns, max(1, (1 << 18) // (direct_b * direct_d))),
        direct_d=direct_d,
        pack_rows=min(power_of_two(max(shape.B, shape.N)), 256),
        pack_d=min(D, 1024),
        centre_d=min(D, 512),
        rows=rows,
        row_d=row_d,
        together=max(1, min(power_of_two(shape.wanted), (1 << 18) // (rows * row_d))),
        sort=min(power_of_two(shape.wanted), 64),
        select_rows=min(power_of_two(shape.B), 256),
        select=min(columns, 4096),
        slab_block=min(columns, 4096),
        list_block=min(cap, 1024),
        loss_block=min(power_of_two(shape.B), 4096),
        slab=1 << 22,
    )


def choose_path(shape: Shape) -> str:
    """Every pair at once where the tiles would not pay: tiny problems, k near N, float64."""
    if shape.dtype == "float64" or 4 * shape.wanted >= shape.N:
        return "direct"
    return "direct" if shape.B * shape.N * shape.D <= 1 << 27 else "tiles"


def choose(shape: Shape) -> Blocks:
    """The shipped choice."""
    path = choose_path(shape)
    if shape.capability == 0:
        return interpreted(shape, path)
    return calculated(shape, path)


def calculated(shape: Shape, path: str) -> Blocks:
    """Blocks for a GPU."""
    row_d = min(max(power_of_two(shape.D), 64), 8192)
    rows = max(1, min(16, 8192 // row_d))
    N = power_of_two(shape.N)
    first_step = shape.N if shape.N <= 8192 else 1024
    select = min(4096, max(64, power_of_two(first_step)))
    return Blocks(
        path,
        rows=rows,
        row_d=row_d,
        together=max(1, min(16, 16384 // (rows * row_d))),
        sort=32 if rows > 4 else 64,
        select=select,
        select_rows=max(1, 8192 // select),
        slab_block=min(max(64, N), 8192 // rows),
        list_block=min(power_of_two(4 * shape.wanted), 8192 // rows),
        first_step=first_step,
    )
