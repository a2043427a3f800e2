"""How the Triton stages are run, with small blocks: again for rows whose candidates do not fit, in one launch or many.

What the stages find: test_triton.py. What only a GPU can show of launches: test_gpu.py.
"""

from __future__ import annotations

import cases
import oracle
import pytest
import torch
from triton_small import MARKS, TILES, TRITON, WAYS, WIDE, Small, check_lid

from ldreg_kernels.kernels import triton_backend
from ldreg_kernels.kernels.contract import Problem

pytestmark = MARKS

# ------------------------------------------------------------------------------------------------- fallback


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


@pytest.mark.parametrize("call", ["knn", "ldreg"])
@pytest.mark.parametrize("way", WAYS)
def test_fused_is_staged_bit_for_bit(small: Small, way: str, call: str) -> None:
    """One launch or many, by one program or by several: the same bits, and a state that is zero again."""
    small(way)
    expected = bits(some_call(call))
    assert small.plan.size.panel < 34
    assert small.failed() == (way != "direct")
    for programs in (1,) if triton_backend.interpreting() else (1, 3):  # the interpreter cannot make programs meet
        small(way, programs, fused=True)
        assert bits(some_call(call)) == expected
        assert small.plan.setup.fused
        assert not small.state.any(), "the next launch begins with zeros"


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
