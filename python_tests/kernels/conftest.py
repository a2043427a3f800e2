"""Small blocks for the Triton tests: see triton_small.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from triton_small import Small

from ldreg_kernels.kernels import tuning


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
