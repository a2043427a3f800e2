"""What the Triton kernels are compiled for, and the table that chooses it by (B, N, D, k, dtype, capability).

`Blocks` is what may be tuned, `Setup` adds what the call asks for; both are plain data, so this file needs no Triton.
The shipped table is calculated (benchmarks/NOTES.md), not measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Blocks:
    """Block shapes: a choice of these changes speed, and the last bits of sums."""

    path: str  # "tiles" or "direct", see triton_fused.py
    num_warps: int = 8
    # tensor-core tile
    tile_b: int = 128
    tile_n: int = 128
    tile_d: int = 64
    stages: int = 3
    in_place: bool = False  # pairs that pass are appended from the registers they are in, see triton_append.py
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
    ahead: int = 1  # rounds of references that are fetched or at work; beyond 1 they wait in shared memory
    sort: int = 64  # candidates
    # selection from a slab or a list
    select_rows: int = 4
    select: int = 2048
    slab_block: int = 2048
    list_block: int = 256
    loss_block: int = 1024
    # the workspace
    append: bool = False  # candidates are appended to lists step by step; else all keys of a panel go to the slab
    words: int = 31 << 19  # four bytes each


@dataclass(frozen=True)
class Setup(Blocks):
    """Everything that a kernel is compiled for."""

    fused: bool = True
    cap: int = 256  # candidates a query has room for
    same: bool = False  # the references are the queries
    shared: bool = False  # ... and one packed copy serves as both
    once: bool = True  # all references are packed at once
    self_kind: int = 0
    wide: bool = False  # float64
    exact: bool = True
    one_chunk: bool = True  # row_d >= D
    cover: bool = True  # select >= N
    cover_all: bool = True  # slab_block >= N
    drop: int = 0
    knn: bool = False
    estimator: int = 0
    track: tuple[int, ...] = ()  # estimator, k, estimator, k, ...
    gradient: bool = False
    loss: bool = False
    form: int = 0
    reduction: int = 0


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
    blocks: dict[str, Any]


ANY = 1 << 62
SQUARE = {"tile_b": 128, "tile_n": 128, "tile_d": 64, "stages": 4, "append": True}
# First match wins. The tile is wide where the keys only have to be stored, and square where they are filtered too. On
# Blackwell the wide one spills: its sums come from tensor memory all at once. On Ampere the square one spills
# a few bytes where the keys go to a slab.
TABLE = (
    # Consumer Blackwell has the shared memory of its Ampere.
    Entry(120, 8192, {"tile_b": 128, "tile_n": 128, "tile_d": 64, "stages": 3, "rows": 1}),
    Entry(120, ANY, {"tile_b": 128, "tile_n": 128, "tile_d": 32, "stages": 4, "append": True}),
    Entry(100, ANY, SQUARE),
    Entry(90, 8192, {"tile_b": 128, "tile_n": 256, "tile_d": 64, "stages": 3, "together": 4, "ahead": 2}),
    Entry(90, ANY, SQUARE | {"in_place": True, "together": 4, "ahead": 2}),  # which spills on Ampere
    Entry(80, 8192, {"tile_b": 128, "tile_n": 64, "tile_d": 64, "stages": 4, "rows": 1}),
    Entry(80, ANY, {"tile_b": 128, "tile_n": 128, "tile_d": 32, "stages": 4, "append": True}),
)


def choose(shape: Shape) -> Blocks:
    """The blocks for a problem: the shipped table, fitted to D, N and k."""
    path = choose_path(shape)
    if shape.capability == 0:
        return interpreted(shape, path)
    N = shape.N if _packed_words(shape, 64) <= 8 << 20 else ANY  # all keys at once: all references packed at once
    entry = next(e for e in TABLE if shape.capability >= e.capability and N <= e.N)
    return fitted(shape, path, entry.blocks)


def choose_path(shape: Shape) -> str:
    """Every pair at once where the tiles would not pay: tiny problems, k near N, float64."""
    if shape.dtype == "float64" or 4 * shape.wanted >= shape.N:
        return "direct"
    tiny = 1 << 21 if shape.capability == 0 else 1 << 27
    return "direct" if tiny >= shape.B * shape.N * shape.D else "tiles"


def fitted(shape: Shape, path: str, table: dict[str, Any]) -> Blocks:
    """Blocks for a GPU: what the table says, and as many queries at a time as registers allow without spilling.

    All stages of a kernel share the registers of the greediest (benchmarks/NOTES.md, benchmarks/results/).
    """
    tiles = path == "tiles"
    append = tiles and bool(table.get("append"))
    numbers = 4096 if tiles or shape.dtype == "float64" else 8192
    row_d = min(max(power_of_two(shape.D), 64), numbers)
    most = 1 if append or (tiles and shape.wanted > 256) else 4 if tiles or shape.dtype == "float64" else 8
    rows = min(table.get("rows", most) if tiles else most, numbers // row_d)
    select = min(4096, max(64, power_of_two(shape.N)))
    chosen = {
        "rows": rows,
        "row_d": row_d,
        "together": 1 if append else 2,
        "sort": 32,
        "select": select,
        "select_rows": max(1, 4096 // select),
        "slab_block": min(max(64, power_of_two(shape.N)), max(64, numbers // 2 // rows)),
        "list_block": min(capacity(shape.wanted, path, append), numbers // rows),
        "direct_b": 16 if shape.dtype != "float64" else 8,
        "direct_n": 16 if tiles else 32,
        "pack_rows": 4,
        "append": append,
    }
    if tiles and row_d >= shape.D:  # else references come by chunks, in a loop that does not fetch ahead
        chosen["together"] = min(table.get("together", chosen["together"]), 4 * numbers // (rows * row_d))
        chosen["ahead"] = table.get("ahead", 1)
    return Blocks(path, **{**table, "ahead": 1, **chosen})


def interpreted(shape: Shape, path: str) -> Blocks:
    """Few and large blocks: in the interpreter an operation costs a tenth of a millisecond, whatever its size."""
    most = 1 << 20  # numbers in a block: Triton allows no more
    rows_of_x, columns, D = power_of_two(shape.B), power_of_two(shape.N), power_of_two(shape.D)
    row_d = min(D, 8192)
    rows = min(rows_of_x, max(1, (1 << 18) // row_d), 512)
    direct_d, direct_b = min(D, 64), min(rows_of_x, 32)
    append = path == "tiles" and shape.B * shape.N > 1 << 23
    cap = capacity(shape.wanted, path, append)
    select = min(columns, 1 << 15)
    return Blocks(
        path,
        tile_b=min(rows_of_x, 256),
        tile_n=min(max(columns, 8), 1024),
        tile_d=min(max(D, 16), 512),
        direct_b=direct_b,
        direct_n=min(columns, max(1, (1 << 18) // (direct_b * direct_d))),
        direct_d=direct_d,
        pack_rows=min(power_of_two(max(shape.B, shape.N)), 256),
        pack_d=min(D, 1024),
        centre_d=min(D, 512),
        rows=rows,
        row_d=row_d,
        together=max(1, min(cap, most // (rows * row_d), 32)),
        sort=min(cap, 128 if rows <= 64 else 64 if rows <= 256 else 32),
        select_rows=min(rows_of_x, max(1, most // select)),
        select=select,
        slab_block=min(columns, most // rows),
        list_block=min(cap, most // rows),
        loss_block=min(rows_of_x, 4096),
        append=append,
        words=3 << 22,
    )


# ------------------------------------------------------------------------------------------------- sizes


def capacity(wanted: int, path: str, append: bool) -> int:
    """Candidates a query has room for.

    Direct: every place beyond `wanted` lets the search for the threshold end earlier. Tiles: room for what low
    precision cannot tell apart; if lists are appended to, for all of the first step, which has no threshold yet.
    """
    if path == "direct":
        return power_of_two(max(wanted + wanted // 4, 32))
    return power_of_two(max(4 * wanted, 512 if append else 64))


@dataclass(frozen=True)
class Sizes:
    """How a problem is cut up so that the workspace is bounded, in rows."""

    panel: int  # queries at a time
    first_step: int  # references of the first step; the next ones double what has been seen, up to `chunk`
    chunk: int  # references packed at a time
    slab: int  # entries of the slab
    columns: int  # of the packed matrices: D, up to a multiple of the tile's


def spreading_stride(N: int) -> int:
    """A step through N rows that meets each once, far from where it has been: N over the golden ratio, coprime."""
    stride = max(1, int(N * 0.6180339887498949))
    while math.gcd(stride, N) > 1:
        stride += 1
    return stride


def _columns(D: int, tile_d: int) -> int:
    return -(-D // tile_d) * tile_d


def _packed_words(shape: Shape, tile_d: int) -> int:
    return shape.N * _columns(shape.D, tile_d) // 2


def sizes(shape: Shape, blocks: Blocks) -> Sizes:
    """At most blocks.words of workspace, as long as that holds a tile's rows; and what every program needs for its own.

    Appending: a third for lists, a quarter each for packed x and y. Else: all packed references, and keys in what is
    left.
    """
    B, N, columns = shape.B, shape.N, _columns(shape.D, blocks.tile_d)
    if blocks.path == "direct":
        panel = max(1, min(B, blocks.words // 2 // N))
        return Sizes(panel, N, N, panel * N, columns)
    cap = capacity(shape.wanted, blocks.path, blocks.append)
    if not blocks.append:
        left = blocks.words - N * columns // 2
        panel = max(1, min(B, left // (N + 2 * cap + columns // 2)))
        even = -(-B // -(-B // panel))  # as many panels, of one size, in whole tiles
        panel = min(panel, -(-even // blocks.tile_b) * blocks.tile_b)
        return Sizes(panel, N, N, panel * N, columns)
    most = blocks.words // 2 // columns  # rows in a quarter
    chunk = min(N, max(most // blocks.tile_n * blocks.tile_n, blocks.tile_n))
    panel = min(B, max(min(most, blocks.words // 3 // (2 * cap)) // blocks.tile_b * blocks.tile_b, blocks.tile_b))
    return Sizes(panel, min(cap, chunk), chunk, max(N, min(B * N, blocks.words // 6)), columns)


def setup_for(shape: Shape, blocks: Blocks, **modes: Any) -> Setup:
    """What the kernels are compiled for; `modes` are the fields of Setup that the call decides."""
    size = sizes(shape, blocks)
    once = size.chunk == shape.N
    return Setup(
        **{f.name: getattr(blocks, f.name) for f in fields(Blocks)},
        cap=capacity(shape.wanted, blocks.path, blocks.append),
        shared=once and not blocks.append and bool(modes.get("same")),
        once=once,
        wide=shape.dtype == "float64",
        one_chunk=blocks.row_d >= shape.D,
        cover=blocks.select >= shape.N,
        cover_all=blocks.slab_block >= shape.N,
        **modes,
    )
