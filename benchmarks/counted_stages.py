"""The stages of the CUDA backend for Hopper, as the counting model sees them: which loops, how often, how many bytes.

The one file to adapt when a stage is rewritten. A part is found by the functions its loop is made of (as the
compiler's line table names them) and by an instruction it holds, never by addresses or lines. How often it runs
follows from the shape and from the plan's numbers; what only data can tell is estimated, and said so here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.counted_model import Part, Stage, Times, Work, spread

WARP = 32
HALVINGS = 16  # of split_keys: 8 through the exponents that keys span, and 8 to tell 64 of a few hundred apart
QUEUE = 256  # of a warp, in tile.h
UNALIGNED = r"LDG\.E(\.U16)? R\d+, desc"  # single features


def warps(work: Work) -> int:
    return work.plan["threads"] // WARP


def vectors(work: Work) -> float:
    """Reads of four features a lane, that a row takes a warp."""
    return math.ceil(work.shape.D / (4 * WARP))


def rows_of(work: Work, each: str) -> int:
    """Rows of a job."""
    rows = work.shape.B if work.segment.job in ("pack queries", "compact") else work.shape.N
    return min(work.plan[each], rows)


# ------------------------------------------------------------------------------------------------- scan and pack

VECTOR = r"LDG\.E\.(128|64) "

SCAN = Stage(
    "scan",
    ("scan",),
    (
        Part(
            "scan a row",
            "scan_rows",
            VECTOR,
            lambda w: spread(w.plan["scan_rows"], warps(w), vectors(w)),
            per=VECTOR,
            avoid=UNALIGNED,
        ),
    ),
    loaded=lambda w: w.plan["scan_rows"] * w.shape.D * w.shape.item,
    memory=lambda w: (w.shape.N + (0 if w.shape.same else w.shape.B)) * w.shape.D * w.shape.item,
)

PACK = Stage(
    "pack",
    ("pack references", "pack queries"),
    (
        Part(
            "pack a row",
            "pack_rows",
            VECTOR,
            lambda w: spread(rows_of(w, "pack_rows"), warps(w), vectors(w)),
            per=VECTOR,
            avoid=UNALIGNED,
            near=r"LD\.E",  # the centre
        ),
        Part("end of a row", "pack_rows", r"SHFL", lambda w: spread(rows_of(w, "pack_rows"), warps(w)), outer=True),
    ),
    loaded=lambda w: (
        rows_of(w, "pack_rows") * w.shape.D * (w.shape.item + 4 + 2)
    ),  # the row, the centre, the packed row
    memory=lambda w: (
        w.segment.jobs * w.plan["pack_rows"] * w.shape.D * w.shape.item if w.shape.N * w.shape.D > 1 << 23 else 0.0
    ),
)

# ------------------------------------------------------------------------------------------------- tiles

MATRIX_WARPS, SELECTION_WARPS = 16, 3


def products(work: Work) -> float:
    """Multiply-adds of a tile."""
    return work.plan["block"] ** 2 * work.plan["width"] * work.plan["columns"]


def directions(work: Work) -> int:
    return 2 if work.plan["symmetric"] else 1


def hit(work: Work) -> float:
    """Chance that a product of one of a warp's 32 lanes passes."""
    return 1 - (1 - work.rate) ** WARP


def windows(work: Work) -> float:
    """Times that a warp goes through its products to fill its queue."""
    return math.ceil(work.rate * 64 * WARP / QUEUE) if work.rate > 0.1 else 1


def drained(work: Work) -> float:
    """Hits of a tile and direction that the selecting warps append."""
    return min(work.rate * work.plan["block"] ** 2 * work.plan["width"], MATRIX_WARPS * QUEUE)


TILES = Stage(
    "tiles",
    ("tiles",),
    (
        Part(
            "product",
            "multiply",
            r"HGMMA",
            lambda w: spread(MATRIX_WARPS, MATRIX_WARPS, 4 * w.plan["columns"] / 64),
            per=r"HGMMA",
            phase="product",
        ),
        Part(
            "sides and filter",
            "multiply",
            r"BAR",
            lambda w: spread(MATRIX_WARPS, MATRIX_WARPS),
            done=lambda w: 0.1 if w.segment.step == 0 else 1.0 if w.plan["symmetric"] else 0.55,
            outer=True,
            phase="filter",
        ),
        Part(
            "hits to the queue",
            "push_hits",
            r"STS",
            lambda w: spread(MATRIX_WARPS, MATRIX_WARPS, windows(w) * directions(w)),
            under="multiply",
            done=hit,
            outer=True,
            phase="filter",
            pattern=8,
        ),
        Part(
            "full queues to the lists",
            "drain",
            r"ATOM",
            lambda w: spread(MATRIX_WARPS, MATRIX_WARPS, (windows(w) - 1) * directions(w) * QUEUE / WARP),
            per=r"ATOM",
            under="multiply",
            phase="filter",
            pattern=8,
        ),
        Part(
            "queues to the lists",
            "drain",
            r"ATOM",
            lambda w: spread(SELECTION_WARPS, SELECTION_WARPS, drained(w) * directions(w) / (SELECTION_WARPS * WARP)),
            under="select",
            phase="selection",
            pattern=8,
        ),
    ),
    loaded=lambda w: (1 + w.plan["width"]) * w.plan["block"] * w.plan["columns"] * 2,
    copied=True,
    multiplied=products,
    beside=("selection",),
)

# ------------------------------------------------------------------------------------------------- compaction


def compacted(each: float = 1.0, entries: bool = True) -> Callable[[Work], Times]:
    """`each` time for the 32 candidates of a warp's look at a list, or for a list."""

    def times(work: Work) -> Times:
        looks = math.ceil(work.listed / WARP) if entries else 1
        return spread(rows_of(work, "compact_rows"), min(warps(work), work.plan["compacting"]), each * looks)

    return times


LIST = r"LD\.E"

COMPACT = Stage(
    "compact",
    ("compact",),
    (
        Part("keys of a list", "compact_list", r"STS", compacted(), per=r"STS"),
        Part("range of the keys", "split_keys", r"VIMNMX|VIADDMNMX", compacted(), per=r"LDS"),
        Part("halve", "split_keys", r"REDUX", compacted(HALVINGS, entries=False), outer=True),
        Part("count below", "split_keys", r"LDS", compacted(HALVINGS), per=r"LDS"),
        Part("largest error", "compact_list", r"FMNMX", compacted(), per=r"LDS"),
        Part("keep what passes", "compact_list", r"VOTE|POPC", compacted(), per=r"VOTE"),
        Part("a list", "compact_list", r"MUFU", compacted(entries=False), outer=True),
    ),
    loaded=lambda w: rows_of(w, "compact_rows") * w.listed * (8 + 8),
)

# ------------------------------------------------------------------------------------------------- rows


def team_warps(work: Work) -> int:
    return work.plan["team_threads"] // WARP


def queries(work: Work) -> int:
    """Of a job."""
    return work.plan["teams"] * work.plan["query_share"]


def by_teams(each: Callable[[Work], float]) -> Callable[[Work], Times]:
    """`each` of a query, times for each warp of its team."""
    return lambda work: spread(queries(work), work.plan["teams"], each(work), team_warps(work))


def pieces(work: Work) -> int:
    """Reads of four features a thread, that a row takes a team."""
    return math.ceil(work.shape.D / (4 * work.plan["team_threads"]))


def pairs(work: Work) -> float:
    """Compared by a warp in two sorts of a list, the second of which finds it all but sorted by keys."""
    size = 2 ** math.ceil(math.log2(max(work.kept, 2)))
    passes = math.log2(size) * (math.log2(size) + 1) / 2
    return 2 * passes * size / 2 / work.plan["team_threads"]


def wide(work: Work) -> bool:
    return 4 * work.plan["team_threads"] < work.shape.D


RARE = r"1\.2676506\d*e\+30|" + UNALIGNED  # squares that would vanish

ROWS = Stage(
    "rows",
    ("rows",),
    (
        Part(
            "a reference: loads, differences",
            "evaluate",
            VECTOR,
            by_teams(lambda w: w.kept * pieces(w)),
            per=VECTOR,
            under="rows_job",
            avoid=RARE,
            most=wide,
        ),
        Part(
            "a reference: its sum",
            "evaluate",
            r"STS\.128",
            by_teams(lambda w: w.kept * pieces(w)),
            per=r"STS\.128",
            under="rows_job",
            most=wide,
        ),
        Part(
            "a reference: its distance",
            "evaluate",
            r"BAR",
            by_teams(lambda w: w.kept / (1 if wide(w) else 2)),
            under="rows_job",
            outer=True,
            most=wide,
        ),
        Part("a pair of the sorts", "sort", r"LDS\.64", by_teams(pairs), under="rows_job", done=lambda w: 0.5),
        Part(
            "a share of the LID",
            "team_lid",
            r"DFMA",
            by_teams(lambda w: w.shape.wanted / 128),
            under="rows_job",
            done=lambda w: 0.1,
        ),
        Part("weights", "weigh", r"DFMA", by_teams(lambda w: w.kept / 128), under="rows_job", done=lambda w: 0.5),
        Part(
            "gather: look at a neighbour",
            "gather",
            VECTOR,
            by_teams(lambda w: w.kept * math.ceil(w.shape.D / 1024)),
            under="rows_job",
            avoid=UNALIGNED,
            done=lambda w: 0.05,
        ),
        Part("a query", "rows_job", r"BAR", by_teams(lambda w: 1.0), outer=True, done=lambda w: 0.3),
    ),
    loaded=lambda w: queries(w) * (w.kept + 3) * w.shape.D * w.shape.item,
    memory=lambda w: (
        0.0
        if w.shape.N * w.shape.D * w.shape.item < 40e6
        else w.shape.B * w.kept * w.shape.D * w.shape.item / w.plan["panels"]
    ),
)

STAGES = (SCAN, PACK, TILES, COMPACT, ROWS)
ROOTS = (
    "scan_rows",
    "centre_columns",
    "pack_rows",
    "multiply",
    "select",
    "compact_list",
    "rows_job",
)  # whose loops are a stage's
