"""The stages of a plan that computes every pair query by query, as the counting model sees them: small problems.

As counted_stages.py, to be adapted when csrc/cuda/direct.h is rewritten. Teams are counted as if each had as many
queries as it has room for, and every reference as if it joined their lists.
"""

from __future__ import annotations

import math

from benchmarks.counted_model import Part, Stage, Times, Work
from benchmarks.counted_stages import IN_L2, RARE, SCAN, UNALIGNED, WARP, team_warps
from benchmarks.counted_teams import gradient, queries, sorting

VALUES = 16  # columns of a lane: kDirectValues
MOST_TOGETHER = 4  # queries: kMostTogether


def references(work: Work, each: float) -> Times:
    """`each` for every reference and team, one by one among the team's warps."""
    longest = math.ceil(work.shape.N / team_warps(work)) * each
    return Times(work.plan["teams"] * work.shape.N * each, longest)


def others(work: Work) -> float:
    """Queries beside the first, of as many as there may be."""
    return (work.plan["together"] - 1) / (MOST_TOGETHER - 1)


def sorted_lists(work: Work) -> list[float]:
    """Lengths of a query's list when it is sorted: after rounds that may have filled it, and in the end."""
    wanted, look = work.shape.wanted, work.plan["room"] - work.shape.wanted
    lists: list[float] = []
    kept = 0.0
    for first in range(0, work.shape.N, look):
        taken = min(look, work.shape.N - first)
        length = kept + taken * (min(1.0, wanted / first) if kept == wanted else 1.0)
        if length > wanted:
            lists.append(length)
        kept = min(length, wanted)
    return [*lists, kept]


DIRECT = Stage(
    "direct",
    ("direct",),
    (
        Part(
            "columns of a reference",
            "offer",
            r"FFMA",
            lambda w: references(w, math.ceil(w.shape.D / (VALUES * WARP))),
            under="direct_job",
            avoid=f"{UNALIGNED}|{RARE}",
            done=others,
        ),
        Part("a reference", "offer", r"SHFL", lambda w: references(w, 1), under="direct_job", done=others, outer=True),
        *sorting("direct_job", sorted_lists),
    ),
    loaded=lambda w: w.plan["teams"] * w.shape.N * w.shape.D * w.shape.item + queries(w) * w.shape.D * w.shape.item,
)

STAGES = (SCAN, DIRECT, gradient("direct", "direct_job", lambda w: 1.0, lambda w: IN_L2))
ROOTS = ("scan_rows", "direct_job")  # whose loops are a stage's
