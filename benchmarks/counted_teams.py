"""What teams do with lists where every pair is computed, as the counting model sees it: sorts, LIDs and the gradient.

Of counted_dense.py and counted_direct.py; to be adapted when csrc/cuda/team.h or estimate.h is rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.counted_model import Part, Stage, Times, Work, spread
from benchmarks.counted_stages import RANKED, UNALIGNED, WARP, team_threads, team_warps

GATHERED = 8  # columns of a thread in gather, estimate.h


def queries(work: Work) -> int:
    """Of a job: one for each team, or a few."""
    return work.plan["teams"] * work.plan["together"]


def by_teams(each: Callable[[Work], float]) -> Callable[[Work], Times]:
    """`each` of a query, times for each warp of its team; a job is a query for each team, or a few: `together`."""
    return lambda work: spread(queries(work), work.plan["teams"], each(work), team_warps(work))


def ranked(work: Work, n: float) -> bool:
    """Whether a list of n is sorted by ranks, by a network else: team.h."""
    return n <= min(RANKED, work.plan["room"] // 2)


def passes(n: float) -> float:
    """Of the bitonic network."""
    steps = math.ceil(math.log2(max(n, 2)))
    return steps * (steps + 1) / 2


def sorting(under: str, lists: Callable[[Work], list[float]]) -> tuple[Part, ...]:
    """Sorts of a query's lists, of these lengths."""

    def by_ranks(work: Work) -> float:
        """Items that a thread holds against its own."""
        return sum(math.ceil(n / team_threads(work)) * n for n in lists(work) if ranked(work, n))

    def by_network(work: Work, each: Callable[[float], float]) -> float:
        return sum(passes(n) * each(n) for n in lists(work) if not ranked(work, n))

    def pairs(work: Work) -> float:
        """Of a thread."""
        return by_network(work, lambda n: 2 ** math.ceil(math.log2(n)) / 2 / team_threads(work))

    return (
        Part(
            "a pair of the sort, by ranks",
            "sort_by_rank",
            r"LDS",
            by_teams(by_ranks),
            per=r"LDS\.64",
            under=under,
        ),
        Part(
            "a pair of the sort, by a network",
            "sort",
            r"STS",
            by_teams(pairs),
            lacks=r"BAR",
            under=under,
            done=lambda w: 0.5,
        ),
        Part(
            "a pass of the network",
            "sort",
            r"BAR",
            by_teams(lambda w: by_network(w, lambda n: 1.0)),
            under=under,
            most=lambda w: False,  # a look of gather_nearest holds most of a sort, too
            outer=True,
        ),
    )


def pieces(work: Work) -> int:
    """Of the columns, that a team's threads hold at once."""
    return math.ceil(work.shape.D / (GATHERED * team_threads(work)))


def gradient(job: str, under: str, last: Callable[[Work], float], left: Callable[[Work], float]) -> Stage:
    """What a query asks for beyond its neighbours, in the jobs that found them.

    `last`: 1 where they are known, else 0. `left`: bytes of L2 for references.
    """

    def of_query(each: Callable[[Work], float]) -> Callable[[Work], Times]:
        return by_teams(lambda work: last(work) * each(work))

    def read_again(work: Work) -> float:
        """Bytes of references that come from HBM: by chance in L2, as far as they fit."""
        size = work.shape.D * work.shape.item
        rows = last(work) * min(work.shape.B, work.segment.jobs * queries(work)) * work.shape.k
        return rows * size * max(0.0, 1 - max(0.0, left(work)) / (work.shape.N * size))

    return Stage(
        "gradient",
        (job,),
        (
            Part(
                "a reference's part",
                "gather",
                r"FFMA",
                of_query(lambda w: pieces(w) * w.shape.k),
                under=under,
                avoid=UNALIGNED,
                lacks=r"ST\.E",
            ),
            Part(
                "32 neighbours' weights",
                "gather",
                r"VOTE",
                of_query(lambda w: pieces(w) * math.ceil(w.shape.k / WARP)),
                under=under,
                outer=True,
            ),
            Part(
                "a piece of the gradient",
                "gather",
                r"ST\.E",
                of_query(pieces),
                under=under,
                outer=True,
                lacks=r"VOTE",
            ),
            Part(
                "x",
                "load_query",
                r"STS",
                of_query(lambda w: math.ceil(w.shape.D / (4 * team_threads(w)))),
                under=under,
                avoid=UNALIGNED,
            ),
            Part(
                "a share of a LID",
                "team_lid",
                r"DFMA",
                of_query(lambda w: sum(math.ceil(k / team_threads(w)) for k in (w.shape.k, *w.shape.track))),
                under=under,
            ),
            Part(
                "largest weight",
                "weigh",
                r"DFMA",
                of_query(lambda w: math.ceil(w.shape.k / team_threads(w))),
                lacks=r"STS",
                under=under,
            ),
            Part(
                "weights",
                "weigh",
                r"STS",
                of_query(lambda w: math.ceil(w.shape.wanted / team_threads(w))),
                under=under,
            ),
        ),
        loaded=lambda w: last(w) * queries(w) * (w.shape.k + 1) * w.shape.D * w.shape.item,
        memory=read_again,
        same_jobs=True,
    )
