"""The stages of a plan that computes every pair in dense tiles, as the counting model sees them.

As counted_stages.py, to be adapted when csrc/cuda/dense.h or select.h is rewritten; what their teams share with others
is in counted_teams.py. Tiles and selections are counted
one after another, though by rounds.h blocks without a tile select meanwhile: the sum is what it takes where nothing
hides behind anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks import counted_machine as machine
from benchmarks.counted_model import Part, Segment, Shape, Stage, Times, Work, spread
from benchmarks.counted_stages import IN_L2, SCAN, UNALIGNED, VECTOR, WARP, team_threads, warps
from benchmarks.counted_teams import by_teams, gradient, sorting

DOUBLE = 8  # bytes of a pair's squared distance
SLAB = 32  # columns in shared memory at a time, as float32: kSlab in dense.h
GROUPS = SLAB // 4  # of four columns
MOST = 16  # slabs that are added up in float32: kMost
BINS = 128  # of select.h
BETWEEN = 52 - 7  # places by which bits are shifted to be one of 128 bins, if distances span a factor of two


def floor(shape: Shape) -> float:
    """Milliseconds: two instructions a pair and column of all lanes, and the rows of the gradient once from HBM.

    Not that of counted_model.Shape, which has tensor cores multiply: these tiles are differences, and of the rows of
    neighbours only the gradient's are read again.
    """
    lanes = WARP * machine.RATES["issue"] * machine.MULTIPROCESSORS * machine.CLOCK
    gathered = shape.B * shape.k * shape.D * shape.item
    return 1e3 * (2 * shape.B * shape.N * shape.D / lanes + gathered / machine.HBM)


# ------------------------------------------------------------------------------------------------- rounds


def rounds(plan: dict[str, int], segments: list[Segment]) -> dict[str, int]:
    """Queries and references of a round, in whole blocks, from the first one's jobs: enter() of csrc/cuda/rounds.h.

    A selection takes a query for each team, and teams divide a block; tiles are as many across as there are blocks of
    references, for each block of queries. The first round is a full one.
    """
    first = {segment.job: segment.jobs for segment in reversed(segments)}
    down = math.ceil(first["select"] * plan["teams"] / plan["block"])
    across = first["dense"] // down
    return {"dense_rows": down * plan["block"], "dense_references": across * plan["block"]}


def stretch(work: Work) -> int:
    """Of the references, which is this round's: Rounds::first."""
    return work.segment.step % math.ceil(work.shape.N / work.plan["dense_references"])


def references(work: Work) -> int:
    """Of the round."""
    return min(work.plan["dense_references"], work.shape.N - stretch(work) * work.plan["dense_references"])


# ------------------------------------------------------------------------------------------------- tiles


def slabs(work: Work) -> int:
    return math.ceil(work.shape.D / SLAB)


def flushes(work: Work) -> int:
    """Times that a tile's sums go to the buffer in global memory."""
    return math.ceil(slabs(work) / MOST)


def each_warp(times: Callable[[Work], float]) -> Callable[[Work], Times]:
    """`times` of every warp, for a tile."""
    return lambda work: spread(warps(work), warps(work), times(work))


def tile_bytes(work: Work) -> float:
    """That a tile reads: both sides' rows, and its sums of the columns before."""
    block = work.plan["block"]
    return 2 * block * work.shape.D * work.shape.item + (flushes(work) - 1) * block**2 * DOUBLE


UNDERFLOW = r"0x80000000"  # -0, that marks pairs whose squares may have vanished
LIFTED = r".*1\.2676506\d*e\+30"  # the product that is taken again of those

DENSE = Stage(
    "dense",
    ("dense",),
    (
        Part(
            "four columns of a tile",
            "product",
            r"FFMA",
            each_warp(lambda w: slabs(w) * GROUPS),
            lacks=LIFTED,
            under="run",
            avoid=UNALIGNED,
            done=lambda w: 1 - 1 / slabs(w),  # the last slab is followed by none to stage
            most=lambda w: False,
            pattern=4,  # a vector load takes four wavefronts, none of which merge; the scalar stores one
        ),
        Part(
            "a slab's sums",
            "product",
            r"F2F\.F64\.F32",
            each_warp(slabs),
            lacks=r"DFMA",  # what is added of the lifted ones
            under="run",
            avoid=UNDERFLOW,
            done=lambda w: flushes(w) / slabs(w),
            outer=True,
            pattern=4,
        ),
        Part(
            "stage the first slab",
            "product",
            VECTOR,
            each_warp(lambda w: GROUPS),
            lacks=r"FFMA",
            per=VECTOR,
            under="run",
            avoid=UNALIGNED,
            pattern=4,
        ),
    ),
    loaded=tile_bytes,
)

# ------------------------------------------------------------------------------------------------- selection


def fresh(work: Work) -> float:
    """1 in a query's first stretch, whose nearest are bounded by bins; later ones have those found before."""
    return 1.0 if stretch(work) == 0 else 0.0


def loads(work: Work) -> float:
    """Of a thread that looks at its share of a row: eight at a time."""
    return 8 * math.ceil(references(work) / (8 * team_threads(work)))


def found(work: Work) -> float:
    """Of a stretch, what is not beyond the bound: the last bin is full beyond what is wanted."""
    return min(references(work), work.shape.wanted + references(work) / BINS)


def passing(work: Work) -> float:
    """Of a look at 32 distances, how likely it is that some are taken."""
    seen = (stretch(work) + 1) * work.plan["dense_references"]
    share = found(work) / references(work) if fresh(work) else work.shape.wanted / seen
    return 1 - (1 - min(share, 1.0)) ** WARP


def sorted_lists(work: Work) -> list[float]:
    """Lengths of a query's list when it is sorted; in a later stretch, whenever there may be no room for more."""
    if fresh(work):
        return [found(work)]
    return [found(work)] * math.ceil(references(work) / (work.plan["room"] - work.shape.wanted))


LOAD = r"LDG\.E\.64"

SELECT = Stage(
    "select",
    ("select",),
    (
        Part(
            "range of a row",
            "each",
            LOAD,
            by_teams(lambda w: fresh(w) * loads(w)),
            lacks=r"ATOMS",
            per=LOAD,
            under="split_row",
        ),
        Part("width of a bin", "split_row", r"SHF\.R\.U64", by_teams(lambda w: fresh(w) * BETWEEN), lacks=r"LDG"),
        # Lanes that count in one bin go together; four of the others, by the stated pattern, ask one bank.
        Part("count in bins", "each", LOAD, by_teams(lambda w: fresh(w) * loads(w)), per=LOAD, under="count_bins"),
        Part("which bin", "split_row", r"SHFL\.UP", by_teams(fresh), outer=True),
        Part(
            "nearest to the list",
            "each",
            LOAD,
            by_teams(loads),
            per=LOAD,
            under="gather_nearest",
            avoid=r"BREAK",  # looks at the last of a list that was cut
            done=passing,
        ),
        *sorting("select_job", sorted_lists),
    ),
    # The range, the bins and the list each read the row.
    loaded=lambda w: w.plan["teams"] * (1 + 2 * fresh(w)) * references(w) * DOUBLE,
)


def last(work: Work) -> float:
    """1 in the stretch after which a query's neighbours are known."""
    return 1.0 if (stretch(work) + 1) * work.plan["dense_references"] >= work.shape.N else 0.0


def left_in_l2(work: Work) -> float:
    """Bytes beside two rounds of distances."""
    return IN_L2 - 2 * work.plan["dense_rows"] * work.plan["dense_references"] * DOUBLE


STAGES = (SCAN, DENSE, SELECT, gradient("select", "select_job", last, left_in_l2))
ROOTS = ("scan_rows", "product", "select_job")  # whose loops are a stage's
