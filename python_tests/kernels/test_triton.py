"""The Triton kernels with small blocks: several tiles, panels and steps in problems that the interpreter can do.

`python_tests/ops` judges this backend like every other, with the blocks it ships. Here every block is forced to be
small, the way to the neighbours is chosen, and the plan tells which way a row really went. What is decided before a
kernel runs: test_tuning.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cases
import oracle
import pytest
import tolerances
import torch
from conftest import Backend

from ldreg_kernels.kernels import reference, triton_backend, tuning
from ldreg_kernels.kernels.contract import ESTIMATORS, Problem

MISSING = triton_backend.unavailable_reason()
DEVICE = triton_backend.device_types()[0]
TRITON = Backend("triton", torch.device(DEVICE))
pytestmark = [pytest.mark.usefixtures("poisoned_memory"), *([pytest.mark.gpu] if DEVICE == "cuda" else [])]
needs_triton = pytest.mark.skipif(MISSING is not None, reason=f"backend 'triton' is unavailable: {MISSING}")

SMALL = (
    {"tile_b": 16, "tile_n": 32, "tile_d": 16, "direct_b": 16, "direct_n": 32, "direct_d": 16}
    | {"pack_rows": 16, "pack_d": 32, "centre_d": 16, "rows": 16, "row_d": 32, "together": 8, "sort": 64}
    | {"select_rows": 16, "select": 64, "slab_block": 64, "list_block": 64, "loss_block": 16, "words": 1 << 12}
)
WIDE = (  # a hundred rows at a time: five times faster in the interpreter, for tests that are about the data
    {"tile_b": 128, "tile_n": 64, "tile_d": 64, "direct_b": 32, "direct_n": 64, "direct_d": 32}
    | {"pack_rows": 128, "pack_d": 64, "centre_d": 64, "rows": 128, "row_d": 64, "together": 16}
    | {"select_rows": 128, "select": 128, "slab_block": 128, "loss_block": 128, "words": 1 << 16}
)
# Every pair; keys of all references in a slab; candidates appended to lists, step by step
WAYS = {
    "direct": {"path": "direct"},
    "slab": {"path": "tiles", "append": False},
    "lists": {"path": "tiles", "append": True},
}
TILES = ["slab", "lists"]


class Small:
    """The plans of the calls so far, each with small blocks and whatever else the test asked for."""

    def __init__(self) -> None:
        self.plans: list = []
        self.blocks: dict = {}
        self.programs = 1
        self.fused = False

    def __call__(self, way: str, programs: int = 1, fused: bool = False, **blocks) -> None:
        self.blocks = {**SMALL, **WAYS[way], **blocks}
        self.programs, self.fused = programs, fused

    @property
    def plan(self):
        return self.plans[-1]

    def failed(self) -> int:
        """Rows of the last call that every pair was computed for, because their candidates did not do."""
        return int(self.plan.s.state[3])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Forces the blocks of every call; without append's larger room, so that a few references are several steps."""
    from ldreg_kernels.kernels import triton_launch

    chosen, plan, capacity = Small(), triton_launch.plan, tuning.capacity

    def forced(problem, request, out, blocks, programs, fused):
        blocks = dataclasses.replace(blocks, **chosen.blocks)
        chosen.plans.append(plan(problem, request, out, blocks, chosen.programs, chosen.fused))
        return chosen.plans[-1]

    monkeypatch.setattr(triton_launch, "plan", forced)
    monkeypatch.setattr(tuning, "capacity", lambda wanted, path, _: capacity(wanted, path, False))
    # A captured launch has a state of its own, new and zero, which can be read afterwards.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return chosen


def check(x, y=None, *, k, estimator="mom", self_index=None):
    """Neighbours, LID and gradient of one problem."""
    where = {"k": k, "self_index": self_index}
    found = TRITON.knn(x, y, **where)
    oracle.check_knn(found, x, y, **where, name="triton")
    if k > 1:
        check_lid(x, y, estimator, found.indices, **where)


def check_lid(x, y, estimator, indices, **where):
    x = x.detach().requires_grad_()
    lid = TRITON.lid(x, y, estimator=estimator, **where)
    truth, _ = oracle.lid(x, y, estimator=estimator, **where)
    oracle.check_lid(lid.detach(), truth, "triton", x.dtype)
    weight = 0.5 + torch.rand(len(x), generator=cases.seeded(1), dtype=lid.dtype)
    (gradient,) = torch.autograd.grad((lid * weight).sum(), x)
    expected, values = oracle.lid_gradient_given(x, y, indices, estimator, weight)
    resolved = oracle.resolved_rows(lid.detach(), values, x.dtype)
    largest = values[resolved].nan_to_num(0).max().item() if resolved.any() else 0.0
    tolerance = tolerances.gradient("triton", x.dtype, largest)
    oracle.check_gradient(gradient[resolved], expected[resolved], tolerance, x.dtype)


# ------------------------------------------------------------------------------------------------- sizes


@needs_triton
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("B", "N", "D", "k"),
    [
        *[(15, 31, 15, 7), (16, 32, 16, 32), (17, 33, 17, 8), (16, 65, 33, 16), (1, 97, 1, 5), (3, 5, 2, 3)],
        *[(20, None, 31, 19), (33, None, 1, 2), (2, None, 40, 1)],
    ],
)
def test_one_below_at_and_above_every_block(small: Small, way: str, B: int, N: int | None, D: int, k: int) -> None:
    small(way)
    check(cases.normal(B, D, seed=B), None if N is None else cases.normal(N, D, seed=N), k=k)
    assert small.plan.setup.path == WAYS[way]["path"]


@needs_triton
@pytest.mark.parametrize("own", ["offset", "map", "itself"])
@pytest.mark.parametrize("way", WAYS)
def test_panels_and_steps(small: Small, way: str, own: str) -> None:
    """Queries in several panels, references packed and searched in several steps."""
    small(way)
    y = cases.features(100, 20, seed=3)
    x, index = y[57:80].clone(), {"offset": 57, "map": torch.arange(57, 80)}.get(own)
    if own == "map":
        index[::3] = -1
    if own == "itself":
        x, y = y[:68], None
    check(x, y, k=8, self_index=index)
    q = small.plan
    assert q.panel < q.p.B, "one panel"
    assert q.setup.same == (own == "itself")
    if way == "lists":
        assert q.chunk < q.p.N, "one step"
        assert not q.setup.once
    assert small.failed() == 0


@needs_triton
@pytest.mark.parametrize("own", [True, False], ids=["own batch", "two sets"])
def test_several_steps_of_references_packed_once(small: Small, own: bool) -> None:
    small("lists", **WIDE)
    x = cases.features(100, 20)
    check(x, None if own else cases.features(100, 20, seed=2), k=8)
    assert small.plan.setup.once
    assert not small.plan.setup.shared  # references are packed in an order of their own
    assert small.plan.first_step < small.plan.p.N
    assert small.failed() == 0


@needs_triton
def test_one_packed_copy_of_a_batch_searched_in_itself(small: Small) -> None:
    small("slab", **WIDE)
    check(cases.features(100, 20), k=8)
    assert small.plan.setup.shared


@needs_triton
def test_references_in_order_of_class_fit_the_lists(small: Small) -> None:
    """Met in that order, a query's own class would come in one step, under a threshold set by the others."""
    small("lists", **WIDE | {"words": 1 << 20})
    g = cases.seeded(3)
    y = (6 * torch.randn(6, 16, generator=g)).repeat_interleave(300, 0) + torch.randn(1800, 16, generator=g)
    check(y[::60], y, k=8)
    assert small.plan.first_step < 300
    assert small.failed() == 0


@needs_triton
@pytest.mark.parametrize("way", TILES)
def test_one_exploding_reference_costs_no_row_its_list(small: Small, way: str) -> None:
    """Every query has to consider it, and its distance is infinite in the batch's unit; it is nobody's neighbour."""
    small(way, **WIDE | {"words": 1 << 20})
    x = cases.outlier(600, 32, 3e4)
    check(x[:50], x, k=8, self_index=0)
    assert small.failed() == 0


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_dtypes(small: Small, way: str, dtype: torch.dtype) -> None:
    small(way, **WIDE)
    x = cases.features(100, 40)
    check(x[:20].to(dtype), (x + 3).to(dtype), k=12, estimator="hill")
    assert small.failed() == 0


@needs_triton
def test_float64_takes_every_pair(small: Small) -> None:
    small("direct")
    check(cases.features(40, 20).double(), cases.features(100, 20, seed=3).double(), k=12)
    assert small.plan.panel < 40


@needs_triton
@pytest.mark.parametrize("way", WAYS)
def test_loss_over_several_blocks(small: Small, way: str) -> None:
    """One mean over more rows than a block, and tracked LIDs of more neighbours than the loss asks for."""
    small(way, programs=2, **WIDE | {"loss_block": 16})
    x = cases.features(100, 20).requires_grad_()
    value, stats = TRITON.loss(x, k=8, form="l2", track=[("mle", 16), ("mada", 5)])
    truth, degenerate = oracle.lid(x, k=8)
    expected = reference.loss(truth, degenerate, "l2", None, "mean")
    assert abs(value.item() - expected.item()) <= tolerances.LOSS * (1 + abs(expected.item()))
    oracle.check_lid(stats.lid, truth, "triton", x.dtype)
    for (estimator, k), lid in stats.tracked.items():
        oracle.check_lid(lid, oracle.lid(x, k=k, estimator=estimator)[0], "triton", x.dtype)
    (gradient,) = torch.autograd.grad(value, x)
    _, expected = oracle.loss_given(x, None, TRITON.knn(x, k=8).indices, "mom", "l2", None, "mean")
    oracle.check_gradient(gradient, expected, tolerances.gradient("triton", x.dtype, truth.max().item()), x.dtype)


# ------------------------------------------------------------------------------------------------- candidates


def two_heaps(n: int, D: int, apart: float = 15) -> torch.Tensor:
    """Two heaps so far apart that no centre serves both: packing moves distances by more than some differ."""
    x = cases.features(n, D, seed=4)
    x[::2] += apart
    return x


@needs_triton
@pytest.mark.parametrize("way", TILES)
def test_fast_is_exact_about_what_it_found(small: Small, way: str) -> None:
    small(way, **WIDE)
    k, x = 8, cases.tight_clusters(256, 64)[::2]
    found = TRITON.knn(x, k=k, precision="fast")
    at_indices = oracle.distances_given(x, None, found.indices)
    oracle.assert_relative(found.distances, at_indices, tolerances.DISTANCE, 0.0, "distance of the returned row")
    assert (found.distances.double() >= oracle.knn(x, k=k).distances * (1 - tolerances.DISTANCE)).all()
    count = small.plan.c.count[:128]
    if way == "slab":  # where a step of the lists may lack room, as in precision="exact"
        assert small.failed() == 0
        assert ((count >= k + 16) & (count <= k + 17)).all(), "candidates to choose from"


@needs_triton
@pytest.mark.parametrize("way", TILES)
def test_fast_is_right_where_16_candidates_more_do(small: Small, way: str) -> None:
    small(way, **WIDE)
    x = cases.normal(100, 64)
    oracle.check_knn(TRITON.knn(x, k=8, precision="fast"), x, k=8, name="triton")
    few = x[:12]  # fewer references than candidates wanted
    oracle.check_knn(TRITON.knn(few, k=8, precision="fast"), few, k=8, name="triton")


@needs_triton
@pytest.mark.parametrize("features", [cases.features, cases.normal, cases.vit_cls, cases.collapsed, two_heaps])
@pytest.mark.parametrize("way", TILES)
def test_ordinary_features_need_no_fallback(small: Small, way: str, features: Callable) -> None:
    small(way, **WIDE)
    x = features(128, 64)
    found = TRITON.knn(x, k=16)
    assert small.failed() == 0
    oracle.check_knn(found, x, k=16, name="triton")


STEP = 2.0**-10  # of float16 between 1 and 2


def rounded_apart() -> tuple[torch.Tensor, torch.Tensor]:
    """The nearer references are rounded away from the query, the others towards it."""
    i = torch.arange(64, dtype=torch.float64)
    near, sign = i % 8 < 3, (-1) ** (i // 8)
    y = torch.where(near, 1 + (0.52 + 0.002 * i) * STEP, 1 + (0.48 - 0.002 * i) * STEP) * sign
    return torch.zeros(2, 3), torch.stack([y, y, torch.where(near, 0.0, STEP**0.5)], 1).float()


def rounded_query() -> tuple[torch.Tensor, torch.Tensor]:
    """The query is rounded away from the nearer references and towards the others."""
    i = torch.arange(128, dtype=torch.float64)
    near, sign = i % 8 < 3, (-1) ** (i // 64)
    y = torch.where(near, 1.25, 0.75)
    y = torch.stack([y, y, torch.where(near, (0.75 * STEP) ** 0.5, 0.0) + 1e-5 * i], 1) * sign[:, None]
    return torch.tensor([[1 + 0.48 * STEP, 1 + 0.48 * STEP, 0.0]]).float(), y.float()


def integers() -> tuple[torch.Tensor, torch.Tensor]:
    """float16 holds these rows, but float32 cannot tell their products apart."""
    g = cases.seeded(1)
    row = torch.randint(-2040, 2041, (64,), generator=g)
    y = row + torch.randint(-1, 2, (96, 64), generator=g)
    y[::2] *= -1
    return torch.stack([row, -row]).float(), y.float()


@needs_triton
@pytest.mark.parametrize("data", [rounded_apart, rounded_query, integers])
@pytest.mark.parametrize("way", TILES)
def test_low_precision_misleads_about_every_neighbour(small: Small, way: str, data: Callable) -> None:
    """What the tiles find nearest is not; the bounds have to let the neighbours through nevertheless."""
    small(way, **WIDE)
    x, y = data()
    k = 24
    oracle.check_knn(TRITON.knn(x, y, k=k), x, y, k=k, name="triton")
    assert small.failed() == 0
    with pytest.raises(AssertionError):
        oracle.check_knn(TRITON.knn(x, y, k=8, precision="fast"), x, y, k=8, name="triton")


def with_rows(value: float, *rows: int) -> torch.Tensor:
    x = cases.normal(100, 20)
    x[list(rows)] = value
    return x


FALLING = {  # features, and of how many rows the candidates do not do
    "identical rows": (lambda: torch.full((100, 20), 1.7), range(100, 101)),
    "ten copies each": (lambda: cases.normal(10, 20).repeat(10, 1), range(1)),
    "eighty copies of one": (lambda: with_rows(1, *range(80)), range(80, 101)),
    "rows with NaN": (lambda: with_rows(torch.nan, 5, 50, 99), range(3, 4)),
    "a row of Inf": (lambda: with_rows(torch.inf, 40), range(1, 2)),
    "fewer finite rows than k": (lambda: with_rows(torch.nan, *range(6, 100)), range(100, 101)),
    "rows of 1e20": (lambda: with_rows(1e20, 5, 50), range(2, 101)),
    "distances that overflow": (lambda: with_rows(1e6, 20)[:50], range(1, 51)),
    "norms over eight decades": (lambda: cases.heavy_tails(100, 20), range(101)),
    "a few ulps on an offset": (lambda: cases.noise_on_offset(100, 20), range(50, 101)),
    "one cluster after another": (lambda: cases.tight_clusters(256, 64)[::2], range(65)),
}


@needs_triton
@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("way", TILES)
def test_rows_whose_candidates_do_not_fit(small: Small, way: str, name: str) -> None:
    """Such rows get every pair, and the outcome is right either way."""
    small(way, **WIDE)
    features, falling = FALLING[name]
    x = features()
    found = TRITON.knn(x, k=8)
    oracle.check_knn(found, x, k=8, name="triton")
    assert small.failed() in falling
    if way == "slab":  # what follows is the same
        check_lid(x, None, "mom", found.indices, k=8)
    assert small.failed() in falling


@needs_triton
@pytest.mark.parametrize("way", TILES)
def test_the_smallest_dropped(small: Small, way: str) -> None:
    """`compat`: one candidate more, and the nearest of them left out of everything, gradient included."""
    small(way, **WIDE)
    x, y, k = cases.features(30, 20), cases.features(100, 20, seed=3), 8
    here = Problem(TRITON.put(x), TRITON.put(y), k, None, drop_smallest=True)
    dropped, all_of_them = triton_backend.knn(here), TRITON.knn(x, y, k=k + 1)
    assert torch.equal(dropped.distances.cpu(), all_of_them.distances[:, 1:])
    assert torch.equal(dropped.indices.cpu(), all_of_them.indices[:, 1:])
    found = triton_backend.lid(here, "mom", (("mle", 5),), need_grad=True)
    there = Problem(x.double(), y.double(), k, None, drop_smallest=True)
    truth = reference.lid(there, "mom", (("mle", 5),), need_grad=True)
    oracle.check_lid(found.lid.cpu(), truth.lid, "triton", x.dtype)
    oracle.check_lid(found.tracked[0].cpu(), truth.tracked[0], "triton", x.dtype)
    tolerance = tolerances.gradient("triton", x.dtype, truth.lid.max().item())
    oracle.check_gradient(found.grad.cpu(), truth.grad, tolerance, x.dtype)


@needs_triton
@pytest.mark.parametrize("one_chunk", [True, False], ids=["one chunk of features", "several chunks"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_one_gather_and_of_two(small: Small, estimator: str, one_chunk: bool) -> None:
    """Neighbours guessed from keys and mended, if a row's features fit the registers; gathered again, if not."""
    small("lists", **WIDE | {"row_d": 64 if one_chunk else 16})
    x, k = two_heaps(70, 40, apart=80), 8
    check_lid(x, None, estimator, oracle.knn(x, k=k).indices, k=k)
    assert small.plan.setup.one_chunk == one_chunk
    assert small.failed() == 0
    right = small.plan.s.sorted_tag[0, : len(x), :k] & 1  # whether a neighbour was among those guessed
    if one_chunk and estimator not in ("mle", "mada"):
        assert 0.5 < right.float().mean() < 1, "nothing to mend"
    else:
        assert not right.any()


# ------------------------------------------------------------------------------------------------- launches


def bits(result) -> list[bytes]:
    return [t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in result]


def some_call(name: str, B: int = 34):
    """`knn`, or a loss with tracked LIDs and gradient; one row is NaN, and has to fall back."""
    x, y = TRITON.put(cases.features(B, 20)), TRITON.put(cases.features(80, 20, seed=3))
    x[18] = torch.nan
    problem = Problem(x, y, 8, None)
    if name == "knn":
        return triton_backend.knn(problem)
    return triton_backend.ldreg(problem, "hill", "l1_abs", None, "mean", (("mle", 12),), need_grad=True)


@needs_triton
@pytest.mark.parametrize("call", ["knn", "ldreg"])
@pytest.mark.parametrize("way", WAYS)
def test_fused_is_staged_bit_for_bit(small: Small, way: str, call: str) -> None:
    """One launch or many, by one program or by several: the same bits, and a state that is zero again."""
    small(way)
    expected = bits(some_call(call))
    assert small.plan.panel < 34
    assert small.failed() == (way != "direct")
    for programs in (1,) if triton_backend.interpreting() else (1, 3):  # the interpreter cannot make programs meet
        small(way, programs, fused=True)
        assert bits(some_call(call)) == expected
        assert small.plan.setup.fused
        assert not small.plan.s.state.any(), "the next launch begins with zeros"


@needs_triton
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_programs(small: Small, way: str) -> None:
    """Who finds a candidate decides where it stands in its list, and must decide nothing else."""
    several = {"tile_n": 16, "rows": 8, "select_rows": 8, "words": 1 << 14}  # blocks for everyone
    small(way, **several)
    expected = bits(some_call("ldreg", 20))
    for programs in (2, 3, 5):
        small(way, programs, **several)
        assert bits(some_call("ldreg", 20)) == expected
        assert small.plan.programs == programs
