"""The Triton kernels with small blocks: what the tests force, and the judgement of one problem.

A problem that the interpreter can do then has several tiles, panels and steps. The fixture `small`
(kernels/conftest.py) forces the blocks of every call and keeps the plans, which tell which way a row really went.
"""

from __future__ import annotations

import cases
import oracle
import pytest
import tolerances
import torch
from conftest import Backend

from ldreg_kernels.kernels import triton_backend

MISSING = triton_backend.unavailable_reason()
DEVICE = triton_backend.device_types()[0]
TRITON = Backend("triton", torch.device(DEVICE))
MARKS = [  # of every file that uses this one
    pytest.mark.skipif(MISSING is not None, reason=f"backend 'triton' is unavailable: {MISSING}"),
    pytest.mark.usefixtures("poisoned_memory"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]

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
