"""What the Triton kernels are compiled for, and the table that chooses it by (B, N, D, k, dtype, capability).

`Blocks` is what may be tuned, `Setup` adds what the call asks for; both are plain data, so this file needs no Triton.
The shipped table is calculated (benchmarks/NOTES.md), not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


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
    slab: int = 8 << 20  # keys or squared distances
    first_step: int = 1 << 30  # references whose keys go through the slab; later ones are appended to lists
    packed: int = 8 << 20  # packed features of the references


@dataclass(frozen=True)
class Setup(Blocks):
    """Everything that a kernel is compiled for."""

    fused: bool = True
    cap: int = 256  # candidates a query has room for
    append: bool = False  # there are steps after the first
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


@dataclass(frozen=True)
class Entry:
    """A row of the table: from this capability on, up to this N, these blocks."""

    capability: int
    N: int
    blocks: dict[str, int]


ANY = 1 << 62
# First match wins. The tile is large where appending does not share its registers, and deep where memory is the limit.
TABLE = (
    Entry(90, 8192, {"tile_b": 128, "tile_n": 256, "tile_d": 64, "stages": 3}),
    Entry(90, ANY, {"tile_b": 128, "tile_n": 128, "tile_d": 64, "stages": 4, "first_step": 1024}),
    Entry(80, 8192, {"tile_b": 128, "tile_n": 128, "tile_d": 64, "stages": 3}),
    Entry(80, ANY, {"tile_b": 128, "tile_n": 128, "tile_d": 32, "stages": 4, "first_step": 1024}),
)


def choose(shape: Shape) -> Blocks:
    """The blocks for a problem: the shipped table, fitted to D, N and k."""
    path = choose_path(shape)
    if shape.capability == 0:
        return interpreted(shape, path)
    entry = next(e for e in TABLE if shape.capability >= e.capability and shape.N <= e.N)
    return fitted(shape, path, entry.blocks)


def choose_path(shape: Shape) -> str:
    """Every pair at once where the tiles would not pay: tiny problems, k near N, float64."""
    if shape.dtype == "float64" or 4 * shape.wanted >= shape.N:
        return "direct"
    tiny = 1 << 21 if shape.capability == 0 else 1 << 27
    return "direct" if shape.B * shape.N * shape.D <= tiny else "tiles"


def fitted(shape: Shape, path: str, table: dict[str, int]) -> Blocks:
    """Blocks for a GPU: what the table says, and as many queries at a time as 8192 numbers in registers allow."""
    numbers = 4096 if shape.dtype == "float64" else 8192
    row_d = min(max(power_of_two(shape.D), 64), numbers)
    rows = min(16, numbers // row_d)
    select = min(4096, max(64, power_of_two(min(shape.N, table.get("first_step", shape.N)))))
    return Blocks(
        path,
        rows=rows,
        row_d=row_d,
        together=max(1, min(16, 2 * numbers // (rows * row_d))),
        sort=min(64, 128 // rows),
        select=select,
        select_rows=max(1, 8192 // select),
        slab_block=min(max(64, power_of_two(shape.N)), max(64, numbers // 2 // rows)),
        list_block=min(capacity(shape.wanted, path), numbers // rows),
        direct_b=16 if shape.dtype != "float64" else 8,
        **table,
    )


def interpreted(shape: Shape, path: str) -> Blocks:
    """Few and large blocks: in the interpreter an operation costs tens of microseconds, whatever its size."""
    D = power_of_two(shape.D)
    row_d = min(D, 8192)
    rows = min(power_of_two(shape.B), max(1, (1 << 17) // row_d), 128)
    columns = power_of_two(shape.N)
    direct_d = min(D, 64)
    direct_b = min(power_of_two(shape.B), 32)
    cap = capacity(shape.wanted, path)
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
        together=max(1, min(cap, (1 << 18) // (rows * row_d))),
        sort=min(cap, 64 if rows > 64 else 128),
        select_rows=min(power_of_two(shape.B), 256),
        select=min(columns, 4096),
        slab_block=min(columns, 4096),
        list_block=min(cap, 1024),
        loss_block=min(power_of_two(shape.B), 4096),
        slab=1 << 22,
    )


# ------------------------------------------------------------------------------------------------- sizes


def capacity(wanted: int, path: str) -> int:
    """Candidates a query has room for.

    Direct: every place beyond `wanted` lets the search for the threshold end earlier. Tiles: room for what low
    precision cannot tell apart, and for a step's new candidates before the threshold is lowered.
    """
    return power_of_two(max(4 * wanted, 64) if path == "tiles" else max(wanted + wanted // 4, 32))


@dataclass(frozen=True)
class Sizes:
    """How a problem is cut up so that the workspace is bounded, in rows."""

    panel: int  # queries at a time
    first_step: int  # references whose keys go through the slab
    chunk: int  # references packed at a time
    slab: int  # entries of the slab
    columns: int  # of the packed matrices: D, up to a multiple of the tile's


def sizes(shape: Shape, blocks: Blocks) -> Sizes:
    """At most blocks.slab entries of the slab and of the lists, at most blocks.packed packed features of x and of y.

    Unless a single row needs more; then that.
    """
    columns = -(-shape.D // blocks.tile_d) * blocks.tile_d
    if blocks.path == "direct":
        panel = max(1, min(shape.B, blocks.slab // shape.N))
        return Sizes(panel, shape.N, shape.N, panel * shape.N, columns)
    chunk = max(blocks.tile_n, blocks.packed // columns // blocks.tile_n * blocks.tile_n)
    chunk = min(chunk, shape.N)
    first_step = min(max(blocks.first_step, 2 * shape.wanted), chunk)
    lists = 2 * capacity(shape.wanted, blocks.path)
    panel = min(shape.B, blocks.slab // first_step, blocks.slab // lists, max(blocks.packed // columns, 128))
    panel = max(1, panel)
    return Sizes(panel, first_step, chunk, max(panel * first_step, shape.N), columns)


def setup_for(shape: Shape, blocks: Blocks, **modes: Any) -> Setup:
    """What the kernels are compiled for; `modes` are the fields of Setup that the call decides."""
    size = sizes(shape, blocks)
    once = size.chunk == shape.N
    return Setup(
        **{f.name: getattr(blocks, f.name) for f in fields(Blocks)},
        cap=capacity(shape.wanted, blocks.path),
        append=size.first_step < shape.N,
        shared=once and bool(modes.get("same")),
        once=once,
        wide=shape.dtype == "float64",
        one_chunk=blocks.row_d >= shape.D,
        cover=blocks.select >= size.first_step,
        cover_all=blocks.slab_block >= shape.N,
        **modes,
    )
