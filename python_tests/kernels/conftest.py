"""Small blocks for Triton (triton_small.py), forced ways for CUDA (cuda_ways.py), all threads for small CPU work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from cuda_ways import Forced
from triton_small import Small

from ldreg_kernels.kernels import cuda_backend, native, triton_backend, tuning


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """Forces the blocks of every call; without append's larger room, so that a few references are several steps."""
    from ldreg_kernels.kernels import triton_launch

    chosen, plan, memory, capacity = Small(), triton_launch.plan, triton_launch.memory, tuning.capacity

    def forced(shape, blocks, programs, *, fused, **modes):
        blocks = dataclasses.replace(blocks, **chosen.blocks)
        return plan(shape, blocks, chosen.programs, fused=chosen.fused, **modes)

    def recorded(plan, x):
        chosen.plan, chosen.memory = plan, memory(plan, x)
        return chosen.memory

    monkeypatch.setattr(triton_launch, "plan", forced)
    monkeypatch.setattr(triton_launch, "memory", recorded)
    monkeypatch.setattr(tuning, "capacity", lambda wanted, path, _: capacity(wanted, path, False))
    # A captured launch has a state of its own, new and zero, which can be read afterwards.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    triton_backend.forget_plans()
    yield chosen
    triton_backend.forget_plans()


@pytest.fixture
def shared() -> Iterator[None]:
    """The CPU kernels use all their threads, whatever the work is worth and however busy the machine."""
    if native.unavailable_reason() is None:
        native._cpu.always_share(True)
    yield
    if native.unavailable_reason() is None:
        native._cpu.always_share(False)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forced]:
    module = Forced(cuda_backend._cuda)
    monkeypatch.setattr(cuda_backend, "_cuda", module)
    cuda_backend.forget_plans()
    yield module
    cuda_backend.forget_plans()
    assert not module.left, "the next launch begins with zeros"
