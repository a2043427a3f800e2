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
RANKED = 128  # entries that are sorted by counting, in team.h
HALVINGS = 16  # of split_keys: 8 through the exponents that keys span, and 8 to tell 64 of a few hundred apart
QUEUE = 4096  # of a block, in tile_stage_hopper.h
IN_L2 = 50e6  # bytes that L2 keeps of what is read at random
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
            lambda w: spread(rows_of(w, "pack_rows"), warps(w), 2 * vectors(w)),  # the row's, and the centre's
            per=VECTOR,
            avoid=UNALIGNED,
        ),
        Part("end of a row", "pack_rows", r"SHFL", lambda w: spread(rows_of(w, "pack_rows"), warps(w)), outer=True),
    ),
    loaded=lambda w: (
        rows_of(w, "pack_rows") * w.shape.D * (w.shape.item + 4 + 2)
    ),  # the row, the centre, the packed row
    memory=lambda w: packed_again(w),
)


def packed_again(work: Work) -> float:
    """Bytes of the rows, where the scan has not left them in L2."""
    size = work.shape.D * work.shape.item
    return work.segment.jobs * work.plan["pack_rows"] * size if work.shape.N * size > IN_L2 else 0.0


# ------------------------------------------------------------------------------------------------- tiles

MATRIX_WARPS, SELECTION_WARPS = 16, 3


def width(work: Work) -> int:
    """Blocks of references in a tile of the step."""
    return 1 if work.segment.step < work.plan["narrow"] else work.plan["width"]


def tile(work: Work) -> int:
    """Pairs of a tile."""
    return work.plan["block"] ** 2 * width(work)


def directions(work: Work) -> int:
    return 2 if work.plan["symmetric"] else 1


def each_tile(times: Callable[[Work], float], workers: int = MATRIX_WARPS) -> Callable[[Work], Times]:
    """`times` of every one of so many warps, for a tile."""
    return lambda work: spread(workers, workers, times(work))


def later(work: Work) -> float:
    """1 but for the first step, which has no thresholds."""
    return 0.0 if work.segment.met == 0 else 1.0


def hits(work: Work) -> float:
    """Of a tile and direction."""
    return later(work) * work.rate * tile(work)


def windows(work: Work) -> int:
    """Times that hits fill the queue."""
    return math.ceil(hits(work) / QUEUE)


def loaded(work: Work) -> float:
    """Bytes of a tile; queries that are kept come once in a run of tiles."""
    block = work.plan["block"] * work.plan["columns"] * 2
    return block * ((1 / work.plan["run"] if work.plan["kept"] else 1) + width(work))


TILES = Stage(
    "tiles",
    ("tiles",),
    (
        Part(
            "product",
            "multiply",
            r"HGMMA",
            each_tile(lambda w: 4 * w.plan["columns"] / 64),
            per=r"HGMMA",
            phase="product",
        ),
        Part(
            "sides, and which pass",
            "multiply",
            r"BAR",
            each_tile(later),
            avoid=r"STG",  # of the first step
            done=lambda w: directions(w) / 2,
            outer=True,
            phase="filter",
        ),
        Part(
            "sides, and keys of the first step",
            "multiply",
            r"BAR",
            each_tile(lambda w: 1 - later(w)),
            avoid=r"POPC|VOTE",  # of later ones
            done=lambda w: directions(w) / 2,
            outer=True,
            phase="filter",
        ),
        Part(
            "hits to the queue",
            "push_hits",
            r"STS",
            each_tile(lambda w: windows(w) * directions(w)),
            under="multiply",
            done=lambda w: 1 - (1 - w.rate) ** (4 * WARP),  # four products of 32 lanes go together
            outer=True,
            phase="filter",
            pattern=8,
        ),
        Part(
            "full queues to the lists",
            "drain",
            r"ATOM",
            each_tile(lambda w: max(windows(w) - 1, 0) * directions(w) * QUEUE / (MATRIX_WARPS * WARP)),
            per=r"ATOM",
            under="multiply",
            phase="filter",
            pattern=8,
        ),
        Part(
            "queues to the lists",
            "drain",
            r"ATOM",
            each_tile(lambda w: min(hits(w), QUEUE) * directions(w) / (SELECTION_WARPS * WARP), SELECTION_WARPS),
            per=r"ATOM",
            under="select",
            phase="selection",
            pattern=8,
        ),
    ),
    loaded=loaded,
    copied=True,
    multiplied=lambda w: tile(w) * w.plan["columns"],
    beside=("selection",),
)

# ------------------------------------------------------------------------------------------------- compaction


def compacted(each: float = 1.0, entries: bool = True) -> Callable[[Work], Times]:
    """`each` time for the 32 candidates of a warp's look at a list, or for a list."""

    def times(work: Work) -> Times:
        looks = math.ceil(work.listed / WARP) if entries else 1
        return spread(rows_of(work, "compact_rows"), min(warps(work), work.plan["compacting"]), each * looks)

    return times


COMPACT = Stage(
    "compact",
    ("compact",),
    (
        # A candidate, and what is known of it.
        Part("candidates of a list", "compact_list", r"LDG?\.", compacted(2), per=r"LDG?\.", pattern=4),
        Part("range of the keys", "split_keys", r"VIMNMX", compacted(), per=r"LDS", pattern=4),
        Part(
            "halve",
            "split_keys",
            r"REDUX",
            compacted(HALVINGS, entries=False),
            outer=True,
            done=lambda w: 0.5,
            pattern=4,
        ),
        Part("count below", "split_keys", r"LDS", compacted(HALVINGS), lacks=r"VIMNMX", per=r"LDS", pattern=4),
        Part("largest error", "compact_list", r"FMNMX", compacted(3), per=r"LDS", pattern=4),  # key, slack, residual
        Part("keep what passes", "compact_list", r"VOTE", compacted(), per=r"VOTE", pattern=4),
        Part("a list", "compact_list", r"MUFU", compacted(entries=False), outer=True, pattern=4),
    ),
    loaded=lambda w: rows_of(w, "compact_rows") * w.listed * (8 + 8),
)

# ------------------------------------------------------------------------------------------------- rows


def team_threads(work: Work) -> int:
    return work.plan["team_threads"]


def team_warps(work: Work) -> int:
    return team_threads(work) // WARP


def queries(work: Work) -> int:
    """Of a job."""
    return work.plan["teams"] * work.plan["query_share"]


def by_teams(each: Callable[[Work], float]) -> Callable[[Work], Times]:
    """`each` of a query, times for each warp of its team."""
    return lambda work: spread(queries(work), work.plan["teams"], each(work), team_warps(work))


def chunks(work: Work) -> int:
    """Pieces of a row that a team holds at once."""
    return math.ceil(work.shape.D / ((8 if narrow(work) else 16) * team_threads(work)))


def narrow(work: Work) -> bool:
    """Whether a turn is of four references, not two: ring.h."""
    return work.shape.D <= 512


def compared(work: Work) -> float:
    """By a warp in two sorts of a list: all with all up to a length, else a network; team.h."""
    n = work.kept
    if n <= RANKED:
        return 2 * math.ceil(n / team_threads(work)) * n
    size = 2 ** math.ceil(math.log2(n))
    passes = math.log2(size) * (math.log2(size) + 1) / 2
    return 2 * passes * size / 2 / team_threads(work)


RARE = r"1\.2676506\d*e\+30|ELECT|ARRIVE"  # squares that would vanish; what one warp of the team does
CONVERSION = r"F2F\.F64\.F32"  # four of them a reference and chunk

ROWS = Stage(
    "rows",
    ("rows",),
    (
        Part(
            "a turn: differences",
            "evaluate",
            CONVERSION,
            by_teams(lambda w: 4 * w.kept * chunks(w)),
            per=CONVERSION,
            under="rows_job",
            avoid=RARE,
            most=narrow,
            outer=True,
        ),
        Part(
            "a turn: distances and sums",
            "evaluate",
            r"SHFL\.IDX",
            by_teams(lambda w: w.kept),
            per=r"SHFL\.IDX",
            under="rows_job",
            avoid=RARE,
            most=narrow,
            outer=True,
        ),
        Part(
            "send for a reference",
            "fill",
            r"UBLKCP",
            lambda w: Times(queries(w) * w.kept * chunks(w), w.plan["query_share"] * w.kept * chunks(w)),
            under="rows_job",
        ),
        Part(
            "a pair of the sorts, by ranks",
            "sort_by_rank",
            r"LDS",
            by_teams(lambda w: compared(w) if w.kept <= RANKED else 0.0),
            per=r"LDS\.64",
            under="rows_job",
        ),
        Part(
            "a pair of the sorts, by a network",
            "sort",
            r"STS",
            by_teams(lambda w: compared(w) if w.kept > RANKED else 0.0),
            lacks=r"BAR",
            under="rows_job",
            done=lambda w: 0.5,
        ),
        Part(
            "a share of the LID",
            "team_lid",
            r"DFMA",
            by_teams(lambda w: w.shape.wanted / team_threads(w)),
            under="rows_job",
            done=lambda w: 0.5,
        ),
        Part(
            "weights",
            "weigh",
            r"DFMA",
            by_teams(lambda w: w.kept / team_threads(w)),
            under="rows_job",
            done=lambda w: 0.5,
        ),
        Part("a query", "rows_job", r"BAR", by_teams(lambda w: 1.0), outer=True, done=lambda w: 0.5),
    ),
    loaded=lambda w: queries(w) * (w.kept + 3) * w.shape.D * w.shape.item,
    copied=True,
    memory=lambda w: read_again(w),
)


def read_again(work: Work) -> float:
    """Bytes of references that come from HBM: by chance in L2, as far as they fit."""
    size = work.shape.D * work.shape.item
    rows = min(work.shape.B, work.segment.jobs * queries(work)) * work.kept
    return rows * size * max(0.0, 1 - IN_L2 / (work.shape.N * size))


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
