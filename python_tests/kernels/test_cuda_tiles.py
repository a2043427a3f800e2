"""What is behind the products, on the machine of python_tests/simt: queues of hits, dense tiles, selection from them.

Small programs (hits.cpp, dense.cpp) run csrc/cuda's own stages on small integers, threads in several orders and some
warps far behind the others, against plain arithmetic; and with mistakes planted in the stages, which have to be found.
"""

from __future__ import annotations

import planted
import pytest
import simulator
from planted import Mistake

SEEDS = (0, 1, 2, 3, 7, 11, 15, 31)  # 0: threads in order; from 3 on warps fall asleep

# The queue of hits where all threads do the same (tile_stage.h), and what is common to both stages (tile.h).
PORTABLE = {
    "numbered before all are counted": Mistake(
        "tile_stage.h",
        "shared.found + kBack);\n    @__syncthreads();@",
        "",
        "the destination of a copy was written",
    ),
    "drained before it is filled": Mistake("tile_stage.h", "@__syncthreads();@\n      drain", "", "counted"),
    "filled while it is drained": Mistake("tile_stage.h", "kThreads);\n      @__syncthreads();@", "", "counted"),
    "counter of one direction not reset": Mistake(
        "tile_stage.h", "if (@thread_id() < 2@) shared", "thread_id() < 1", "counted"
    ),
    "sides read before they are there": Mistake("tile_stage.h", "@__syncthreads();@\n    const Sums", "", "wrong"),
    "tile done before its keys are placed": Mistake("tile_stage.h", "memory);\n    @__syncthreads();@", "", "lost"),
    "the same hits in every window": Mistake("tile_stage.h", "@mine - window@", "mine", "counted"),
    "drained beyond its end": Mistake("tile_stage.h", "@smaller(total - window, kQueue)@", "kQueue", "counted"),
    "one beyond the list's room": Mistake(
        "tile.h", "if (@place[i] >= unsigned(a.plan.cap)@)", "place[i] > unsigned(a.plan.cap)", "wrong"
    ),
    "lanes numbered alike": Mistake("tile.h", "+ @before - mine@;", "0", "counted"),
    "hits for columns given to rows": Mistake("tile.h", "return @where & kToColumn@ ?", "false", "counted"),
}

# The same between the warps of Hopper's stage.
HOPPER = {
    "numbered before all are counted": Mistake("tile_stage_hopper.h", "@matrix_barrier();@\n    int n", "", "counted"),
    "counter not reset": Mistake("tile_stage_hopper.h", "@shared.found[(queue.n + 2) % 3] = 0;@", "", "counted"),
    "counter reset while it is read": Mistake(
        "tile_stage_hopper.h", "@shared.found[(queue.n + 2) % 3] = 0;@", "shared.found[queue.n % 3] = 0;", "counted"
    ),
    "counter reset while it counts": Mistake(
        "tile_stage_hopper.h",
        "@shared.found[(queue.n + 2) % 3] = 0;@",
        "shared.found[(queue.n + 1) % 3] = 0;",
        "counted",
    ),
    "filled while it is drained": Mistake(
        "tile_stage_hopper.h",
        "@mbarrier_wait(shared.queue_empty + queue.at(), queue.parity() ^ 1);@",
        "",
        "no progress",
    ),
    "released while a lane drains it": Mistake(
        "tile_stage_hopper.h", "thread, threads);\n        @__syncwarp();@", "", "wrong"
    ),
    "drained before it is filled": Mistake(
        "tile_stage_hopper.h", "@mbarrier_wait(shared.queue_full + queue.at(), queue.parity());@", "", "no progress"
    ),
    "announced before all lanes have filled it": Mistake(
        "tile_stage_hopper.h", "= n;\n    @__syncwarp();@", "", "counted"
    ),
    "flood drained before it is there": Mistake(
        "tile_stage_hopper.h", "@matrix_barrier();@  // a flood", "", "counted"
    ),
    "flood overwritten while it is drained": Mistake(
        "tile_stage_hopper.h", "kMatrixThreads);\n      @matrix_barrier();@", "", "counted"
    ),
    "the same hits in every flood": Mistake(
        "tile_stage_hopper.h", "@n -= room, place -= room;@", "n -= room;", "counted"
    ),
    "sides read before they are there": Mistake(
        "tile_stage_hopper.h", "side, shared);\n      @matrix_barrier();@", "", "lost"
    ),
    "tile done while others drain": Mistake(
        "tile_stage_hopper.h", "@named_barrier(kSelectionBarrier, threads);@", "", "counted"
    ),
    "hits beyond the queue's room": Mistake(
        "tile.h",
        "if (@unsigned(place) < unsigned(room)@)",
        "unsigned(place) < unsigned(room) + 2",
        "outside of its shared",
    ),
}

# Dense tiles with sums in registers, selection, and the loop over both.
DENSE = {
    "slab replaced while it is read": Mistake(
        "dense.h", "@sync();@  // the slab has been read", "if (last) sync();", "neighbour"
    ),
    "next slab into the one that is read": Mistake(
        "dense.h", "put(at, group, @(s + 1) % 2@, piece)", "s % 2", "neighbour"
    ),
    "first slab read before it is there": Mistake(
        "dense.h", "put(at, p, 0, piece);\n    }\n    @sync();@", "", "neighbour"
    ),
    "rows fetched before they are known": Mistake(
        "dense.h", "@sync();@\n    const int64_t pitch", "if (at.round < 2) sync();", "neighbour"
    ),
    "sums flushed over those before": Mistake(
        "dense.h", "flush<kLifted>(whole, @s >= Shape::kMost@, last", "false", "neighbour"
    ),
    "sums flushed twice": Mistake("dense.h", "@sums.put(q, r, {});@", "", "neighbour"),
    "a slab's sums joined twice": Mistake(
        "dense.h", "four.v[i] += sum[q][r + i], @sum[q][r + i] = 0@", "0", "neighbour"
    ),
    "not flushed when full": Mistake(
        "dense.h", "if (@last || s % Shape::kMost == Shape::kMost - 1@)", "last && false", "neighbour"
    ),
    "underflow looked at by some": Mistake(
        "dense.h", "@sync();@  // the slab has been read", "if (!last) sync();", "deadlock"
    ),
    "both rounds in one buffer": Mistake("dense.h", "a.s.pairs + (@at.round % 2@", "0", "neighbour"),
    "tile over distances in use": Mistake(
        "select.h", "@return wait_for(s + kSelected + parity, at.selected[parity]);@", "return;", "neighbour"
    ),
    "selected before the tiles are done": Mistake(
        "select.h", "@wait_for(s + kDense + parity, at.tiled[parity]);@", "", "neighbour"
    ),
    "selected beside the stretch before": Mistake(
        "select.h", "if (@rounds.stretches() > 1@) wait_for", "false", "neighbour"
    ),
    "job done before all threads are": Mistake("ldreg_kernel.h", "at, job);\n    @__syncthreads();@", "", "neighbour"),
    "bins counted before they are empty": Mistake("select.h", "bins[b] = 0;\n  @this_team().sync();@", "", "neighbour"),
    "bins read before all have counted": Mistake("select.h", "1);\n  });\n  @this_team().sync();@", "", "neighbour"),
    "bin read before it is found": Mistake(
        "select.h", "    }\n  }\n  @this_team().sync();@\n}\n\n// Bits", "", "deadlock"
    ),
    "length read while the list grows": Mistake("select.h", "@this_team().sync();@  // the count", "", "deadlock"),
    "sorted before all have joined": Mistake("select.h", "= item;\n    });\n    @this_team().sync();@", "", "deadlock"),
    "joined before the list is cut": Mistake(
        "select.h", "words[kCut] = 1;\n    }\n    @this_team().sync();@", "", "deadlock"
    ),
    "joined before the nearest are recalled": Mistake(
        "select.h", "n == a.p.wanted;\n  @this_team().sync();@", "", "deadlock"
    ),
    "length before it is reset": Mistake(
        "select.h", "words()[kCut] = 0;\n  }\n  @this_team().sync();@", "", "deadlock"
    ),
    "list longer than its room": Mistake("select.h", "<= room ? row.n : @room - wanted@", "room", "deadlock"),
}

# The same where 512 of 640 threads compute and sums are parked in shared memory.
PARKED = {
    "parked sums not 0 at first": Mistake("dense.h", "@shared().parked[i][thread_id()] = {};@", "", "neighbour"),
    "barrier of the whole block": Mistake(
        "dense.h", "@named_barrier(15, Shape::kThreads);@", "__syncthreads();", "have ended"
    ),
    "slab replaced while it is read": DENSE["slab replaced while it is read"],
}

PROGRAMS = {
    "mma": ("hits.cpp", PORTABLE, ()),
    "wgmma": ("hits.cpp", HOPPER, ("-DTEST_HOPPER",)),
    "dense": ("dense.cpp", DENSE, ("-DTEST_REAL=float", "-DTEST_THREADS=256")),
    "parked": ("dense.cpp", PARKED, ("-DTEST_REAL=float", "-DTEST_THREADS=512")),
    "double": ("dense.cpp", {}, ("-DTEST_REAL=double", "-DTEST_THREADS=256")),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """By name; compiled when asked for, once."""
    if simulator.unavailable_reason() is not None:
        pytest.skip(simulator.unavailable_reason())
    built = {}

    def program(name: str) -> planted.Program:
        if name not in built:
            source, mistakes, flags = PROGRAMS[name]
            built[name] = planted.build(tmp_path_factory.mktemp(name), source, mistakes, *flags)
        return built[name]

    return program


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_those_of_plain_arithmetic(programs, name: str) -> None:
    for seed in SEEDS:
        ran = programs(name).run(seed)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("name", "mistake"), [(name, mistake) for name in PROGRAMS for mistake in PROGRAMS[name][1]])
def test_mistake_is_found(programs, name: str, mistake: str) -> None:
    programs(name).finds(mistake, PROGRAMS[name][1][mistake].said, SEEDS)
