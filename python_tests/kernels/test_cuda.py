"""The CUDA backend's own ways: both tile stages, symmetric and one-sided, panels, steps, every pair, rows that fail.

What it computes is judged by the suite over all backends. Here small problems are forced through every way there is;
without a GPU on the simulated machine (python_tests/simulator.py), in several orders of threads.
"""

from __future__ import annotations

from typing import Any

import cases
import garbage
import oracle
import pytest
import torch
from cuda_ways import CUDA, DEVICE, TILES, WAYS, Forced, bits, check, there

import ldreg_kernels as ldk
from ldreg_kernels.kernels import cuda_backend
from ldreg_kernels.kernels.contract import Problem

MISSING = cuda_backend.unavailable_reason()
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=f"backend 'cuda' is unavailable: {MISSING}"),
    pytest.mark.usefixtures("poisoned_memory"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return there(request.param)


@pytest.fixture(params=TILES)
def tiles(request: pytest.FixtureRequest) -> str:
    return there(request.param)


# ------------------------------------------------------------------------------------------------- shapes

# One off a block of 128, an even and an odd number of blocks, several steps
ROWS = [2, 60, 127, 128, 129, 256, 385, 700]


@pytest.mark.parametrize("rows", ROWS)
def test_own_batch(forced: Forced, way: str, rows: int) -> None:
    forced(way)
    check(cases.features(rows, 24), k=min(9, rows - 1))
    assert ("symmetric" in forced.plans[-1]) == (way in TILES)


@pytest.mark.parametrize(("B", "N"), [(1, 200), (3, 129), (130, 640), (300, 1000)])
@pytest.mark.parametrize("self_index", [None, 0, "map"])
def test_other_references(forced: Forced, way: str, B: int, N: int, self_index: Any) -> None:
    forced(way)
    y = cases.features(N, 24, seed=3)
    x = y[:B].clone() if self_index is not None else cases.features(B, 24)
    if self_index == "map":  # some queries are not among the references
        order = torch.randperm(N, generator=cases.seeded(2))[:B]
        x, self_index = y[order].clone(), torch.where(torch.arange(B) % 3 == 1, -1, order)
    check(x, y, k=12, self_index=self_index)
    if way in TILES:
        assert "one-sided" in forced.plans[-1]


@pytest.mark.parametrize("D", [1, 3, 64, 65, 513, 1030, 2049])
def test_widths(forced: Forced, way: str, D: int) -> None:
    """Below and above what a thread holds of a row; rows that are not a multiple of four features wide."""
    forced(way)
    check(cases.normal(140, D)[:40].clone(), cases.normal(140, D), k=10, self_index=0)


# Rows that the copy engine brings (multiples of 16 bytes): by two warps and by four, whole and in chunks
BROUGHT = [
    (2048, "float32"),
    (2056, "float32"),
    (4100, "float32"),
    (24, "bfloat16"),
    (2048, "bfloat16"),
    (520, "float16"),
]


@pytest.mark.parametrize(("D", "dtype"), BROUGHT)
def test_rows_that_the_copy_engine_brings(forced: Forced, D: int, dtype: str) -> None:
    forced(there("wgmma"))
    y = cases.normal(140, D).to(getattr(torch, dtype))
    check(y[:40].clone(), y, k=10, self_index=0)


@pytest.mark.parametrize("D", [20, 600])
@pytest.mark.parametrize("estimator", ["mom_amsaleg", "mle", "hill", "hill_unbiased", "mada"])
def test_estimators(forced: Forced, tiles: str, D: int, estimator: str) -> None:
    """Those whose gradient is summed while distances are taken, and those that gather again."""
    forced(tiles)
    check(cases.normal(130, D)[:40].clone(), cases.normal(130, D), k=10, estimator=estimator, self_index=0)


@pytest.mark.parametrize("k", [1, 2, 60, 138, 139])
def test_any_k(forced: Forced, way: str, k: int) -> None:
    forced(way)
    check(cases.features(140, 16), k=k)


def test_the_largest_k(forced: Forced, way: str) -> None:
    forced(way)
    check(cases.features(12, 8), cases.features(1200, 8, seed=1), k=1024)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("D", [20, 33])
def test_dtypes(forced: Forced, way: str, dtype: torch.dtype, D: int) -> None:
    forced(way)
    check(cases.features(200, D).to(dtype), k=9)


@pytest.mark.parametrize("name", ["strided", "unaligned", "transposed"])
def test_layouts(forced: Forced, way: str, name: str) -> None:
    """The same bits however rows lie in memory."""
    forced(way)
    x = CUDA.put(cases.features(150, 20))
    plain, other = CUDA.knn(x, k=8), CUDA.knn(cases.layouts(x)[name], k=8)
    assert torch.equal(plain.distances, other.distances)
    assert torch.equal(plain.indices, other.indices)


@pytest.mark.parametrize("budget", [1 << 16, 1 << 18])
@pytest.mark.parametrize("same", [True, False])
def test_little_workspace(forced: Forced, tiles: str, budget: int, same: bool) -> None:
    """Panels of queries, references packed step by step into two buffers."""
    forced(tiles, budget=budget)
    y = cases.features(1300, 40, seed=3)
    check(y[:300].clone() if same else cases.features(300, 40), y, k=10, self_index=0 if same else None)
    if budget == 1 << 16:
        assert "packed in steps" in forced.plans[-1]
        assert " 1 panels" not in forced.plans[-1]


def test_macro_blocks(forced: Forced, tiles: str) -> None:
    """An own batch packed in parts: sweeps, tiles that serve both sides, on Hopper queries that stay for a run."""
    columns = {"mma": 64, "wgmma": 128}[tiles]
    forced(tiles, budget=4700 * columns)
    check(cases.features(2100, columns - 20, seed=3), k=10)
    assert "packed in 4 macro-blocks" in forced.plans[-1]
    assert ("queries kept" in forced.plans[-1]) == (tiles == "wgmma")


@pytest.mark.skipif(DEVICE == "cuda", reason="a device with more multiprocessors is simulated")
@pytest.mark.parametrize("same", [True, False])
def test_narrow_tiles(forced: Forced, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as wide where a step has few tiles for the multiprocessors there are: the same neighbours, bit for bit."""
    forced(there("wgmma"))
    y = cases.features(700, 24, seed=3)
    batch = (y, None) if same else (cases.features(200, 24), y)
    wide = bits(CUDA.knn(*batch, k=9))
    cuda_backend.forget_plans()
    monkeypatch.setenv("LDREG_SIMT_MULTIPROCESSORS", "24")
    for seed in ("0", "1"):
        monkeypatch.setenv("LDREG_SIMT_SEED", seed)
        assert bits(CUDA.knn(*batch, k=9)) == wide
    assert "narrow" in forced.plans[-1]
    assert "narrow" not in forced.plans[0]


def test_fast_is_nearly_exact(forced: Forced, way: str) -> None:
    forced(way)
    x = cases.features(500, 30)
    exact, fast = CUDA.knn(x, k=16), CUDA.knn(x, k=16, precision="fast")
    assert (exact.indices == fast.indices).double().mean() > 0.99


# ------------------------------------------------------------------------------------------------- rows that fail

FAILING = {
    "all rows identical": lambda: torch.full((540, 6), 1.7),
    "six hundred copies of one": lambda: torch.cat([cases.normal(60, 20), torch.ones(600, 20)]),
    "rows with NaN and Inf": lambda: cases.normal(300, 20).index_fill(0, torch.tensor([5, 299]), torch.nan),
    "fewer finite rows than k": lambda: torch.cat([cases.normal(6, 20), torch.full((200, 20), torch.inf)]),
    "rows of 1e20": lambda: cases.normal(300, 20).index_fill(0, torch.tensor([5, 50]), 1e20),
    "norms over eight decades": lambda: cases.heavy_tails(300, 20),
    "a few ulps on an offset": lambda: cases.noise_on_offset(600, 20),
    "tight clusters": lambda: cases.tight_clusters(512, 64),
}


@pytest.mark.parametrize("name", FAILING)
def test_rows_whose_lists_have_no_room(forced: Forced, way: str, name: str) -> None:
    """Such rows get every pair in the same launch."""
    forced(way)
    x = FAILING[name]()
    oracle.check_knn(CUDA.knn(x, k=8), x, k=8, name="cuda")
    truth, _ = oracle.lid(x, None, estimator="mom", k=8, self_index=None)
    oracle.check_lid(CUDA.lid(x, k=8), truth, "cuda", x.dtype)


# ------------------------------------------------------------------------------------------------- counters


def test_a_captured_launch_has_counters_of_its_own(forced: Forced, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is replayed beside whatever else its stream does; its counters are set to 0 in the graph itself."""
    if DEVICE == "cuda":
        pytest.skip("test_gpu.py captures real graphs")
    forced(way)
    x = cases.features(200, 16)
    expected = bits(CUDA.knn(x, k=7))
    before = cuda_backend._cuda.module.state_of(0, 0)
    monkeypatch.setenv("LDREG_SIMT_CAPTURING", "1")
    monkeypatch.setattr(cuda_backend._cuda.module, "state_of", lambda *_: [])  # what is kept is not what is used
    for kind in ("0xff", "0x00"):
        with garbage.left_over(garbage.KINDS[kind]):
            assert bits(CUDA.knn(x, k=7)) == expected
    monkeypatch.undo()
    assert cuda_backend._cuda.state_of(0, 0) == before


# ------------------------------------------------------------------------------------------------- left-over memory

LEFT_OVER = [
    *(pytest.param(700, None, kind, id=f"own batch, {kind}") for kind in garbage.KINDS),
    *(pytest.param(130, 700, kind, id=f"other references, {kind}") for kind in garbage.KINDS if "every" in kind),
]


@pytest.mark.parametrize(("B", "N", "kind"), LEFT_OVER)
def test_what_memory_held_before_does_not_matter(forced: Forced, tiles: str, B: int, N: int | None, kind: str) -> None:
    """Neither to the result nor, written over by what such memory made a hit, to the rest of the workspace.

    700 rows end in the middle of a block and take several steps; tiles multiply the rest of the block, too.
    """
    forced(tiles)
    x, y = CUDA.put(cases.features(B, 24)), None if N is None else CUDA.put(cases.features(N, 24, seed=3))
    expected = bits(ldk.knn(x, y, k=9, backend="cuda"))
    assert " 1 steps" not in forced.plans[-1]
    with garbage.left_over(garbage.KINDS[kind]):
        assert bits(ldk.knn(x, y, k=9, backend="cuda")) == expected


# ------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("same", [True, False])
def test_the_order_of_threads_does_not_matter(
    forced: Forced, way: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds a candidate, and when, decides where it stands in its list, and must decide nothing else."""
    forced(way)
    y = cases.features(400 if same else 700, 20)
    y[18], y[100:103] = torch.nan, y[103]
    y = CUDA.put(y)
    x = y if same else CUDA.put(cases.features(70, 20, seed=5))
    problem = Problem(x, y, 8, 0 if same else None)

    def everything() -> list[bytes]:
        loss = cuda_backend.ldreg(problem, "hill", "l1_abs", None, "mean", (("mle", 12),), need_grad=True)
        return bits([*cuda_backend.knn(problem), *loss])

    expected = everything()
    for seed in (1, 2, 3):
        monkeypatch.setenv("LDREG_SIMT_SEED", str(seed))  # on a GPU the order is another every time
        assert everything() == expected


@pytest.mark.parametrize(
    ("B", "N", "D", "budget"), [(9, 140, 256, 0), (385, 385, 256, 0), (2100, 2100, 500, 4700 * 512)]
)
def test_halves_without_a_tile_in_any_order(
    forced: Forced, B: int, N: int, D: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warpgroups whose half of a tile is missing free boxes all the same, more than once round the ring."""
    forced(there("wgmma"), budget=budget)
    y = CUDA.put(cases.features(N, D))
    x = y if B == N else CUDA.put(cases.features(B, D, seed=5))
    problem = Problem(x, y, 10, 0 if B == N else None)
    expected = bits(cuda_backend.knn(problem))
    for seed in (1, 2) if budget == 0 else (1,):
        monkeypatch.setenv("LDREG_SIMT_SEED", str(seed))
        assert bits(cuda_backend.knn(problem)) == expected


# ------------------------------------------------------------------------------------------------- limits


def test_too_large_is_said_by_name() -> None:
    x = CUDA.put(cases.normal(1500, 2))
    with pytest.raises(ValueError, match=r"k must be at most 1024 on backend 'cuda' .*, got 1025"):
        ldk.knn(x, k=1025, backend="cuda")
    with pytest.raises(ValueError, match="x must have at most 8192 columns on backend 'cuda', got 8193"):
        ldk.knn(CUDA.put(torch.zeros(4, 8193)), k=2, backend="cuda")
    with pytest.raises(ValueError, match="tracked LIDs must be at most 64 on backend 'cuda', got 65"):
        ldk.ldreg_loss(x[:70], k=4, track=[("mle", k) for k in range(2, 67)], backend="cuda", return_stats=True)


def test_the_loop_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDREG_CUDA_LOOP", "simt")
    with pytest.raises(ValueError, match="LDREG_CUDA_LOOP must be one of auto, mma, wgmma, got 'simt'"):
        ldk.knn(CUDA.put(cases.normal(10, 2)), k=2, backend="cuda")


def planned(**fields: object) -> Any:
    """The plan of a call whose tensors nobody has."""
    call = cuda_backend._cuda.Call()
    for name, value in {"knn": True, "k": 64, "wanted": 64, "loop": "mma", **fields}.items():
        setattr(call, name, value)
    return cuda_backend._cuda.Planned(call)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("N", "D"), [(4096, 2048), (32768, 768), (131072, 512), (1 << 20, 64)])
def test_memory_does_not_grow_with_pairs(N: int, D: int, same: bool) -> None:
    """64 MB, and what O(B k + N) is here: 64 bytes for each of a query's k, 12 bytes a row."""
    plan = planned(B=N, N=N, D=D, x_stride=D, y_stride=D, same=same)
    assert plan.workspace <= (64 << 20) + 64 * 64 * N + 64 * N
    assert 4 * plan.state <= N


def test_too_many_pairs_for_one_launch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has 16777216 rows .* call it for fewer rows at a time"):
        planned(B=1 << 24, N=1 << 24, D=8, x_stride=8, y_stride=8)
    with pytest.raises(ValueError, match=r"x has 16777216 rows .* call it for fewer rows at a time"):
        planned(B=1 << 24, N=1 << 24, D=8, x_stride=8, y_stride=8, dtype=1)  # float64: every pair, in dense tiles


@pytest.mark.skipif(DEVICE == "cuda", reason="sizes of other devices are simulated")
@pytest.mark.parametrize("kilobytes", [99, 163, 227], ids=["consumer", "A100", "H200"])
@pytest.mark.parametrize("D", [64, 2048, 8192])
@pytest.mark.parametrize("k", [8, 512, 1024])
def test_every_size_has_a_plan_on_every_device(kilobytes: int, D: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and rows share a block's memory; where both are large and it is small, every pair is computed."""
    monkeypatch.setenv("LDREG_SIMT_SHARED", str(kilobytes << 10))
    shape = {"B": 9000, "N": 9000, "D": D, "x_stride": D, "y_stride": D, "same": True}
    plan = planned(**shape, k=k, wanted=k, drop_smallest=True).words
    assert "tiles" in plan or (kilobytes < 227 or k == 1024)
    assert "tiles" in planned(**shape, k=8, wanted=8, gradient=True, knn=False).words
