"""The Triton kernels with small blocks: what the tests force, and the judgement of one problem.

A problem that the interpreter can do then has several tiles, panels and steps. The fixture `small`
(kernels/conftest.py) forces the blocks of every call and keeps the plans, which tell which way a row really went.
"""

from __future__ import annotations

import contextlib

import cases
import oracle
import pytest
import tolerances
import torch
import triton_blocks
from conftest import Backend
from triton_blocks import WAYS

from ldreg_kernels.kernels import triton_backend

with contextlib.suppress(ImportError):  # without Triton every test here is skipped
    from ldreg_kernels.kernels import triton_plan

MISSING = triton_backend.unavailable_reason()
DEVICE = triton_backend.device_types()[0]
TRITON = Backend("triton", torch.device(DEVICE))
MARKS = [  # of every file that uses this one
    pytest.mark.skipif(MISSING is not None, reason=f"backend 'triton' is unavailable: {MISSING}"),
    pytest.mark.usefixtures("poisoned_memory"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]

SMALL, WIDE = (
    (triton_blocks.SMALL, triton_blocks.WIDE)
    if DEVICE == "cpu"
    else (triton_blocks.SMALL_ON_GPU, triton_blocks.WIDE_ON_GPU)
)
TILES = ["slab", "lists"]


class Small:
    """Small blocks for the calls to come, and whatever else the test asks for; plan and memory of the last call."""

    def __init__(self) -> None:
        self.blocks: dict = {}
        self.programs = 1
        self.fused = False
        self.plan: triton_plan.Plan
        self.memory: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, way: str, programs: int = 1, fused: bool = False, **blocks) -> None:
        self.blocks = {**SMALL, **WAYS[way], **blocks}
        self.programs, self.fused = programs, fused
        triton_backend.forget_plans()

    @property
    def state(self) -> torch.Tensor:
        return self.memory[1]

    @property
    def space(self):
        return triton_plan.views(self.plan.space, self.memory[0])

    @property
    def lists(self):
        return triton_plan.views(self.plan.lists, self.memory[0])

    def failed(self) -> int:
        """Rows of the last call that every pair was computed for, because their candidates did not do."""
        return int(self.state[3])


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
