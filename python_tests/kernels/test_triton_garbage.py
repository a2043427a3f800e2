"""Whatever memory held before: results do not depend on it by a bit. The kinds are in garbage.py.

700 rows are no multiple of any tile, so packed rows, slabs and lists end within one.
"""

from __future__ import annotations

import cases
import garbage
import oracle
import pytest
import torch
from triton_small import MARKS, TILES, TRITON, WIDE, Small

from ldreg_kernels.kernels import triton_backend
from ldreg_kernels.kernels.contract import Problem

pytestmark = MARKS
B, N, D, K = 40, 700, 20, 8
ROOM = WIDE | {"words": 1 << 17, "select": 1024, "slab_block": 1024, "list_block": 256}  # few blocks, few operations


def features() -> torch.Tensor:
    """One row is NaN, and gets every pair."""
    y = cases.features(N, D)
    y[18] = torch.nan
    return y


def bits(found) -> list[bytes]:
    return [t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in found]


def loss(pattern: bytes) -> list[bytes]:
    """Loss, LIDs and gradient of a few queries, in memory that holds the pattern."""
    y = TRITON.put(features())
    problem = Problem(y[:B], y, K, 0)
    with garbage.left_over(pattern):
        return bits(triton_backend.ldreg(problem, "mom", "l1", None, "mean", (("mle", 12),), need_grad=True))


@pytest.fixture(scope="module")
def expected() -> dict[str, list[bytes]]:
    """What the first kind gave, by the way to the neighbours."""
    return {}


# As halves, bfloat16's infinities are float16's NaN: one of that kind is enough. What follows the slab reads as little.
KINDS = [kind for kind in garbage.KINDS if "bfloat16" not in kind or "upper" in kind]
CASES = [("lists", kind) for kind in KINDS] + [("slab", kind) for kind in KINDS[::2]]


@pytest.mark.parametrize(("way", "kind"), CASES)
def test_left_over_memory_changes_no_bit(small: Small, expected: dict, way: str, kind: str) -> None:
    small(way, **ROOM)
    found = loss(garbage.KINDS[kind])
    assert small.failed() == 1
    assert found == expected.setdefault(way, found)


@pytest.mark.parametrize("way", TILES)
def test_a_batch_in_itself(small: Small, way: str) -> None:
    """References and queries may share one packed copy, of 700 rows."""
    small(way, **ROOM)
    y = TRITON.put(features())
    found = []
    for kind in ("0x00", "one +Inf float16 in 64, at 0"):
        with garbage.left_over(garbage.KINDS[kind]):
            found.append(bits(triton_backend.knn(Problem(y, y, K, 0))))
    assert small.plan.size.panel < N, "one panel"
    assert found[0] == found[1]


@pytest.mark.parametrize("way", TILES)
def test_what_is_compared_is_right(small: Small, way: str) -> None:
    small(way, **ROOM)
    y = features()
    with garbage.left_over(garbage.KINDS["one +Inf float16 in 64, at 0"]):
        found = TRITON.knn(y[:B], y, k=K, self_index=0)
    oracle.check_knn(found, y[:B], y, k=K, self_index=0, name="triton")
