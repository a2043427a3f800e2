"""The Triton kernels with small blocks: several tiles, panels and steps in problems that the interpreter can do.

`python_tests/ops` judges this backend like every other, with the blocks it ships. Here every block is forced to be
small (triton_small.py), the way to the neighbours is chosen, and the plan tells which way a row really went. What is
decided before a kernel runs: test_tuning.py; how the work is launched, and rows that need every pair:
test_triton_launch.py.
"""

from __future__ import annotations

from collections.abc import Callable

import cases
import oracle
import pytest
import tolerances
import torch
from triton_small import MARKS, TILES, TRITON, WAYS, WIDE, Small, check, check_lid

from ldreg_kernels.kernels import reference, triton_backend
from ldreg_kernels.kernels.contract import ESTIMATORS, Problem

pytestmark = MARKS

# ------------------------------------------------------------------------------------------------- sizes


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
    assert q.size.panel < q.B, "one panel"
    assert q.setup.same == (own == "itself")
    if way == "lists":
        assert q.size.chunk < q.N, "one step"
        assert not q.setup.once
    assert small.failed() == 0


@pytest.mark.parametrize("own", [True, False], ids=["own batch", "two sets"])
def test_several_steps_of_references_packed_once(small: Small, own: bool) -> None:
    small("lists", **WIDE)
    x = cases.features(100, 20)
    check(x, None if own else cases.features(100, 20, seed=2), k=8)
    assert small.plan.setup.once
    assert not small.plan.setup.shared  # references are packed in an order of their own
    assert small.plan.size.first_step < small.plan.N
    assert small.failed() == 0


def test_one_packed_copy_of_a_batch_searched_in_itself(small: Small) -> None:
    small("slab", **WIDE)
    check(cases.features(100, 20), k=8)
    assert small.plan.setup.shared


def test_references_in_order_of_class_fit_the_lists(small: Small) -> None:
    """Met in that order, a query's own class would come in one step, under a threshold set by the others."""
    small("lists", **WIDE | {"words": 1 << 20})
    g = cases.seeded(3)
    y = (6 * torch.randn(6, 16, generator=g)).repeat_interleave(300, 0) + torch.randn(1800, 16, generator=g)
    check(y[::60], y, k=8)
    assert small.plan.size.first_step < 300
    assert small.failed() == 0


@pytest.mark.parametrize("way", TILES)
def test_one_exploding_reference_costs_no_row_its_list(small: Small, way: str) -> None:
    """Every query has to consider it, and its distance is infinite in the batch's unit; it is nobody's neighbour."""
    small(way, **WIDE | {"words": 1 << 20})
    x = cases.outlier(600, 32, 3e4)
    check(x[:50], x, k=8, self_index=0)
    assert small.failed() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_dtypes(small: Small, way: str, dtype: torch.dtype) -> None:
    small(way, **WIDE)
    x = cases.features(100, 40)
    check(x[:20].to(dtype), (x + 3).to(dtype), k=12, estimator="hill")
    assert small.failed() == 0


def test_float64_takes_every_pair(small: Small) -> None:
    small("direct")
    check(cases.features(40, 20).double(), cases.features(100, 20, seed=3).double(), k=12)
    assert small.plan.size.panel < 40


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


@pytest.mark.parametrize("way", TILES)
def test_fast_is_exact_about_what_it_found(small: Small, way: str) -> None:
    small(way, **WIDE)
    k, x = 8, cases.tight_clusters(256, 64)[::2]
    found = TRITON.knn(x, k=k, precision="fast")
    at_indices = oracle.distances_given(x, None, found.indices)
    oracle.assert_relative(found.distances, at_indices, tolerances.DISTANCE, 0.0, "distance of the returned row")
    assert (found.distances.double() >= oracle.knn(x, k=k).distances * (1 - tolerances.DISTANCE)).all()
    count = small.lists.count[:128]
    if way == "slab":  # where a step of the lists may lack room, as in precision="exact"
        assert small.failed() == 0
        assert ((count >= k + 16) & (count <= k + 17)).all(), "candidates to choose from"


@pytest.mark.parametrize("way", TILES)
def test_fast_is_right_where_16_candidates_more_do(small: Small, way: str) -> None:
    small(way, **WIDE)
    x = cases.normal(100, 64)
    oracle.check_knn(TRITON.knn(x, k=8, precision="fast"), x, k=8, name="triton")
    few = x[:12]  # fewer references than candidates wanted
    oracle.check_knn(TRITON.knn(few, k=8, precision="fast"), few, k=8, name="triton")


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


@pytest.mark.parametrize("one_chunk", [True, False], ids=["one chunk of features", "several chunks"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_one_gather_and_of_two(small: Small, estimator: str, one_chunk: bool) -> None:
    """Neighbours guessed from keys and mended, if a row's features fit the registers; gathered again, if not."""
    small("lists", **WIDE | {"row_d": 64 if one_chunk else 16})
    x, k = two_heaps(70, 40, apart=80), 8
    check_lid(x, None, estimator, oracle.knn(x, k=k).indices, k=k)
    assert small.plan.setup.one_chunk == one_chunk
    assert small.failed() == 0
    right = small.space.sorted_tag[0, : len(x), :k] & 1  # whether a neighbour was among those guessed
    if one_chunk and estimator not in ("mle", "mada"):
        assert 0.5 < right.float().mean() < 1, "nothing to mend"
    else:
        assert not right.any()
